"""The name of a system -> who plays it: ours with any agents, and what it must beat.

A system is a file in this folder and a line in `SYSTEMS`. Whatever it remembers it keeps in a
bank, so that all are resumed, timed, counted and scored in the same way.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping

from memory_r1.bench.systems.a_mem import open_a_mem
from memory_r1.bench.systems.base import Options, System, agents
from memory_r1.bench.systems.chunks import open_rag
from memory_r1.bench.systems.full import open_full
from memory_r1.bench.systems.memory_os import open_memory_os
from memory_r1.bench.systems.peers import open_peer
from memory_r1.bench.systems.plain import (
    open_add_only,
    open_in_context,
    open_memory_r1,
    open_no_distillation,
)
from memory_r1.bench.systems.rerank import open_rerank
from memory_r1.bench.systems.rewrite import open_rewrite
from memory_r1.errors import ConfigError
from memory_r1.llm.open import folder_of, open_agents

__all__ = ["SYSTEMS", "Options", "System", "agents", "kind_of", "open_system"]

SYSTEMS: Mapping[str, Callable[[str, Options], System]] = {
    "memory-r1": open_memory_r1,
    "no-distillation": open_no_distillation,
    "rerank": open_rerank,
    "in-context": open_in_context,
    "add-only": open_add_only,
    "rewrite": open_rewrite,
    "a-mem": open_a_mem,
    "memory-os": open_memory_os,
    "rag-bm25": open_rag,
    "rag-hybrid": open_rag,
    "full-context": open_full,
    "mem0": open_peer,
    "langmem": open_peer,
}
"""By the name that --system takes; settings may follow it, as in "rag-bm25?words=256"."""


def kind_of(name: str) -> str:
    """The key of `SYSTEMS` that a system's name begins with; "memory-r1" for a model's name."""
    kind = name.partition("?")[0]
    return kind if kind in SYSTEMS else "memory-r1"


def open_system(name: str, options: Options | None = None) -> System:
    """Open a system of `SYSTEMS`, or Memory-R1 with the agents that a name stands for.

    Raises ConfigError for a name that can't be meant, for an unknown setting and for a model that
    is missing; else what `open_agents` and `open_reranker` raise.
    """
    options = options or Options()
    if opened := SYSTEMS.get(name.partition("?")[0]):
        return opened(name, options)
    _refuse_misspelt(name)
    return System(name, agents(options, open_agents(name)), options.settings)


def _refuse_misspelt(name: str) -> None:
    """A name that is almost a system's is no model: its loading would fail much later."""
    kind = name.partition("?")[0]
    begun = [system for system in SYSTEMS if system.startswith(f"{kind}-")]
    near = begun or difflib.get_close_matches(kind, SYSTEMS, 1, cutoff=0.75)
    if near and re.fullmatch(r"[\w.-]+", kind) and not folder_of(name).is_dir():
        raise ConfigError(
            f"no system is called {kind!r}; did you mean {near[0]!r}? Known are "
            f"{', '.join(SYSTEMS)}; a model is also a system, by its folder, id or URL"
        )
