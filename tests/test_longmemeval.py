"""LongMemEval: a question and its haystack of sessions, read one after the other."""

import json
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_data import benchmark

from memory_r1.data import Report, describe, jsonl, load, scored, stream, table
from memory_r1.data.longmemeval import FORMAT, parse_date
from memory_r1.errors import DataError, MissingExtra
from memory_r1.types import NOT_MENTIONED

MAY, JUNE = datetime(2023, 5, 20, 2, 21, tzinfo=UTC), datetime(2023, 6, 1, 0, 0, tzinfo=UTC)


def say(role, content, **more):
    return {"role": role, "content": content, **more}


def record(**changes):
    """A small regular record; its sessions are in order."""
    return {
        "question_id": "q1",
        "question_type": "multi-session",
        "question": "How many cats do I have?",
        "answer": "two",
        "question_date": "2023/06/02 (Fri) 10:00",
        "haystack_dates": ["2023/05/20 (Sat) 02:21", "2023/06/01 (Thu) 00:00"],
        "haystack_session_ids": ["chat_1", "answer_1"],
        "haystack_sessions": [
            [say("assistant", "Welcome!"), say("user", "Hi.")],
            [say("user", "I have two cats.", has_answer=True), say("assistant", "How nice!")],
        ],
        "answer_session_ids": ["answer_1"],
        **changes,
    }


def without(key):
    return {name: value for name, value in record().items() if name != key}


@pytest.fixture
def read(tmp_path):
    def write_and_load(*records, report=None, text=None):
        path = tmp_path / "long.json"
        path.write_text(json.dumps(records) if text is None else text, "utf-8")
        return load(path, "longmemeval", report)

    return write_and_load


def test_a_record_is_a_dialogue_with_one_question(read):
    report = Report()
    [one] = read(record(), report=report)
    assert report.irregularities == []
    assert (one.id, one.speakers, one.split) == ("q1", ("user", "assistant"), "test")
    assert [(s.number, s.date) for s in one.sessions] == [(1, MAY), (2, JUNE)]
    assert [(t.id, t.speaker, t.role, t.said) for t in one.turns] == [
        ("D1:1", "assistant", "assistant", MAY),
        ("D1:2", "user", "user", MAY),
        ("D2:1", "user", "user", JUNE),
        ("D2:2", "assistant", "assistant", JUNE),
    ]
    assert one.meta == {"session_ids": {"1": "chat_1", "2": "answer_1"}}
    [question] = one.questions
    assert (question.id, question.dialogue_id, question.golds) == ("q1", "q1", ("two",))
    assert (question.evidence, question.category) == (("D2:1",), 4)
    assert (question.kind, question.groups) == ("multi-session", ("multi-session",))
    assert question.asked == datetime(2023, 6, 2, 10, tzinfo=UTC)
    assert question.meta == {"question_type": "multi-session", "evidence_sessions": [2]}
    assert "only a part" in question.guidance


def test_sessions_are_put_in_order_of_time_and_named_after_it(read):
    report = Report()
    unsorted = record(
        haystack_dates=["2023/06/01 (Thu) 00:00", "2023/05/20 (Sat) 02:21"] * 2,
        haystack_session_ids=["answer_1", "a", "b", "c"],
        haystack_sessions=[
            [say("user", "late", has_answer=True)],
            [say("user", "early")],
            [say("user", "late too")],
            [say("user", "early too")],
        ],
    )
    [one] = read(unsorted, report=report)
    assert [turn.text for turn in one.turns] == ["early", "early too", "late", "late too"]
    assert one.questions[0].evidence == ("D3:1",)
    assert one.questions[0].meta["evidence_sessions"] == [3]
    assert one.meta["session_ids"] == {"1": "a", "2": "c", "3": "answer_1", "4": "b"}
    assert [str(i) for i in report.irregularities] == [
        "q1: sessions that are not in order of time; sorted"
    ]


def test_an_undated_session_stays_behind_the_one_before_it(read):
    dates = ["2023/06/01 (Thu) 00:00", None, "2023/05/20 (Sat) 02:21", "soon"]
    sessions = [[say("user", text)] for text in ("late", "after late", "early", "after early")]
    report = Report()
    [one] = read(
        record(haystack_dates=dates, haystack_sessions=sessions, haystack_session_ids=list("abcd")),
        report=report,
    )
    assert [turn.text for turn in one.turns] == ["early", "after early", "late", "after late"]
    assert [session.date for session in one.sessions] == [MAY, None, JUNE, None]
    assert "q1: no date of a session, found 'soon'; undated" in map(str, report.irregularities)


def test_what_cannot_be_known_is_right_when_it_is_said_to_be(read):
    [one] = read(record(question_id="q1_abs", answer="You did not mention a dog."))
    [question] = one.questions
    assert question.golds == ("You did not mention a dog.", NOT_MENTIONED)
    assert question.category == 5
    assert question.groups == ("multi-session", "abstention")
    assert "exactly when it says that it can't be known" in question.guidance
    assert scored([one]) == [question], "abstention always counts"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("temporal-reasoning", "off by one"),
        ("knowledge-update", "an earlier one"),
        ("single-session-preference", "need not cover every point"),
        ("single-session-user", "only a part"),
        ("single-session-assistant", "only a part"),
    ],
)
def test_judges_are_told_how_each_type_is_graded(read, kind, words):
    [one] = read(record(question_type=kind))
    assert words in one.questions[0].guidance
    assert one.questions[0].groups == (kind,)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"answer": 3}, "the answer 3 is not a text; read as '3'"),
        ({"answer": 2.50}, "the answer 2.5 is not a text; read as '2.5'"),
        ({"question_type": "riddle"}, "the question type 'riddle' is not known"),
        ({"question_type": ["riddle"]}, "the question type list of 1 is not known"),
        ({"question_date": "soon"}, "no question date, found 'soon'"),
        ({"answer_session_ids": None}, "no list of answer sessions, found None"),
        ({"answer_session_ids": ["x", "answer_1"]}, "the answer session 'x' is no session"),
        ({"haystack_session_ids": ["answer_1"] * 2}, "'answer_1' occurs again; both kept"),
        ({"haystack_session_ids": ["chat_1", "answer_1", "x"]}, "3 haystack_session_ids for 2"),
        ({"haystack_dates": ["2023/05/20 (Sat) 02:21"]}, "1 haystack_dates for 2 sessions"),
        ({"haystack_dates": {}}, "haystack_dates is no list but dict of 0; read as empty"),
        ({"question_id": "q_abs", "answer": None}, "no answer; read as 'not mentioned'"),
    ],
)
def test_irregular_records_are_read_and_reported(read, changes, said):
    report = Report()
    [one] = read(record(**changes), report=report)
    assert len(one.turns) == 4
    [irregularity] = report.irregularities
    assert irregularity.record.endswith(one.id) and said in str(irregularity)


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        ("Hi", "a turn should be an object, found 'Hi'; left out"),
        (say("user", " \n"), "blank; left out"),
        (say("user", "", has_answer=True), "blank and marked as evidence; left out"),
        ({"role": "user"}, "the content should be a text, found None; left out"),
        (say("system", "Be kind."), "the role 'system' is not known; kept, but not remembered"),
        ({"content": "Hi"}, "no role, found None; read as 'user'"),
    ],
)
def test_irregular_turns_are_mended_or_left_out_and_the_rest_keep_their_names(read, turn, said):
    sessions = [[turn, say("user", "I have two cats.", has_answer=True)], [say("user", "Bye.")]]
    report = Report()
    [one] = read(record(haystack_sessions=sessions), report=report)
    assert [t.id for t in one.turns][-2:] == ["D1:2", "D2:1"]
    assert one.questions[0].evidence == ("D1:2",)
    assert len(one.turns) == (2 if "left out" in said else 3)
    [irregularity] = report.irregularities
    assert str(irregularity) == f"q1 turn D1:1: {said}"


def test_sessions_without_turns_are_left_out_and_still_counted(read):
    report = Report()
    sessions = [3, [], [say("user", "Hi.", has_answer=True)]]
    [one] = read(
        record(haystack_sessions=sessions, haystack_dates=[], haystack_session_ids=["a", "b", "c"]),
        report=report,
    )
    assert [session.number for session in one.sessions] == [3]
    said = [str(irregularity) for irregularity in report.irregularities]
    assert "q1: a session is no list but 3; left out" in said
    assert "q1 session 2: no turns; left out" in said


def test_no_evidence_is_reported_except_where_there_can_be_none(read):
    bare = [[say("user", "Hi.")], [say("user", "Bye.", has_answer=False)]]
    report = Report()
    read(
        record(haystack_sessions=bare),
        record(haystack_sessions=bare, question_id="q2_abs"),
        report=report,
    )
    [irregularity] = report.irregularities
    assert str(irregularity) == "q1: no turn is marked as evidence; not scored for retrieval"


def test_an_id_that_occurs_again_gets_a_number(read):
    report = Report()
    dialogues = read(record(), record(), record(question_id="q1#2"), report=report)
    assert [one.id for one in dialogues] == ["q1", "q1#2", "q1#2#2"]
    assert [one.questions[0].dialogue_id for one in dialogues] == ["q1", "q1#2", "q1#2#2"]
    assert "the id 'q1' occurs again; kept as 'q1#2'" in str(report.irregularities[0])


def test_an_empty_haystack_is_kept_and_reported(read):
    report = Report()
    [one] = read(record(haystack_sessions=[]), report=report)
    assert one.turns == ()
    assert "q1: no turns; kept, with nothing to remember" in map(str, report.irregularities)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("x", "long.json, record 1: expected an object, found str"),
        ({"haystack_sessions": []}, "record 1: 'question_id' is missing"),
        (record(question_id=""), "record 1: 'question_id' is empty"),
        (without("question"), "record 1 (q1): 'question' is missing"),
        (record(question=3), "record 1 (q1): 'question' should be a text, found int"),
        (without("haystack_sessions"), "record 1 (q1): 'haystack_sessions' is missing"),
        (record(haystack_sessions={}), "'haystack_sessions' should be a list, found dict"),
        (without("answer"), "record 1 (q1): 'answer' should be a text, found None"),
        (record(answer=True), "'answer' should be a text, found True"),
        (record(answer=["a"]), "'answer' should be a text, found list of 1"),
    ],
)
def test_a_record_that_cannot_be_mended_is_named(read, broken, says):
    with pytest.raises(DataError) as error:
        read(record(question_id="q0"), broken)
    assert says in str(error.value)


def regular():
    return json.dumps([record(), record(question_id="q2")])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (regular()[:-30], f"breaks off after {len(regular()) - 30:,} bytes"),
        (regular()[:-1], f"breaks off after {len(regular()) - 1:,} bytes"),
        (regular()[:-1] + ", nope]", "is not JSON: lexical error"),
        (regular() + "x", "is not JSON"),
        ('[{"haystack_sessions": ' + "[" * 200_000, "is nested too deeply"),
        ('[{"haystack_sessions": ' + "[" * 200 + "]" * 200 + "}]", "is nested too deeply"),
        ("[]", "holds no record; LongMemEval is"),
    ],
)
def test_a_broken_file_is_named_for_what_is_wrong(read, text, says):
    with pytest.raises(DataError) as error:
        read(text=text)
    assert says in str(error.value)


def test_a_file_that_is_not_text_further_on_is_said_to_be(tmp_path):
    (tmp_path / "x.json").write_bytes(regular().encode().replace(b"q2", b"q\xff"))
    with pytest.raises(DataError, match="is not text, so not the JSON expected"):
        load(tmp_path / "x.json")


def test_lines_and_a_single_record_are_read_too(read):
    lines = json.dumps(record()) + "\n" + json.dumps(record(question_id="q2"))
    assert [one.id for one in read(text="\ufeff" + lines)] == ["q1", "q2"]
    assert [one.id for one in read(text=json.dumps(record(), indent=1))] == ["q1"]
    assert [one.id for one in read(text="\ufeff" + regular())] == ["q1", "q2"]


def test_the_first_dialogues_of_a_broken_file_come_before_the_error(tmp_path):
    (tmp_path / "x.json").write_text(regular()[:-30], "utf-8")
    dialogues = stream(tmp_path / "x.json")
    assert next(dialogues).id == "q1"
    with pytest.raises(DataError):
        next(dialogues)


def test_without_the_extra_its_name_is_given(read, monkeypatch):
    monkeypatch.setitem(sys.modules, "ijson", None)
    with pytest.raises(MissingExtra, match=r"reading LongMemEval needs ijson.*memory-r1\[bench\]"):
        read(record())


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2023/05/20 (Sat) 02:21", MAY),
        (" 2023/05/20 02:21 ", MAY),
        ("2024/02/29 (Thu) 23:59", datetime(2024, 2, 29, 23, 59, tzinfo=UTC)),
        ("2023/02/29 (Wed) 10:00", None),
        ("2023/05/20 (Sat) 24:00", None),
        ("20 May 2023", None),
        (20230520, None),
        (None, None),
    ],
)
def test_dates_are_read_without_a_locale(text, moment):
    assert parse_date(text) == moment


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "has_answer"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(changes=st.dictionaries(st.sampled_from(sorted(record())), anything, max_size=3))
def test_any_record_is_read_or_refused_and_what_is_read_can_be_kept(tmp_path_factory, changes):
    path = tmp_path_factory.mktemp("any") / "long.json"
    path.write_text(json.dumps([record(**changes)]), "utf-8")
    try:
        dialogues = load(path, "longmemeval")
    except DataError as error:
        assert "long.json" in str(error)
    else:
        assert jsonl.read(jsonl.dump(dialogues), "mine", Report()) == dialogues


@pytest.mark.data
def test_the_real_instance_is_read_whole():
    path = benchmark("longmemeval_s_one.json")
    report = Report()
    [one] = load(path, report=report)
    assert report.irregularities == []
    assert (len(one.sessions), len(one.turns)) == (53, 550)
    [question] = one.questions
    assert (question.text, question.answer) == (
        "What degree did I graduate with?",
        "Business Administration",
    )
    assert (question.groups, question.category) == (("single-session-user",), 4)
    [session] = question.meta["evidence_sessions"]
    assert one.meta["session_ids"][str(session)] == "answer_280352e9"
    marked = [turn for turn in one.turns if turn.id in question.evidence]
    assert {turn.id.split(":")[0] for turn in marked} == {f"D{session}"}
    assert any("degree in Business Administration" in turn.text for turn in marked)
    dates = [session.date for session in one.sessions]
    assert None not in dates and dates == sorted(dates)
    assert question.asked == datetime(2023, 5, 30, 23, 40, tzinfo=UTC) > dates[-1]
    assert jsonl.read(jsonl.dump([one]), "mine", Report()) == [one]
    facts = describe(path)
    assert (facts["format"], facts["groups"]) == ("longmemeval", {"single-session-user": 1})
    assert "format:  LongMemEval" in table(facts)


@pytest.mark.slow
def test_a_large_file_is_never_held_in_memory(tmp_path):
    """60 MB of records the size of S's; M only has more sessions in each."""
    words = "The quick brown fox writes a long reply. " * 25
    sessions = [[say("user", words), say("assistant", words)] * 5 for _ in range(50)]
    big = {
        "haystack_sessions": sessions,
        "haystack_dates": ["2023/05/20 (Sat) 02:21"] * 50,
        "haystack_session_ids": [f"s{i}" for i in range(50)],
        "answer_session_ids": ["s1"],
    }
    path = tmp_path / "long.json"
    with path.open("w") as file:
        for i in range(115):
            file.write("[" if i == 0 else ",")
            json.dump(record(question_id=f"q{i}", **big), file)
        file.write("]")
    assert path.stat().st_size > 60e6
    code = (
        "import resource, sys, ijson\n"
        "from memory_r1.data import stream\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak()\n"
        "count = sum(len(one.turns) for one in stream(sys.argv[1]))\n"
        "print(count, peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True
    )
    turns, grown = map(int, done.stdout.split())
    unit = 1 if sys.platform == "darwin" else 1024
    assert turns == 115 * 500
    assert grown * unit < 40e6


def test_only_its_own_records_fit():
    assert FORMAT.fits(record()) and not FORMAT.fits({"sample_id": "x", "conversation": {}})
