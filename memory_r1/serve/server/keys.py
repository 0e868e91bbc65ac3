"""API keys: made, shown once, kept as a hash, bound to whose memories they open."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from memory_r1.errors import ConfigError, StoreError
from memory_r1.store import Store
from memory_r1.types import Owner, Record

KIND: Final = "api key"
_PREFIX: Final = "mr1"


@dataclass(frozen=True)
class Key:
    """What is known of a key: not the key itself."""

    id: str
    """Eight hex digits, the part of the key that may be shown."""
    name: str
    made: datetime
    user_id: str | None = None
    """Whose memories it opens; None: everybody's."""
    agent_id: str | None = None
    """Of that user's, only those of this agent; None: of all."""
    run_id: str | None = None
    read_only: bool = False

    def opens(self, owner: Owner) -> bool:
        """Whether the memories of this owner are among those it opens."""
        bound = (self.user_id, self.agent_id, self.run_id)
        theirs = (owner.user_id, owner.agent_id, owner.run_id)
        return all(mine in (None, value) for mine, value in zip(bound, theirs, strict=True))


class Keys:
    """The keys of a store. They are read at every use, so that a revoked one opens nothing."""

    def __init__(
        self, store: Store, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._store, self._now = store, now

    def create(
        self,
        name: str,
        *,
        user_id: str | None = None,
        agent_id: str | None = None,
        run_id: str | None = None,
        read_only: bool = False,
    ) -> tuple[Key, str]:
        """A new key, and what its holder shows: that is kept nowhere. ConfigError."""
        if user_id is None and (agent_id is not None or run_id is not None):
            raise ConfigError("a key for an agent or a run needs the user it is of")
        if user_id == "":
            raise ConfigError("whose memory? Expected a user's name, got ''")
        key = Key(
            secrets.token_hex(4), name, self._now(), user_id, agent_id, run_id, read_only=read_only
        )
        secret = secrets.token_urlsafe(32)
        body = {
            "hash": _hash(secret),
            "name": name,
            "user_id": user_id,
            "agent_id": agent_id,
            "run_id": run_id,
            "read_only": read_only,
        }
        if not self._store.put_record(Record(KIND, key.id, key.made, body), new=True):
            return self.create(  # one in four thousand million
                name, user_id=user_id, agent_id=agent_id, run_id=run_id, read_only=read_only
            )
        return key, f"{_PREFIX}_{key.id}_{secret}"

    def all(self) -> list[Key]:
        """Every key that opens something, the oldest first."""
        found = [_key(record) for record in self._store.records(KIND)]
        return sorted(found, key=lambda key: key.made)

    def in_use(self) -> bool:
        """Whether there is any: then nobody gets in without."""
        return bool(self._store.records(KIND))

    def revoke(self, key_id: str) -> None:
        """Make a key open nothing from now on; StoreError when there is none of this id."""
        if not self._store.drop_records(KIND, key=key_id):
            raise StoreError(f"there is no key {key_id!r}; `memory-r1 keys list` shows all")

    def find(self, shown: str) -> Key | None:
        """The key that somebody shows; None when it is none, or was revoked."""
        match shown.split("_", 2):
            case [prefix, key_id, secret] if prefix == _PREFIX:
                record = self._store.record(KIND, key_id)
                kept = record.body["hash"] if record else ""
                # Compared also where there is none, so that the time tells nothing.
                if hmac.compare_digest(kept, _hash(secret)) and record:
                    return _key(record)
        return None


def _hash(secret: str) -> str:
    """A secret of 256 random bits needs no salt and no slow hash: it can't be guessed."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def _key(record: Record) -> Key:
    fields = {name: value for name, value in record.body.items() if name != "hash"}
    return Key(id=record.key, made=record.at, **fields)
