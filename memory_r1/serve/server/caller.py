"""a request -> who calls, and whose memories that opens; refused before anything is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from memory_r1.errors import ConfigError, MemoryR1Error, UnknownEntry
from memory_r1.memory import Memory
from memory_r1.serve.server.keys import Key, Keys
from memory_r1.types import Owner

LONGEST: Final = 512
"""Characters of an id of an owner."""
_ANY = Key("", "", datetime.min)
"""What being bound to nothing looks like."""


class Unauthorized(MemoryR1Error):
    """No key was shown, or one that opens nothing."""


class Forbidden(MemoryR1Error):
    """The key is good, but not for this."""


@dataclass(frozen=True)
class Caller:
    """Who calls. Without a key (on this machine, while none are in use) everything is open."""

    key: Key | None = None

    @property
    def name(self) -> str:
        """The id of the key; "" without."""
        return self.key.id if self.key else ""

    def may(self, owner: Owner) -> bool:
        """Whether the caller may know that this owner exists."""
        return self.key is None or self.key.opens(owner)

    def owner(
        self, user_id: str | None, agent_id: str | None = None, run_id: str | None = None
    ) -> Owner:
        """Whose memory is meant; what the key is bound to need not be said.

        ConfigError when nobody is named, or what is named can't be an owner; Forbidden for
        anybody the key isn't for, whether or not there is such an owner.
        """
        bound = self.key or _ANY
        given = (user_id or bound.user_id, agent_id or bound.agent_id, run_id or bound.run_id)
        if not given[0]:
            raise ConfigError("whose memory? Expected a user_id")
        if any(part and (len(part) > LONGEST or not _is_text(part)) for part in given):
            raise ConfigError(f"an id of an owner is text of at most {LONGEST} characters")
        owner = Owner(given[0], given[1] or "", given[2] or "")
        if not self.may(owner):
            raise Forbidden(f"this key is not for the memory of {user_id!r}")
        return owner

    def holder(self, memory: Memory, entry_id: str) -> Owner:
        """Whose entry this is, of those the caller may know of; UnknownEntry."""
        found = [owner for owner in memory.store.holding(entry_id) if self.may(owner)]
        if not found:
            raise UnknownEntry(f"no entry {entry_id!r}")
        if len(found) > 1:
            raise ConfigError(f"entry {entry_id!r} is there for several owners; name the user_id")
        return found[0]

    def writing(self) -> Caller:
        """The caller, who wants to change something; Forbidden with a key that only reads."""
        if self.key and self.key.read_only:
            raise Forbidden("this key only reads")
        return self

    def everything(self) -> Caller:
        """The caller, who wants what is nobody's in particular; Forbidden with a bound key."""
        if self.key and self.key.user_id is not None:
            raise Forbidden("this needs a key that is bound to no user")
        return self


def _is_text(part: str) -> bool:
    """Half a surrogate pair can be written in JSON, and nowhere else."""
    try:
        part.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown_in(headers: Mapping[str, str]) -> str:
    """The key in a request's headers, "" if there is none.

    Authorization: Bearer KEY, as OpenAI's clients send it; Authorization: Token KEY and X-API-Key,
    as mem0's do.
    """
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() in ("bearer", "token"):
        return key.strip()
    return headers.get("x-api-key", "").strip()


def identified(keys: Keys, shown: str, required: bool) -> Caller:
    """The caller who shows this; Unauthorized. required: nobody gets in without a key."""
    if key := keys.find(shown):
        return Caller(key)
    if not required:
        return Caller()
    if shown:
        raise Unauthorized("this API key opens nothing; it may have been revoked")
    raise Unauthorized("an API key is needed: Authorization: Bearer KEY")
