"""Memory-R1 with a part taken away, and the memory layers that its pieces amount to then."""

from __future__ import annotations

from dataclasses import replace

from memory_r1.bench.systems.base import Options, System, agents, needed, settings_in
from memory_r1.bench.systems.reader import Reading


def open_memory_r1(name: str, options: Options) -> System:
    """`memory-r1`: with the agents that the options name, and rules where they name none."""
    settings_in(name)
    return System(name, agents(options), options.settings)


def open_no_distillation(name: str, options: Options) -> System:
    """`no-distillation`: the bank of `memory-r1`, read without selecting memories first."""
    settings_in(name)
    return Reading(name, needed(name, agents(options), "answer"), options.settings)


def open_in_context(name: str, options: Options) -> System:
    """`in-context`: a model that extracts and manages as its prompts tell it, the way of Mem0.

    The prompts are ours. The bank is that of `memory-r1` with the same untrained model.
    """
    settings_in(name)
    players = needed(name, agents(options), "extract", "manage", "answer")
    return Reading(name, players, options.settings)


def open_add_only(name: str, options: Options) -> System:
    """`add-only`: every extracted fact is added unless it is there word for word.

    That is the way of Mem0 since 2026: one call per turn, nothing is changed or deleted.
    """
    settings_in(name)
    players = replace(agents(options), manage=None)
    return Reading(name, needed(name, players, "extract", "answer"), options.settings)
