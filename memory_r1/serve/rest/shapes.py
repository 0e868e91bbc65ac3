"""What requests and replies look like: our types as JSON, owners written as their three ids."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from annotated_types import MaxLen
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic.config import JsonDict

from memory_r1 import types
from memory_r1.errors import ConfigError
from memory_r1.filters import check_depth
from memory_r1.memory import Stats
from memory_r1.remember import AddResult, FactStatus, Usage
from memory_r1.serve.server.caller import LONGEST
from memory_r1.serve.server.problems import MOST_FAULTS
from memory_r1.types import MessageState, OpName, Owner, RowState


def _whole(text: str) -> str:
    """Half a surrogate pair can be written in JSON, and nowhere else."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"no valid Unicode at character {error.start}") from error
    return text


MOST_MESSAGES = 10_000
"""Messages of one request."""
Text = Annotated[str, AfterValidator(_whole)]
MOST_QUERY = 20_000
"""Characters of a query: a longer one would keep everybody waiting."""
Query = Annotated[str, Field(max_length=MOST_QUERY), AfterValidator(_whole)]
Id = Annotated[str, Field(max_length=LONGEST), AfterValidator(_whole)]
Moment = Annotated[
    datetime | str | int | float,
    Field(description="ISO 8601, or seconds since 1970.", examples=["2023-05-08T13:56:00Z"]),
]


def shallow(value: dict[str, Any]) -> dict[str, Any]:
    """What is nested so deeply that a reader of it could run out of stack is refused."""
    try:
        check_depth(value, "this")
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return value


Json = Annotated[dict[str, Any], AfterValidator(shallow)]

USER = Field(default="", description="Whose memory; a key bound to a user need not say it.")
WORDS: JsonDict = {"user_id": "ann", "query": "where does Ann live?", "k": 5}


class Given(BaseModel):
    """A request; what it doesn't know is refused, so that a slip doesn't go unnoticed."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _few_faults(cls, value: Any, fit: ModelWrapValidatorHandler[Self]) -> Self:
        """A request of megabytes can be wrong in a million places, and telling them takes long."""
        try:
            return fit(value)
        except ValidationError as error:
            if (count := error.error_count()) > MOST_FAULTS:
                raise ValueError(f"{count} faults, too many to tell") from None
            raise


class OfOwner(Given):
    """A request about one owner's memory."""

    user_id: Id = USER
    agent_id: Id = ""
    run_id: Id = ""


class Said(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["user", "assistant", "system", "tool", "developer"] = "user"
    content: Text
    name: Id = Field(default="", description="Who said it.")
    timestamp: Moment | None = None


class Adding(OfOwner):
    """What was said, to be remembered."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"user_id": "ann", "messages": "I moved to Lisbon."},
                {
                    "user_id": "ann",
                    "messages": [
                        {"role": "user", "content": "I adopted a dog, Rex", "name": "Ann"}
                    ],
                    "timestamp": "2023-05-08T13:56:00Z",
                    "wait": False,
                },
            ]
        },
    )

    messages: Text | Said | Annotated[list[Said], MaxLen(MOST_MESSAGES)]
    timestamp: Moment | None = None
    speaker: Id = ""
    metadata: Json = {}
    expires: Moment | None = None
    infer: bool = Field(True, description="false: keep each message word for word, ask no model.")
    wait: bool = Field(True, description="false: reply as soon as the messages are safe (202).")
    dry_run: bool = Field(False, description="Tell what would be done, and keep nothing.")


class Searching(OfOwner):
    """A query."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [WORDS]})

    query: Query
    k: int = Field(10, ge=1, le=1000)
    filters: Json = {}
    as_of: Moment | None = None
    valid_at: Moment | None = None
    explain: bool = False


class Recalling(OfOwner):
    """A query whose memories are put into a prompt."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [WORDS]})

    query: Query
    k: int = Field(10, ge=1, le=1000)
    filters: Json = {}


class Asking(OfOwner):
    """A question."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"user_id": "ann", "question": "Where does Ann live?"}]},
    )

    question: Query
    k: int | None = Field(None, ge=1, le=1000)
    per_speaker: int | None = Field(None, ge=1, le=1000)
    asked: Moment | None = None
    filters: Json = {}
    as_of: Moment | None = None
    valid_at: Moment | None = None


class Correcting(Given):
    """What an entry should say, or what should be kept with it."""

    text: Text | None = None
    metadata: Json | None = None
    expires: Moment | Literal["never"] | None = None


class Undoing(OfOwner):
    """What to take back: an operation or the last one on an entry, or all since a moment."""

    target: Id = Field("", description="Id of a journal row or of an entry.")
    since: Moment | None = None


class Judging(OfOwner):
    """Whether an answer was right."""

    question: Text
    answer: Text
    right: bool
    correct: Text = ""
    used: list[Id] = Field(
        [], max_length=1000, description="Ids of the entries that the answer rested on."
    )


class OwnerShape(BaseModel):
    """Whose memory it is."""

    user_id: str
    agent_id: str
    run_id: str

    @classmethod
    def of(cls, owner: Owner) -> Self:
        """Its shape."""
        return cls(user_id=owner.user_id, agent_id=owner.agent_id, run_id=owner.run_id)


class EntryShape(OwnerShape):
    """A memory, in one version."""

    id: str
    text: str
    version: int
    speaker: str
    sources: list[str]
    quote: str
    stored: datetime
    said: datetime | None
    happened: tuple[datetime, datetime] | None
    superseded: datetime | None
    expires: datetime | None
    metadata: Json

    @classmethod
    def of(cls, entry: types.Entry) -> Self:  # type: ignore[override]
        """Its shape."""
        return cls.model_construct(
            user_id=entry.owner.user_id,
            agent_id=entry.owner.agent_id,
            run_id=entry.owner.run_id,
            id=entry.id,
            text=entry.text,
            version=entry.version,
            speaker=entry.speaker,
            sources=list(entry.sources),
            quote=entry.quote,
            stored=entry.stored,
            said=entry.said,
            happened=entry.happened,
            superseded=entry.superseded,
            expires=entry.expires,
            metadata=dict(entry.metadata),
        )


class RowShape(BaseModel):
    """What one operation did, and why."""

    id: str
    op: OpName
    at: datetime
    entry_id: str
    before: EntryShape | None
    after: EntryShape | None
    turn_id: str
    reason: str
    model: str
    prompt_hash: str
    state: RowState

    @classmethod
    def of(cls, row: types.JournalRow) -> Self:
        """Its shape."""
        return cls.model_construct(
            id=row.id,
            op=row.op,
            at=row.at,
            entry_id=row.entry_id,
            before=EntryShape.of(row.before) if row.before else None,
            after=EntryShape.of(row.after) if row.after else None,
            turn_id=row.turn_id,
            reason=row.reason,
            model=row.model,
            prompt_hash=row.prompt_hash,
            state=row.state,
        )


class FactShape(BaseModel):
    """What became of one fact."""

    text: str
    quote: str
    status: FactStatus
    operations: list[str]
    """Ids of the operations it led to."""
    error: str


class UsageShape(BaseModel):
    """What it took."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
    embeddings: int

    @classmethod
    def of(cls, usage: Usage) -> Self:
        """Its shape."""
        return cls.model_validate(usage, from_attributes=True)


class Added(BaseModel):
    """What adding did."""

    complete: bool
    """True when nothing waits, nothing was deferred and nothing failed."""
    pending: bool
    message_ids: list[str]
    operations: list[RowShape]
    facts: list[FactShape]
    usage: UsageShape

    @classmethod
    def of(cls, result: AddResult) -> Self:
        """Its shape."""
        return cls(
            complete=result.complete,
            pending=result.pending,
            message_ids=list(result.message_ids),
            operations=[RowShape.of(row) for row in result.rows],
            facts=[
                FactShape(
                    text=one.fact.text,
                    quote=one.fact.quote,
                    status=one.status,
                    operations=[row.id for row in one.rows],
                    error=one.error,
                )
                for one in result.facts
            ],
            usage=UsageShape.of(result.usage),
        )


class HitShape(BaseModel):
    """An entry that was found."""

    entry: EntryShape
    score: float
    signals: dict[str, float]

    @classmethod
    def of(cls, hit: types.Hit) -> Self:
        """Its shape."""
        return cls.model_construct(
            entry=EntryShape.of(hit.entry), score=hit.score, signals=dict(hit.signals)
        )


class Hits(BaseModel):
    """What was found, best first."""

    results: list[HitShape]


class Context(BaseModel):
    """Memories as quoted data for a prompt; "" where nothing fits."""

    context: str


class AnswerShape(BaseModel):
    """An answer and the entries it rests on."""

    text: str
    question: str
    known: bool
    used: list[EntryShape]
    retrieved: list[HitShape]
    model: str
    prompt_hash: str
    note: str
    latency: dict[str, float]
    tokens: tuple[int, int]

    @classmethod
    def of(cls, answer: types.Answer) -> Self:
        """Its shape."""
        scores = answer.scores or (0.0,) * len(answer.retrieved)
        return cls.model_construct(
            text=answer.text,
            question=answer.question,
            known=answer.known,
            used=[EntryShape.of(entry) for entry in answer.used],
            retrieved=[
                HitShape.model_construct(entry=EntryShape.of(entry), score=score, signals={})
                for entry, score in zip(answer.retrieved, scores, strict=True)
            ],
            model=answer.model,
            prompt_hash=answer.prompt_hash,
            note=answer.note,
            latency=dict(answer.latency),
            tokens=answer.tokens,
        )


class EntryPage(BaseModel):
    """Some entries."""

    entries: list[EntryShape]
    next: str
    """Give it as `after` for the next page; "" on the last."""


class RowPage(BaseModel):
    """Some operations."""

    operations: list[RowShape]
    next: str
    """Give it as `before` for the next page; "" on the last."""

    @classmethod
    def of(cls, rows: Iterable[types.JournalRow], next_page: str = "") -> Self:
        """Its shape."""
        return cls.model_construct(operations=[RowShape.of(row) for row in rows], next=next_page)


class HistoryShape(BaseModel):
    """A memory's life."""

    versions: list[EntryShape]
    operations: list[RowShape]


class MessageShape(OwnerShape):
    """A message that was added, and what it has led to."""

    id: str
    state: MessageState
    speaker: str
    role: str
    text: str
    said: datetime | None
    received: datetime
    since: datetime | None
    error: str
    operations: list[RowShape]

    @classmethod
    def of(  # type: ignore[override]
        cls, message: types.Message, rows: Iterable[types.JournalRow] = ()
    ) -> Self:
        """Its shape."""
        turn = message.turn
        return cls.model_construct(
            **OwnerShape.of(message.owner).model_dump(),
            id=message.id,
            state=message.state,
            speaker=turn.speaker,
            role=turn.role,
            text=turn.text,
            said=turn.said,
            received=message.received,
            since=message.since,
            error=message.error,
            operations=[RowShape.of(row) for row in rows],
        )


class MessagePage(BaseModel):
    """Messages of a state, in the order they came."""

    messages: list[MessageShape]


class OwnerPage(BaseModel):
    """Everyone who has anything here, of those the key opens."""

    owners: list[OwnerShape]
    next: int | None
    """Give it as `offset` for the next page."""


class Forgotten(BaseModel):
    """The receipt: how much of what is gone for good."""

    erased: dict[str, int]


class FeedbackShape(BaseModel):
    """What was kept."""

    id: str


class StatsShape(BaseModel):
    """What is in a memory, and what it took."""

    owners: int
    entries: int
    superseded: int
    operations: dict[str, int]
    proposals: int
    messages: dict[str, int]
    feedback: int
    usage: UsageShape
    per_add: dict[str, float]

    @classmethod
    def of(cls, stats: Stats) -> Self:
        """Its shape."""
        return cls.model_validate(stats, from_attributes=True)


class Health(BaseModel):
    """Whether the server is there."""

    status: Literal["ok"]
    version: str
