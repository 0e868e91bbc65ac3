"""What callers of mem0 pass -> whose memories are meant, which of them, how many; and errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime
from typing import Any, Final, NamedTuple

from memory_r1.compat import banks
from memory_r1.compat.banks import NO_USER
from memory_r1.errors import ConfigError, UnknownEntry
from memory_r1.filters import predicate
from memory_r1.types import Owner

IDS: Final = ("user_id", "agent_id", "run_id")
_FIELDS: Final = {"actor_id": "speaker", "created_at": "stored", "updated_at": "stored"}
"""What mem0 calls fields that filters can name."""


class InvalidCall(ConfigError, ValueError):
    """mem0's ValueError: an argument is out of range, or a filter is none."""


class ValidationError(ConfigError, ValueError):
    """mem0's own error for what can't be added, with its fields."""

    def __init__(self, message: str, error_code: str, suggestion: str, **details: Any) -> None:
        super().__init__(message)
        self.message, self.error_code = message, error_code
        self.suggestion, self.details = suggestion, details


class UnknownMemory(UnknownEntry, ValueError):
    """mem0's ValueError: nothing has this id."""


@contextmanager
def as_value_errors() -> Iterator[None]:
    """What is wrong with a call is a ValueError to callers of mem0."""
    try:
        yield
    except ValueError:
        raise
    except UnknownEntry as error:
        raise UnknownMemory(str(error)) from error
    except ConfigError as error:
        raise InvalidCall(str(error)) from error


class Scope(NamedTuple):
    """Which memories a call is about."""

    ids: dict[str, str]
    where: banks.Where
    old: bool
    """True for the call form of 1.x: ids beside the filters, not among them."""

    def has(self, owner: Owner) -> bool:
        """Whether the owner has all the ids; "*" stands for any."""
        for name, wanted in self.ids.items():
            value = getattr(owner, name)
            if value != wanted and (wanted != "*" or value in ("", NO_USER)):
                return False
        return True


def scope_of(
    user_id: object, agent_id: object, run_id: object, filters: Mapping[str, Any] | None
) -> Scope:
    """Whose memories, and which of them; ids beside the filters go before those among them.

    Raises ValidationError without an id, InvalidCall for what is no id or no filter.
    """
    if filters is not None and not isinstance(filters, Mapping):
        raise InvalidCall(f"filters should be a dict, got {filters!r:.80}")
    beside = dict(zip(IDS, (user_id, agent_id, run_id), strict=True))
    conditions = dict(filters or {})
    ids: dict[str, str] = {}
    for name in IDS:
        among = conditions.pop(name, None)
        value = among if beside[name] is None else beside[name]
        if value is not None:
            ids[name] = _id(name, value)
    if not ids:
        raise ValidationError(
            "whose memories? At least one of user_id, agent_id and run_id is needed",
            "VALIDATION_001",
            "Write filters={'user_id': ...}, or user_id=...",
        )
    wanted = predicate(_named_as_ours(conditions))
    old = any(value is not None for value in beside.values())
    return Scope(ids, wanted or (lambda entry: True), old)


def _named_as_ours(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """The same filters with our names of the fields."""
    renamed: dict[str, Any] = {}
    for name, condition in conditions.items():
        if name in IDS:
            raise InvalidCall(f"{name!r} is inside AND, OR or NOT; write it beside them")
        if name in ("AND", "OR", "NOT") and isinstance(condition, list):
            condition = [
                _named_as_ours(one) if isinstance(one, Mapping) else one for one in condition
            ]
        renamed[_FIELDS.get(name, name)] = condition
    return renamed


def owner_of(user_id: object, agent_id: object, run_id: object) -> Owner:
    """Whose memory something becomes."""
    given = zip(IDS, (user_id, agent_id, run_id), strict=True)
    ids = {name: _id(name, value) for name, value in given if value is not None}
    if not ids:
        raise ValidationError(
            "whose memory? At least one of user_id, agent_id and run_id is needed",
            "VALIDATION_001",
            "Write user_id=...",
        )
    return Owner(**{"user_id": NO_USER, **ids})


def _id(name: str, value: object) -> str:
    text = str(value).strip()
    if not text or any(letter.isspace() for letter in text):
        raise InvalidCall(f"{name} is {value!r}; expected an id without spaces")
    return text


def ids_of(owner: Owner) -> dict[str, Any]:
    """An owner as the keywords of our verbs."""
    return {name: getattr(owner, name) for name in IDS}


def check_kind(memory_type: str | None, prompt: str | None) -> None:
    """Refuse what `add` takes in mem0 and has no meaning here, with what to do."""
    if memory_type == "procedural_memory":
        raise InvalidCall(
            "a procedural memory is a summary that a model writes; write it yourself and add it "
            "with infer=False"
        )
    if memory_type is not None:
        raise ValidationError(
            f"memory_type is {memory_type!r}; expected None",
            "VALIDATION_002",
            "Leave it out.",
            provided_type=memory_type,
        )
    if prompt:
        raise InvalidCall(
            "a prompt of your own has no place here: the agents read those they are trained on. "
            "Extract the facts yourself and add them with infer=False"
        )


def size_of(limit: int | None, top_k: int | None, scope: Scope) -> int:
    """How many memories at most: as asked, else what mem0 gives in the same call form."""
    size = limit if top_k is None else top_k
    if size is None:
        return 100 if scope.old else 20
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise InvalidCall(f"at most {size!r} memories? Expected a number from 0")
    return size


def is_number(value: object) -> bool:
    """Whether it is a number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def end_of_life(day: date | str | None) -> datetime | None:
    """The moment a memory ends whose last day this is."""
    try:
        return None if day is None else banks.end_of(day)
    except ValueError as error:
        raise InvalidCall(f"expiration_date: {error}") from error
