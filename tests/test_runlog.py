import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from memory_r1.errors import ConfigError, DataError, MissingExtra
from memory_r1.train import runlog
from memory_r1.train.curves import PANELS, _series, plot_curves, read_metrics, rolling_mean
from memory_r1.train.runfile import Grpo, Run, Steps, World, load_run
from memory_r1.train.runlog import METRICS, RunLog, Sample, print_table

RUN = Run(kind="manager", model="tiny-base", seed=5, world=World(), steps=Steps(total=6))
COMMAND = ["/anywhere/bin/memory-r1", "train", "a run.toml"]
SAMPLE = Sample("D2:4", "Memories:\n```\nBuddy\n```", "NOOP", 0.25, {"gold": "2"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


def write(folder: Path, steps: range, **settings: object) -> str:
    """A run that logs these steps; what it showed on the screen."""
    screen = io.StringIO()
    console = Console(file=screen, width=90)
    with RunLog(folder, settings.pop("run", RUN), COMMAND, console=console, **settings) as log:
        for step in steps:
            log.log(step, {"reward_mean": step / 10, "em": 0.5})
            log.samples(step, [SAMPLE])
    return screen.getvalue()


def test_a_run_folder_explains_itself(folder):
    write(folder, range(1, 4))
    assert load_run(folder / "config.toml") == RUN
    about = json.loads((folder / "run.json").read_text())
    assert about["seed"] == 5 and about["command"] == "memory-r1 train 'a run.toml'"
    assert about["outcome"] == "finished" and about["started"] <= about["ended"]
    assert "numpy" in about["libraries"] and set(about["machine"]) == {"system", "cpus", "gpus"}
    assert [row["reward_mean"] for row in read_metrics(folder / "metrics.jsonl")] == [0.1, 0.2, 0.3]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_row_is_on_disk_as_soon_as_it_is_logged_and_is_strict_json(folder):
    with RunLog(folder, RUN, COMMAND, console=Console(file=io.StringIO())) as log:
        log.log(1, {"em": float("nan"), "kl": float("inf"), "value_loss": None, "cache_hits": 3})
        line = (folder / "metrics.jsonl").read_text()
        strict = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    assert strict == {"step": 1, "em": None, "kl": None, "value_loss": None, "cache_hits": 3}


def test_a_run_that_fails_says_so_and_keeps_its_curves(folder):
    with pytest.raises(ZeroDivisionError), RunLog(folder, RUN, COMMAND) as log:
        log.log(1, {"em": 1 / 3})
        log.log(2, {"em": 1 / 0})
    about = json.loads((folder / "run.json").read_text())
    assert about["outcome"] == "stopped by ZeroDivisionError: division by zero"
    assert (folder / "curves.png").exists()


def test_a_folder_that_holds_something_is_not_written_over(folder):
    write(folder, range(1, 3))
    before = (folder / "metrics.jsonl").read_text()
    with pytest.raises(ConfigError, match="not empty; continue .* --resume, or choose another"):
        write(folder, range(1, 3))
    assert (folder / "metrics.jsonl").read_text() == before


def test_resuming_drops_what_was_logged_after_the_checkpoint(folder):
    write(folder, range(1, 6))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "rewa')  # the crash
    write(folder, range(4, 7), resume=3)
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in read_metrics(folder / "samples.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert (folder / "samples.md").read_text().count("## Step") == 6
    assert json.loads((folder / "run.json").read_text())["resumed"][0]["from_step"] == 3
    assert not list(folder.glob("*.partial"))


def test_a_resumed_run_may_be_longer_but_not_another_one(folder):
    write(folder, range(1, 3))
    longer = Run(kind="manager", model="tiny-base", seed=5, world=World(), steps=Steps(total=9))
    write(folder, range(3, 4), resume=2, run=longer)
    assert load_run(folder / "config.toml") == longer
    other = Run(kind="manager", model="tiny-base", seed=5, world=World(), grpo=Grpo(clip=0.3))
    with pytest.raises(ConfigError, match=r"started with grpo.clip = 0.2, not 0.3; resume it"):
        write(folder, range(3, 4), resume=2, run=other)


def test_there_must_be_something_to_resume(folder):
    with pytest.raises(ConfigError, match="holds no run to resume; start it without --resume"):
        write(folder, range(1, 2), resume=0)


def test_samples_are_readable_and_cannot_break_out_of_their_fence(folder):
    write(folder, range(1, 2))
    text = (folder / "samples.md").read_text()
    assert text.startswith("## Step 1, D2:4: reward 0.250\n")
    assert "````text\nMemories:\n```\nBuddy\n```\n````" in text and "- gold: 2" in text


def test_without_a_terminal_progress_is_a_line_now_and_then(folder, monkeypatch):
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    shown = write(folder, range(1, 7)).splitlines()
    assert shown[0] == "step 1/6  reward 0.100  0:30 left"
    assert [line.split()[1] for line in shown] == ["1/6", "3/6", "5/6", "6/6"]
    assert shown[-1] == "step 6/6  reward 0.600  0:00 left"


def test_the_time_left_of_a_resumed_run_counts_its_own_steps(folder, monkeypatch):
    write(folder, range(1, 4))
    clock = iter(range(0, 1000, 60))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert write(folder, range(4, 5), resume=3) == "step 4/6  reward 0.400  2:00 left\n"


def test_on_a_terminal_progress_is_a_bar(folder):
    screen = io.StringIO()
    with RunLog(
        folder, RUN, COMMAND, console=Console(file=screen, force_terminal=True, width=90)
    ) as log:
        log.log(3, {"reward_mean": 0.25})
        log.say("saved [3]")
    assert "3/6" in screen.getvalue() and "reward 0.250" in screen.getvalue()
    assert "saved [3]" in screen.getvalue()


def test_tables_take_their_cells_literally():
    screen = io.StringIO()
    rows = [["tiny [base]", 0.5, 400]]
    print_table("Held out", ["model", "EM", "n"], rows, Console(file=screen, width=60))
    assert "tiny [base] │ 0.500 │ 400" in screen.getvalue()


# --- curves


def test_a_rolling_mean_looks_back_only():
    assert rolling_mean([1.0, 3.0, 5.0, 0.0], 2) == [1.0, 2.0, 4.0, 2.5]


@pytest.mark.parametrize("panels", [0, 1, 4, len(PANELS)])
def test_only_what_was_measured_is_drawn(tmp_path, panels):
    rows = [
        {"step": step, **{name: 0.25 for panel in PANELS[:panels] for name in panel.lines}}
        for step in (1, 2)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = plot_curves(tmp_path)
    assert (drawn is None) == (panels == 0)


def test_nothing_logged_draws_nothing(tmp_path):
    assert plot_curves(tmp_path) is None


def test_a_damaged_line_in_the_middle_is_an_error_and_not_skipped(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(DataError, match="line 2 is not JSON"):
        read_metrics(file)


def test_every_metric_that_is_drawn_is_explained():
    explained = {name for names in METRICS for name in names.split(", ")}
    for panel in PANELS:
        for name in panel.lines:
            metric = re.sub(r"/\w+$", "/<role>", name.removeprefix("eval_"))
            assert metric in explained


def test_without_matplotlib_the_run_is_kept_and_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match="needs matplotlib"):
        plot_curves(folder)
    assert "drawing curves needs matplotlib" in write(folder, range(1, 7))
    assert json.loads((folder / "run.json").read_text())["outcome"] == "finished"


def test_logging_needs_no_torch_and_no_matplotlib_to_be_imported():
    heavy = "{'torch', 'matplotlib'}"
    code = f"import sys, {runlog.__name__}; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_warm_start_is_drawn_over_tokens(tmp_path):
    rows = [
        {"step": step, "tokens": step * 500_000, "loss": 1 / step, "eval_new/answer": step / 4}
        for step in (1, 2, 3, 4)
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert _series(read_metrics(path), "eval_new/answer") == (
        [0.5, 1.0, 1.5, 2.0],
        [0.25, 0.5, 0.75, 1.0],
    )
    assert plot_curves(tmp_path).is_file()
