import io
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import bench_run, curve, everything, trained, training_run

from memory_r1.bench import figures_bars, figures_lines, figures_points
from memory_r1.bench.comparison import Table, tables
from memory_r1.bench.figures import DARK, LIGHT, Drawing, Missing, of_all, of_table, png
from memory_r1.bench.figures_draw import DPI, Panel, bars, clipped, plain, wrapped
from memory_r1.bench.gather import read
from memory_r1.bench.paper import ABLATIONS
from memory_r1.errors import MissingExtra

RUNS = Path(__file__).parents[1] / "runs"
BOTH = {"manage": trained(), "answer": trained()}


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """Everything that was given, and its tables."""
    found = read(everything(tmp_path_factory.mktemp("runs")))
    return found, tables(found.bench)


def one_table(*folders):
    (table,) = tables(read(folders).bench)
    return table


def pixels(data):
    """(height, width, 3) values of a PNG."""
    from matplotlib import image

    return image.imread(io.BytesIO(data))[..., :3]


def test_every_figure_is_drawn_from_runs_that_hold_what_it_needs(full):
    found, of = full
    drawn = {figure.name: figure for table in of for figure in of_table(table)
             if isinstance(figure, Drawing)}  # fmt: skip
    drawn |= {f.name: f for f in of_all(found, of) if isinstance(f, Drawing)}
    assert drawn.keys() == {
        "ablation", "distillation", "reward", "managers", "size", "latency",
        "radar", "curves", "streaming",
    }  # fmt: skip
    for drawing in drawn.values():
        image = pixels(png(drawing))
        width, height = (round(side * DPI) for side in drawing.size)
        assert abs(image.shape[1] - width) <= 1 and abs(image.shape[0] - height) <= 1
        ink = np.abs(image - image[0, 0]).sum(axis=2) > 0.3
        assert 0.005 < ink.mean() < 0.6, drawing.name
        # Something in the left and in the right half, and nothing on the very edge.
        assert ink[:, : ink.shape[1] // 2].any() and ink[:, ink.shape[1] // 2 :].any()
        assert not ink[:, :2].any() and not ink[:, -2:].any(), f"{drawing.name} is cut off"


@pytest.mark.parametrize(("theme", "page"), [(LIGHT, 1.0), (DARK, 0x16 / 0xFF)])
def test_a_figure_has_the_colour_of_its_page(theme, page):
    drawing = bars("x", "", "", [Panel("", ["a"], {"F1": [(1.0, 0.5, 1.5)]})])
    assert pixels(png(drawing, theme))[0, 0, 0] == pytest.approx(page, abs=0.01)


def test_what_cannot_be_drawn_says_what_is_missing_and_the_command_for_it(tmp_path):
    run = bench_run(tmp_path / "a", "rules", judged=False, latency={})
    given = read([run])
    (table,) = tables(given.bench)
    every = [*of_table(table), *of_all(given, [table])]
    assert len(every) == 9 and all(isinstance(figure, Missing) for figure in every)
    for figure in every:
        assert figure.why
        assert all(command.startswith("memory-r1 ") for command in figure.commands)
        assert figure.commands
    ablation = next(figure for figure in every if figure.title == "Ablations")
    assert (
        "memory-r1 bench locomo --data locomo.json --system no-distillation --model out/answer "
        "--out runs/no-distillation" in ablation.commands
    )


def test_the_settings_of_the_training_that_a_missing_figure_names_can_be_loaded(tmp_path):
    from memory_r1.train.runfile import load_run

    (table,) = tables(read([bench_run(tmp_path / "a", "rules", judged=False)]).bench)
    command, _ = figures_bars.reward(table).commands
    overrides = [word for word in command.split() if "=" in word]
    run = load_run(RUNS / "tiny_answer_grpo.toml", overrides)
    assert (run.reward.name, run.reward.judge, run.manager) == ("judge", "MODEL", "out/manager")


def test_the_arms_of_the_ablation_are_found_by_what_was_trained(tmp_path):
    table = one_table(
        bench_run(tmp_path / "full", "x", 0.9, **BOTH),
        bench_run(tmp_path / "m", "y", 0.6, answer=trained()),
        bench_run(tmp_path / "a", "z", 0.5, manage=trained()),
        bench_run(tmp_path / "d", "w", 0.7, system="no-distillation", **BOTH),
        # Neither an arm: another system with the trained Answer Agent, and one wholly untrained.
        bench_run(tmp_path / "rag", "v", 0.1, system="rag-bm25", answer=trained()),
        bench_run(tmp_path / "base", "u", 0.1),
    )
    drawing = figures_bars.ablation(table)
    by_label = {run.label: run.overall["f1"] for run in table.runs}
    ours = {row[1]: row[3] for row in drawing.rows if row[2] == "F1" and "paper" not in row[0]}
    assert ours == {
        "full": by_label["x"],
        "no trained manager": by_label["y"],
        "no trained answer agent": by_label["z"],
        "no distillation": by_label["w"],
    }
    paper = {row[1]: row[3] for row in drawing.rows if row[2] == "F1" and "paper" in row[0]}
    assert paper == {arm: row.f1 for arm, row in ABLATIONS.items()}
    assert figures_bars.ARMS.keys() == ABLATIONS.keys()


def test_a_model_that_selects_memories_all_the_same_is_no_arm_without_distillation(tmp_path):
    """The bundled models know no other way to answer, and scores.json says so."""
    table = one_table(
        bench_run(tmp_path / "full", "x", 0.9, **BOTH),
        bench_run(tmp_path / "d", "w", 0.1, system="no-distillation", distillation=True, **BOTH),
    )
    assert isinstance(figures_bars.ablation(table), Missing)


def test_runs_of_another_model_or_algorithm_are_no_arms_of_each_other(tmp_path):
    table = one_table(
        bench_run(tmp_path / "full", "x", **BOTH),
        bench_run(tmp_path / "m", "y", answer=trained("ppo")),
        bench_run(tmp_path / "n", "z", answer=trained(model="another")),
    )
    assert isinstance(figures_bars.ablation(table), Missing)


def test_several_seeds_make_one_bar_from_the_lowest_to_the_highest(tmp_path):
    seeds = [{"manage": trained(seed=s), "answer": trained(seed=s)} for s in (0, 1)]
    table = one_table(
        bench_run(tmp_path / "0", "ours", 0.9, **seeds[0]),
        bench_run(tmp_path / "1", "ours", 0.5, **seeds[1]),
        bench_run(tmp_path / "m", "arm", 0.3, answer=trained()),
    )
    low, high = sorted(run.overall["f1"] for run in table.runs if run.trained("manage"))
    row = next(r for r in figures_bars.ablation(table).rows if r[1:3] == ("full", "F1"))
    assert row[3:] == (pytest.approx((low + high) / 2), low, high)
    assert {run.label for run in table.runs} == {"ours (seed 0)", "ours (seed 1)", "arm"}


def test_a_bar_of_one_run_has_the_interval_of_its_scores(tmp_path):
    table = one_table(
        bench_run(tmp_path / "full", "x", **BOTH),
        bench_run(tmp_path / "m", "y", answer=trained()),
    )
    run = next(run for run in table.runs if run.label == "x")
    row = next(r for r in figures_bars.ablation(table).rows if r[1:3] == ("full", "J"))
    assert row[3] == run.overall["judge"]
    assert list(row[4:]) == run.scores["overall"]["intervals"]["judge"]


def test_old_folders_are_told_to_be_played_again(tmp_path):
    table = one_table(
        bench_run(
            tmp_path / "a", "out/grpo", without=("trained", "label", "protocol"), judged=False
        )
    )
    figure = figures_bars.ablation(table)
    assert isinstance(figure, Missing) and "play them with this version" in figure.why
    assert isinstance(figures_points.latency(table), Drawing)


def test_the_gain_of_a_trained_answer_agent_is_told_for_each_manager(tmp_path):
    strong = {"extract": "s", "manage": "http://host/v1#Strong", "answer": "Qwen2.5-7B"}
    weak = {**strong, "manage": "weak"}
    table = one_table(
        bench_run(tmp_path / "1", "a", 0.2, players=weak),
        bench_run(tmp_path / "2", "b", 0.4, players=weak, answer=trained()),
        bench_run(tmp_path / "3", "c", 0.6, players=strong),
        bench_run(tmp_path / "4", "d", 0.9, players=strong, answer=trained()),
    )
    f1 = {run.label: run.overall["f1"] for run in table.runs}
    rows = [row for row in figures_bars.managers(table).rows if row[0].endswith("F1")]
    assert [row[1].split(":")[0] for row in rows] == ["weak", "Strong"] * 2  # the weaker one first
    assert rows[0][1] == f"weak: {f1['b'] - f1['a']:+.1f}"
    assert rows[1][1] == f"Strong: {f1['d'] - f1['c']:+.1f}"


def test_seconds_of_a_reranker_are_those_of_a_question_from_search_to_answer(tmp_path):
    table = one_table(
        bench_run(tmp_path / "1", "a", slow=1, n=10, **BOTH),
        bench_run(tmp_path / "2", "b", slow=3, n=10, system="rerank?keep=10"),
    )
    drawing = figures_bars.distillation(table)
    seconds = {row[1:3]: row[3] for row in drawing.rows if row[0] == "from question to answer"}
    # Answers take 1.0 to 1.9 s and search 0.02 s, or three times that; no manager's 2 s in it.
    assert seconds["learned distillation", "p50"] == pytest.approx(1.47)
    assert seconds["base model and reranker", "p50"] == pytest.approx(3 * 1.47)
    assert "Questions were asked one at a time." in drawing.caption


def test_batches_are_said_wherever_seconds_are_shown(tmp_path):
    table = one_table(bench_run(tmp_path / "1", "a", batch=32))
    caption = figures_points.latency(table).caption
    assert "32 questions at once: a local model's seconds are those of a batch." in caption


def test_scores_of_different_judges_are_never_in_one_figure(tmp_path):
    other = {"name": "another", "prompt_hash": "ff", "unscored": 0.0}
    table = one_table(
        bench_run(tmp_path / "full", "x", **BOTH),
        bench_run(tmp_path / "m", "y", answer=trained(), judge=other),
    )
    drawing = figures_bars.ablation(table)
    assert {row[2] for row in drawing.rows if "paper" not in row[0]} == {"F1", "B1", "EM"}
    assert "J is left out" in drawing.caption


@pytest.mark.parametrize("name", ["tiny", "tiny-base"])
def test_the_tiny_models_vice_is_told_in_every_caption(tmp_path, name):
    players = {"extract": name, "manage": name, "answer": name}
    table = one_table(
        bench_run(tmp_path / "full", "x", players=players, **BOTH),
        bench_run(tmp_path / "m", "y", answer=trained(model=name)),
    )
    for figure in of_table(table):
        if isinstance(figure, Drawing):
            assert "taught bad habits on purpose" in figure.caption


def test_the_papers_numbers_stand_beside_locomo_only(tmp_path):
    world = one_table(bench_run(tmp_path / "w", "x", benchmark="world", **BOTH))
    locomo = one_table(bench_run(tmp_path / "l", "x", **BOTH))
    assert not any("paper" in row[0] for row in figures_points.latency(world).rows)
    assert any("paper" in row[0] for row in figures_points.latency(locomo).rows)


def test_the_radar_needs_three_benchmarks_and_shows_who_was_played_on_all(tmp_path):
    runs = [
        bench_run(tmp_path / f"{benchmark}-{i}", f"system {i}", benchmark=benchmark)
        for benchmark in ("locomo", "msc", "longmemeval")
        for i in (1, 2)
    ]
    runs.append(bench_run(tmp_path / "alone", "alone"))
    radar = figures_points.radar(tables(read(runs).bench))
    assert {row[0] for row in radar.rows} == {"system 1", "system 2"}
    assert "not shown: alone" in radar.caption
    assert isinstance(figures_points.radar(tables(read(runs[:4]).bench)), Missing)


def test_reward_curves_name_the_algorithm_that_is_not_there(tmp_path):
    run = training_run(tmp_path / "r", algorithm="ppo", seed=3, steps=12)
    drawing = figures_lines.curves(read([run]).training)
    assert "No GRPO run was given" in drawing.caption and "seeds 3" in drawing.caption
    ((label, kind, algorithm, seed, steps, _, last),) = drawing.rows
    assert (label, kind, algorithm, seed, steps) == ("r", "manager", "ppo", "3", 12.0)
    assert 0.7 < last < 1.0


def test_a_streaming_run_is_drawn_as_its_curve_says(tmp_path):
    table = one_table(bench_run(tmp_path / "s", "ours", curve=curve(80.0, 5.5)))
    rows = figures_lines.streaming(table).rows
    assert [row[1] for row in rows] == [5, 10, 15, 20]
    assert rows[0][3] == 75.0 and rows[0][-1] == 27.5


@given(st.text(), st.integers(1, 40))
def test_a_label_is_one_printable_line_of_bounded_length(text, length):
    line = clipped(text, length)
    assert len(line) <= length
    assert not line.startswith("_") and "\n" not in plain(text)
    assert all(len(part) <= 9 for part in wrapped(text, 9).split("\n"))


@settings(max_examples=3)
@given(st.text(min_size=1))
@pytest.mark.parametrize("hostile", ["$\\frac{", "_hidden", "\u0634\u8a9e\U0001f600", "x" * 500])
def test_any_label_can_be_drawn(hostile, text):
    label = hostile + text
    one = (1.0, 0.5, 1.5)
    drawing = bars("x", label, label, [Panel(label, [label], {label: [one], "b": [None]})])
    assert pixels(png(drawing)).shape[2] == 3


def test_a_figure_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"memory-r1\[bench\]"):
        png(bars("x", "", "", [Panel("", ["a"], {"F1": [None]})]))


def test_a_table_without_runs_draws_nothing():
    table = Table("locomo", "locomo10.json", "", "test", "build", ())
    assert all(isinstance(figure, Missing) for figure in of_table(table))
