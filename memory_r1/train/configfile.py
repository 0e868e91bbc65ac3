"""TOML <-> frozen dataclasses: every setting checked, every mistake named with its remedy.

A section is a frozen dataclass that derives from `Section`; a setting is a field of it, its
type says what is allowed (`Count`, `Share`, `Literal[...]`, `X | None`, `tuple[X, ...]`), and
the docstring under it is its documentation. Adding a setting is adding that one line.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
import tomllib
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from memory_r1.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """The smallest and largest number a setting may be; `above` is a limit that is not reached."""

    low: float | None = None
    high: float | None = None
    above: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
        )

    def __str__(self) -> str:
        limits = [(self.above, "above"), (self.low, "from"), (self.high, "to")]
        return " ".join(f"{word} {limit:g}" for limit, word in limits if limit is not None)


Count = Annotated[int, Range(low=1)]
"""A whole number from 1."""
Natural = Annotated[int, Range(low=0)]
"""A whole number from 0."""
Share = Annotated[float, Range(low=0, high=1)]
"""A number from 0 to 1."""
Amount = Annotated[float, Range(low=0)]
"""A number from 0."""
Positive = Annotated[float, Range(above=0)]
"""A number above 0."""

NONE = "none"
"""How TOML, which has no word for it, writes None for a setting that may be None."""


@dataclass(frozen=True)
class Section:
    """Base of configuration dataclasses: each field is checked against its type when made.

    Raises ConfigError that names the setting, what it is and what was expected.
    """

    def __post_init__(self) -> None:
        for name, hint in _hints(type(self)).items():
            named = f"{type(self).__name__.lower()}.{name}"
            object.__setattr__(self, name, _checked(getattr(self, name), hint, named))


C = TypeVar("C", bound=Section)


def load_config(cls: type[C], table: Mapping[str, Any]) -> C:
    """A configuration from the (nested) table a TOML file was read into.

    Raises ConfigError for an unknown setting (with the nearest known one), a missing one, a
    wrong type or a value out of range.
    """
    return _load(cls, table, "", cls)


def _load(cls: type[C], table: Mapping[str, Any], section: str, root: type[Section]) -> C:
    hints = _hints(cls)
    place = f" in [{section}]" if section else ""
    for key in table:
        if key not in hints:
            raise ConfigError(f"unknown setting {key!r}{place}; {_suggestion(key, cls, root)}")
    values = dict(table)
    for field in dataclasses.fields(cls):
        if field.name not in values:
            if field.default is MISSING and field.default_factory is MISSING:
                expected = _describe(hints[field.name])
                raise ConfigError(f"setting {field.name!r}{place} is missing; expected {expected}")
            continue
        inner, value = _section_type(hints[field.name]), values[field.name]
        if inner and isinstance(value, Mapping):
            values[field.name] = _load(inner, value, f"{section}.{field.name}".strip("."), root)
    return cls(**values)


def _suggestion(key: str, cls: type[Section], root: type[Section]) -> str:
    """The nearest setting of this section, else of another, else the list of what there is."""
    known = list(_hints(cls))
    if near := difflib.get_close_matches(key, known, 1):
        return f"did you mean {near[0]!r}?"
    for name, section in _sections(root):
        if near := difflib.get_close_matches(key, list(_hints(section)), 1, cutoff=0.8):
            return f"did you mean {near[0]!r} in [{name}]?"
    return f"known are {', '.join(known)}"


def _sections(cls: type[Section]) -> Iterator[tuple[str, type[Section]]]:
    for name, hint in _hints(cls).items():
        if inner := _section_type(hint):
            yield name, inner


def _hints(cls: type[Section]) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _section_type(hint: Any) -> type[Section] | None:
    """The dataclass of a field that is a section, or may be one."""
    for candidate in (hint, *get_args(hint)):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def _checked(value: Any, hint: Any, name: str) -> Any:
    """The value as its type wants it: lists become tuples, whole numbers floats."""
    result = _converted(value, hint)
    if result is MISSING:
        raise ConfigError(f"{name} is {value!r}; expected {_describe(hint)}")
    return result


def _converted(value: Any, hint: Any) -> Any:
    """MISSING stands for a value that does not fit, because None may be one that does."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        result = _converted(value, args[0])
        return result if result is not MISSING and result in args[1] else MISSING
    if origin in (Union, types.UnionType):
        if value is None or value == NONE:
            return None
        return _converted(value, next(arg for arg in args if arg is not types.NoneType))
    if origin is Literal:
        return value if value in args else MISSING
    if origin is tuple:
        return _converted_items(value, args)
    if origin is not None:  # a free table: whoever uses it checks what is in it
        return value if isinstance(value, Mapping) else MISSING
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if number and math.isfinite(value) else MISSING
    if isinstance(value, bool):  # which is also an int
        return value if hint is bool else MISSING
    return value if isinstance(value, hint) else MISSING


def _converted_items(value: Any, args: tuple[Any, ...]) -> Any:
    if not isinstance(value, list | tuple):
        return MISSING
    hints = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
    if len(hints) != len(value):
        return MISSING
    items = tuple(_converted(item, hint) for item, hint in zip(value, hints, strict=True))
    return MISSING if any(item is MISSING for item in items) else items


def _describe(hint: Any) -> str:
    """What a value of this type is, in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{_describe(args[0])} {args[1]}"
    if origin in (Union, types.UnionType):
        arm = next(arg for arg in args if arg is not types.NoneType)
        return f"{_describe(arm)}, or {NONE!r}"
    if origin is Literal:
        return "one of " + ", ".join(repr(arg) for arg in args)
    if origin is tuple:
        many = args[-1] is Ellipsis
        return "a list, each " + _describe(args[0]) if many else f"a list of {len(args)} numbers"
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return words.get(hint, "a table")


def read_toml(text: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The table of a TOML text, changed by overrides such as "grpo.clip=0.3" or "model=tiny".

    The value of an override is TOML; what is not, is a text without its quotes. Raises
    ConfigError for what is neither TOML nor an override.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not TOML: {error}") from error
    for override in overrides:
        key, equals, value = override.partition("=")
        *path, name = key.strip().split(".")
        if not equals or not all([*path, name]):
            raise ConfigError(
                f"cannot read the setting {override!r}; expected name=value, e.g. grpo.clip=0.3"
            )
        inner = table
        for part in path:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"cannot set {key.strip()!r}: {part!r} is not a section")
        inner[name] = _override_value(value.strip())
    return table


def _override_value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if len(parsed) == 1 else text


def dump_config(config: Section) -> str:
    """TOML with every setting written out; `load_config` of it equals the configuration.

    Raises ConfigError for a value in a free table that TOML cannot hold.
    """
    return "\n".join(_lines(_table(config), "")).strip() + "\n"


def flat(config: Section) -> dict[str, Any]:
    """Every setting under its dotted name, as `dump_config` writes it."""

    def walk(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in table.items():
            if isinstance(value, Mapping):
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield prefix + key, value

    return dict(walk(_table(config), ""))


def _table(config: Section) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Section):
            table[field.name] = _table(value)
        elif value is not None:
            table[field.name] = value
        elif field.default is not None:
            table[field.name] = NONE
    return table


def _lines(table: Mapping[str, Any], section: str) -> Iterator[str]:
    """Plain settings first: in TOML what follows a section's header belongs to it."""
    for key, value in table.items():
        if not isinstance(value, Mapping):
            yield f"{_key(key)} = {_value(value, key)}"
    for key, value in table.items():
        if isinstance(value, Mapping):
            path = f"{section}.{_key(key)}".strip(".")
            yield f"\n[{path}]"
            yield from _lines(value, path)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key, key)


def _value(value: Any, key: str) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str():
            # JSON's escapes are TOML's, but for one control character.
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case list() | tuple():
            return f"[{', '.join(_value(item, key) for item in value)}]"
        case Mapping():
            items = (f"{_key(name)} = {_value(item, key)}" for name, item in value.items())
            return f"{{{', '.join(items)}}}"
    raise ConfigError(f"setting {key!r} is {value!r}, which a TOML file cannot hold")
