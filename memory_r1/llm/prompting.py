"""What every prompt is made of (quoted data, dates, labels) and how replies are taken apart.

Stored text comes from anybody. In a prompt it is always one line of data that cannot imitate the
prompt's structure: JSON strings without angle brackets for `instruct`, text without angle
brackets for `compact`, where brackets are what labels `<s3>` and the arrow `=>` are made of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from memory_r1.errors import MalformedReply
from memory_r1.types import Completion, Entry, Prompt

ARROW = "=>"
NOTHING = "nothing"
KNOWN = "known"
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
"""English whatever the locale, so that the same memory gives the same prompt everywhere."""
_LABEL = re.compile(r"<s([0-9]{1,4})>")
_MARK = re.compile(r"\[(?=/?[A-Z][A-Z_]*\])")
_CONTROL = dict.fromkeys([*range(32), *range(127, 160)], " ")
_BRACKETS, _LOOKALIKES = "<>", "‹›"
_RELATIVE_DAYS = {
    "the day before yesterday": -2,
    "yesterday": -1,
    "today": 0,
    "tomorrow": 1,
    "the day after tomorrow": 2,
}
_RELATIVE_DAY = re.compile(
    r"(?P<preposition>\b(?:on|since|from|until|till|by|for|before|after|of)\s+)?"
    r"\b(?P<day>the day before yesterday|the day after tomorrow|yesterday|today|tomorrow)"
    r"\b(?!['’])",
    re.IGNORECASE,
)
_LONGEST_REPLY = 100_000
_MOST_STARTS = 200


def tidy(text: str) -> str:
    """The text on one line: no control characters, no broken unicode, single spaces."""
    sound = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return " ".join(sound.translate(_CONTROL).split())


def quoted(text: str) -> str:
    """The text as a JSON string on one line, in which no chat marker survives.

    Tokenizers read `<|im_end|>` or `[INST]` in any text as the marks of a role.
    """
    line = json.dumps(tidy(text), ensure_ascii=False).replace("<", "\\u003c")
    return _MARK.sub(r"\\u005b", line)


def plain(text: str) -> str:
    """The text for a compact prompt: one line in which no label and no arrow can occur."""
    return tidy(text).translate(str.maketrans(_BRACKETS, _LOOKALIKES))


def restored(text: str) -> str:
    """What a model copied out of a compact prompt, with its angle brackets back."""
    return tidy(text).translate(str.maketrans(_LOOKALIKES, _BRACKETS))


def day(moment: datetime | None) -> str:
    """The day as LoCoMo's answers write it, `7 May 2023`, or `no date`."""
    return f"{moment.day} {MONTHS[moment.month - 1]} {moment.year}" if moment else "no date"


def resolve_days(text: str, said: datetime | None) -> str:
    """Put dates where the text says today, yesterday or tomorrow; other words for time stay."""
    if said is None:
        return text

    def dated(match: re.Match[str]) -> str:
        try:
            date = day(said + timedelta(days=_RELATIVE_DAYS[match["day"].lower()]))
        except OverflowError:  # the first and the last days of the calendar
            return match[0]
        if match["preposition"]:
            return match["preposition"] + date
        return f"{'On' if match['day'][0].isupper() else 'on'} {date}"

    return _RELATIVE_DAY.sub(dated, text)


def numbered(entries: Sequence[Entry]) -> str:
    """Entries for an instruct prompt, a line each: `[0] 7 May 2023, "Ann": "Ann has a cat"`."""
    return "\n".join(
        f"[{number}] {day(entry.said)}"
        + (f", {quoted(entry.speaker)}" if entry.speaker else "")
        + f": {quoted(entry.text)}"
        for number, entry in enumerate(entries)
    )


def labelled(entries: Sequence[Entry]) -> str:
    """Entries for a compact prompt: `Ann's cat is Tom <s1> Bob's home is Rome <s0>`.

    In the order of their texts, so that what is about one person and topic stands together; the
    labels keep the order that was given.
    """
    rows = sorted((plain(entry.text), n) for n, entry in enumerate(entries))
    return " ".join(f"{text} <s{n}>" for text, n in rows)


def labels(text: str) -> list[int]:
    """The numbers of the labels `<s3>` in a compact reply, in order, each once."""
    return list(dict.fromkeys(int(number) for number in _LABEL.findall(text)))


def halves(reply: str) -> tuple[str, str]:
    """What a compact reply points at and what it says: the sides of its one arrow.

    Raises MalformedReply when there isn't exactly one arrow or nothing after it, or when a label
    stands after it.
    """
    left, *rest = tidy(reply).split(ARROW)
    if len(rest) != 1 or not rest[0].strip() or _LABEL.search(rest[0]):
        raise MalformedReply(
            f"expected '{{memory}} <sN> => {{reply}}' or '{{what}} nothing => {{reply}}', "
            f"got {reply[:80]!r}"
        )
    return left.strip(), rest[0].strip()


def pointed(left: str) -> list[int] | None:
    """The labels that the left side of a compact reply points with; [] for "... nothing".

    None when it is neither: what it rests on is then unknown.
    """
    if left.endswith(">") and (named := labels(left)):
        return named
    return [] if left.split()[-1:] == [NOTHING] and not labels(left) else None


def whole(completion: Completion) -> str:
    """The text of a compact reply; MalformedReply when it was cut off."""
    if not completion.finished:
        raise MalformedReply(f"the reply was cut off: it ended with {completion.text[-40:]!r}")
    return completion.text


def without_thinking(reply: str) -> str:
    """The reply after its `<think>` block; nothing when the block was never closed."""
    _, closed, after = reply.rpartition("</think>")
    if closed:
        return after
    before, _, _ = reply.partition("<think>")
    return before


def json_in(reply: str, fits: Callable[[Any], bool]) -> Any:
    """The one JSON value of a reply that `fits`, out of code fences and the prose around it.

    Raises MalformedReply when there is none or more than one, when an object names a key twice,
    and for numbers JSON does not have (NaN, Infinity).
    """
    text = without_thinking(reply).strip()
    if len(text) > _LONGEST_REPLY:
        raise MalformedReply(f"expected a short JSON reply, got {len(text)} characters")
    found = [value for value in _containers(text) if fits(value)]
    if len(found) != 1:
        raise MalformedReply(f"expected one JSON answer, got {len(found) or 'none'}: {text[:80]!r}")
    return found[0]


def _containers(text: str) -> list[Any]:
    """The outermost JSON objects and lists of a text, in order."""
    decoder = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constants)
    values: list[Any] = []
    position = starts = 0
    while start := _OPENING.search(text, position):
        starts += 1
        if starts > _MOST_STARTS:
            raise MalformedReply(f"expected JSON, got brackets that never close: {text[:80]!r}")
        try:
            value, position = decoder.raw_decode(text, start.start())
            values.append(value)
        except RecursionError as error:  # a degenerate policy can emit 5,000 "["
            raise MalformedReply(f"JSON is nested too deeply: {text[:80]!r}") from error
        except ValueError:
            position = start.end()
    return values


_OPENING = re.compile(r"[\[{]")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise MalformedReply(f"a key is given twice among {[key for key, _ in pairs][:12]}")
    return found


def _no_constants(name: str) -> Any:
    raise MalformedReply(f"{name} is not a JSON number")


def repair(prompt: Prompt, reply: str, error: MalformedReply) -> Prompt:
    """The conversation again with what was wrong, to be answered once more."""
    return Prompt(
        (
            *prompt.messages,
            ("assistant", tidy(reply)[:2000] or "(empty)"),
            (
                "user",
                f"That reply cannot be used: {tidy(str(error))}\n"
                "Reply again, complete, in the form the instructions ask for, with nothing else.",
            ),
        )
    )
