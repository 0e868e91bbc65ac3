"""TensorBoard and Weights & Biases: asked for, absent, failing, resumed."""

import io
import json
import sys
import types
from pathlib import Path

import pytest
from rich.console import Console

from memory_r1.errors import MissingExtra
from memory_r1.train import sinks
from memory_r1.train.curves import read_metrics
from memory_r1.train.runfile import Run, Steps, Watch, World
from memory_r1.train.runlog import RunLog

RUN = Run(kind="manager", model="tiny-base", seed=5, world=World(), steps=Steps(total=6))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "out"


def write(folder, steps, watch, resume=None):
    """A run that logs these steps; what it showed on the screen."""
    screen = io.StringIO()
    run = Run(**{**vars(RUN), "watch": watch})
    console = Console(file=screen, width=400)
    with RunLog(folder, run, ["memory-r1"], resume=resume, console=console) as log:
        for step in steps:
            log.log(step, {"reward_mean": step / 10, "em": None, "op_add": 1.0})
    return screen.getvalue()


class Recorder:
    """A sink that keeps what it is shown, and breaks at a step."""

    name = "Recorder"

    def __init__(self, breaks_at=99):
        self.shown, self.closed, self._breaks_at = [], 0, breaks_at

    def log(self, step, row):
        if step == self._breaks_at:
            raise OSError("no space left on device")
        self.shown.append((step, dict(row)))

    def close(self):
        self.closed += 1


@pytest.fixture
def recorder(monkeypatch):
    """Stands in for TensorBoard; a test sets where it breaks."""
    made = Recorder()
    monkeypatch.setattr(sinks, "check", lambda watch: None)
    monkeypatch.setattr("memory_r1.train.runlog.check", lambda watch: None)
    monkeypatch.setattr(sinks, "TensorBoard", lambda folder, step: made)
    return made


def test_a_sink_is_shown_every_finite_number(folder, recorder):
    write(folder, range(1, 4), Watch(tensorboard=True))
    assert recorder.shown[0] == (1, {"reward_mean": 0.1, "op_add": 1.0})
    assert [step for step, _ in recorder.shown] == [1, 2, 3] and recorder.closed == 1


def test_a_sink_that_fails_says_so_once_and_the_training_goes_on(folder, recorder):
    recorder._breaks_at = 2
    shown = write(folder, range(1, 6), Watch(tensorboard=True))
    assert shown.count("warning: Recorder failed (OSError: no space left on device)") == 1
    assert [step for step, _ in recorder.shown] == [1] and recorder.closed == 0
    assert len(read_metrics(folder / "metrics.jsonl")) == 5
    assert json.loads((folder / "run.json").read_text())["outcome"] == "finished"


def test_a_sink_that_cannot_be_opened_says_so_and_the_training_goes_on(folder, monkeypatch):
    def broken(folder, step):
        raise ValueError("a bad folder")

    monkeypatch.setattr("memory_r1.train.runlog.check", lambda watch: None)
    monkeypatch.setattr(sinks, "TensorBoard", broken)
    shown = write(folder, range(1, 3), Watch(tensorboard=True))
    assert "warning: TensorBoard failed (ValueError: a bad folder)" in shown
    assert len(read_metrics(folder / "metrics.jsonl")) == 2


@pytest.mark.parametrize(
    ("watch", "package"), [(Watch(tensorboard=True), "tensorboard"), (Watch(wandb="p"), "wandb")]
)
def test_a_sink_that_is_not_installed_stops_the_run_before_it_begins(
    folder, monkeypatch, watch, package
):
    find = sinks.importlib.util.find_spec
    monkeypatch.setattr(
        sinks.importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(MissingExtra, match=rf"needs {package}.*'memory-r1\[watch\]'"):
        write(folder, range(1, 2), watch)
    assert not folder.exists()


def test_without_a_watch_nothing_is_imported(folder):
    write(folder, range(1, 2), Watch())
    assert "wandb" not in sys.modules and sorted(p.name for p in folder.iterdir()) == [
        "config.toml",
        "curves.png",
        "metrics.jsonl",
        "run.json",
    ]


def scalars(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    return [(event.step, round(event.value, 3)) for event in read.Scalars(name)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_what_was_written_and_forgets_what_a_crash_left(folder):
    pytest.importorskip("torch")
    pytest.importorskip("tensorboard", reason="TensorBoard needs the extra [watch]")
    write(folder, range(1, 6), Watch(tensorboard=True))
    assert scalars(folder, "reward_mean") == [(n, n / 10) for n in range(1, 6)]
    write(folder, range(4, 6), Watch(tensorboard=True), resume=3)
    assert scalars(folder, "reward_mean") == [(n, n / 10) for n in range(1, 6)]


def fake_wandb(log=None):
    """The part of wandb's interface that is used; `calls` keeps what was asked of it."""
    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace(name="wandb")
    module.calls = []

    class Error(Exception):
        pass

    class Page:
        def define_metric(self, name, step_metric):
            module.calls.append(("axis", name, step_metric))

        def log(self, row):
            if log is not None:
                raise Error(log)
            module.calls.append(("log", row))

        def finish(self):
            module.calls.append(("finish",))

    def init(**settings):
        module.calls.append(("init", settings))
        return Page()

    module.Error, module.init = Error, init
    module.Settings = lambda **settings: settings
    return module


def test_a_resumed_run_goes_on_in_its_page_of_weights_and_biases(folder, monkeypatch):
    module = fake_wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    write(folder, range(1, 4), Watch(wandb="team/memory"))
    write(folder, range(2, 4), Watch(wandb="team/memory"), resume=1)
    inits = [call[1] for call in module.calls if call[0] == "init"]
    assert [(i["entity"], i["project"], i["name"]) for i in inits] == [
        ("team", "memory", "out")
    ] * 2
    assert inits[0]["id"] == inits[1]["id"] and inits[0]["resume"] == "allow"
    assert inits[0]["config"]["steps.total"] == 6 and inits[0]["dir"] == str(folder)
    assert ("axis", "*", "step") in module.calls
    logged = [call[1]["step"] for call in module.calls if call[0] == "log"]
    assert logged == [1, 2, 3, 2, 3] and module.calls.count(("finish",)) == 2


def test_an_error_of_weights_and_biases_does_not_stop_a_training(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", fake_wandb(log="the service went away"))
    shown = write(folder, range(1, 4), Watch(wandb="memory"))
    assert shown.count("Weights & Biases failed (Error: the service went away)") == 1
    assert len(read_metrics(folder / "metrics.jsonl")) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_offline_stays_in_the_run_folder(folder, monkeypatch):
    pytest.importorskip("wandb", reason="Weights & Biases needs the extra [watch]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    shown = write(folder, range(1, 4), Watch(wandb="memory"))
    assert "warning: Weights" not in shown
    assert list(folder.glob("wandb/offline-run-*/*.wandb"))


def test_an_alarm_is_a_line_on_the_screen_and_in_run_json_once(folder):
    shown = write(folder, range(1, 6), Watch())
    assert shown.count("warning: step 3: all ADD: for 3 steps every operation has been ADD.") == 1
    about = json.loads((folder / "run.json").read_text())
    assert [(alarm["step"], alarm["kind"]) for alarm in about["alarms"]] == [(3, "all ADD")]


def test_a_resumed_run_repeats_no_alarm_and_forgets_those_after_its_checkpoint(folder):
    write(folder, range(1, 6), Watch())
    assert "warning" not in write(folder, range(5, 7), Watch(), resume=4)
    assert "warning: step 3: all ADD" in write(folder, range(3, 5), Watch(), resume=2)
    assert len(json.loads((folder / "run.json").read_text())["alarms"]) == 1
