import random
from pathlib import Path

import numpy as np
import pytest
import torch

from memory_r1.errors import DataError
from memory_r1.train import checkpoint


class Toy:
    """A run whose every step draws from all three generators: data, dropout and noise."""

    def __init__(self) -> None:
        random.seed(1)
        np.random.seed(2)
        torch.manual_seed(3)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda n: 1 / (1 + n))
        self.kl_weight = 0.5

    def step(self) -> float:
        self.kl_weight *= 0.9
        x = torch.randn(5, 4) * random.random() + torch.from_numpy(np.random.randn(5, 4)).float()
        loss = self.model(x).square().mean() * self.kl_weight
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        return loss.item()

    def parts(self) -> dict[str, object]:
        return {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}

    def save(self, directory: Path, step: int, **more: object) -> Path:
        states = {name: part.state_dict() for name, part in self.parts().items()}
        extra = {"kl_weight": self.kl_weight}
        return checkpoint.save(directory, step, states=states, extra=extra, **more)

    def resume(self, path: Path) -> int:
        saved = checkpoint.load(path)
        for name, part in self.parts().items():
            part.load_state_dict(saved.states[name])
        self.kl_weight = saved.extra["kl_weight"]
        saved.restore_rng()
        return saved.step


def test_stopping_and_resuming_changes_no_bit(tmp_path):
    straight = Toy()
    losses = [straight.step() for _ in range(10)]

    stopped = Toy()
    before = [stopped.step() for _ in range(4)]
    stopped.save(tmp_path, 4)
    stopped.step()  # lost in the crash

    resumed = Toy()
    done = resumed.resume(checkpoint.latest(tmp_path))
    assert before + [resumed.step() for _ in range(10 - done)] == losses
    for a, b in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_only_the_last_two_stay_and_the_highest_step_is_the_latest(tmp_path):
    assert checkpoint.latest(tmp_path / "nowhere") is None
    toy = Toy()
    for step in (8, 9, 10, 100):
        toy.save(tmp_path, step)
    assert checkpoint.load(checkpoint.latest(tmp_path)).step == 100
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]


def test_model_files_lie_in_the_checkpoint(tmp_path):
    path = Toy().save(tmp_path, 1, write_model=lambda to: (to / "adapter.json").write_text("{}"))
    assert (checkpoint.load(path).path / "adapter.json").read_text() == "{}"


@pytest.mark.parametrize("at", ["model files", "states", "rename"])
def test_a_crash_while_saving_leaves_the_previous_one(tmp_path, monkeypatch, at):
    class Killed(BaseException):
        pass

    def die(*args: object, **kwargs: object) -> None:
        raise Killed

    def half_a_file(to: Path) -> None:
        (to / "model.safetensors").write_bytes(b"\0" * 100)
        die()

    toy = Toy()
    toy.save(tmp_path, 4)
    with pytest.raises(Killed), monkeypatch.context() as patch:
        if at == "states":
            patch.setattr(torch, "save", die)
        if at == "rename":
            patch.setattr(Path, "rename", die)
        toy.save(tmp_path, 5, write_model=half_a_file if at == "model files" else None)
    assert checkpoint.latest(tmp_path).name == "step-00000004"
    assert toy.resume(checkpoint.latest(tmp_path)) == 4
    toy.save(tmp_path, 5)  # what the crash left is cleared away
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]


def test_a_step_done_again_replaces_its_checkpoint(tmp_path):
    toy = Toy()
    toy.save(tmp_path, 4)
    toy.kl_weight = 7.0
    toy.save(tmp_path, 4)
    assert checkpoint.load(checkpoint.latest(tmp_path)).extra == {"kl_weight": 7.0}
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000004"]


def test_a_crash_while_replacing_the_only_checkpoint_leaves_it(tmp_path, monkeypatch):
    toy, rename = Toy(), Path.rename
    toy.save(tmp_path, 4)

    def die_at_the_second(path: Path, to: Path) -> None:
        if path.suffix == ".partial":
            raise KeyboardInterrupt
        rename(path, to)

    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr(Path, "rename", die_at_the_second)
        toy.save(tmp_path, 4)
    assert toy.resume(checkpoint.latest(tmp_path)) == 4
    for _ in range(2):
        toy.save(tmp_path, 4)
        assert [p.name for p in tmp_path.iterdir()] == ["step-00000004"]


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a whole checkpoint"):
        checkpoint.load(tmp_path)
    path = Toy().save(tmp_path, 1)
    file = path / checkpoint.STATE_FILE
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError, match="step-00000001 is not a whole checkpoint"):
        checkpoint.load(path)
