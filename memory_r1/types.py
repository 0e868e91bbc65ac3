"""The vocabulary: turn, fact, entry, operation, journal row, answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

Style = Literal["instruct", "compact"]
"""How prompts are written: full instructions for chat models, or the tiny model's short form."""


def as_utc(moment: datetime) -> datetime:
    """The same moment with a time zone; a moment without one is taken as UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


NEVER = datetime.max.replace(tzinfo=UTC)
"""The expiry that takes an entry's expiry away."""


@dataclass(frozen=True)
class Owner:
    """Whose memory it is. Nothing is ever shared between owners."""

    user_id: str
    agent_id: str = ""
    run_id: str = ""

    def __str__(self) -> str:
        names = {"user": self.user_id, "agent": self.agent_id, "run": self.run_id}
        return ", ".join(f"{kind} {name!r}" for kind, name in names.items() if name)


@dataclass(frozen=True)
class Turn:
    """One thing said by one speaker."""

    speaker: str
    text: str
    said: datetime | None = None
    """When it was said (UTC)."""
    id: str = ""
    """Names the turn in its dialogue, e.g. "D3:11"; evidence and citations point to it."""
    caption: str = ""
    """What a shared picture shows, if there was one."""
    role: str = "user"


@dataclass(frozen=True)
class Fact:
    """One statement worth remembering, extracted from a turn."""

    text: str
    quote: str = ""
    """The words of the turn that say so."""
    happened: tuple[datetime, datetime] | None = None
    """From and to when it was so, where that was said."""


@dataclass(frozen=True)
class Entry:
    """One memory, as it reads in one version. UPDATE keeps the id and counts the version up."""

    id: str
    """Opaque, sorts by time of creation; models see labels 0..k-1 instead."""
    text: str
    owner: Owner
    stored: datetime
    """When this version was written (UTC)."""
    speaker: str = ""
    sources: tuple[str, ...] = ()
    """Ids of the turns it rests on, oldest first."""
    quote: str = ""
    said: datetime | None = None
    """When the (latest) source turn was said."""
    happened: tuple[datetime, datetime] | None = None
    """From and to when what it tells was so, where known."""
    superseded: datetime | None = None
    """When it stopped being believed; None while it is current."""
    expires: datetime | None = None
    """From when on it is out of date and not found any more; None: never."""
    version: int = 1
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Add:
    """Remember something new."""

    text: str


@dataclass(frozen=True)
class Update:
    """Change what an entry says and keep its id."""

    entry_id: str
    text: str


@dataclass(frozen=True)
class Delete:
    """Stop believing an entry; it leaves search and stays in the history."""

    entry_id: str


@dataclass(frozen=True)
class Noop:
    """Change nothing: the fact is known, or not worth keeping."""

    entry_id: str = ""
    """The entry that says it already, where that is known."""


MemoryOp = Add | Update | Delete | Noop
OpName = Literal["ADD", "UPDATE", "DELETE", "NOOP", "UNDO"]
RowState = Literal["done", "undone", "proposed", "approved", "rejected"]
"""What became of an operation: done, and perhaps taken back; or only proposed, and then decided."""


@dataclass(frozen=True)
class JournalRow:
    """What one operation did, why, and what it rested on."""

    id: str
    """Sorts by time."""
    owner: Owner
    op: OpName
    at: datetime
    entry_id: str = ""
    """Of a NOOP: the entry that says it already, or "". Of a proposed ADD: the id it would get."""
    before: Entry | None = None
    after: Entry | None = None
    turn_id: str = ""
    """Id of the stored message that caused it."""
    reason: str = ""
    model: str = ""
    prompt_hash: str = ""
    state: RowState = "done"

    @property
    def undone(self) -> bool:
        """True once a later UNDO row has taken it back."""
        return self.state == "undone"

    @property
    def duplicate_of(self) -> str:
        """Of a NOOP: the id of the entry that says it already; else ""."""
        return self.entry_id if self.op == "NOOP" else ""


Policy = Literal["auto", "confirm_deletes", "confirm_all"]
"""Which operations wait for somebody's approval: none, DELETE, or all that change something."""
MessageState = Literal["pending", "working", "done", "deferred"]
"""Waiting for its first try; being processed; processed; waiting for another try."""


@dataclass(frozen=True)
class Message:
    """A raw turn as it was received, kept whatever the models do."""

    id: str
    owner: Owner
    turn: Turn
    received: datetime
    state: MessageState = "pending"
    error: str = ""
    """Why it is deferred."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What the caller attached, JSON; kept with every entry the message leads to."""
    expires: datetime | None = None
    """From when on what it tells is out of date; kept with every entry it leads to."""
    verbatim: bool = False
    """True where it is kept word for word as one entry, and no model is asked, not on a retry."""
    since: datetime | None = None
    """When it came into its state; None while it is as it was received."""
    usage: Mapping[str, int] = field(default_factory=dict)
    """What processing it took so far: calls, prompt_tokens, completion_tokens, embeddings."""


@dataclass(frozen=True)
class Feedback:
    """Whether an answer was right, as somebody who knows has said. What training learns from."""

    id: str
    """Sorts by time."""
    owner: Owner
    at: datetime
    question: str
    answer: str
    right: bool
    correct: str = ""
    """What would have been right, where that was said."""
    used: tuple[str, ...] = ()
    """Ids of the entries that the answer rested on."""


@dataclass(frozen=True)
class Record:
    """What a server keeps beside the memories: an API key, a reply it gave."""

    kind: str
    key: str
    """One of its kind."""
    at: datetime
    body: Mapping[str, Any]
    """JSON."""
    owner: Owner | None = None
    """Who is erased together with it; None: nobody."""


@dataclass(frozen=True)
class Hit:
    """An entry found by search, with its fused score and the signals it came from."""

    entry: Entry
    score: float
    signals: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    """What the Answer Agent said and the entries it named as its reasons."""

    text: str
    question: str = ""
    used: tuple[Entry, ...] = ()
    retrieved: tuple[Entry, ...] = ()
    """What the Answer Agent was shown, in that order."""
    scores: tuple[float, ...] = ()
    """What search gave each of `retrieved`; empty where nothing was ranked."""
    known: bool = True
    """False when the memory does not hold the answer."""
    model: str = ""
    prompt_hash: str = ""
    note: str = ""
    """What a reader should know about how it was made, e.g. that no model is configured."""
    latency: Mapping[str, float] = field(default_factory=dict)
    """Seconds per component: search, answer."""
    tokens: tuple[int, int] = (0, 0)
    """Prompt and completion tokens."""


@dataclass(frozen=True)
class Prompt:
    """What a model is shown: (role, content) messages, roles system, user, assistant."""

    messages: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """All contents in order, for models without a chat template."""
        return "\n\n".join(content for _, content in self.messages)

    @property
    def hash(self) -> str:
        """Twelve hex digits that name this prompt."""
        return hashlib.sha256(repr(self.messages).encode("utf-8", "replace")).hexdigest()[:12]


@dataclass(frozen=True)
class Completion:
    """What a model replied."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finished: bool = True
    """False when it was cut off at the token limit."""
    seconds: float = field(default=0.0, compare=False)
    """How long it took; with a batch, how long the batch took. 0 where nobody measured."""


NOT_MENTIONED = "not mentioned"
"""The answer when the memory does not know (LoCoMo's own phrase)."""
