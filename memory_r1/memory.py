"""The facade: add, search, ask, history, undo, forget.

`remember` and `respond` are the two ways through the system, written once as conversations:
`Memory` drives one at a time, training and benchmarks drive hundreds in step.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

from memory_r1 import answer, config, extract, manage, retrieve
from memory_r1.bank import Bank
from memory_r1.config import Settings
from memory_r1.embed import Embedder, open_embedder
from memory_r1.errors import ConfigError, MalformedReply, ModelUnavailable, UnknownEntry
from memory_r1.extract import Messages, Moment
from memory_r1.llm import LLM, Agents, Conversation, drive
from memory_r1.llm.open import open_agents
from memory_r1.store import Index, Store, new_id, open_store
from memory_r1.types import (
    Add,
    Answer,
    Delete,
    Entry,
    Fact,
    Hit,
    JournalRow,
    MemoryOp,
    Message,
    Owner,
    Turn,
    Update,
)

FactStatus = Literal["stored", "deferred", "failed"]


@dataclass(frozen=True)
class FactResult:
    """What became of one fact."""

    fact: Fact
    status: FactStatus
    """stored: decided and journaled; deferred: kept, `retry` will try again; failed: neither."""
    error: str = ""


@dataclass(frozen=True)
class AddResult:
    """What `add` did: operations as journal rows, and the fate of every fact."""

    rows: tuple[JournalRow, ...] = ()
    facts: tuple[FactResult, ...] = ()
    message_ids: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """True when nothing was deferred and nothing failed."""
        return all(fact.status == "stored" for fact in self.facts)

    def __add__(self, other: AddResult) -> AddResult:
        """Both, in order."""
        return AddResult(
            self.rows + other.rows, self.facts + other.facts, self.message_ids + other.message_ids
        )


class _Decision(NamedTuple):
    """What the Memory Manager wants done about some facts of a turn."""

    facts: tuple[Fact, ...]
    ops: tuple[MemoryOp, ...]
    model: str
    prompt_hash: str
    drafted: tuple[JournalRow, ...] = ()
    """The rows of the same operations on a fork of the bank."""


class _Outcome(NamedTuple):
    """What was decided, and the facts that were not, with the reason."""

    decisions: list[_Decision]
    undecided: dict[Fact, str]


def remember(
    bank: Bank,
    turn: Turn,
    agents: Agents,
    settings: Settings,
    *,
    message_id: str = "",
    context: Sequence[Turn] = (),
    facts: Sequence[Fact] | None = None,
    done: Collection[str] = (),
    metadata: Mapping[str, Any] | None = None,
) -> Conversation[AddResult]:
    """Read a turn and let the Memory Manager edit the bank, all or nothing.

    message_id: the stored message of this turn, whose state is kept; without one nothing can be
    deferred, only fail. facts: those of the turn, when they are known already. done: texts of
    facts to skip. metadata: kept with the entries. What a model's malformed reply or absence left
    undone is in the result.
    """
    try:
        if facts is None:
            facts = yield from _facts(turn, agents.extract, context)
    except (MalformedReply, ModelUnavailable) as error:
        outcome = _Outcome([], {extract.whole_turn(turn): str(error)})
    else:
        left = [fact for fact in facts if fact.text not in done]
        outcome = yield from _decide(bank, turn, left, agents.manage, settings)
    return _settle(bank, turn, message_id, outcome, metadata or {})


def _facts(turn: Turn, llm: LLM | None, context: Sequence[Turn]) -> Conversation[list[Fact]]:
    if turn.role not in ("user", "assistant") or not (turn.text or turn.caption):
        return []  # instructions and tool output are no memories
    if llm is None:
        return [extract.whole_turn(turn)]
    return (yield from extract.facts(turn, llm.style, context))


def _decide(
    bank: Bank,
    turn: Turn,
    facts: Sequence[Fact],
    llm: LLM | None,
    settings: Settings,
) -> Conversation[_Outcome]:
    """Ask the Memory Manager about the facts of one turn.

    An instruct model sees all of them at once. Else they go one by one, each decided on a fork
    of the bank in which the ones before it are applied.
    """
    decisions: list[_Decision] = []
    undecided: dict[Fact, str] = {}
    style = llm.style if llm else None
    batches = [tuple(facts)] if style == "instruct" and facts else [(fact,) for fact in facts]
    draft = bank.fork() if len(batches) > 1 else bank
    for batch in batches:
        try:
            texts = [fact.text for fact in batch]
            k = settings.shown_to_manage(style)
            related = retrieve.related(draft.index, texts, bank.embedder, k=k)
            if llm is None:
                decided = _Decision(batch, tuple(manage.rules(batch[0], related)), "rules", "")
            else:
                ops = yield from manage.decide(batch, related, llm.style)
                prompt = manage.render(batch, related, llm.style)
                decided = _Decision(batch, tuple(ops), llm.name, prompt.hash)
            if draft is not bank:
                decided = decided._replace(drafted=tuple(draft.apply(decided.ops, turn=turn)))
            decisions.append(decided)
        except MalformedReply as error:
            undecided |= dict.fromkeys(batch, str(error))
        except ModelUnavailable as error:  # nor will it be there for the facts that follow
            taken = {fact for decision in decisions for fact in decision.facts}
            rest = [fact for fact in facts if fact not in taken and fact not in undecided]
            undecided |= dict.fromkeys(rest, str(error))
            break
    return _Outcome(decisions, undecided)


def _settle(
    bank: Bank, turn: Turn, message_id: str, outcome: _Outcome, metadata: Mapping[str, Any]
) -> AddResult:
    """Apply all decisions and set the message's state, in one transaction."""
    decisions, undecided = outcome
    try:
        # The embedder may be slow: its vectors are cached before other writers have to wait.
        ops = [op for decision in decisions for op in decision.ops]
        bank.embedder.embed([op.text for op in ops if isinstance(op, Add | Update)])
        with bank.store.transaction():
            rows = _apply(bank, turn, message_id, decisions, metadata)
            _set_state(bank, message_id, undecided)
    except (UnknownEntry, ModelUnavailable) as error:
        # Meanwhile another process changed an entry, or the embedder went away.
        every = {fact: str(error) for decision in decisions for fact in decision.facts}
        undecided, decisions, rows = every | undecided, [], []
        _set_state(bank, message_id, undecided)
    stored = [FactResult(fact, "stored") for decision in decisions for fact in decision.facts]
    left: FactStatus = "deferred" if message_id else "failed"
    lost = [FactResult(fact, left, error) for fact, error in undecided.items()]
    return AddResult(tuple(rows), (*stored, *lost), (message_id,) if message_id else ())


def _apply(
    bank: Bank,
    turn: Turn,
    message_id: str,
    decisions: Sequence[_Decision],
    metadata: Mapping[str, Any],
) -> list[JournalRow]:
    """Apply decisions in order; entries that were new on the draft get the ids they have here."""
    ids: dict[str, str] = {}
    rows: list[JournalRow] = []
    for decision in decisions:
        applied = bank.apply(
            [_renamed(op, ids) for op in decision.ops],
            turn=turn,
            message_id=message_id,
            reason=" ; ".join(fact.text for fact in decision.facts),
            model=decision.model,
            prompt_hash=decision.prompt_hash,
            quote=decision.facts[0].quote if len(decision.facts) == 1 else "",
            metadata=metadata,
        )
        for drafted, row in zip(decision.drafted, applied, strict=False):
            ids[drafted.entry_id] = row.entry_id
        rows += applied
    return rows


def _renamed(op: MemoryOp, ids: Mapping[str, str]) -> MemoryOp:
    match op:
        case Update(entry_id) | Delete(entry_id) if entry_id in ids:
            return replace(op, entry_id=ids[entry_id])
    return op


def _set_state(bank: Bank, message_id: str, undecided: Mapping[Fact, str]) -> None:
    if message_id:
        error = next(iter(undecided.values()), "")
        bank.store.set_message(bank.owner, message_id, "deferred" if error else "done", error)


def respond(
    bank: Bank,
    question: str,
    agents: Agents,
    settings: Settings,
    *,
    asked: datetime | None = None,
) -> Conversation[Answer]:
    """Find entries, let the Answer Agent choose among them and answer from those it kept."""
    llm = agents.answer
    began = time.perf_counter()
    hits = retrieve.search(
        bank.index,
        question,
        bank.embedder,
        k=settings.shown_to_answer(llm.style if llm else None),
        per_speaker=settings.per_speaker,
    )
    entries = sorted((hit.entry for hit in hits), key=lambda entry: (_said(entry), entry.id))
    found = time.perf_counter()
    if llm is None:
        said = answer.rules(question, hits)
    else:
        said = yield from answer.reply(question, entries, llm.style, asked=asked)
    seconds = {"search": found - began, "answer": time.perf_counter() - found}
    model = llm.name if llm else "rules"
    return replace(said, retrieved=tuple(entries), model=model, latency=seconds)


def _said(entry: Entry) -> datetime:
    return entry.said or entry.stored


class Memory:
    """A long-term memory that an agent manages.

    store: a path, a URL, or a Store (see `open_store`). llm: None for rules, a name (see
    `open_agents`), an LLM, or Agents. embedder: a name (see `open_embedder`) or an Embedder.
    Further keywords are the fields of `Settings`.

    >>> with Memory("memory.db", llm="tiny") as memory:
    ...     memory.add("I adopted a dog, Rex", user_id="ann")
    ...     print(memory.ask("What is the dog called?", user_id="ann").text)
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | Store = "memory.db",
        *,
        llm: str | LLM | Agents | None = None,
        embedder: str | Embedder | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        **settings: Any,
    ) -> None:
        """Open it; ConfigError for an unknown setting or model, StoreError for the store."""
        self.settings = config.settings(settings)
        self.agents = _agents(llm)
        if embedder is None or isinstance(embedder, str):
            embedder = open_embedder(embedder)
        self.embedder: Embedder = embedder
        self.store = open_store(store) if isinstance(store, str | os.PathLike) else store
        self._now = now
        self._recent: dict[Owner, deque[Turn]] = {}

    def __enter__(self) -> Self:
        """Use it in a `with` block, which closes it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the store."""
        self.close()

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def bank(self, user_id: str, agent_id: str = "", run_id: str = "") -> Bank:
        """The bank of one owner; ConfigError without a user_id."""
        if not user_id or not isinstance(user_id, str):
            raise ConfigError(f"whose memory? Expected user_id to be a name, got {user_id!r}")
        owner = Owner(user_id, agent_id, run_id)
        return Bank(self.store, self.embedder, owner, now=self._now)

    def add(
        self,
        messages: Messages,
        *,
        user_id: str,
        agent_id: str = "",
        run_id: str = "",
        timestamp: Moment | None = None,
        speaker: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> AddResult:
        """Remember what was said.

        The messages themselves are kept before any model runs, so that nothing is lost when a
        model fails; see `AddResult`. timestamp: when they were said, now by default; a message's
        own "timestamp" goes first. speaker: who said them, where a message has no "name".
        """
        bank = self.bank(user_id, agent_id, run_id)
        now = self._now()
        said = now if timestamp is None else extract.moment_of(timestamp)
        turns = map(self._redacted, extract.turns_of(messages, said, speaker))
        kept = _json(metadata or {})
        received = [Message(new_id(), bank.owner, turn, now, metadata=kept) for turn in turns]
        with self.store.transaction():
            for message in received:
                self.store.add_message(message)
        result = AddResult()
        for message in received:
            result += self._remember(bank, message)
        return result

    def _redacted(self, turn: Turn) -> Turn:
        if not self.settings.redact:
            return turn
        text, caption = extract.redact(turn.text), extract.redact(turn.caption)
        return replace(turn, text=text, caption=caption)

    def _remember(self, bank: Bank, message: Message, done: Collection[str] = ()) -> AddResult:
        recent = self._recent.setdefault(bank.owner, deque(maxlen=self.settings.context))
        conversation = remember(
            bank,
            message.turn,
            self.agents,
            self.settings,
            message_id=message.id,
            context=tuple(recent),
            done=done,
            metadata=message.metadata,
        )
        recent.append(message.turn)
        return drive([conversation], self.agents)[0]

    def retry(self, user_id: str, *, agent_id: str = "", run_id: str = "") -> AddResult:
        """Process what was deferred, and what a process that died left pending."""
        bank = self.bank(user_id, agent_id, run_id)
        abandoned = self._now() - timedelta(minutes=10)
        pending = self.store.messages(bank.owner, "pending")
        messages = self.store.messages(bank.owner, "deferred")
        messages += [message for message in pending if message.received < abandoned]
        journal = self.store.journal(bank.owner) if messages else []
        result = AddResult()
        for message in sorted(messages, key=lambda message: message.id):
            done = {row.reason for row in journal if row.turn_id == message.id}
            result += self._remember(bank, message, done)
        return result

    def search(
        self,
        query: str,
        *,
        user_id: str,
        agent_id: str = "",
        run_id: str = "",
        k: int = 10,
        as_of: Moment | None = None,
    ) -> list[Hit]:
        """The k entries that fit a query best, best first.

        as_of: search what was believed at that moment.
        """
        if k < 1:
            raise ConfigError(f"k is {k}; expected at least 1")
        bank = self.bank(user_id, agent_id, run_id)
        index = bank.index if as_of is None else _index_of(bank, extract.moment_of(as_of))
        return retrieve.search(index, query, self.embedder, k=k)

    def ask(
        self,
        question: str,
        *,
        user_id: str,
        agent_id: str = "",
        run_id: str = "",
        k: int | None = None,
        per_speaker: int | None = None,
        asked: Moment | None = None,
    ) -> Answer:
        """Answer from memory and name the entries the answer rests on.

        k, per_speaker: see `Settings`. asked: when the question is asked, for "how long ago".
        Raises ModelUnavailable.
        """
        settings = replace(
            self.settings,
            k=self.settings.k if k is None else k,
            per_speaker=self.settings.per_speaker if per_speaker is None else per_speaker,
        )
        moment = None if asked is None else extract.moment_of(asked)
        bank = self.bank(user_id, agent_id, run_id)
        conversation = respond(bank, question, self.agents, settings, asked=moment)
        return drive([conversation], self.agents)[0]

    def get(self, entry_id: str, *, user_id: str, agent_id: str = "", run_id: str = "") -> Entry:
        """An entry, current or superseded; UnknownEntry."""
        return self.bank(user_id, agent_id, run_id).get(entry_id)

    def list(
        self, *, user_id: str, agent_id: str = "", run_id: str = "", superseded: bool = False
    ) -> Entries:
        """All current entries, oldest first; the superseded ones too when asked."""
        owner = self.bank(user_id, agent_id, run_id).owner
        return self.store.entries(owner, superseded)

    def update(
        self, entry_id: str, text: str, *, user_id: str, agent_id: str = "", run_id: str = ""
    ) -> JournalRow:
        """Change by hand what an entry says; UnknownEntry."""
        if not text.strip():
            raise ConfigError("the new text is empty; use delete to remove an entry")
        bank = self.bank(user_id, agent_id, run_id)
        return bank.apply([Update(entry_id, text)], turn=None, reason="by hand")[0]

    def delete(
        self, entry_id: str, *, user_id: str, agent_id: str = "", run_id: str = ""
    ) -> JournalRow:
        """Take an entry out of search by hand; its history stays. UnknownEntry."""
        bank = self.bank(user_id, agent_id, run_id)
        return bank.apply([Delete(entry_id)], turn=None, reason="by hand")[0]

    def history(
        self, entry_id: str, *, user_id: str, agent_id: str = "", run_id: str = ""
    ) -> Entries:
        """How an entry read over time, first version first; UnknownEntry."""
        return self.bank(user_id, agent_id, run_id).history(entry_id)

    def journal(
        self,
        *,
        user_id: str,
        agent_id: str = "",
        run_id: str = "",
        entry_id: str | None = None,
    ) -> Rows:
        """Every operation with its reason, in order; of one entry when asked."""
        owner = self.bank(user_id, agent_id, run_id).owner
        return self.store.journal(owner, entry_id)

    def undo(
        self, journal_id: str, *, user_id: str, agent_id: str = "", run_id: str = ""
    ) -> JournalRow:
        """Take one operation back, exactly; StoreError when a later one touched its entry."""
        return self.bank(user_id, agent_id, run_id).undo(journal_id)

    def forget(self, user_id: str, *, agent_id: str = "", run_id: str = "") -> dict[str, int]:
        """Erase everything about an owner for good; how much of what is the receipt."""
        owner = self.bank(user_id, agent_id, run_id).owner
        self._recent.pop(owner, None)
        return self.store.forget(owner)


Entries = list[Entry]
Rows = list[JournalRow]


def _index_of(bank: Bank, moment: datetime) -> Index:
    """What was believed at a moment, to search in."""
    entries = bank.as_of(moment)
    index = Index()
    for entry, vector in zip(
        entries, bank.embedder.embed([entry.text for entry in entries]), strict=True
    ):
        index.put(entry, vector)
    return index


def _json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata as JSON will give it back; ConfigError when it can't."""
    try:
        kept: dict[str, Any] = json.loads(json.dumps(dict(metadata), allow_nan=False))
        return kept
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"metadata must be JSON: {error}; got {metadata!r:.200}") from error


def _agents(llm: str | LLM | Agents | None) -> Agents:
    match llm:
        case Agents():
            return llm
        case str() | None:
            return open_agents(llm)
        case LLM():
            return Agents(llm, llm, llm)
    raise ConfigError(f"llm should be a name, an LLM, Agents or None, got {llm!r:.80}")
