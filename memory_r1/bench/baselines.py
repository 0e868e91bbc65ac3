"""The name of a system -> the agents that play it: trained pairs, models, and what they must beat.

rules   no model at all: each turn is one memory, the best-supported sentence is the answer
rag     each turn is one memory, a model answers from the best of them    (needs --answer)
full    each turn is one memory, a model answers from all of them         (needs --answer)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from memory_r1.errors import ConfigError
from memory_r1.llm import LLM, Agents
from memory_r1.llm.open import folder_of, open_agents

EVERYTHING = 1_000_000
"""More entries than any dialogue has turns."""


@dataclass(frozen=True)
class System:
    """Who takes part in a benchmark, opened and ready."""

    name: str
    agents: Agents
    k: int | None = None
    """How many entries the Answer Agent must be shown; None leaves it to the settings."""

    @property
    def players(self) -> dict[str, str]:
        """The name of the model in each role."""
        roles = {"extract": self.agents.extract, "manage": self.agents.manage}
        return {
            role: llm.name if llm else "rules"
            for role, llm in {**roles, "answer": self.agents.answer}.items()
        }


def open_system(name: str, manager: str | None = None, answer: str | None = None) -> System:
    """Open a system; `manager` and `answer` put another model in that place.

    Raises ConfigError for a name that can't be meant, and what `open_agents` raises.
    """
    whole = name in ("rag", "full")
    if whole and answer is None:
        raise ConfigError(
            f"--system {name} needs a model that answers; add for instance  --answer tiny-base"
        )
    base = Agents() if whole else open_agents(name)
    keeper = base if manager is None else open_agents(manager)
    answerer: LLM | None = base.answer if answer is None else open_agents(answer).answer
    return System(
        name,
        Agents(extract=keeper.extract, manage=keeper.manage, answer=answerer),
        k=EVERYTHING if name == "full" else None,
    )


def fingerprint(name: str | None) -> str:
    """A name, and for a model folder also what is in it, so that a retrained one is told apart."""
    if name is None:
        return ""
    folder = folder_of(name)
    if not folder.is_dir():
        return name
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors")):
        state = path.stat()
        digest.update(f"{path.relative_to(folder)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return f"{folder.name} {digest.hexdigest()[:12]}"
