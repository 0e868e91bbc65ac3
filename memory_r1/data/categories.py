"""LoCoMo's five categories: their names, their rows in tables, what a judge must know of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

CATEGORIES: Mapping[int, str] = {
    1: "multi-hop",
    2: "temporal",
    3: "open-domain",
    4: "single-hop",
    5: "adversarial",
}
"""LoCoMo's own names. Several papers swap them, so every table prints the number too."""
PAPER_NAMES: Final[Mapping[int, str]] = {
    1: "single-hop",
    2: "temporal",
    3: "multi-hop",
    4: "open-domain",
    5: "adversarial",
}
"""What Memory-R1's and Mem0's tables call the categories; they swap three of LoCoMo's names."""

TEMPORAL: Final = 2
SINGLE_HOP: Final = 4
ADVERSARIAL: Final = 5

_GUIDANCE: Final[Mapping[int, str]] = {
    TEMPORAL: "Another way to write the same date or period is right, and so are relative words "
    "that come to it.",
    ADVERSARIAL: "The conversation does not tell this: the answer is right exactly when it says "
    "that it is not mentioned or not known.",
}


def groups_of(category: int, kind: str = "", phenomenon: str = "") -> tuple[str, ...]:
    """The rows a question counts in: its kind and phenomenon, or else its category by all names."""
    labelled = [("kind", kind), ("phenomenon", phenomenon)]
    if any(value for _, value in labelled):
        return tuple(f"{name}: {value}" for name, value in labelled if value)
    official, paper = CATEGORIES[category], PAPER_NAMES[category]
    same = official == paper
    return (f"{category} {official}" if same else f"{category} {official} (paper: {paper})",)


def guidance_of(category: int) -> str:
    """What a judge must know to grade a question of the category; "" where there is nothing."""
    return _GUIDANCE.get(category, "")
