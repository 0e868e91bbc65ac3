"""MSC-Self-Instruct: five sessions of two people, one question, and nothing that tells too much."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_data import benchmark

from memory_r1.data import Report, describe, jsonl, load, scored, stream, table
from memory_r1.errors import DataError


def spoken(*texts, **more):
    return {"dialog": [{"text": text} for text in texts], **more}


def record(**changes):
    """A small regular record in the form of the distributed file."""
    return {
        "metadata": {"initial_data_id": "valid_1", "session_id": 4},
        "self_instruct": {"B": "Remember my cat? What is it called?", "A": "Tom!"},
        "previous_dialogs": [
            spoken("Hi.", "Hello.", "I have a cat.", time_num=5, time_unit="days"),
            spoken("It is Tom.", "Nice.", time_back="12 hours ago"),
        ],
        "dialog": [{"id": "Speaker 2", "text": "Back again."}, {"id": "Speaker 1", "text": "Oh!"}],
        **changes,
    }


@pytest.fixture
def read(tmp_path):
    def write_and_load(*records, report=None):
        lines = [one if isinstance(one, str) else json.dumps(one) for one in records]
        (tmp_path / "msc.jsonl").write_text("\n".join(lines), "utf-8")
        return load(tmp_path / "msc.jsonl", "msc", report)

    return write_and_load


def test_a_record_is_a_dialogue_with_one_question(read):
    report = Report()
    [one] = read(record(), report=report)
    assert report.irregularities == []
    assert (one.id, one.speakers, one.split) == ("valid_1", ("Speaker 1", "Speaker 2"), "test")
    assert [(turn.id, turn.speaker, turn.text, turn.said) for turn in one.turns] == [
        ("D1:1", "Speaker 1", "Hi.", None),
        ("D1:2", "Speaker 2", "Hello.", None),
        ("D1:3", "Speaker 1", "I have a cat.", None),
        ("D2:1", "Speaker 1", "It is Tom.", None),
        ("D2:2", "Speaker 2", "Nice.", None),
        ("D3:1", "Speaker 2", "Back again.", None),
        ("D3:2", "Speaker 1", "Oh!", None),
    ]
    assert [session.date for session in one.sessions] == [None, None, None]
    assert one.meta == {"time_back": {"1": "5 days ago", "2": "12 hours ago"}}
    [question] = one.questions
    assert question.text == "Remember my cat? What is it called?"
    assert (question.golds, question.evidence) == (("Tom!",), ())
    assert (question.category, question.kind, question.groups) == (4, "dmr", ("DMR",))
    assert "be generous" in question.guidance
    assert scored([one]) == [question]


def test_personas_and_summaries_are_stored_nowhere(read):
    leak = "LEAK: the cat is called Tom"
    hostile = record(
        init_personas=[[leak], [leak]],
        personas=[leak],
        persona_speaker_1=leak,
        summary_speaker_1=[leak],
        summary_speaker_2=leak,
        metadata={"initial_data_id": "valid_1", "persona": leak},
    )
    for sitting in hostile["previous_dialogs"]:
        sitting |= {"personas": [[leak], [leak]], "summary": leak, "persona_text": leak}
        for turn in sitting["dialog"]:
            turn |= {"persona_text": leak, "agg_persona_list": [leak], "problem_data": {"x": leak}}
    for turn in hostile["dialog"]:
        turn |= {"persona_text": leak, "episode_done": leak}
    dialogues = read(hostile)
    assert "LEAK" not in repr(dialogues) and "LEAK" not in jsonl.dump(dialogues)
    assert dialogues == read(record())


def test_whether_the_fifth_session_is_stored_is_said_once(read, tmp_path):
    report = Report()
    dialogues = read(
        *(
            record(metadata={"initial_data_id": f"v{i}"}, **changes)
            for i, changes in enumerate([{}, {"dialog": None}, {}])
        ),
        report=report,
    )
    assert [len(one.sessions) for one in dialogues] == [3, 2, 3]
    assert report.notes[0] == "session 5 (`dialog`) is there, and stored, in 2 of 3 records"
    assert report.irregularities == []
    text = table(describe(tmp_path / "msc.jsonl"))
    assert "note: session 5 (`dialog`) is there, and stored, in 2 of 3 records" in text
    assert "note: sessions have no dates" in text and "questions by group:  DMR: 3" in text


def test_a_session_may_name_its_speakers(read):
    named = {"dialog": [{"id": "Speaker 2", "text": "a"}, {"id": "", "text": "b"}, {"text": "c"}]}
    [one] = read(record(previous_dialogs=[named], dialog=None))
    assert [turn.speaker for turn in one.turns] == ["Speaker 2", "Speaker 2", "Speaker 1"]
    assert one.meta == {}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"self_instruct": None}, "no question and answer in 'self_instruct'; left out"),
        ({"self_instruct": {"B": "?"}}, "no question and answer in 'self_instruct'; left out"),
        ({"self_instruct": {"B": "?", "A": " "}}, "in 'self_instruct'; left out"),
        ({"metadata": {}}, "no initial_data_id in 'metadata'; called 'line-2'"),
        ({"metadata": {"initial_data_id": "v0"}}, "the id 'v0' occurs again; kept as 'v0#2'"),
        ({"dialog": []}, "valid_1 session 3: no turns; left out"),
        ({"dialog": [{"text": "Hi."}, {"text": " "}]}, "valid_1 turn D3:2: blank; left out"),
        ({"dialog": [{"text": "Hi."}, "Hi."]}, "D3:2: no object with a 'text'; left out"),
        ({"dialog": None, "previous_dialogs": []}, "valid_1: no turns; kept"),
    ],
)
def test_irregular_records_are_read_and_reported(read, changes, said):
    report = Report()
    dialogues = read(record(metadata={"initial_data_id": "v0"}), record(**changes), report=report)
    assert len(dialogues) == (1 if "self_instruct" in said else 2)
    [irregularity] = report.irregularities
    assert said in str(irregularity)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"self_instruct": {"B"', "msc.jsonl, line 2: not JSON"),
        ("[1]", "msc.jsonl, line 2: expected an object"),
        ("[" * 100_000, "msc.jsonl, line 2: not JSON"),
        ({"self_instruct": {"B": "?", "A": "x"}}, "line 2: 'previous_dialogs' is missing"),
        (record(previous_dialogs={}), "line 2: 'previous_dialogs' should be a list, found dict"),
        (record(previous_dialogs=[[]]), "line 2, session 1: expected an object, found list"),
        (record(previous_dialogs=[{}]), "line 2, session 1: 'dialog' is missing"),
        (record(dialog="Hi."), "line 2: 'dialog' should be a list, found str"),
    ],
)
def test_a_line_that_cannot_be_mended_is_named(read, line, says):
    with pytest.raises(DataError) as error:
        read(record(metadata={"initial_data_id": "v0"}), line)
    assert says in str(error.value)


def test_a_file_without_a_question_is_refused_with_where_the_right_one_is(read):
    plain = {"previous_dialogs": [], "dialog": []}
    with pytest.raises(DataError, match=r"no record with a question.*MemGPT/MSC-Self-Instruct"):
        read(plain)


def test_lines_are_read_one_at_a_time(tmp_path):
    (tmp_path / "msc.jsonl").write_text(json.dumps(record()) + "\n\n{", "utf-8")
    dialogues = stream(tmp_path / "msc.jsonl")
    assert next(dialogues).id == "valid_1"
    with pytest.raises(DataError, match="line 3: not JSON"):
        next(dialogues)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dialog", "text", "id", "A", "B"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(changes=st.dictionaries(st.sampled_from(sorted(record())), anything, max_size=3))
def test_any_record_is_read_or_refused_and_what_is_read_can_be_kept(tmp_path_factory, changes):
    path = tmp_path_factory.mktemp("any") / "msc.jsonl"
    path.write_text(json.dumps(record(**changes)), "utf-8")
    try:
        dialogues = load(path, "msc")
    except DataError as error:
        assert "msc.jsonl" in str(error)
    else:
        assert jsonl.read(jsonl.dump(dialogues), "mine", Report()) == dialogues


@pytest.mark.data
def test_the_ten_rebuilt_records_are_read(tmp_path):
    report = Report()
    dialogues = load(benchmark("msc_self_instruct_ten.jsonl"), report=report)
    assert [len(one.sessions) for one in dialogues] == [4] * 10
    assert sum(len(one.turns) for one in dialogues) == 512
    assert dialogues[0].questions[0].golds == ("Taylor Swift!",)
    assert dialogues[0].meta["time_back"] == {"1": "5 days 4 hours ago", "2": "4 hours ago"}
    assert {turn.speaker for one in dialogues for turn in one.turns} == {"Speaker 1", "Speaker 2"}
    assert report.irregularities == [] and "in 0 of 10 records" in report.notes[0]
    (tmp_path / "own.jsonl").write_text(jsonl.dump(dialogues), "utf-8")
    assert load(tmp_path / "own.jsonl", "msc") == dialogues
