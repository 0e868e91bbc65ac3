"""What is watched while a training runs: what decisions do to a bank, alarms, samples to read."""

import json
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memory_r1.bank import Bank
from memory_r1.config import Settings
from memory_r1.data import Question
from memory_r1.embed import open_embedder
from memory_r1.llm import Agents, ScriptedLLM
from memory_r1.store.ram import RamStore
from memory_r1.train.episodes import AnswerEpisode, ManagerEpisode, Situation, Task
from memory_r1.train.observe import Alarms, decisions, told
from memory_r1.train.rollout import Step, play
from memory_r1.train.samples import Sample, as_markdown
from memory_r1.types import Add, Fact, Owner, Turn

TOLD = Turn("Ann", "I moved to Lima with my cat.", id="D2:1")


def bank(*texts):
    """Entries of one owner, from the turns D1:1, D1:2, ..."""
    made = Bank(RamStore(), open_embedder(), Owner("d"))
    for i, text in enumerate(texts, 1):
        made.apply([Add(text)], turn=Turn("Ann", text, id=f"D1:{i}"))
    return made


def question(answer, *evidence):
    return Question("q", "d", "Where does Ann live?", answer, evidence, 4)


ASKED = question("Lima", "D1:1", "D2:1")


def played(reply, *texts, questions=(ASKED,), facts=("Ann moved to Lima",)):
    """A rollout of the Memory Manager that gives this reply, by a script."""
    heard = ((TOLD, tuple(map(Fact, facts))),)
    situation = Situation("d/D2:1", bank(*texts), heard, tuple(questions))
    judges = Agents(answer=ScriptedLLM(lambda prompt: "**Answer:** Lima"))
    episode = ManagerEpisode(situation, ScriptedLLM([]), judges, Settings())

    def generate(prompts):
        text = json.dumps({"operations": reply}) if isinstance(reply, list) else reply
        return [Step((1,), (2,), (-0.5,), text, prompt.text, True) for prompt in prompts]

    [rollout] = play([episode], generate, judges)
    return rollout


def update(label, text):
    return {"op": "UPDATE", "id": label, "text": text}


def test_an_update_keeps_the_evidence_and_a_deletion_loses_it():
    anew = [{"op": "DELETE", "id": 0}, {"op": "ADD", "text": "Ann lives in Lima"}]
    kept = played([update(0, "Ann lives in Lima")], "Ann lives in Rome")
    lost = played(anew, "Ann lives in Rome")
    ignored = played([{"op": "NOOP"}], "Ann lives in Rome")
    shares = [decisions([r.episode])["evidence_kept"] for r in (kept, lost, ignored)]
    assert shares == [1.0, 0.5, 0.5]
    together = decisions(r.episode for r in (kept, lost, ignored))
    assert together["evidence_kept"] == pytest.approx(4 / 6)


def test_an_episode_tells_where_it_started_and_what_bank_it_left():
    episode = played([update(0, "Ann lives in Lima")], "Ann lives in Rome").episode
    before, after = episode.ends
    assert [entry.text for entry in before.bank.entries()] == ["Ann lives in Rome"]
    assert [entry.text for entry in after.entries()] == ["Ann lives in Lima"]


def test_evidence_that_the_bank_could_not_hold_is_not_asked_of_a_decision():
    asked = [question("Lima", "D1:1", "D1:9", "D2:1")]  # nothing was kept of D1:9
    rollout = played([update(0, "Ann lives in Lima")], "Ann lives in Rome", questions=asked)
    assert decisions([rollout.episode])["evidence_kept"] == 1.0


def test_words_from_nowhere_are_counted_and_merged_ones_are_not():
    from_the_turn = played([update(0, "Ann moved to Lima with her cat, was in Rome")], "Ann: Rome")
    invented = played([{"op": "ADD", "text": "Ann loves Lima's famous ceviche"}], "Ann: Rome")
    assert decisions([from_the_turn.episode])["unsupported_text"] == 0.0
    # Ann and Lima are known; loves, famous and ceviche are not.
    assert decisions([invented.episode])["unsupported_text"] == pytest.approx(3 / 5)
    assert decisions([invented.episode])["entry_words"] == 5


@pytest.mark.parametrize("stays", [0, 1])
def test_two_entries_merged_into_one_support_it_both(stays):
    merged = [update(stays, "Ann has a dog and a parrot"), {"op": "DELETE", "id": 1 - stays}]
    rollout = played(merged, "Ann has a dog", "Ann has a parrot")
    assert decisions([rollout.episode])["unsupported_text"] == 0.0


def test_what_cannot_be_measured_is_left_out():
    rollout = played([{"op": "NOOP"}], "Ann lives in Rome", questions=[question("Lima", "D1:7")])
    assert decisions([rollout.episode, object()]) == {} == decisions([])


@settings(max_examples=15)
@given(st.text(min_size=1, max_size=60))
def test_shares_are_shares_whatever_is_written(text):
    rollout = played([{"op": "ADD", "text": text}], "Ann lives in Rome")
    found = decisions([rollout.episode])
    assert 0 <= found.get("unsupported_text", 0) <= 1


# --- alarms


def heard(rows):
    alarms = Alarms()
    return [alarm for step, row in enumerate(rows, 1) for alarm in alarms.hear(step, row)]


@pytest.mark.parametrize("op", ["ADD", "NOOP"])
def test_one_operation_only_is_an_alarm_once(op):
    rows = [{f"op_{op.lower()}": share} for share in (1.0, 1.0, 0.8, 1.0, 0.995, 1.0, 1.0)]
    [alarm] = heard(rows)
    assert (alarm.step, alarm.kind) == (6, f"all {op}")
    assert alarm.text.startswith(f"for 3 steps every operation has been {op}.")


def test_all_deletions_or_one_odd_step_are_no_alarm():
    assert heard([{"op_delete": 1.0, "op_add": 0.0}] * 9) == []
    assert heard([{"op_add": 1.0}, {"op_add": 1.0}, {"op_add": 0.5}] * 5) == []


@pytest.mark.parametrize(
    ("last", "kind"), [(0.3, "entropy explodes"), (0.004, "entropy collapses")]
)
def test_entropy_that_leaves_its_range_is_an_alarm_once(last, kind):
    [alarm] = heard([{"entropy": 0.05}] * 8 + [{"entropy": last}] * 12)
    assert alarm.kind == kind and "0.05" in alarm.text


def test_the_entropy_of_a_healthy_run_is_no_alarm():
    """As measured in a run of the tiny model: falling by half, with a spike at the end."""
    values = [0.055, 0.035, 0.053, 0.041, 0.038] + [0.045, 0.025, 0.067, 0.019] * 9 + [0.127]
    assert heard([{"entropy": value} for value in values]) == []


@given(st.lists(st.dictionaries(st.sampled_from(["op_add", "entropy"]), st.none())))
def test_rows_without_numbers_alarm_nobody(rows):
    assert heard(rows) == []


# --- samples


def page(rollout, reward=0.5):
    sample = Sample(
        "d/D2:1", rollout.steps[-1].prompt, rollout.steps[-1].text, reward, told(rollout)
    )
    row = json.loads(json.dumps({"step": 7, **asdict(sample)}))
    return as_markdown(row)


def test_a_managers_sample_shows_the_bank_and_what_became_of_it():
    asked = [question("Rome", "D1:1"), question("Lima", "D2:1")]
    rollout = played([update(0, "Ann lives in Lima")], "Ann lives in Rome", questions=asked)
    text = page(rollout)
    assert text.startswith("## Step 7, d/D2:1: reward 0.500\n")
    assert "**Said**\n\n- Ann: I moved to Lima with my cat.\n" in text
    assert "**Facts**\n\n- Ann moved to Lima\n" in text
    assert "- UPDATE Ann lives in Rome => Ann lives in Lima\n" in text
    assert "**Bank**, 1 entries before, 1 after" in text
    assert "```diff\n- Ann lives in Rome\n+ Ann lives in Lima\n```" in text
    assert "| Where does Ann live? | Rome | Lima | no |" in text
    assert "| Where does Ann live? | Lima | Lima | yes |" in text
    assert text.index("**Bank**") < text.index("**Completion**") < text.index("**Prompt**")


def test_a_reply_that_could_not_be_read_is_said_so():
    text = page(played("not JSON", "Ann lives in Rome"), reward=None)
    assert "reward none" in text
    assert "- 1 unreadable: the bank was left as it was\n" in text
    assert "```diff\n  Ann lives in Rome\n```" in text


def test_of_a_large_bank_what_changed_is_always_shown():
    texts = [f"Ann has number {i}" for i in range(50)]
    row = {"step": 1, "about": "x", "prompt": "p", "completion": "c", "reward": 1.0}
    details = {"before": texts, "after": [*texts[:49], "Ann has none"], "operations": ["DELETE"]}
    text = as_markdown({**row, "details": details})
    assert "- Ann has number 49\n" in text and "+ Ann has none\n" in text
    assert "  ... and 19 more that stayed\n" in text
    many = as_markdown({**row, "details": {"facts": texts}})
    assert "- Ann has number 39\n- ... and 10 more\n" in many


def test_an_answer_agents_sample_shows_question_and_answers():
    asked = question("Rome | Italy", "D1:1")
    task = Task("d/q", bank("Ann lives in Rome"), asked)
    episode = AnswerEpisode(task, ScriptedLLM([]), Settings())

    def generate(prompts):
        reply = "**Answer:** Rome"
        return [Step((1,), (2,), (-0.5,), reply, prompt.text, True) for prompt in prompts]

    [rollout] = play([episode], generate, Agents())
    text = page(rollout)
    assert "| Where does Ann live? | Rome \\| Italy | Rome | no |" in text
    assert "**Bank**" not in text and "Ann lives in Rome" in text


def test_an_episode_whose_sampler_failed_is_neither_judged_nor_scored():
    task = Task("d/q", bank("Ann lives in Rome"), question("Rome", "D1:1"))
    episode = AnswerEpisode(task, ScriptedLLM([]), Settings())
    [rollout] = play([episode], lambda prompts: [None] * len(prompts), Agents())
    assert rollout.lost and rollout.outcome is None and rollout.steps == ()
