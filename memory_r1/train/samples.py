"""one rollout -> a page to read: the bank, the decision, the questions; then prompt and reply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from memory_r1.text import em

_UNCHANGED = 30
"""Entries shown that stayed as they were; those that changed are all shown."""
_LISTED = 40
"""Turns, facts or operations shown; an episode may be a whole dialogue."""


@dataclass(frozen=True)
class Sample:
    """One rollout, written out for a human to read."""

    about: str
    """Where it comes from, e.g. a dialogue and turn or question id."""
    prompt: str
    completion: str
    reward: float | None
    """None: no reward could be had, so it was not trained on."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else explains the reward: the bank before and after, operations, questions, answers
    (`observe.told`). Anything else is listed by name."""


def as_markdown(row: Mapping[str, Any]) -> str:
    """A line of samples.jsonl as a section of samples.md."""
    reward = "none" if row["reward"] is None else f"{row['reward']:.3f}"
    details = dict(row["details"])
    parts = [f"## Step {row['step']}, {row['about']}: reward {reward}\n"]
    parts += [_list(name, details.pop(name)) for name in _LISTS if details.get(name)]
    if "before" in details and "after" in details:
        parts.append(_bank(details.pop("before"), details.pop("after")))
    if details.get("asked"):
        parts.append(_questions(details.pop("asked")))
    parts += [_block(name, row[name]) for name in ("completion", "prompt")]
    if details:
        parts.append("\n".join(f"- {name}: {value}" for name, value in details.items()) + "\n")
    return "\n".join(parts) + "\n"


_LISTS = {"turns": "Said", "facts": "Facts", "operations": "Operations"}


def _list(name: str, items: Sequence[object]) -> str:
    lines = [f"- {_one_line(str(item))}" for item in items[:_LISTED]]
    if len(items) > _LISTED:
        lines.append(f"- ... and {len(items) - _LISTED} more")
    return f"**{_LISTS[name]}**\n\n" + "\n".join(lines) + "\n"


def _bank(before: Sequence[str], after: Sequence[str]) -> str:
    """Both banks in one block: "-" left it, "+" came to it."""
    gone, come = Counter(before) - Counter(after), Counter(after) - Counter(before)
    lines = [*_marked(before, gone, "-"), *(f"+ {_one_line(t)}" for t in come.elements())]
    title = f"**Bank**, {len(before)} entries before, {len(after)} after"
    return f"{title}\n\n{_fenced(chr(10).join(lines) or '(empty)', 'diff')}"


def _marked(texts: Sequence[str], gone: Counter[str], mark: str) -> Iterator[str]:
    left, same, hidden = gone.copy(), 0, 0
    for text in texts:
        if left[text] > 0:
            left[text] -= 1
            yield f"{mark} {_one_line(text)}"
        elif same < _UNCHANGED:
            same += 1
            yield f"  {_one_line(text)}"
        else:
            hidden += 1
    if hidden:
        yield f"  ... and {hidden} more that stayed"


def _questions(asked: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| question | accepted | answer | exact |", "|---|---|---|---|"]
    for row in asked:
        exact = "yes" if em(str(row["answer"]), row["gold"]) else "no"
        cells = (row["question"], row["gold"], row["answer"] or "(nothing)")
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} | {exact} |")
    return "\n".join(lines) + "\n"


def _block(name: str, text: str) -> str:
    return f"**{name.capitalize()}**\n\n{_fenced(text, 'text')}"


def _fenced(text: str, language: str) -> str:
    """Longer than any run of backticks inside, so that the text cannot end its own fence."""
    runs = "".join(c if c == "`" else " " for c in text).split()
    fence = "`" * max(3, 1 + max(map(len, runs), default=0))
    return f"{fence}{language}\n{text}\n{fence}\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cell(value: object) -> str:
    return _one_line(str(value)).replace("|", "\\|")
