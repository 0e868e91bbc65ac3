"""What people have corrected becomes what the agents practise on."""

import json

import pytest
from typer.testing import CliRunner

from memory_r1 import Memory
from memory_r1.data import DECISIONS, Report, jsonl, load
from memory_r1.embed import open_embedder
from memory_r1.errors import DataError
from memory_r1.llm import Agents, ScriptedLLM
from memory_r1.practice import dialogues
from memory_r1.serve.cli import app
from memory_r1.train.construct import corrections
from memory_r1.train.episodes import ManagerEpisode
from memory_r1.types import Answer, Completion

DOG, CAT = "Mia has a dog named Rex", "Mia has a cat named Tom"
BOTH = "Mia has two dogs, Rex and Fay"


def facts(*texts):
    return json.dumps({"facts": list(texts)})


def ops(*operations):
    return json.dumps({"operations": list(operations)})


def told(*replies, **settings):
    """A memory that was told of a dog and a cat, and whose model replies like that afterwards."""
    memory = Memory("ram:", llm=ScriptedLLM(replies), **settings)
    before = Memory(memory.store, embedder=memory.embedder)
    for text in (DOG, CAT):
        before.add(text, user_id="mia", speaker="Mia", infer=False)
    return memory


def decisions(memory):
    found = dialogues(memory.store)
    return [] if not found else found[0].meta.get(DECISIONS, [])


def test_a_correction_tells_what_would_have_been_right():
    memory = told(
        facts("Mia adopted Fay"), ops({"op": "UPDATE", "id": 0, "text": "Mia's dog: Fay"})
    )
    (row,) = memory.add("I adopted Fay", user_id="mia", speaker="Mia").rows
    assert decisions(memory) == []
    memory.update(row.entry_id, BOTH, user_id="mia")
    assert decisions(memory) == [
        {"fact": "Mia adopted Fay", "speaker": "Mia", "memories": [DOG, CAT], "right": [CAT, BOTH]}
    ]


@pytest.mark.parametrize(
    ("op", "right"),
    [
        ({"op": "DELETE", "id": 0}, [DOG, CAT]),
        ({"op": "ADD", "text": "noise"}, [DOG, CAT]),
        ({"op": "UPDATE", "id": 1, "text": "noise"}, [DOG, CAT]),
    ],
)
def test_what_was_undone_should_not_have_been_done(op, right):
    memory = told(facts("Mia sighs"), ops(op))
    (row,) = memory.add("Sigh", user_id="mia", speaker="Mia").rows
    memory.undo(row.id, user_id="mia")
    (decision,) = decisions(memory)
    assert sorted(decision["right"]) == sorted(right) and decision["memories"] == [DOG, CAT]


def test_an_addition_deleted_by_hand_should_not_have_been_made():
    memory = told(facts("Mia sighs"), ops({"op": "ADD", "text": "Mia sighs"}))
    (row,) = memory.add("Sigh", user_id="mia").rows
    memory.delete(row.entry_id, user_id="mia")
    (decision,) = decisions(memory)
    assert decision["right"] == [DOG, CAT]


def test_proposals_are_right_when_approved_and_wrong_when_rejected():
    memory = told(
        facts("The dog died"),
        ops({"op": "DELETE", "id": 0}),
        facts("Mia is sad"),
        ops({"op": "DELETE", "id": 0}),
        policy="confirm_deletes",
    )
    for text, verb in (("Rex died", memory.approve), ("I am sad", memory.reject)):
        (row,) = memory.add(text, user_id="mia", speaker="Mia").rows
        assert row.state == "proposed"
        verb(row.id, user_id="mia")
    first, second = decisions(memory)
    assert (first["memories"], first["right"]) == ([DOG, CAT], [CAT])
    assert (second["memories"], second["right"]) == ([CAT], [CAT])


def test_feedback_becomes_a_question_with_its_right_answer():
    memory = told()
    (dog, cat) = memory.list(user_id="mia")
    for question, said, right, correct in (
        ("How many pets?", "2", True, ""),
        ("The cat?", "Rex", False, "Tom"),
        ("The horse?", "Rex", False, "not mentioned"),
        ("The bird?", "Rex", False, ""),
        ("How many pets?", "3", False, "2"),
    ):
        answer = Answer(said, question, used=(dog, cat))
        memory.feedback(answer, right, user_id="mia", correct=correct)
    (dialogue,) = dialogues(memory.store)
    assert {q.text: q.answer for q in dialogue.questions} == {
        "How many pets?": "2",
        "The cat?": "Tom",
        "The horse?": "not mentioned",
    }
    assert [turn.text for turn in dialogue.turns] == [DOG, CAT]
    assert dialogue.questions[0].evidence == tuple(turn.id for turn in dialogue.turns)
    assert dialogue.split == "train" and DECISIONS not in dialogue.meta
    assert dialogues(memory.store, "nobody") == []


def test_it_is_read_back_from_a_file_and_rewarded_as_corrected(tmp_path):
    memory = told(facts("Mia adopted Fay"), ops({"op": "ADD", "text": "Fay"}))
    (row,) = memory.add("I adopted Fay", user_id="mia", speaker="Mia").rows
    memory.undo(row.id, user_id="mia")
    read = jsonl.read(jsonl.dump(dialogues(memory.store)), "mine.jsonl", Report())
    (situation,) = corrections(read, open_embedder())
    rewards = {}
    for reply in ("Mia's dog nothing => ADD", f"{CAT} <s1> => NOOP", "gibberish"):
        policy = ScriptedLLM([], style="compact")
        episode = ManagerEpisode(situation, policy, Agents(), memory.settings)
        assert "fact Mia adopted Fay =>" in episode.prompt().text
        episode.step(Completion(reply))
        with pytest.raises(StopIteration) as stop:
            next(episode.judge())
        rewards[reply] = stop.value.value.reward
    assert list(rewards.values()) == [0.0, 1.0, 0.0]


def test_a_decision_that_cannot_be_read_is_named():
    memory = told(facts("x"), ops({"op": "DELETE", "id": 0}))
    (row,) = memory.add("x", user_id="mia").rows
    memory.undo(row.id, user_id="mia")
    (dialogue,) = dialogues(memory.store)
    dialogue.meta[DECISIONS][0]["right"] = [7]
    with pytest.raises(DataError, match="mia/decision 0: expected fact"):
        corrections([dialogue], open_embedder())


def test_the_command_line_exports_what_training_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    Memory("memory.db").close()
    nothing = runner.invoke(app, ["export", "mine.jsonl", "--as-training"])
    assert nothing.exit_code == 1 and "nothing to learn from" in nothing.stderr
    assert not list(tmp_path.glob("mine.jsonl*"))
    with Memory("memory.db") as memory:
        memory.add("I have a dog", user_id="mia", speaker="Mia")
        memory.feedback(memory.ask("Who?", user_id="mia"), True, user_id="mia")
    done = runner.invoke(app, ["export", "mine.jsonl", "--as-training"])
    assert done.stdout == "mine.jsonl: 1 dialogues, 1 questions, 0 decisions\n"
    assert [d.split for d in load("mine.jsonl")] == ["train"]
