"""situation or task <-> a row of verl's dataset: what a cluster practises on (no verl here).

A row holds everything an episode starts from, so that a reward worker on another machine can play
it: the bank, the turns and the questions travel as JSON texts in `extra_info`. The prompt is the
one that serving would show.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from memory_r1.bank import Bank
from memory_r1.config import Settings
from memory_r1.data import Question
from memory_r1.embed import Embedder, open_embedder
from memory_r1.errors import DataError
from memory_r1.llm import Agents, ScriptedLLM
from memory_r1.store.codec import entry_from_json, entry_to_json
from memory_r1.store.ram import RamStore
from memory_r1.train.episodes import (
    EXACT,
    AnswerEpisode,
    Episode,
    ManagerEpisode,
    Situation,
    Task,
)
from memory_r1.train.rewards import Reward, open_reward
from memory_r1.types import Fact, Owner, Turn

Start = Situation | Task
Row = dict[str, Any]
SETTINGS = Settings()
AGENT = "memory_r1"
"""What our agent loop is called in a row's `agent_name`."""
ONE_REPLY = "single_turn_agent"
"""verl's own agent loop: one prompt, one reply, and a reward function."""
_POLICY = ScriptedLLM([], name="policy")  # verl samples the replies; only its style is read


def begin(
    start: Start, frozen: Agents, settings: Settings = SETTINGS, reward: Reward = EXACT
) -> Episode:
    """A fresh episode of a chat model."""
    if isinstance(start, Task):
        return AnswerEpisode(start, _POLICY, settings, reward)
    return ManagerEpisode(start, _POLICY, frozen, settings, reward)


def begin_row(extra_info: Mapping[str, Any], frozen: Agents) -> Episode:
    """A fresh episode of a row, as the run file that wrote it has it; raises as `start_of`."""
    start = start_of(extra_info)
    paid = json.loads(extra_info["reward"])
    return begin(start, frozen, Settings(**json.loads(extra_info["settings"])), _reward(**paid))


@cache
def _reward(name: str, benchmark: str) -> Reward:
    """One for all rows of a process: a function of one's own is imported once."""
    return open_reward(name, benchmark)


def rows(
    starts: Sequence[Start],
    *,
    split: str,
    agent: str,
    settings: Settings = SETTINGS,
    reward: str = "em",
    benchmark: str = "",
) -> list[Row]:
    """A row of verl's dataset per start; those that ask the policy nothing are left out.

    split: "train" or "val", for reading. agent: ONE_REPLY or AGENT. reward, benchmark: what
    `open_reward` knows them by.
    """
    same = {
        "settings": _text(asdict(settings)),
        "reward": _text({"name": reward, "benchmark": benchmark}),
    }
    made: list[Row] = []
    for start in starts:
        # Who would answer later doesn't matter for what the policy is asked first.
        episode = begin(start, Agents(), settings)
        if episode.done:  # all facts are known word for word
            continue
        prompt = [{"role": role, "content": text} for role, text in episode.prompt().messages]
        described: Row = _described(start)
        made.append(
            {
                "data_source": f"memory_r1/{described['kind']}",
                "agent_name": agent,
                "prompt": prompt,
                "reward_model": {"style": "rule", "ground_truth": _gold(start)},
                "extra_info": {"index": len(made), "split": split, **described, **same},
            }
        )
    return made


def _gold(start: Start) -> str:
    """For reading only: what the reward compares with is in `questions` and `right`."""
    if isinstance(start, Task):
        return _text(start.question.golds)
    right = start.right
    return _text([q.golds for q in start.questions] if right is None else right)


def _described(start: Start) -> dict[str, str]:
    is_task = isinstance(start, Task)
    questions = (start.question,) if isinstance(start, Task) else start.questions
    turns = () if isinstance(start, Task) else start.turns
    return {
        "kind": "answer" if is_task else "manager",
        "id": start.id,
        "bank": _text(
            {
                "owner": asdict(start.bank.owner),
                "entries": [entry_to_json(entry) for entry in start.bank.entries()],
            }
        ),
        "turns": _text(
            [{"turn": asdict(turn), "facts": [asdict(f) for f in facts]} for turn, facts in turns]
        ),
        # What else a record holds may be large, and no episode reads it.
        "questions": _text([asdict(replace(question, meta={})) for question in questions]),
        "right": _text(None if isinstance(start, Task) else start.right),
    }


def _text(value: object) -> str:
    """JSON in ASCII: half a surrogate pair has no UTF-8, and a parquet file holds nothing else."""
    return json.dumps(value, default=_moment, allow_nan=False)


def _moment(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise DataError(f"cannot write {value!r} into a row; expected texts, numbers and moments")


def start_of(extra_info: Mapping[str, Any]) -> Start:
    """The start that a row was made of. DataError for an `extra_info` that `rows` didn't write."""
    try:
        bank = _bank(json.loads(extra_info["bank"]))
        asked = tuple(_question(fields) for fields in json.loads(extra_info["questions"]))
        if extra_info["kind"] == "answer":
            (question,) = asked
            return Task(extra_info["id"], bank, question)
        turns = tuple(_told(fields) for fields in json.loads(extra_info["turns"]))
        right = json.loads(extra_info["right"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            "expected a row's extra_info as `memory-r1 train` writes it for verl (kind, id, bank, "
            f"turns, questions, right), got {dict(extra_info)!r:.200}: {error!r}"
        ) from error
    return Situation(extra_info["id"], bank, turns, asked, None if right is None else tuple(right))


@cache
def _embedder() -> Embedder:
    """One for all rows of a process."""
    return open_embedder()


def _bank(fields: Mapping[str, Any]) -> Bank:
    owner = Owner(**fields["owner"])
    # A new store starts counting versions; no prompt shows them.
    entries = [replace(entry_from_json(entry, owner), version=1) for entry in fields["entries"]]
    store = RamStore()
    bank = Bank(store, _embedder(), owner)
    vectors = bank.embedder.embed([entry.text for entry in entries]) if entries else ()
    for entry, vector in zip(entries, vectors, strict=True):
        store.put(entry, vector)
    return bank


def _told(fields: Mapping[str, Any]) -> tuple[Turn, tuple[Fact, ...]]:
    turn = Turn(**fields["turn"])
    return replace(turn, said=_read(turn.said)), tuple(_fact(fact) for fact in fields["facts"])


def _fact(fields: Mapping[str, Any]) -> Fact:
    happened = fields["happened"]
    if happened is None:
        return Fact(**fields)
    begin, end = (datetime.fromisoformat(moment) for moment in happened)
    return replace(Fact(**fields), happened=(begin, end))


def _question(fields: Mapping[str, Any]) -> Question:
    question = Question(**fields)
    return replace(
        question,
        evidence=tuple(question.evidence),
        accepted=tuple(question.accepted),
        groups=tuple(question.groups),
        asked=_read(question.asked),
    )


def _read(moment: Any) -> datetime | None:
    return None if moment is None else datetime.fromisoformat(moment)


def write(folder: Path, split: str, made: Sequence[Row]) -> Path:
    """Write rows where verl reads them: parquet, or JSON lines where pyarrow is not installed.

    verl reads both, by the ending; it brings pyarrow along, a machine that only prepares may lack
    it. What an earlier call left of the other form is removed.
    """
    parquet, lines = folder / f"{split}.parquet", folder / f"{split}.jsonl"
    for path in (parquet, lines):
        path.unlink(missing_ok=True)
    try:
        import pyarrow  # type: ignore[import-not-found]
        from pyarrow import parquet as format_
    except ImportError:
        with lines.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in made)
        return lines
    format_.write_table(pyarrow.Table.from_pylist(list(made)), parquet)
    return parquet
