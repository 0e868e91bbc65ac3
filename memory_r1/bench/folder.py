"""The output folder of a benchmark run: what it was, its predictions so far, its banks."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from memory_r1.bench.calls import Spent
from memory_r1.bench.score import Prediction
from memory_r1.errors import ConfigError, DataError

Json = dict[str, Any]
COUNTED = ("calls", "prompt_tokens", "completion_tokens")
"""What turns.jsonl says of a turn beside its seconds, where it isn't 0."""


class RunFolder:
    """OUT/config.json, predictions.jsonl, turns.jsonl, scores.json and banks/*.db.

    Opening it again goes on where it stopped. ConfigError when it holds another run.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            (path / "banks").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot write to {path}: {error.strerror}") from error
        stated = path / "config.json"
        if stated.exists():
            _same(path, json.loads(stated.read_text("utf-8")), config)
        elif (path / "predictions.jsonl").exists():
            raise ConfigError(f"{path} holds predictions but no config.json; choose another --out")
        else:
            stated.write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    def bank(self, dialogue_id: str) -> Path:
        """Where the bank of a dialogue is kept."""
        return self.path / "banks" / (re.sub(r"[^\w.-]", "_", dialogue_id) + ".db")

    def predictions(self) -> dict[tuple[str, int], Prediction]:
        """The finished questions by id and the sessions seen (0: the whole dialogue)."""
        rows = self.rows("predictions.jsonl")
        try:
            found = [Prediction(**row) for row in rows]
        except TypeError as error:
            raise DataError(
                f"{self.path / 'predictions.jsonl'} was not written by this version: {error}; "
                "choose another --out"
            ) from error
        return {(prediction.question_id, prediction.sessions): prediction for prediction in found}

    def add_predictions(self, predictions: Iterable[Prediction]) -> None:
        """Append finished questions."""
        self.append("predictions.jsonl", (p.as_json() for p in predictions))

    def turns(self) -> dict[tuple[str, str], Spent]:
        """What it took to remember (dialogue, turn)."""
        found = {}
        for row in self.rows("turns.jsonl"):
            spent = Spent(own=float(row["seconds"]), **{n: int(row.get(n, 0)) for n in COUNTED})
            found[row["dialogue_id"], row["turn_id"]] = spent
        return found

    def add_turns(self, dialogue_id: str, turns: Mapping[str, Spent]) -> None:
        """Append remembered turns, by id."""
        self.append(
            "turns.jsonl",
            (
                {"dialogue_id": dialogue_id, "turn_id": turn_id, "seconds": round(spent.seconds, 6)}
                | {name: n for name in COUNTED if (n := getattr(spent, name))}
                for turn_id, spent in turns.items()
            ),
        )

    def write_scores(self, scores: Mapping[str, Any]) -> None:
        """Write scores.json, whole or not at all."""
        draft = self.path / "scores.json.part"
        draft.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
        draft.replace(self.path / "scores.json")

    def append(self, name: str, rows: Iterable[Json]) -> None:
        """Append rows to a file of JSON lines."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        # Half a surrogate pair in a model's answer can't be written.
        data = text.encode("utf-8", "replace")
        with self._lock, (self.path / name).open("ab") as file:
            file.write(data)

    def rows(self, name: str) -> list[Json]:
        """The rows of a file; a last line torn by a kill is cut off."""
        path = self.path / name
        if not path.exists():
            return []
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            path.write_bytes(whole)
        rows = []
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise DataError(
                    f"{path}, line {number} is not JSON; remove the line to ask again"
                ) from error
        return rows


def _same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changed = [
        f"{name} was {before.get(name)!r} and is now {now.get(name)!r}"
        for name in (*now, *(name for name in before if name not in now))
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise ConfigError(
            f"{path} holds another run: {'; '.join(changed)}. Choose another --out, or delete it"
        )
