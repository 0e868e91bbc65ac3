import io
import json
from dataclasses import replace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from memory_r1.bench.score import Prediction
from memory_r1.data.words import pool
from memory_r1.errors import ConfigError, MissingExtra
from memory_r1.serve import quickstart, quickstart_charts, quickstart_report, quickstart_story
from memory_r1.serve.cli import app
from memory_r1.serve.quickstart import Options, next_commands, run_files, run_of
from memory_r1.serve.quickstart_measure import SYSTEMS, Measured, mix, table, write_worlds
from memory_r1.serve.quickstart_report import Result, Stage
from memory_r1.serve.quickstart_story import DIALOGUE, Heard, Operation, lost
from memory_r1.serve.quickstart_view import StageView, braille

ROWS = [
    {"step": step, "reward_mean": step / 10, "op_add": 0.75, "op_update": 0.25, "entropy": 0.5}
    for step in range(1, 6)
]


def heard(*operations_of_dogs):
    """The dialogue with these operations after each of the two dogs, and ADD for the rest."""
    dogs = iter(operations_of_dogs)
    return tuple(
        Heard(
            line.day,
            line.speaker,
            line.text,
            ()
            if line.told is None
            else tuple(next(dogs))
            if line.told.topic == "dog"
            else (Operation("ADD", "", line.told.text),),
        )
        for line in DIALOGUE
    )


BUDDY, SCOUT = "Andrew's dog is Buddy", "Andrew's dog is Scout"
BOTH = "Andrew's dogs are Buddy and Scout"
OTHERS = ("Judith's home is Vienna", "Andrew's job is historian", "Judith's cat is Misty")


# The story


def test_no_name_or_value_of_the_story_is_known_from_training():
    for line in DIALOGUE:
        for kind in ("person", "pet", "city", "job"):
            assert not set(pool(kind, "train")) & set(line.text.replace(",", "").split())
        if line.told is not None:
            assert line.told.person in pool("person", "unseen")


def test_a_dog_that_was_deleted_for_another_is_lost_and_the_culprit_is_named():
    told = heard(
        [Operation("ADD", "", BUDDY)], [Operation("DELETE", BUDDY, ""), Operation("ADD", "", SCOUT)]
    )
    assert list(lost(DIALOGUE, told, [SCOUT, *OTHERS])) == [
        f'"{BUDDY}" is lost: DELETE took it away when Andrew said '
        '"I adopted another dog named Scout"'
    ]


def test_dogs_that_were_merged_are_not_lost():
    told = heard([Operation("ADD", "", BUDDY)], [Operation("UPDATE", BUDDY, BOTH)])
    assert list(lost(DIALOGUE, told, [BOTH, *OTHERS])) == []


def test_a_miscopied_name_and_an_unwritten_one_are_told_apart():
    told = heard([Operation("ADD", "", "Andrew's dog is Bud")], [])
    first, second = lost(DIALOGUE, told, ["Andrew's dog is Bud", *OTHERS])
    assert first.endswith('it was written down as "Andrew\'s dog is Bud"')
    assert second.endswith("it was never written down")


def test_a_dog_of_somebody_else_is_not_andrews():
    told = heard([Operation("ADD", "", "Judith's dog is Buddy")], [])
    assert len(list(lost(DIALOGUE, told, ["Judith's dog is Buddy", *OTHERS]))) == 2


def test_a_memory_without_a_model_plays_the_story_and_can_be_read_again(tmp_path):
    told = quickstart_story.play("rules", tmp_path / "before.db")
    assert len(told.heard) == len(DIALOGUE)
    assert told.lost == ()
    quickstart_story.save(told, tmp_path / "story.json")
    assert quickstart_story.load(tmp_path / "story.json") == told
    shown = "\n".join(quickstart_story.lines(told))
    assert "Andrew: I adopted a dog named Buddy." in shown
    assert "How many dogs does Andrew have?" in shown
    # Told again, the memory is a new one.
    assert quickstart_story.play("rules", tmp_path / "before.db").bank == told.bank


@pytest.mark.parametrize(
    ("operation", "shown"),
    [
        (Operation("UPDATE", BUDDY, BOTH), f"UPDATE  {BUDDY} -> {BOTH}"),
        (Operation("DELETE", BUDDY, ""), f"DELETE  {BUDDY}"),
        (Operation("NOOP", "", ""), "NOOP    nothing changes"),
    ],
)
def test_an_operation_reads_as_before_and_after(operation, shown):
    assert str(operation) == shown


# The tables


def prediction(number, em, kind="count", phenomenon="accumulate"):
    return Prediction(
        question_id=f"q{number}",
        dialogue_id="d",
        category=1,
        question="",
        gold="",
        prediction="",
        retrieved=[],
        used=[],
        em=em,
        f1=em,
        f1_official=em,
        bleu1=em,
        latency={},
        tokens=[0, 0],
        prompt_hash="",
        kind=kind,
        phenomenon=phenomenon,
        groups=[f"kind: {kind}", f"phenomenon: {phenomenon}"],
    )


def system(*scores):
    kinds = ("count", "list", "count", "single")
    return {
        f"q{i}": prediction(i, em, kind, "absent" if kind == "single" else "accumulate")
        for i, (em, kind) in enumerate(zip(scores, kinds, strict=True))
    }


MEASURED = table([system(0, 0, 0, 1), system(1, 0, 0, 1), system(1, 1, 1, 0)])


def test_the_table_has_all_questions_then_phenomena_then_kinds():
    assert [(row.group, row.n) for row in MEASURED] == [
        ("all", 4),
        ("phenomenon: absent", 1),
        ("phenomenon: accumulate", 3),
        ("kind: count", 2),
        ("kind: list", 1),
        ("kind: single", 1),
    ]


def test_a_gain_is_both_stages_over_before_and_losses_are_shown():
    rows = {row.group: row for row in MEASURED}
    assert rows["all"].em == (25.0, 50.0, 75.0)
    assert rows["all"].gain.difference == 50.0
    assert rows["all"].gain.low < 50.0 < rows["all"].gain.high
    assert tuple(rows["kind: count"].gain) == (100.0, 100.0, 100.0)
    assert rows["kind: single"].gain.difference == -100.0


def test_the_mix_of_operations_is_in_percent():
    assert mix({"ADD": 3, "DELETE": 1}) == {"ADD": 75, "UPDATE": 0, "DELETE": 25, "NOOP": 0}
    assert set(mix({}).values()) == {0}


def test_test_worlds_share_no_dialogue_with_training_and_follow_the_seed(tmp_path):
    one = write_worlds(tmp_path / "a", 3, short=True)
    again = write_worlds(tmp_path / "b", 3, short=True)
    other = write_worlds(tmp_path / "c", 4, short=True)
    for name in ("new", "unseen"):
        assert one[name].read_bytes() == again[name].read_bytes()
        assert one[name].read_bytes() != other[name].read_bytes()


def test_a_full_test_world_asks_at_least_400_questions(tmp_path):
    for path in write_worlds(tmp_path / "w", 0, short=False).values():
        assert sum(len(sample["qa"]) for sample in json.loads(path.read_text())) >= 400


# The run files


@pytest.mark.parametrize("algo", ["grpo", "ppo"])
@pytest.mark.parametrize("kind", ["manager", "answer"])
def test_seed_0_is_the_run_file_and_another_seed_changes_everything_random(algo, kind, tmp_path):
    run = run_of(kind, Options(tmp_path, algo))
    assert (run.kind, run.algorithm, run.model, run.seed) == (kind, algo, "tiny-base", 0)
    assert run.manager == (str(tmp_path / "manager") if kind == "answer" else None)
    other = run_of(kind, Options(tmp_path, algo, seed=4))
    assert other.seed == 4
    assert other.world.seed != run.world.seed
    assert replace(other, seed=0, world=run.world) == run


def test_the_two_stages_practise_on_different_worlds(tmp_path):
    seeds = {
        run_of(kind, Options(tmp_path, seed=seed)).world.seed
        for kind in ("manager", "answer")
        for seed in range(20)
    }
    assert len(seeds) == 40


def test_a_short_run_is_two_steps(tmp_path):
    assert run_of("manager", Options(tmp_path, short=True)).steps.total == 2


def test_what_is_offered_next_names_files_that_are_there(tmp_path):
    for _, command in next_commands(tmp_path):
        assert command.startswith("memory-r1 ")
        if " train " in command:
            assert (run_files() / command.split()[2].rsplit("/", 1)[-1]).is_file()


# The folder


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="no quickstart"):
        quickstart._begin(Options(tmp_path))
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_a_quickstart_is_gone_on_with_only_as_it_was_begun(tmp_path):
    out = tmp_path / "out"
    assert quickstart._begin(Options(out)) == quickstart._begin(Options(out))
    with pytest.raises(ConfigError, match="seed = 0, not 1"):
        quickstart._begin(Options(out, seed=1))
    with pytest.raises(ConfigError, match="algo = 'grpo', not 'ppo'"):
        quickstart._begin(Options(out, algo="ppo"))


@pytest.mark.parametrize("wrong", [{"algo": "sarsa"}, {"seed": -1}, {"seed": 100_000}])
def test_what_cannot_be_played_is_refused(wrong, tmp_path):
    with pytest.raises(ConfigError):
        Options(tmp_path, **wrong)


def test_without_torch_one_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"memory-r1\[train\]"):
        quickstart.quickstart(Options(tmp_path / "out"), Console(), Console())
    assert not (tmp_path / "out").exists()


def test_ctrl_c_is_one_sentence(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(quickstart, "quickstart", interrupted)
    done = CliRunner().invoke(app, ["quickstart", "--out", str(tmp_path / "out")])
    assert done.exit_code == 130
    assert done.stderr.count("\n") == 1
    assert "the same command goes on" in done.stderr


# The view


def test_a_line_chart_rises_from_the_lower_left_to_the_upper_right():
    top, bottom = braille([0, 1], 4, 2)
    assert (top[0], bottom[-1]) == ("\u2800", "\u2800")
    assert "\u2800" not in (top[-1], bottom[0])


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5, 0.5], list(range(1000))])
def test_any_series_fits_the_chart(values):
    assert [len(row) for row in braille(values, 10, 3)] == [10, 10, 10]


def test_off_a_terminal_a_stage_is_a_few_plain_lines():
    screen = io.StringIO()
    with StageView("Stage 1", 5, Console(file=screen, width=200)) as view:
        for row in ROWS:
            view(row["step"], row)
    first, last = screen.getvalue().splitlines()
    assert first == "Stage 1: preparing"
    assert last == (
        "Stage 1: step 5 of 5, reward 0.300, ADD 75% UPDATE 25% DELETE 0% NOOP 0%, entropy 0.50"
    )


def test_on_a_terminal_a_stage_is_a_curve_with_the_operations():
    screen = io.StringIO()
    with StageView("Stage 1", 9, Console(file=screen, width=90, force_terminal=True)) as view:
        view(0, {"eval_reward_mean": 0.1})
        for row in ROWS:
            view(row["step"], row)
    shown = screen.getvalue()
    assert any("\u2801" <= letter <= "\u28ff" for letter in shown)
    for part in ("step 5 of 9", "left", "UPDATE 25%", "entropy 0.50"):
        assert part in shown


# The report


def result(**asked):
    told = quickstart_story.Story(
        heard([Operation("ADD", "", "<script>alert(1)</script>")], []), (BUDDY,), (), ()
    )
    bank = {"right_entry": 50.0, "operations": {"ADD": 3, "UPDATE": 1}, "deferred_turns": 2}
    measured = Measured("unseen", tuple(MEASURED), dict.fromkeys(SYSTEMS, bank))
    state = {"algo": "grpo", "seed": 5, "short": False, "base": "tiny-base 12ab", "version": "0"}
    return Result(
        state | asked,
        told,
        told,
        [Stage("Stage 1: the Memory Manager", ROWS, 'model = "tiny-base"')],
        [measured],
        {"libraries": {"torch": "2"}, "machine": {"cpus": 2}},
        {"manager": 12.0},
    )


def test_the_report_is_one_file_that_asks_for_no_other():
    page = quickstart_report.html(result())
    assert "http" not in page
    assert "src=" not in page
    assert "<link" not in page
    assert "prefers-color-scheme: dark" in page
    assert page.count("<svg") == 3


def test_what_a_model_wrote_is_data_in_the_report():
    page = quickstart_report.html(result())
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_the_taught_vice_is_declared_where_it_applies():
    assert "vice on purpose" in quickstart_report.html(result())
    assert "vice on purpose" not in quickstart_report.html(result(base="other 12ab"))


def test_the_tables_of_the_terminal_and_of_the_file_hold_the_same_numbers(tmp_path):
    screen = io.StringIO()
    (measured,) = result().measured
    console = Console(file=screen, width=100)
    console.print(quickstart_report.table(measured))
    console.print(quickstart_report.operations(measured))
    quickstart_report.write(tmp_path, result())
    kept = json.loads((tmp_path / "results.json").read_text())["worlds"][0]["rows"][0]
    assert kept["em"] == [25.0, 50.0, 75.0]
    for text in (screen.getvalue(), (tmp_path / "report.html").read_text()):
        for part in ("25.0", "50.0", "75.0", "+50.0"):
            assert part in text


def test_a_metric_that_was_never_logged_has_no_chart():
    assert quickstart_charts.line_chart("Entropy", [{"step": 1}], "entropy") == ""
    assert quickstart_charts.operations_chart("Operations", [{"step": 1}]) == ""


# All of it


@pytest.fixture
def untrained(tmp_path):
    """A random model of the tiny model's kind; so that there is something to practise on, each
    turn is a fact as it stands."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from memory_r1.train import tokenizer

    torch.manual_seed(0)
    base = tmp_path / "untrained"
    folder = base / "model"
    known = tokenizer.build()
    config = transformers.Qwen2Config(
        vocab_size=len(known),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        pad_token_id=known.pad_token_id,
        bos_token_id=None,
        eos_token_id=known.convert_tokens_to_ids(tokenizer.END),
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save(folder)
    (folder / "memory_r1.json").write_text('{"style": "compact"}')
    players = {"extract": "rules", "manage": "model", "answer": "model"}
    (base / "agents.json").write_text(json.dumps(players))
    return base


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["grpo", "ppo"])
def test_a_short_quickstart_goes_all_the_way_and_on_after_an_interruption(
    algo, untrained, tmp_path, monkeypatch
):
    from memory_r1.train import learn as trainer

    options = Options(tmp_path / "out", algo, short=True, base=str(untrained))
    screen, learned = io.StringIO(), []

    def learn(run, *rest, **named):
        learned.append(run.kind)
        if learned == ["manager", "answer"]:
            raise KeyboardInterrupt
        return real(run, *rest, **named)

    def play():
        return quickstart.quickstart(
            options, Console(file=screen, width=100), Console(file=io.StringIO())
        )

    real = trainer.learn
    monkeypatch.setattr(trainer, "learn", learn)
    with pytest.raises(KeyboardInterrupt):
        play()
    page = play()
    assert learned == ["manager", "answer", "answer"]
    assert page.read_text().count("<svg") >= 2
    rows = json.loads((options.out / "results.json").read_text())["worlds"]
    assert [world["rows"][0]["n"] for world in rows] == [20, 20]
    # Finished, it only shows again what it has.
    first = page.read_text()
    assert play().read_text() == first
    assert learned == ["manager", "answer", "answer"]
