"""Idempotency-Key: a request that is sent again, because its reply was lost, happens once.

A reply is noted under its key when the request begins, so that two at the same time are one too,
and filled in when it is done. What failed by the server's fault is forgotten, to be tried again.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from memory_r1.errors import Conflict
from memory_r1.serve.server.problems import Unusable, response_to
from memory_r1.serve.server.reply import Reply
from memory_r1.store import Store
from memory_r1.types import Owner, Record

KIND: Final = "reply"
KEPT: Final = timedelta(hours=24)
"""How long a key stands for its reply; a key is to be used once."""
ADDS_KEPT: Final = timedelta(days=30)
"""How long `Memory.add` knows a call by its name."""
_PROCESS: Final = f"{os.getpid()}-{secrets.token_hex(4)}"


@dataclass(frozen=True)
class Once:
    """A request that came with a key, or without one ("")."""

    key: str
    caller: str
    """The id of the API key; a key of one caller says nothing to another."""
    request: str
    """A hash of what was asked."""

    @property
    def name(self) -> str:
        """What the reply is kept under."""
        return hashlib.sha256(repr((self.caller, self.key)).encode("utf-8", "replace")).hexdigest()


class Replies:
    """The replies a store keeps."""

    def __init__(
        self, store: Store, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._store, self._now = store, now

    def once(self, asked: Once, owner: Owner | None, work: Callable[[], Reply]) -> Reply:
        """What `work` replies, or replied when this was asked before.

        owner: who is erased together with the reply. Unusable when the key stood for another
        request, Conflict while the first is still being worked on.
        """
        if not asked.key:
            return work()
        begun = Record(
            *(KIND, asked.name, self._now()),
            {"request": asked.request, "process": _PROCESS},
            owner,
        )
        if not self._store.put_record(begun, new=True):
            known = self._store.record(KIND, asked.name)
            if known is not None and (reply := self._known(asked, known)):
                return reply
            self._store.put_record(begun)  # its process died over it
        try:
            reply = work()
        except Exception as error:
            reply = Reply.of_response(response_to(error))
            if reply.status >= 500 or reply.status == 429:
                self._store.drop_records(KIND, key=asked.name)
                raise
        kept = {**begun.body, "status": reply.status, "type": reply.media_type}
        body = {**kept, "reply": reply.text, "location": reply.headers.get("location", "")}
        self._store.put_record(replace(begun, body=body))
        return reply

    def _known(self, asked: Once, known: Record) -> Reply | None:
        body: dict[str, Any] = dict(known.body)
        if body["request"] != asked.request:
            raise Unusable("this Idempotency-Key was used for another request; take a new one")
        if "status" in body:
            headers = {"Idempotent-Replayed": "true"}
            if body["location"]:
                headers["Location"] = body["location"]
            return Reply.of_text(body["reply"], body["status"], body["type"], headers)
        if body["process"] == _PROCESS:
            raise Conflict("the first request with this Idempotency-Key is not done yet")
        return None

    def drop_old(self) -> None:
        """Forget the replies that are too old to be asked for again."""
        self._store.drop_records(KIND, before=self._now() - KEPT)
        self._store.drop_records("add", before=self._now() - ADDS_KEPT)
