"""a benchmark file -> dialogues with their questions, and a report of all that was irregular."""

from memory_r1.data.categories import (
    ADVERSARIAL,
    CATEGORIES,
    PAPER_NAMES,
    SINGLE_HOP,
    groups_of,
    guidance_of,
)
from memory_r1.data.dialogues import (
    DECISIONS,
    Dialogue,
    Irregularity,
    Observation,
    Question,
    Report,
    Session,
    Split,
    scored,
    session_of,
    split_of,
)
from memory_r1.data.formats import BENCHMARKS, FORMATS, find, load, recognise, stream
from memory_r1.data.reading import Format
from memory_r1.data.summary import describe, table

__all__ = [
    "ADVERSARIAL",
    "BENCHMARKS",
    "CATEGORIES",
    "DECISIONS",
    "FORMATS",
    "PAPER_NAMES",
    "SINGLE_HOP",
    "Dialogue",
    "Format",
    "Irregularity",
    "Observation",
    "Question",
    "Report",
    "Session",
    "Split",
    "describe",
    "find",
    "groups_of",
    "guidance_of",
    "load",
    "recognise",
    "scored",
    "session_of",
    "split_of",
    "stream",
    "table",
]
