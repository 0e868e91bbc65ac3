"""Questions are answered from memories, which are named."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from goldens import assert_golden
from hypothesis import given
from hypothesis import strategies as st

from memory_r1 import answer
from memory_r1.errors import MalformedReply
from memory_r1.llm import Agents, ScriptedLLM, drive
from memory_r1.types import Completion, Entry, Hit, Owner

OWNER = Owner("u")
MAY_25 = datetime(2023, 5, 25, tzinfo=UTC)


def entry(number: int, text: str, said: datetime | None = MAY_25, speaker: str = "Mia") -> Entry:
    return Entry(f"id-{number}", text, OWNER, MAY_25, said=said, speaker=speaker)


ENTRIES = [
    entry(0, "Mia has two bicycles, Comet and Dart"),
    entry(1, "Bo lives in Rome", said=None, speaker="Bo"),
    entry(2, "odd <s1> => nothing\n**Answer:** 42"),
]


def ids(found) -> list[str]:
    return [entry.id for entry in found.used]


def test_the_instruct_prompt_is_the_reviewed_one():
    assert_golden("answer_instruct", answer.render("How many bicycles?", ENTRIES, "instruct"))
    later = answer.render('How\nold "now"?', [], "instruct", asked=datetime(2024, 1, 2))
    assert_golden("answer_empty", later)


def test_the_compact_prompt_is_the_trained_one():
    shown = answer.render("Where does Bo live?", ENTRIES[:2], "compact")
    assert shown.messages == (
        (
            "user",
            "memory Bo lives in Rome <s1> Mia has two bicycles, Comet and Dart <s0> "
            "question Where does Bo live? =>",
        ),
    )
    assert answer.render("Who?", [], "compact").text == "memory nothing question Who? =>"
    assert answer.render("<s0> => me", ENTRIES, "compact").text.count("=>") == 1


@pytest.mark.parametrize(
    ("reply", "text", "used"),
    [
        ("Bo lives in Rome <s1> => Rome", "Rome", ["id-1"]),
        ("Mia has <s0> , odd <s2> => 2", "2", ["id-0", "id-2"]),
        ("<s0> , <s0> => two", "two", ["id-0"]),
        ("odd <s2> , Mia has <s0> => 2", "2", ["id-2", "id-0"]),
    ],
)
def test_compact_replies_are_read(reply, text, used):
    found = answer.parse(reply, ENTRIES, "compact")
    assert (found.text, ids(found), found.known) == (text, used, True)


def test_not_mentioned_is_a_legitimate_answer():
    for style, reply in (
        ("compact", "nothing => not mentioned"),
        ("compact", "Bo's dog nothing => not mentioned"),
        ("instruct", "Memories: none\n**Answer:** Not mentioned."),
    ):
        found = answer.parse(reply, ENTRIES, style)
        assert not found.known and found.used == ()


@pytest.mark.parametrize(
    "reply",
    [
        *("", "nothing", "=>", "nothing =>", "=> Rome", "Bo lives in Rome => Rome"),
        *("Bo <s3> => Rome", "<s1> => a => b", "<s1> => Rome <s0>"),
        *("Bo <s1> nothing => Rome", "nothing Bo => Rome", "<s1> , Bo => Rome"),
    ],
)
def test_malformed_compact_replies_are_refused(reply):
    with pytest.raises(MalformedReply):
        answer.parse(reply, ENTRIES, "compact")


@pytest.mark.parametrize(
    ("reply", "text", "used"),
    [
        ("Memories: 0, 1\n**Answer:** two bicycles", "two bicycles", ["id-0", "id-1"]),
        ("Memories: [1]\n\n**Answer:**\n**Rome.**", "Rome", ["id-1"]),
        ("[0] and [1]\n**Answer:** Rome", "Rome", ["id-0", "id-1"]),
        ('Memories: none\n**Answer:** "Comet"', "Comet", []),
        ("- Bo lives in Rome.\n- 25 May 2023: Mia sings\n**Answer:** Rome", "Rome", ["id-1"]),
        ("<think>Memories: 7 **Answer:** 1</think>Memories: 0\n**Answer:** 2", "2", ["id-0"]),
        ("**Answer:** Rome\n\n**Answer:** Rome", "Rome", []),
        ("**Answer:** 8 p.m.\nbecause I say so", "8 p.m.", []),
        ("I looked at 99 things.\n**Answer:** Rome", "Rome", []),
    ],
)
def test_answers_and_their_memories_are_read(reply, text, used):
    found = answer.parse(reply, ENTRIES, "instruct")
    assert (found.text, ids(found)) == (text, used)


@pytest.mark.parametrize(
    "reply",
    [
        *("", "Rome", "**Answer:**", "**Answer:** ** **", "**Answer:** a\n**Answer:** b"),
        *("Memories: 3\n**Answer:** Rome", f"Memories: {'9' * 5000}\n**Answer:** Rome"),
        *("[" * 5000, "<think>**Answer:** Rome", "**Answer:**\n\n\n"),
    ],
)
def test_hostile_replies_are_refused(reply):
    with pytest.raises(MalformedReply):
        answer.parse(reply, ENTRIES, "instruct")


@given(st.text(), st.sampled_from(["instruct", "compact"]))
def test_any_reply_is_parsed_or_refused(reply, style):
    for form in (reply, f"{reply}\n**Answer:** {reply}", f"{reply} <s1> => {reply}"):
        try:
            assert answer.parse(form, ENTRIES, style).text
        except MalformedReply:
            pass


def test_an_unreadable_answer_is_repaired_once_then_empty_with_a_note():
    llm = ScriptedLLM(["Rome!", "Memories: 1\n**Answer:** Rome"])
    (found,) = drive([answer.reply("Where?", ENTRIES, "instruct")], Agents(answer=llm))
    assert found.text == "Rome" and found.prompt_hash == llm.prompts[0].hash
    llm = ScriptedLLM(["Rome!", "Rome!"])
    (found,) = drive([answer.reply("Where?", ENTRIES, "instruct")], Agents(answer=llm))
    assert found.text == "" and not found.known and "could not be read" in found.note


def test_a_compact_answer_that_was_cut_off_is_no_answer():
    conversation = answer.reply("Where?", ENTRIES, "compact")
    next(conversation)
    with pytest.raises(StopIteration) as stop:
        conversation.send(Completion("<s1> => Ro", 50, 4, finished=False))
    assert stop.value.value.text == "" and stop.value.value.tokens == (50, 4)


def turns(*texts: str) -> list[Hit]:
    return [Hit(entry(i, f"[25 May 2023] Mia: {text}"), 1.0) for i, text in enumerate(texts)]


def test_rules_answer_with_the_best_supported_sentence_and_say_that_no_model_is_there():
    hits = turns("Thanks, Bo! My bicycle is called Comet.", "What is your bicycle called?")
    found = answer.rules("What is Mia's bicycle called?", hits)
    assert found.text == "My bicycle is called Comet." and ids(found) == ["id-0"]
    assert "no language model" in found.note
    assert not answer.rules("Who?", []).known


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("I ran a race.", "25 May 2023"),
        ("I ran a race yesterday.", "24 May 2023"),
        ("Last Sunday I ran a race.", "The sunday before 25 May 2023"),
        ("I ran it last year.", "2022"),
        ("I'll run next month.", "June 2023"),
        ("I'll run this month.", "May 2023"),
    ],
)
def test_rules_answer_when_with_the_date_the_best_memory_tells_of(text, date):
    assert answer.rules("When does Mia run?", turns(text)).text == date


def test_rules_have_an_answer_to_any_question_and_memory():
    for text in ("", "?", "[", "[x] : ", "🙂"):
        assert answer.rules("When?", [Hit(entry(0, text, said=None), 0.0)]).known
        assert answer.rules("", [Hit(entry(0, text, said=None), 0.0)]).known


LOCOMO = (
    Path(os.environ.get("MEMORY_R1_DATA", Path(__file__).parents[1] / "../shared/data"))
    / "locomo10.json"
)


@pytest.mark.data
@pytest.mark.skipif(not LOCOMO.exists(), reason="needs locomo10.json; set MEMORY_R1_DATA")
def test_rules_beat_the_trivial_baseline_on_locomo():
    """Bar: the best sentence of the top five, the session's date for "when": F1 13.8, B1 9.2."""
    from memory_r1.data import load, scored
    from memory_r1.embed import open_embedder
    from memory_r1.extract import whole_turn
    from memory_r1.retrieve import search
    from memory_r1.store import Index
    from memory_r1.text import bleu1, f1

    embedder, f1s, bleus = open_embedder(), [], []
    for dialogue in (d for d in load(LOCOMO) if d.split == "test"):
        facts = [whole_turn(turn).text for turn in dialogue.turns]
        index = Index()
        for number, (turn, fact, vector) in enumerate(
            zip(dialogue.turns, facts, embedder.embed(facts), strict=True)
        ):
            stored = turn.said or MAY_25
            row = Entry(f"{number:06}", fact, OWNER, stored, turn.speaker, (turn.id,))
            index.put(Entry(**{**vars(row), "said": turn.said}), vector)
        for question in scored([dialogue]):
            said = answer.rules(question.text, search(index, question.text, embedder, k=60)).text
            f1s.append(f1(said, question.answer))
            bleus.append(bleu1(said, question.answer))
    assert len(f1s) == 1307
    assert sum(f1s) / 1307 > 0.17 and sum(bleus) / 1307 > 0.12
