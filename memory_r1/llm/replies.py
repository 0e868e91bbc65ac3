"""What models replied at temperature 0, kept by content, so that it is never paid for twice.

A benchmark and a training that read the same turns with the same extractor pay for it once, and
one that was stopped pays for nothing again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from memory_r1.errors import ConfigError
from memory_r1.llm import LLM, Agents
from memory_r1.types import Completion, Prompt, Style

AT_ONCE = 64
"""New replies are kept after so many: what a stop in the middle costs at most."""


def cache_folder() -> Path:
    """MEMORY_R1_CACHE, else the place where this system keeps caches."""
    if given := os.environ.get("MEMORY_R1_CACHE"):
        return Path(given)
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "memory-r1"


class Replies:
    """What models replied at temperature 0, in one SQLite file; threads and processes share it."""

    def __init__(self, path: Path) -> None:
        """ConfigError when the file can't be made or isn't one of these."""
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            # A reply lost with the power is asked for again.
            self._db.execute("PRAGMA synchronous = OFF")
            with self._db:
                self._db.execute(
                    "CREATE TABLE IF NOT EXISTS reply (key TEXT PRIMARY KEY, text TEXT, "
                    "prompt_tokens INT, completion_tokens INT, finished INT, seconds REAL) "
                    "WITHOUT ROWID"
                )
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"replies can't be cached in {path}: {error}; name another folder in "
                "MEMORY_R1_CACHE (a benchmark also takes --cache FOLDER and --no-cache)"
            ) from error

    def get(self, keys: Iterable[str]) -> dict[str, Completion]:
        """Those of the keys that are known."""
        found = {}
        with self._lock:
            for key in keys:
                row = self._db.execute(
                    "SELECT text, prompt_tokens, completion_tokens, finished, seconds "
                    "FROM reply WHERE key = ?",
                    (key,),
                ).fetchone()
                if row is not None:
                    text, read, written, finished, seconds = row
                    found[key] = Completion(text, read, written, bool(finished), seconds)
        return found

    def put(self, replies: Mapping[str, Completion]) -> None:
        """Keep what is new."""
        rows = [
            (key, _sound(r.text), r.prompt_tokens, r.completion_tokens, r.finished, r.seconds)
            for key, r in replies.items()
        ]
        with self._lock, self._db:
            self._db.executemany("INSERT OR REPLACE INTO reply VALUES (?, ?, ?, ?, ?, ?)", rows)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()


def key_of(llm: LLM, prompt: Prompt, max_tokens: int, schema: Mapping[str, Any] | None) -> str:
    """The name of a reply at temperature 0: all that it depends on."""
    identity = getattr(llm, "identity", "")
    said = json.dumps([identity, prompt.messages, max_tokens, schema], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


class Watched:
    """A model whose replies know how long they took, and are kept at temperature 0.

    Only models that carry an `identity` are kept: their name alone may stand for anything.
    """

    def __init__(self, llm: LLM, replies: Replies | None = None) -> None:
        self.llm = llm
        self.name = llm.name
        self.style: Style = llm.style
        self._replies = replies if getattr(llm, "identity", "") else None

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Completion]:
        """One completion per prompt, in order; equal ones are asked for once."""
        if self._replies is None or temperature > 0:
            return self._timed(prompts, max_tokens, temperature, schema)
        keys = [key_of(self.llm, prompt, max_tokens, schema) for prompt in prompts]
        known = self._replies.get(set(keys))
        new = {k: p for k, p in zip(keys, prompts, strict=True) if k not in known}
        wanted = list(new.items())
        for start in range(0, len(wanted), AT_ONCE):
            part = dict(wanted[start : start + AT_ONCE])
            replies = self._timed(list(part.values()), max_tokens, temperature, schema)
            fresh = dict(zip(part, replies, strict=True))
            self._replies.put(fresh)
            known |= fresh
        return [known[key] for key in keys]

    def _timed(
        self,
        prompts: Sequence[Prompt],
        max_tokens: int,
        temperature: float,
        schema: Mapping[str, Any] | None,
    ) -> list[Completion]:
        began = time.perf_counter()
        replies = self.llm.complete(
            prompts, max_tokens=max_tokens, temperature=temperature, schema=schema
        )
        took = time.perf_counter() - began
        return [reply if reply.seconds else replace(reply, seconds=took) for reply in replies]


def watched(agents: Agents, replies: Replies | None) -> Agents:
    """The same agents, timed and cached; a model in several roles stays one."""
    made: dict[int, LLM] = {}

    def watch(llm: LLM | None) -> LLM | None:
        return None if llm is None else made.setdefault(id(llm), Watched(llm, replies))

    return Agents(*map(watch, (agents.extract, agents.manage, agents.answer, agents.judge)))


def _sound(text: str) -> str:
    """Half a surrogate pair can't be stored."""
    return text.encode("utf-8", "replace").decode()
