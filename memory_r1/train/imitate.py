"""teacher -> trajectories -> a policy that does as the teacher did  (Memory-SFT).

Any model plays the Memory Manager, the Answer Agent or both on the training dialogues, through the
conversations that serve users. What it said is kept as JSON lines with how it came out, and the
policy learns to say the same: cross-entropy on the completions.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from memory_r1.errors import ConfigError, DataError
from memory_r1.llm import Conversation, drive
from memory_r1.llm.local import LocalLLM
from memory_r1.llm.prompting import without_thinking
from memory_r1.train.algorithms import aggregate, loss_denominator
from memory_r1.train.episodes import AnswerEpisode, ManagerEpisode, Situation, Task
from memory_r1.train.policy import Row
from memory_r1.train.rewards import Unscored
from memory_r1.train.rollout import Rollout, Step
from memory_r1.train.sharding import load_optimizer, whole
from memory_r1.train.stage import Stage
from memory_r1.train.update import Clock, adamw, finish_step, set_rate, split
from memory_r1.types import Completion, Prompt

FILE = "trajectories.jsonl"
AT_ONCE = 64
"""Episodes played together; what was played is kept after so many."""


@dataclass(frozen=True)
class Trajectory:
    """One episode of the teacher."""

    about: str
    """The situation or task, e.g. "conv-26/D3:11"."""
    role: Literal["manage", "answer"]
    reward: float | None
    """None: nothing was asked about it, or the judge gave no verdict."""
    steps: tuple[tuple[Prompt, str], ...]
    """What the teacher was shown and what it said; empty where that could not be read, or where
    nobody had to be asked."""

    @property
    def right(self) -> bool | None:
        """Whether it earned the whole reward; None where that is not known."""
        return None if self.reward is None else self.reward >= 1


def collect(stage: Stage, path: Path, say: Callable[[str], None]) -> list[Trajectory]:
    """Have the stage's teacher play its practice; those that `path` holds are not played again.

    path: JSON lines, written on as episodes end. Raises ModelUnavailable when the teacher or a
    partner stops replying, and DataError for a file that can't be read.
    """
    assert stage.teacher is not None
    processes = stage.policy.processes
    kept = processes.tell(read(path) if processes.first else [])
    known = {(one.role, one.about): one for one in kept}
    left = [start for start in stage.practice if (_role(start), start.id) not in known]
    if left:
        say(f"the teacher plays {len(left)} episodes; {len(known)} are kept in {path}")
    for begin in range(0, len(left), AT_ONCE):
        chosen = left[begin : begin + AT_ONCE]
        found = drive([_played(stage, start) for start in chosen], stage.teacher)
        if processes.first:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(_line(one) + "\n" for one in found)
        known |= {(one.role, one.about): one for one in found}
        say(f"{min(begin + AT_ONCE, len(left))} of {len(left)} episodes")
    return [known[_role(start), start.id] for start in stage.practice]


def _role(start: Situation | Task) -> Literal["manage", "answer"]:
    return "answer" if isinstance(start, Task) else "manage"


def _played(stage: Stage, start: Situation | Task) -> Conversation[Trajectory]:
    teacher, settings, reward = stage.teacher, stage.settings, stage.reward
    episode: AnswerEpisode | ManagerEpisode
    if isinstance(start, Task):
        assert teacher is not None and teacher.answer is not None
        episode = AnswerEpisode(start, teacher.answer, settings, reward)
    else:
        assert teacher is not None and teacher.manage is not None
        episode = ManagerEpisode(start, teacher.manage, teacher, settings, reward)
    said: list[tuple[Prompt, Completion]] = []
    while not episode.done:
        call = episode.call
        completion = yield call
        said.append((call.prompt, completion))
        episode.step(completion)
    paid = None
    if isinstance(start, Task) or start.questions or start.right is not None:
        try:
            paid = (yield from episode.judge()).reward
        except Unscored:
            pass
    steps = () if episode.malformed else _steps(said)
    return Trajectory(start.id, _role(start), paid, steps)


def _steps(said: Sequence[tuple[Prompt, Completion]]) -> tuple[tuple[Prompt, str], ...]:
    """What is worth imitating; nothing where a reply was cut off.

    A reply that was repaired is learned as the reply to the first prompt: to need a repair is
    nothing to imitate.
    """
    kept: list[tuple[Prompt, Completion]] = []
    for prompt, completion in said:
        first = kept[-1][0] if kept else prompt
        if first.messages == prompt.messages[: len(first.messages)] != prompt.messages:
            kept[-1] = (first, completion)
        else:
            kept.append((prompt, completion))
    if not all(completion.finished for _, completion in kept):
        return ()
    return tuple((prompt, without_thinking(done.text).strip()) for prompt, done in kept)


def _line(one: Trajectory) -> str:
    steps = [{"messages": prompt.messages, "completion": said} for prompt, said in one.steps]
    row = {"about": one.about, "role": one.role, "reward": one.reward, "right": one.right}
    return json.dumps({**row, "steps": steps})


def read(path: Path) -> list[Trajectory]:
    """The trajectories of a file, [] where there is none. DataError names a line that isn't one.

    A last line that a crash cut off is dropped from the file.
    """
    if not path.is_file():
        return []
    text = path.read_text("utf-8")
    whole, _, cut = text.rpartition("\n")
    if cut:
        path.write_text(whole + "\n" if whole else "", "utf-8")
    return [_parsed(line, path, number) for number, line in enumerate(whole.split("\n"), 1) if line]


def _parsed(line: str, path: Path, number: int) -> Trajectory:
    try:
        row = json.loads(line)
        steps = tuple(
            (Prompt(tuple((role, text) for role, text in step["messages"])), step["completion"])
            for step in row["steps"]
        )
        return Trajectory(row["about"], row["role"], row["reward"], steps)
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{path}, line {number} is no trajectory: expected about, role, reward, right and "
            f"steps of messages and completion, got {line[:80]!r}. Remove the line"
        ) from error


def rows_from(
    trajectories: Sequence[Trajectory], llm: LocalLLM, *, keep: Literal["all", "right"]
) -> list[Row]:
    """What is learned, in the student's tokens; the token that ends a reply is learned too.

    keep: "right" leaves out what did not earn the whole reward, and what nobody can tell.
    """
    end = llm.tokenizer.eos_token_id
    rows: list[Row] = []
    for episode, one in enumerate(trajectories):
        if keep == "right" and not one.right:
            continue
        for prompt, said in one.steps:
            reply = llm.tokenizer(said, add_special_tokens=False)["input_ids"]
            ids = (*map(int, reply), int(end))
            shown = tuple(llm.encode(prompt))
            if llm.context is None or len(shown) + len(ids) <= llm.context:
                rows.append(
                    Row(Step(shown, ids, (0.0,) * len(ids), said, prompt.text, True), episode)
                )
    return rows


class Imitation:
    """The state of a Memory-SFT training; `step` is one optimizer step."""

    def __init__(self, stage: Stage, rows: Sequence[Row]) -> None:
        """rows: what is learned, see `rows_from`. ConfigError when there are none."""
        if not rows:
            raise ConfigError(
                "the teacher left nothing to imitate: none of its episodes was readable and, with "
                "teacher.keep = 'right', came out right. See trajectories.jsonl; try keep = 'all', "
                "or another teacher"
            )
        self.stage, self.rows = stage, rows
        settings = stage.run.optimizer
        stage.policy.shard()
        self.optimizer = adamw(stage.policy.parameters(), settings, settings.lr)

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold besides the model files."""
        return {
            "model": self.stage.policy.state(),
            "optimizer": whole(self.optimizer.state_dict(), self.stage.policy.processes.first),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's state."""
        self.stage.policy.restore(state["model"])
        load_optimizer(self.optimizer, state["optimizer"])

    def step(self, number: int) -> tuple[dict[str, float], list[Rollout]]:
        """Learn `rollout.prompts` completions, pass after pass; nothing is sampled."""
        clock, run, policy = Clock(), self.stage.run, self.stage.policy
        chosen = list(self._draw(number, run.rollout.prompts))
        batches = split(chosen, policy, run)
        n = policy.processes.count(sum(loss_denominator(batch.mask) for batch in batches))
        totals = {"loss": 0.0, "entropy": 0.0}
        for batch in batches:
            scored = policy.score(batch, 1.0)  # whatever temperature rollouts have
            loss = -aggregate(scored.logp, batch.mask, denominator=n)
            loss.backward()  # type: ignore[no-untyped-call]
            totals["loss"] += float(loss.detach())
            totals["entropy"] += float(aggregate(scored.entropy, batch.mask, denominator=n))
        metrics = policy.processes.add(totals) | {"tokens": float(n)}
        metrics["lr"] = set_rate(
            self.optimizer, run.optimizer.lr, number, run.optimizer.warmup_steps
        )
        clip = run.optimizer.grad_clip
        metrics["grad_norm"] = finish_step(policy, self.optimizer, clip, policy.processes)
        clock.lap("update")
        return metrics | clock.seconds, []

    def _draw(self, number: int, size: int) -> Iterator[Row]:
        """The rows of a step: passes over all, each in an order of its own."""
        for i in range(number * size, (number + 1) * size):
            lap, place = divmod(i, len(self.rows))
            order = list(range(len(self.rows)))
            random.Random(f"{self.stage.run.seed}/lap {lap}").shuffle(order)
            yield self.rows[order[place]]
