"""The output folder of a benchmark run: what it was, its predictions so far, its banks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from memory_r1.bench.score import Prediction
from memory_r1.errors import ConfigError, DataError

Json = dict[str, Any]


class RunFolder:
    """OUT/config.json, predictions.jsonl, turns.jsonl, scores.json and banks/*.db.

    Opening it again goes on where it stopped. ConfigError when it holds another run.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
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

    def predictions(self) -> dict[str, Prediction]:
        """The finished questions by id."""
        rows = self._read("predictions.jsonl")
        try:
            return {row["question_id"]: Prediction(**row) for row in rows}
        except (KeyError, TypeError) as error:
            raise DataError(
                f"{self.path / 'predictions.jsonl'} was not written by this version: {error}; "
                "choose another --out"
            ) from error

    def add_predictions(self, predictions: Iterable[Prediction]) -> None:
        """Append finished questions."""
        self._append("predictions.jsonl", (p.as_json() for p in predictions))

    def turn_seconds(self) -> dict[tuple[str, str], float]:
        """How long the Memory Manager took for (dialogue, turn)."""
        rows = self._read("turns.jsonl")
        return {(row["dialogue_id"], row["turn_id"]): float(row["seconds"]) for row in rows}

    def add_turn(self, dialogue_id: str, turn_id: str, seconds: float) -> None:
        """Append one processed turn."""
        row = {"dialogue_id": dialogue_id, "turn_id": turn_id, "seconds": round(seconds, 6)}
        self._append("turns.jsonl", [row])

    def write_scores(self, scores: Mapping[str, Any]) -> None:
        """Write scores.json, whole or not at all."""
        draft = self.path / "scores.json.part"
        draft.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
        draft.replace(self.path / "scores.json")

    def _append(self, name: str, rows: Iterable[Json]) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(text)

    def _read(self, name: str) -> list[Json]:
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
