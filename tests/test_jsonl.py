"""Plain JSON lines of dialogues and questions: written by hand, and back without loss."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_data import benchmark
from typer.testing import CliRunner

from memory_r1.data import (
    CATEGORIES,
    Dialogue,
    Observation,
    Question,
    Report,
    Session,
    describe,
    jsonl,
    load,
    recognise,
    scored,
    stream,
)
from memory_r1.data.world import WorldConfig, write
from memory_r1.errors import DataError
from memory_r1.serve.cli import app
from memory_r1.types import NOT_MENTIONED, Turn

BY_HAND = """\
{"dialogue": "d1", "speaker": "Ann", "text": "I have a cat.", "said": "2023-05-08T13:56"}
{"dialogue": "d1", "speaker": "Bo", "text": "Nice!"}

{"dialogue": "d1", "speaker": "Ann", "text": "Now two.", "said": "2023-06-01", "session": 2}
{"dialogue": "d1", "speaker": "Bo", "text": "Look!", "caption": "a red car"}
{"dialogue": "d1", "question": "How many cats?", "answer": 2, "evidence": ["D2:1", "D1:1"]}
{"dialogue": "d1", "question": "When?", "answer": "in June", "category": "temporal"}
{"dialogue": "d1", "question": "Which dog?", "answer": null}
"""


def read(*records, report=None):
    """The dialogues of some lines; a text is taken as it is."""
    text = "\n".join(r if isinstance(r, str) else json.dumps(r) for r in records)
    return jsonl.read(text, "mine.jsonl", Report() if report is None else report)


def turn(text="Hi", **more):
    return {"dialogue": "d1", "speaker": "Ann", "text": text, **more}


def ask(question="?", **more):
    return {"dialogue": "d1", "question": question, "answer": "x", **more}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(BY_HAND, "utf-8")
    return path


def test_a_file_written_by_hand_is_read(file):
    report = Report()
    [one] = load(file, report=report)
    assert (one.id, one.speakers, one.split) == ("d1", ("Ann", "Bo"), "test")
    may, june = datetime(2023, 5, 8, 13, 56, tzinfo=UTC), datetime(2023, 6, 1, tzinfo=UTC)
    assert [(session.number, session.date) for session in one.sessions] == [(1, may), (2, june)]
    assert [(t.id, t.said) for t in one.turns] == [
        ("D1:1", may),
        ("D1:2", may),
        ("D2:1", june),
        ("D2:2", june),
    ]
    assert one.turns[3].caption == "a red car"
    cats, when, dog = one.questions
    assert (cats.answer, cats.evidence, cats.category) == ("2", ("D1:1", "D2:1"), 4)
    assert (when.id, when.category) == ("d1#1", 2)
    assert (dog.answer, dog.category, dog.kind) == (NOT_MENTIONED, 5, "unanswerable")
    assert scored([one]) == [cats, when, dog]
    assert [str(irregularity) for irregularity in report.irregularities] == [
        "own.jsonl, line 6: the answer 2 is not a text; read as '2'",
        "own.jsonl, line 7: no evidence; not scored for retrieval",
    ]


def test_dialogues_may_be_mixed_and_their_questions_come_first():
    one, two = read(
        ask(evidence="t"),
        {"dialogue": "d2", "split": "train", "speakers": ["Zoe", "Ann"], "meta": {"from": "me"}},
        turn(id="t"),
        {**turn(), "dialogue": "d2"},
    )
    assert (one.id, one.questions[0].evidence) == ("d1", ("t",))
    assert (two.split, two.speakers, two.meta) == ("train", ("Zoe", "Ann"), {"from": "me"})


def test_what_is_said_of_a_session_holds_until_the_next(file):
    [one] = read(
        turn(),
        turn(said="2023-05-08"),
        turn(),
        turn(said=None),
        turn(session=3),
        turn(said="2023-05-09T10:00+02:00", session=3),
        turn(),
    )
    assert [t.said and t.said.hour for t in one.turns] == [None, 0, 0, None, None, 8, 8]
    assert [t.id for t in one.turns] == ["D1:1", "D1:2", "D1:3", "D1:4", "D3:1", "D3:2", "D3:3"]
    assert [session.date for session in one.sessions] == [None, None]


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([turn(), ask(evidence=["D9:9"])], "line 2: evidence 'D9:9' is no turn of the dialogue"),
        ([turn(), ask(evidence=["D1:1"] * 2)], "line 2: evidence 'D1:1' is named twice"),
        ([turn(), ask(), ask()], "line 3: asks the same as line 2"),
        ([turn(session=2), turn(session=1)], "line 2: session 1 after 2; put in its place"),
        ([turn()], "d1: no questions"),
        ([turn()], "d1: 1 turns without a date"),
        ([ask()], "d1: no turns"),
        (
            [turn(), {"dialogue": "d1", "fact": "f", "speaker": "A", "sources": ["x"]}],
            "line 2: sources 'x' is no turn",
        ),
    ],
)
def test_irregular_lines_are_read_and_reported(lines, says):
    report = Report()
    read(*lines, report=report)
    assert any(says in str(irregularity) for irregularity in report.irregularities)


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([""], "holds no lines"),
        ([turn(), "{nonsense"], "line 2: not JSON"),
        ([turn(), "", "[1]"], "line 3: expected an object"),
        (['{"dialogue": NaN}'], "line 1: not JSON (NaN is no JSON number)"),
        (["[" * 100_000], "line 1: not JSON"),
        ([{"speaker": "Ann", "text": "Hi"}], "line 1: 'dialogue' is missing"),
        ([turn(dialogue="")], "line 1: 'dialogue' is empty"),
        ([{"dialogue": 3}], "line 1: 'dialogue' should be a text, found 3"),
        (
            [turn(sayd="2023-05-08")],
            "unknown key 'sayd' in a line with 'text'; did you mean 'said'?",
        ),
        ([ask(evidense=[])], "did you mean 'evidence'?"),
        ([{"dialogue": "d1", "colour": 1}], "unknown key 'colour'"),
        ([{"dialogue": "d1", "speaker": "Ann"}], "'text' is missing"),
        ([{"dialogue": "d1", "text": "Hi"}], "'speaker' is missing"),
        ([turn(text=3)], "'text' should be a text, found 3"),
        ([turn(session="1")], "'session' should be a whole number, found \"1\""),
        ([turn(session=True)], "'session' should be a whole number, found true"),
        ([turn(said="yesterday")], "'said' should be a date such as 2023-05-08"),
        ([turn(said=2023)], "'said' should be a date"),
        ([turn(id="a"), turn(id="a")], "line 2: the turn 'a' is on line 1 already"),
        ([turn(id="D1:2"), turn()], "line 2: the turn 'D1:2' is on line 1 already"),
        ([ask(question=[1])], "'question' should be a text"),
        ([{"dialogue": "d1", "question": "?"}], "line 1: 'answer' is missing"),
        ([ask(answer=None, category=1)], "'answer' is missing"),
        ([ask(answer=["x"])], "'answer' should be a text"),
        ([ask(answer=True)], "'answer' should be a text"),
        ([ask(category=7)], "'category' is 7; expected one of 1 multi-hop"),
        ([ask(category="hard")], "'category' is \"hard\"; expected one of"),
        ([ask(category=[1])], "'category' is [1]; expected one of"),
        ([ask(evidence=[1])], "'evidence' should be a list of texts"),
        ([ask(accepted={})], "'accepted' should be a list of texts"),
        ([ask(meta=[])], "'meta' should be an object"),
        ([ask(groups=[1])], "'groups' should be a list of texts"),
        ([ask(asked="later")], "'asked' should be a date such as"),
        ([ask(guidance=1)], "'guidance' should be a text, found 1"),
        ([{"dialogue": "d1", "split": "dev"}], "'split' is 'dev'; expected train, validation"),
        ([{"dialogue": "d1", "sessions": {"x": None}}], "numbers as keys, found 'x'"),
        ([{"dialogue": "d1"}, {"dialogue": "d1"}], "line 2: the dialogue is described on line 1"),
    ],
)
def test_a_line_that_cannot_be_meant_is_named(lines, says):
    with pytest.raises(DataError) as error:
        read(*lines)
    assert says in str(error.value)


def test_adversarial_questions_as_locomo_has_them_stay_out_of_the_scores():
    [one] = read(turn(), ask(answer=None, category=5), ask("!", category="adversarial"))
    assert scored([one]) == []
    assert [question.answer for question in one.questions] == [NOT_MENTIONED, "x"]


texts = st.text(max_size=12)
moments = st.none() | st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(
    lambda moment: moment.replace(tzinfo=UTC)
)
numbers = st.integers(-3, 40)
metas = st.dictionaries(
    texts,
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
        | texts,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
        max_leaves=4,
    ),
    max_size=2,
)  # fmt: skip


@st.composite
def dialogue(draw, name):
    ids = iter(draw(st.lists(texts, unique=True, min_size=9, max_size=9)))
    sessions = []
    for number in sorted(draw(st.lists(numbers, max_size=3, unique=True))):
        turns = tuple(
            Turn(draw(texts), draw(texts), draw(moments), next(ids), draw(texts), draw(texts))
            for _ in range(draw(st.integers(0, 3)))
        )
        date = turns[0].said if turns and draw(st.booleans()) else draw(moments)
        sessions.append(Session(number, date, turns))
    known = [turn.id for session in sessions for turn in session.turns]

    def some():
        return tuple(turn for turn in known if draw(st.booleans()))

    questions = [
        Question(
            id=draw(texts),
            dialogue_id=name,
            text=draw(texts),
            answer=draw(texts),
            evidence=some(),
            category=draw(st.sampled_from(list(CATEGORIES))),
            accepted=tuple(draw(st.lists(texts, max_size=2))),
            kind=draw(texts),
            phenomenon=draw(texts),
            groups=tuple(draw(st.lists(texts, max_size=2))),
            asked=draw(moments),
            guidance=draw(texts),
            meta=draw(metas),
        )
        for _ in range(draw(st.integers(0, 2)))
    ]
    observations = [
        Observation(draw(texts), draw(texts), some(), draw(numbers))
        for _ in range(draw(st.integers(0, 2)))
    ]
    return Dialogue(
        id=name,
        speakers=tuple(draw(st.lists(texts, max_size=3))),
        sessions=tuple(sessions),
        questions=tuple(questions),
        observations=tuple(observations),
        meta=draw(metas),
        own_split=draw(st.sampled_from([None, "train", "validation", "test"])),
    )


dialogues = st.lists(st.text(min_size=1, max_size=9), unique=True, min_size=1, max_size=3).flatmap(
    lambda names: st.tuples(*(dialogue(name) for name in names)).map(list)
)


@given(dialogues)
def test_what_is_written_is_read_back_the_same(kept):
    text = jsonl.dump(kept)
    assert jsonl.read(text, "mine", Report()) == kept
    assert jsonl.dump(jsonl.read(text, "mine", Report())) == text
    text.encode("utf-8")


def test_lines_break_only_where_lines_end(tmp_path):
    kept = read(turn("one\u2028two\u0085\x0b\x1c three\r\nfour \ud83d"))
    (tmp_path / "own.jsonl").write_text(jsonl.dump(kept), "utf-8", newline="")
    assert load(tmp_path / "own.jsonl") == kept
    crlf = BY_HAND.replace("\n", "\r\n")
    assert read(crlf) == read(BY_HAND)


@pytest.mark.parametrize(
    "sessions",
    [
        (Session(2, None, (Turn("a", "b", id="x"),)), Session(1, None, (Turn("a", "b", id="y"),))),
        (Session(1, None, (Turn("a", "b", id="x"), Turn("a", "b", id="x"))),),
    ],
)
def test_what_the_format_cannot_hold_is_not_written(sessions):
    with pytest.raises(DataError):
        jsonl.dump([Dialogue("d", (), sessions)])
    with pytest.raises(DataError, match="'d' can't be written without loss: expected each"):
        jsonl.dump([Dialogue("d", (), ()), Dialogue("e", (), ()), Dialogue("d", (), ())])
    with pytest.raises(DataError, match="JSON"):
        jsonl.dump([Dialogue("d", (), (), meta={"at": timedelta(1)})])


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text):
    for whole in (text, f'{{"dialogue": "d", "text": {json.dumps(text)}, "speaker": ""}}\n{text}'):
        try:
            jsonl.read(whole, "mine", Report())
        except DataError as error:
            assert "mine" in str(error)


@pytest.mark.parametrize(
    ("name", "content", "format"),
    [
        ("own.txt", BY_HAND, "jsonl"),
        ("own.jsonl", "\ufeff\n" + BY_HAND, "jsonl"),
        ("own.jsonl", '{"dialogue": ', "jsonl"),
        ("own.jsonl", '{"speaker": "Ann", "text": "Hi"}', "jsonl"),
        ("own.json", '{"dialogue": ', "locomo"),
        ("locomo.json", '[{"sample_id": "x"}]', "locomo"),
        ("locomo.json", "[\n{", "locomo"),
        ("msc.jsonl", '{"self_instruct": {}}', "msc"),
        ("own.jsonl", "[1]", "locomo"),
    ],
)
def test_a_file_is_known_by_its_first_line(tmp_path, name, content, format):
    (tmp_path / name).write_text(content, "utf-8")
    assert recognise(tmp_path / name).name == format


def test_a_dialogue_is_ready_when_its_last_line_is_read(tmp_path):
    """Read one by one, also where lines are mixed: in the order in which they are first named."""
    lines = [turn(dialogue=name, text=name) for name in ("a", "b", "b", "a", "c", "c", "d")]
    lines.append({"dialogue": "d", "colour": 1})
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)), "utf-8")
    dialogues = stream(tmp_path / "own.jsonl")
    assert [next(dialogues).id for _ in range(3)] == ["a", "b", "c"]
    with pytest.raises(DataError, match="line 8: unknown key 'colour'"):
        next(dialogues)


def test_questions_by_hand_get_the_groups_and_guidance_of_their_category():
    [one] = read(
        turn(),
        ask("1", category=2),
        ask("2", kind="count", phenomenon="overwrite"),
        ask("3", answer=None),
        ask("4", groups=["mine", "all"], guidance="Be strict.", asked="2024-05-01T10:00"),
        ask("5", groups="mine"),
        ask("6", groups=[], guidance="", category=2),
    )
    temporal, labelled, unknown, own, single, none = one.questions
    assert temporal.groups == ("2 temporal",) and "date" in temporal.guidance
    assert labelled.groups == ("kind: count", "phenomenon: overwrite")
    assert unknown.groups == ("kind: unanswerable",) and "not mentioned" in unknown.guidance
    assert (own.groups, own.guidance) == (("mine", "all"), "Be strict.")
    assert own.asked == datetime(2024, 5, 1, 10, tzinfo=UTC)
    assert single.groups == ("mine",)
    assert (none.groups, none.guidance) == ((), "")
    assert jsonl.read(jsonl.dump([one]), "mine", Report()) == [one]


def test_a_broken_file_is_named_with_its_line(tmp_path):
    (tmp_path / "own.jsonl").write_text(BY_HAND + "{", "utf-8")
    with pytest.raises(DataError, match=r"own\.jsonl, line 9: not JSON"):
        load(tmp_path / "own.jsonl")
    (tmp_path / "own.jsonl").write_bytes(BY_HAND.encode() + b"\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        load(tmp_path / "own.jsonl")
    with pytest.raises(DataError, match="unknown data format"):
        load(tmp_path / "own.jsonl", "csv")


def test_a_world_becomes_lines_and_stays_the_same(tmp_path):
    write(WorldConfig(seed=3, dialogues=2), tmp_path / "world.json")
    kept = load(tmp_path / "world.json")
    (tmp_path / "world.jsonl").write_text(jsonl.dump(kept), "utf-8")
    assert load(tmp_path / "world.jsonl") == kept
    assert kept[0].meta["world"]["events"]


@pytest.mark.data
def test_locomo_becomes_lines_and_stays_the_same(tmp_path):
    kept = load(benchmark("locomo10.json"))
    (tmp_path / "locomo.jsonl").write_text(jsonl.dump(kept), "utf-8")
    assert load(tmp_path / "locomo.jsonl") == kept
    splits = {
        s: part["scored"] for s, part in describe(tmp_path / "locomo.jsonl")["splits"].items()
    }
    assert splits == {"train": 152, "validation": 81, "test": 1307}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(line, code=0):
        result = CliRunner().invoke(app, line.split())
        assert result.exit_code == code, result.output + repr(result.exception)
        return result

    return run


def test_the_command_rewrites_a_file(run, file, tmp_path):
    run("world --out w.json --dialogues 2 --sessions 2 --threads 2 --chat 0")
    said = run("data w.json --to-jsonl w.jsonl").stdout
    assert said.startswith("w.jsonl: 2 dialogues, ") and said.endswith(" lines\n")
    before, after = (json.loads(run(f"data {f} --json").stdout) for f in ("w.json", "w.jsonl"))
    assert [facts.pop("format") for facts in (before, after)] == ["world", "jsonl"]
    assert [facts.pop("title") for facts in (before, after)][1] == "plain JSON lines"
    assert before | {"file": ""} == after | {"file": ""}
    assert (
        "exists already; give another --to-jsonl" in run("data w.json --to-jsonl w.jsonl", 1).stderr
    )
    counts = json.loads(run("data own.jsonl --to-jsonl w.jsonl --force --json").stdout)
    assert counts == {"file": "w.jsonl", "dialogues": 1, "turns": 4, "questions": 3, "lines": 7}
    assert "can't be written" in run("data w.json --to-jsonl no/w.jsonl", 1).stderr


def test_a_file_that_breaks_off_is_not_rewritten(run, file, tmp_path):
    file.write_text(BY_HAND + '{"dialogue": "d1", "colour": 1}\n', "utf-8")
    assert "unknown key" in run("data own.jsonl --to-jsonl w.jsonl", 1).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["own.jsonl"]


def test_the_benchmark_plays_own_data(run, file):
    said = run("bench locomo --data own.jsonl --out out --json").stdout
    scores = json.loads(said)
    assert (scores["n"], scores["data"]) == (3, "own.jsonl")


def test_training_takes_its_splits_from_own_data(tmp_path):
    runfile = pytest.importorskip("memory_r1.train.runfile", reason="needs the extra [train]")
    stage = pytest.importorskip("memory_r1.train.stage", reason="needs the extra [train]")
    head = '{"dialogue": "d%d", "split": "%s"}\n'
    # A held-out dialogue that says what a trained one says is refused.
    own = [
        BY_HAND.replace('"d1"', f'"d{n}"').replace('text": "', f'text": "({n}) ') for n in range(3)
    ]
    parts = [head % (n, split) for n, split in enumerate(("train", "train", "validation"))]
    (tmp_path / "own.jsonl").write_text("".join(a + b for a, b in zip(parts, own, strict=True)))
    run = runfile.Run(
        kind="manager", model="tiny-base", data=runfile.Data(path=str(tmp_path / "own.jsonl"))
    )
    practised, held_out = stage.dialogues_of(run)
    assert [d.id for d in practised] == ["d0", "d1"] and [d.id for d in held_out] == ["d2"]
