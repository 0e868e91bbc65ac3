"""LoCoMo and world files: what is read, what is mended and said, what is refused."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memory_r1.data import (
    BENCHMARKS,
    CATEGORIES,
    FORMATS,
    Irregularity,
    Report,
    describe,
    find,
    groups_of,
    load,
    recognise,
    scored,
    split_of,
    stream,
    table,
)
from memory_r1.data.locomo import parse_date
from memory_r1.errors import DataError
from memory_r1.types import NOT_MENTIONED

DATA = Path(os.environ.get("MEMORY_R1_DATA", Path(__file__).parents[2] / "shared" / "data"))


def benchmark(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{name} is not in {DATA}; set MEMORY_R1_DATA to the folder that holds it")
    return path


def dialogue(**changes):
    """A small regular dialogue in LoCoMo's form."""
    return {
        "sample_id": "d-1",
        "conversation": {
            "speaker_a": "Ann",
            "speaker_b": "Bo",
            "session_2_date_time": "12:05 am on 1 March, 2024",
            "session_2": [{"speaker": "Bo", "dia_id": "D2:1", "text": "It rains."}],
            "session_1_date_time": "1:56 pm on 8 May, 2023",
            "session_1": [
                {"speaker": "Ann", "dia_id": "D1:1", "text": "I have a cat."},
                {
                    "speaker": "Bo",
                    "dia_id": "D1:2",
                    "text": "Look!",
                    "blip_caption": "a red car",
                    "img_url": "",
                },
            ],
        },
        "qa": [
            {"question": "Which pet?", "answer": "a cat", "evidence": ["D1:1"], "category": 4},
        ],
        "observation": {"session_1_observation": {"Ann": [["Ann has a cat.", "D1:1"]]}},
        **changes,
    }


def qa(**changes):
    return {"question": "?", "answer": "x", "evidence": ["D1:1"], "category": 4, **changes}


@pytest.fixture
def read(tmp_path):
    def write_and_load(content, report=None, format=None):
        path = tmp_path / "dialogues.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
        return load(path, format, report)

    return write_and_load


def test_a_dialogue_is_read_in_the_order_of_its_sessions(read):
    [one] = read([dialogue()])
    assert [turn.id for turn in one.turns] == ["D1:1", "D1:2", "D2:1"]
    assert one.turns[1].caption == "a red car"
    assert one.turns[0].said == datetime(2023, 5, 8, 13, 56, tzinfo=UTC)
    assert one.sessions[1].date == datetime(2024, 3, 1, 0, 5, tzinfo=UTC)
    assert one.speakers == ("Ann", "Bo")
    [question] = one.questions
    assert (question.id, question.answer, question.evidence) == ("d-1#0", "a cat", ("D1:1",))
    [observation] = one.observations
    assert (observation.text, observation.sources) == ("Ann has a cat.", ("D1:1",))


def test_a_world_file_keeps_its_extra_keys(read):
    question = qa(id="w#1", kind="unseen", phenomenon="overwrite", accepted=["y", "z"], category=5)
    question["answer"] = "not mentioned"
    [one] = read([dialogue(sample_id="world-7-003", world={"seed": 7}, qa=[question])])
    assert one.split == "test" and one.meta == {"world": {"seed": 7}}
    assert one.questions[0].golds == (NOT_MENTIONED, "y", "z")
    assert (one.questions[0].id, one.questions[0].phenomenon) == ("w#1", "overwrite")
    assert len(scored([one])) == 1, "unanswerable questions of the world always count"


def test_plain_adversarial_questions_count_only_when_asked_for(read):
    adversarial = {
        "question": "?",
        "adversarial_answer": "Yes",
        "evidence": ["D1:1"],
        "category": 5,
    }
    [one] = read([dialogue(qa=[adversarial, qa()])])
    assert [q.category for q in scored([one])] == [4]
    assert [q.answer for q in scored([one], adversarial=True)] == [NOT_MENTIONED, "x"]
    assert one.questions[0].meta == {"adversarial_answer": "Yes"}


def test_the_splits_are_by_conversation():
    assert [split_of(f"conv-{n}") for n in (26, 30, 41)] == ["train", "validation", "test"]
    assert split_of("world-7-003") == "test"


@pytest.mark.parametrize(
    ("given_evidence", "kept", "said"),
    [
        (["D2:1; D1:2"], ("D1:2", "D2:1"), "2 ids in one string"),
        (["D:1:2"], ("D1:2",), "misspelt"),
        (["D1:02"], ("D1:2",), "misspelt"),
        (["D"], (), "names no turn"),
        (["D9:9"], (), "no turn of the dialogue"),
        (["D1:1", "D1:1"], ("D1:1",), "named twice"),
        ([], (), "no evidence"),
        ("D1:1", ("D1:1",), "not a list"),
    ],
)
def test_irregular_evidence_is_mended_and_reported(read, given_evidence, kept, said):
    report = Report()
    [one] = read([dialogue(qa=[qa(evidence=given_evidence)])], report)
    assert one.questions[0].evidence == kept
    [irregularity] = report.irregularities
    assert irregularity.record == "d-1 qa #0" and said in str(irregularity)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"qa": [qa(answer=2022)]}, "answer 2022 is not a text; read as '2022'"),
        ({"qa": [qa(), qa()]}, "asks the same as #0"),
        ({"qa": [qa(category=5, adversarial_answer="Yes")]}, "beside the adversarial one"),
        ({"qa": []}, "no questions"),
        (
            {"observation": {"session_1_observation": {"Ann": [["f", ["D1:1", "D1:2"]]]}}},
            "list of ids",
        ),
        ({"observation": {"session_1_observation": {"Ann": ["f"]}}}, "left out"),
    ],
)
def test_other_irregular_records_are_read_and_reported(read, changes, said):
    report = Report()
    read([dialogue(**changes)], report)
    [irregularity] = report.irregularities
    assert said in str(irregularity)


def test_dates_without_sessions_and_sessions_without_dates_are_reported(read):
    one = dialogue()
    one["conversation"]["session_9_date_time"] = "1:00 pm on 1 May, 2023"
    one["conversation"]["session_1_date_time"] = "yesterday"
    one["conversation"]["session_3"] = []
    report = Report()
    [read_one] = read([one], report)
    assert read_one.sessions[0].date is None
    assert [session.number for session in read_one.sessions] == [1, 2]
    text = "\n".join(map(str, report.irregularities))
    assert "1 dates without a session (9-9)" in text
    assert "session 1: no date" in text and "session 3: no turns" in text


def test_an_empty_dialogue_is_reported_and_kept(read):
    report = Report()
    [one] = read([dialogue(conversation={"speaker_a": "A", "speaker_b": "B"}, qa=[])], report)
    assert one.turns == ()
    assert "d-1: no turns; kept, with nothing to remember" in map(str, report.irregularities)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("[]", "holds an empty list"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        ("<!DOCTYPE html><html>", "is a web page"),
        ("hello", "is not JSON"),
        (json.dumps([dialogue()])[:300], "breaks off after 300 characters"),
        ("[" * 100_000, "is "),
        ("\ufeff <HTML>", "is a web page"),
        ("PK\x03\x04 ...", "is compressed; unpack it first"),
        ("a\0b", "is not text"),
        (" \n", "is empty"),
        ("[]", "holds an empty list"),
        ('{"data": [], "version": 1}', "its first record holds 'data', 'version'; expected LoCoMo"),
        ("[3]", "dialogue 0: expected an object, found int"),
        ('[{"conversation": {}}]', "dialogue 0: 'sample_id' is missing"),
        ('[{"sample_id": ""}]', "dialogue 0: 'sample_id' is empty"),
        ('[{"sample_id": NaN}]', "is not JSON: NaN is no JSON number"),
        ('[{"sample_id": "x"}]', "(x): 'conversation' is missing"),
        ('[{"sample_id": "x", "conversation": []}]', "'conversation' should be an object"),
    ],
)
def test_a_file_that_is_something_else_is_named_for_what_it_is(read, content, says):
    with pytest.raises(DataError) as error:
        read(content)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ({"qa": [qa(), {"question": "?", "category": 4}]}, "d-1 qa #1: 'answer' is missing"),
        ({"qa": [{"answer": "x", "category": 4}]}, "d-1 qa #0: 'question' is missing"),
        ({"qa": [qa(category=7)]}, "d-1 qa #0: category is 7"),
        ({"qa": [qa(accepted="y")]}, "d-1 qa #0: 'accepted' should be a list, found str"),
        ({"observation": {"session_1_observation": {"Ann": 3}}}, "'Ann' should be a list"),
        (
            {"conversation": {"session_1": [{"speaker": "A", "dia_id": "D1:1"}]}},
            "d-1 session 1, turn 1: 'text' is missing",
        ),
        ({"conversation": {"session_1": ["hi"]}}, "turn 1: expected an object, found str"),
    ],
)
def test_a_broken_record_is_named_with_what_it_lacks(read, broken, says):
    with pytest.raises(DataError) as error:
        read([dialogue(**broken)])
    assert says in str(error.value)


def test_one_owner_cannot_be_two_dialogues(read):
    with pytest.raises(DataError, match="'d-1' occurs twice"):
        read([dialogue(), dialogue()])


def test_a_missing_file_says_where_locomo_is_had(tmp_path):
    with pytest.raises(DataError, match=r"snap-research/locomo.*CC BY-NC 4\.0"):
        load(tmp_path / "locomo10.json")


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("1:56 pm on 8 May, 2023", datetime(2023, 5, 8, 13, 56, tzinfo=UTC)),
        ("12:00 am on 29 February, 2024", datetime(2024, 2, 29, tzinfo=UTC)),
        ("12:30 pm on 1 Dec, 2023", None),
        ("1:00 pm on 30 February, 2023", None),
        ("", None),
    ],
)
def test_dates_are_read_without_a_locale(text, moment):
    assert parse_date(text) == moment


@given(st.text())
def test_any_text_is_a_date_or_none(text):
    assert parse_date(text) is None or text.strip()


@pytest.mark.parametrize("broken", [b"\xff\xfe[", b'[{"sample_id": "\xff"}]'])
def test_what_is_not_text_is_said_to_be(tmp_path, broken):
    (tmp_path / "x.json").write_bytes(broken)
    with pytest.raises(DataError, match="is not text, so not the JSON expected"):
        load(tmp_path / "x.json")


LONG = '[{"question_id": "1", "haystack_sessions": []}]'
MSC = '{"self_instruct": {}}\n{"self_instruct": {}}'
OWN = '{"dialogue": "d1", "speaker": "Ann", "text": "Hi"}'


@pytest.mark.parametrize(
    ("content", "asked", "says"),
    [
        (LONG, "locomo", r"is a LongMemEval file, not LoCoMo; LoCoMo is .*CC BY-NC 4\.0"),
        (LONG, "world", "is a LongMemEval file, not the synthetic world; `memory-r1 world"),
        (MSC, "locomo", r"is an MSC \(MSC-Self-Instruct\) file, not LoCoMo"),
        ('{"previous_dialogs": []}', "longmemeval", r"an MSC .* not LongMemEval; LongMemEval is"),
        (json.dumps([dialogue()]), "longmemeval", r"is a LoCoMo file, not LongMemEval; .*\(MIT\)"),
        (json.dumps([dialogue(world={})]), "msc", r"is a world file, not MSC.*\(Apache-2\.0\)"),
        (json.dumps([dialogue()]), "jsonl", "is a LoCoMo file, not plain JSON lines; docs/data.md"),
    ],
)
def test_another_benchmarks_file_is_named_for_what_it_is(read, content, asked, says):
    with pytest.raises(DataError, match=rf"dialogues\.json {says}" if says[:2] == "is" else says):
        read(content, format=asked)


@pytest.mark.parametrize("asked", BENCHMARKS)
def test_plain_json_lines_are_taken_for_any_benchmark(read, asked):
    [one] = read(OWN, format=asked)
    assert one.turns[0].text == "Hi"


def test_a_world_and_locomo_are_the_same_format(read):
    for world in ({}, {"world": {}}):
        for asked in ("locomo", "world", None):
            assert len(read([dialogue(**world)], format=asked)) == 1


def test_every_format_is_known_by_its_name(tmp_path):
    assert BENCHMARKS == ("locomo", "world", "longmemeval", "msc", "jsonl")
    with pytest.raises(DataError, match="unknown data format 'locmo'; did you mean 'locomo'?"):
        load(tmp_path, "locmo")
    with pytest.raises(DataError, match="'csv'; known: locomo, world, longmemeval, msc, jsonl"):
        load(tmp_path, "csv")
    for format in FORMATS:
        with pytest.raises(DataError) as error:
            load(tmp_path / "nowhere", format.name)
        assert str(error.value) == f"no file {tmp_path / 'nowhere'}; {format.source}"


def test_a_missing_file_is_sought_by_its_name(tmp_path):
    with pytest.raises(DataError, match=r"longmemeval_s\.json; LongMemEval is .*\(MIT\)"):
        load(tmp_path / "longmemeval_s.json")
    with pytest.raises(DataError, match=r"mine\.json$"):
        load(tmp_path / "mine.json")


def test_a_benchmarks_file_is_found_where_it_was_said_to_be_or_here(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("MEMORY_R1_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"no locomo10\.json in MEMORY_R1_DATA.*snap-research"):
        find("locomo")
    (tmp_path / "here" / "locomo10.json").touch()
    assert find("locomo") == Path("locomo10.json")
    (tmp_path / "locomo10.json").touch()
    assert find("locomo") == tmp_path / "locomo10.json"
    (tmp_path / "longmemeval_s.json").touch()
    assert find("longmemeval") == tmp_path / "longmemeval_s.json"
    (tmp_path / "longmemeval_oracle.json").touch()
    assert find("longmemeval") == tmp_path / "longmemeval_oracle.json", "as the paper plays it"
    with pytest.raises(DataError, match="which file. give it with --data"):
        find("jsonl")


def test_a_large_first_record_is_recognised(tmp_path):
    big = dialogue(padding="x" * 300_000)
    (tmp_path / "x.json").write_text("\ufeff \n[\n" + json.dumps(big) + "]", "utf-8")
    assert recognise(tmp_path / "x.json").name == "locomo"


@pytest.mark.parametrize(
    ("category", "words"),
    [(1, ""), (2, "same date"), (3, ""), (4, ""), (5, "exactly when it says that it is not")],
)
def test_judges_are_told_what_is_special_of_a_category(read, category, words):
    [one] = read([dialogue(qa=[qa(category=category)])])
    guidance = one.questions[0].guidance
    assert words in guidance and bool(words) == bool(guidance)


def test_questions_count_under_their_labels_or_their_category():
    assert groups_of(1) == ("1 multi-hop (paper: single-hop)",)
    assert groups_of(2) == ("2 temporal",)
    assert groups_of(1, "count", "overwrite") == ("kind: count", "phenomenon: overwrite")
    assert groups_of(5, kind="unanswerable") == ("kind: unanswerable",)
    assert len({groups_of(category) for category in CATEGORIES}) == 5


def test_many_irregularities_of_one_sort_are_cut_short_unless_all_are_asked_for(tmp_path):
    odd = dialogue(qa=[qa(question=f"{i}?", answer=i) for i in range(25)] + [qa(evidence=[])])
    (tmp_path / "x.json").write_text(json.dumps([odd]), "utf-8")
    facts = describe(tmp_path / "x.json")
    assert len(facts["irregularities"]) == 26
    short, long = table(facts), table(facts, everything=True)
    assert "26 irregular records" in short and "26 irregular records" in long
    assert short.count("is not a text") == 20 and long.count("is not a text") == 25
    assert "... 5 more like the last (--all lists all)" in short and "no evidence" in short
    assert "more like" not in long


def test_many_dialogues_are_cut_short_unless_all_are_asked_for(tmp_path):
    many = [dialogue(sample_id=f"d-{i}") for i in range(23)]
    (tmp_path / "x.json").write_text(json.dumps(many), "utf-8")
    facts = describe(tmp_path / "x.json")
    assert len(facts["dialogues"]) == 23
    assert "... 3 more (--all lists all)" in table(facts) and "d-22" not in table(facts)
    assert "d-22" in table(facts, everything=True)


def test_what_tells_two_irregularities_apart_is_not_their_sort():
    one = Irregularity("a", "2 ids in one string 'D1:1; D2:2'", "read as ['D1:1', 'D2:2']")
    two = Irregularity("b", "3 ids in one string 'D1:1 D2:2 D3:3'", "read as ['D1:1', 'D2:2']")
    assert one.sort == two.sort != Irregularity("a", "no evidence", "read").sort


def test_dialogues_come_before_a_broken_one_is_met(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps([dialogue(), {"sample_id": "b"}]), "utf-8")
    dialogues = stream(tmp_path / "x.json")
    assert next(dialogues).id == "d-1"
    with pytest.raises(DataError, match="'conversation' is missing"):
        next(dialogues)


@pytest.mark.data
def test_locomo_is_complete_and_every_known_irregularity_is_named():
    path = benchmark("locomo10.json")
    facts = describe(path)
    totals = {
        key: sum(one[key] for one in facts["dialogues"])
        for key in ("sessions", "turns", "questions", "scored")
    }
    assert totals == {"sessions": 272, "turns": 5882, "questions": 1986, "scored": 1540}
    assert {s: part["scored"] for s, part in facts["splits"].items()} == {
        "train": 152,
        "validation": 81,
        "test": 1307,
    }
    assert facts["categories"]["4 single-hop"] == 841
    test = [one for one in facts["dialogues"] if one["split"] == "test"]
    assert sum(one["with_evidence"] for one in test) == 1305
    named = {one["record"] for one in facts["irregularities"]}
    expected = {
        "conv-26": [1, 26, 40, 49, 72, 75, 37, 30, 46, 167, 178],
        "conv-42": [58, 88],
        "conv-47": [38],
        "conv-49": [31, 38, 46],
        "conv-50": [5, 39, 42],
    }
    assert {f"{c} qa #{n}" for c, numbers in expected.items() for n in numbers} <= named
    seen = [one["record"] for one in facts["irregularities"] if "asks the same" in one["seen"]]
    assert sum(record.startswith("conv-48") for record in seen) == 11
    text = table(facts)
    assert "conv-26: 16 dates without a session (20-35); ignored" in text
    assert "5,882" in text and "1 multi-hop (paper: single-hop): 282" in text


@pytest.mark.data
def test_locomos_irregularities_are_as_many_as_are_known():
    report = Report()
    dialogues = load(benchmark("locomo10.json"), "locomo", report)
    seen = [(one.record, one.seen) for one in report.irregularities]
    bare = [text for _, text in seen if "caption and no img_url" in text]
    assert sum(int(text.split()[0]) for text in bare) == 316
    assert sum(bool(turn.caption) for one in dialogues for turn in one.turns) == 1226
    observed = [(record, text) for record, text in seen if "observation" in record]
    assert sum("a list of ids" in text for _, text in observed) == 10
    assert sum("ids in one string" in text for _, text in observed) == 5
    assert sum("is not a text" in text for _, text in seen) == 6
    both = {q.id: q.accepted for one in dialogues for q in one.questions if q.accepted}
    assert both.keys() == {"conv-26#167", "conv-26#178"} and all(both.values())
    validation = next(one for one in dialogues if one.id == "conv-30")
    assert 3 not in {question.category for question in validation.questions}


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "kind"),
    [("longmemeval_s_one.json", "LongMemEval"), ("msc_self_instruct_ten.jsonl", "MSC")],
)
def test_the_other_benchmarks_real_files_are_recognised(name, kind):
    with pytest.raises(DataError, match=f"is an? {kind}"):
        load(benchmark(name), "locomo")
