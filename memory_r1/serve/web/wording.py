"""two versions of a text -> what went, what came and what stayed, word by word."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final, Literal

Fate = Literal["same", "gone", "new"]
_WORDS: Final = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+|\s+|[^\w\s]")
"""Chinese, Japanese and Korean have no spaces between words: there, a sign is one."""
_MOST: Final = 1000
"""Words up to which two texts are compared; beyond, the time grows with their square."""


@dataclass(frozen=True)
class Piece:
    """A stretch of text and what became of it."""

    fate: Fate
    text: str


def wording(before: str, after: str) -> list[Piece]:
    """How one text became another; the pieces that are not new give `before`, in order, and those
    that are not gone give `after`."""
    old, new = _WORDS.findall(before), _WORDS.findall(after)
    if max(len(old), len(new)) > _MOST and before != after:
        return [Piece(fate, text) for fate, text in _swapped(before, after) if text]
    pieces: list[tuple[Fate, str]] = []
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    for tag, i, j, k, m in matcher.get_opcodes():
        gone, came = "".join(old[i:j]), "".join(new[k:m])
        if tag == "equal":
            # A lone space between two changes is changed with them: words in a row read better.
            if gone.isspace() and pieces and j < len(old) and m < len(new):
                pieces += _swapped(gone, gone)
            else:
                pieces.append(("same", gone))
        else:
            pieces += _swapped(gone, came)
    return _joined(pieces)


def _swapped(gone: str, came: str) -> list[tuple[Fate, str]]:
    return [("gone", gone), ("new", came)]


def _joined(pieces: list[tuple[Fate, str]]) -> list[Piece]:
    """Between two stretches that stayed: all that went, then all that came."""
    found: list[Piece] = []
    gone = came = ""
    for fate, text in [*pieces, ("same", "")]:
        if fate == "gone":
            gone += text
        elif fate == "new":
            came += text
        else:
            found += [Piece(fate, text) for fate, text in _swapped(gone, came) if text]
            found += [Piece("same", text)] if text else []
            gone = came = ""
    return found
