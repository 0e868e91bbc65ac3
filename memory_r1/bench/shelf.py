"""Finished banks by content, so that systems with the same manager build them once."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path

import memory_r1
from memory_r1.bench.calls import Spent
from memory_r1.bench.systems import System
from memory_r1.data import Dialogue, jsonl
from memory_r1.embed import Embedder


class Shelf:
    """Where finished banks are kept: FOLDER/<content>.db, and what each turn took beside it.

    The content is the dialogue, what the system says it builds from, its models, the embedder and
    this package's code: when one of them changes, so does the name, and the bank is built anew.
    Banks that cost no call of a model are not kept: building them is cheaper than the disk.
    """

    def __init__(self, folder: Path, system: System, embedder: Embedder) -> None:
        self._folder = folder
        keepers = (system.agents.extract, system.agents.manage)
        models = [getattr(getattr(llm, "llm", llm), "identity", "") for llm in keepers]
        wanted = [name for llm, name in zip(keepers, models, strict=True) if llm is not None]
        self._makers = [system.built_by, *models, embedder.name, _code()]
        self.open = system.shares_banks and bool(wanted) and all(wanted)
        """False where banks are not kept."""

    def fetch(self, dialogue: Dialogue, path: Path) -> dict[str, Spent] | None:
        """Put the finished bank of a dialogue at `path`; what each turn took, None without one."""
        if not self.open or not (found := self._place(dialogue)).exists():
            return None
        rows = json.loads(found.with_suffix(".json").read_text("utf-8"))
        draft = path.with_suffix(".part")
        shutil.copyfile(found, draft)
        draft.replace(path)
        return {turn_id: Spent(**row) for turn_id, row in rows.items()}

    def keep(self, dialogue: Dialogue, path: Path, turns: Mapping[str, Spent]) -> None:
        """Keep the finished bank of a dialogue; its store is closed."""
        if not self.open or (place := self._place(dialogue)).exists():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        rows = {turn_id: asdict(spent) for turn_id, spent in turns.items()}
        _whole(place.with_suffix(".json"), json.dumps(rows).encode())
        _whole(place, path.read_bytes())  # last: it says that all is there

    def _place(self, dialogue: Dialogue) -> Path:
        said = jsonl.dump([dialogue])
        content = hashlib.sha256("\0".join([*self._makers, said]).encode("utf-8", "replace"))
        return self._folder / f"{content.hexdigest()[:32]}.db"


def _whole(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    draft = path.with_name(path.name + ".part")
    draft.write_bytes(data)
    draft.replace(path)


@cache
def _code() -> str:
    """What the package's code is."""
    digest = hashlib.sha256()
    for path in sorted(Path(memory_r1.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
