"""{"topic": "travel", "year": {"gte": 2023}} -> which entries are meant."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from memory_r1.errors import ConfigError
from memory_r1.types import Entry, as_utc

Filters = Mapping[str, Any]
"""Conditions on metadata and on FIELDS, all of which must hold; "AND", "OR" and "NOT" take lists.

A condition is a value (equal to it), "*" (there at all), or operators with their values:
eq ne in nin gt gte lt lte contains icontains.
"""
Predicate = Callable[[Entry], bool]

FIELDS = ("id", "text", "speaker", "said", "stored", "expires", "version")
"""What a filter can name beside metadata; metadata of the same name is not looked at."""
DEEPEST = 50
"""Levels of nesting that metadata and filters may have."""
_MISSING = object()


def predicate(filters: Filters | None) -> Predicate | None:
    """A function that tells whether an entry is meant; None where every entry is.

    An entry without the key meets only `ne`, `nin` and NOT; values that can't be compared (a
    number with a text) meet nothing. Moments compare with datetimes and ISO 8601 texts. Raises
    ConfigError for what is no filter.
    """
    if not filters:
        return None
    check_depth(filters, "a filter")
    return _all(filters)


def check_depth(value: object, what: str) -> None:
    """ConfigError for what is nested so deeply that a reader of it could run out of stack."""
    layer = [value]
    for _ in range(DEEPEST):
        layer = [inner for outer in layer for inner in _inside(outer)]
    if layer:
        raise ConfigError(f"{what} is nested more than {DEEPEST} deep")


def _inside(value: object) -> Iterable[object]:
    match value:
        case Mapping():
            return value.values()
        case list() | tuple():
            return value
    return ()


def _all(filters: object) -> Predicate:
    if not isinstance(filters, Mapping):
        raise ConfigError(
            f"a filter should be a dict such as {{'topic': 'travel'}}, got {filters!r:.80}"
        )
    tests = [_one(str(key), condition) for key, condition in filters.items()]
    return lambda entry: all(test(entry) for test in tests)


def _one(key: str, condition: Any) -> Predicate:
    match key.upper():
        case "AND" | "$AND":
            tests = _several(key, condition)
            return lambda entry: all(test(entry) for test in tests)
        case "OR" | "$OR":
            tests = _several(key, condition)
            return lambda entry: any(test(entry) for test in tests)
        case "NOT" | "$NOT":
            tests = _several(key, condition)
            return lambda entry: not any(test(entry) for test in tests)
    if not isinstance(condition, Mapping):
        condition = {"eq": condition} if condition != "*" else {"exists": True}
    checks = [_operator(key, name.removeprefix("$"), value) for name, value in condition.items()]
    return lambda entry: all(check(_value(entry, key)) for check in checks)


def _several(key: str, conditions: Any) -> list[Predicate]:
    if isinstance(conditions, Mapping):
        conditions = [conditions]
    if not isinstance(conditions, Sequence) or isinstance(conditions, str):
        raise ConfigError(f"{key} takes a list of filters, got {conditions!r:.80}")
    return [_all(condition) for condition in conditions]


def _value(entry: Entry, key: str) -> Any:
    if key in FIELDS:
        value = getattr(entry, key)
        return _MISSING if value is None else value
    return entry.metadata.get(key, _MISSING)


def _operator(key: str, name: str, wanted: Any) -> Callable[[Any], bool]:
    match name:
        case "exists":
            return lambda value: (value is not _MISSING) == bool(wanted)
        case "eq":
            return lambda value: _equal(value, wanted)
        case "ne":
            return lambda value: not _equal(value, wanted)
        case "in" | "nin":
            if not isinstance(wanted, Sequence) or isinstance(wanted, str):
                raise ConfigError(f"{key}: {name} takes a list, got {wanted!r:.80}")
            among = list(wanted)
            return lambda value: any(_equal(value, one) for one in among) == (name == "in")
        case "gt" | "gte" | "lt" | "lte":
            return lambda value: _ordered(value, wanted, name)
        case "contains" | "icontains":
            return lambda value: _contains(value, wanted, fold=name == "icontains")
    raise ConfigError(
        f"{key}: unknown operator {name!r}; known are eq ne in nin gt gte lt lte contains icontains"
    )


def _equal(value: Any, wanted: Any) -> bool:
    if isinstance(value, datetime):
        return bool(value == _moment(wanted))
    # To Python, True is 1; to whoever filters, it isn't.
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)


def _ordered(value: Any, wanted: Any, name: str) -> bool:
    if isinstance(value, datetime):
        wanted = _moment(wanted)
    if value is _MISSING or isinstance(value, bool) or isinstance(wanted, bool):
        return False
    try:
        match name:
            case "gt":
                return bool(value > wanted)
            case "gte":
                return bool(value >= wanted)
            case "lt":
                return bool(value < wanted)
        return bool(value <= wanted)
    except TypeError:
        return False


def _contains(value: Any, wanted: Any, fold: bool) -> bool:
    if isinstance(value, str):
        if not isinstance(wanted, str):
            return False
        if fold:
            value, wanted = value.casefold(), wanted.casefold()
        return wanted in value
    return isinstance(value, list) and any(_equal(one, wanted) for one in value)


def _moment(wanted: Any) -> Any:
    """A moment to compare with; None where the value is none, which equals nothing."""
    if isinstance(wanted, datetime):
        return as_utc(wanted)
    try:
        return as_utc(datetime.fromisoformat(wanted))
    except (TypeError, ValueError):
        return None
