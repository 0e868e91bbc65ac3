"""The facade: add, search, ask, history, undo, forget."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from types import TracebackType
from typing import Any, Self

from memory_r1 import audit as auditing
from memory_r1 import config, extract, retrieve
from memory_r1.bank import Bank
from memory_r1.caches import forget_texts
from memory_r1.embed import Embedder, open_embedder
from memory_r1.errors import ConfigError
from memory_r1.extract import Messages, Moment
from memory_r1.filters import Filters, Predicate, check_depth, predicate
from memory_r1.llm import LLM, Agents, drive
from memory_r1.llm.open import open_agents
from memory_r1.llm.prompting import tidy
from memory_r1.outbox import Outbox
from memory_r1.remember import AddResult, FactResult, Usage, remember
from memory_r1.respond import respond
from memory_r1.store import Index, Store, new_id, open_store
from memory_r1.store.ids import moved
from memory_r1.types import (
    NEVER,
    Answer,
    Delete,
    Entry,
    Fact,
    Feedback,
    Hit,
    JournalRow,
    Message,
    Owner,
    Record,
    Turn,
    Update,
)


@dataclass(frozen=True)
class Stats:
    """What is in a memory, and what it took."""

    owners: int = 0
    entries: int = 0
    """Current ones, also those that have expired."""
    superseded: int = 0
    operations: Mapping[str, int] = field(default_factory=dict)
    """Journal rows by operation; proposals and UNDO count as what they are."""
    proposals: int = 0
    """Operations that wait for `approve` or `reject`."""
    messages: Mapping[str, int] = field(default_factory=dict)
    """By state: done, pending, working, deferred."""
    feedback: int = 0
    usage: Usage = Usage()
    """All that adding took: calls, tokens, embeddings."""
    per_add: Mapping[str, float] = field(default_factory=dict)
    """The same per message."""


class Memory:
    """A long-term memory that an agent manages.

    store: a path, a URL, or a Store (see `open_store`). llm: None for rules, a name (see
    `open_agents`), an LLM, or Agents. embedder: a name (see `open_embedder`) or an Embedder.
    Further keywords are the fields of `Settings`. Threads may share it.

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
        self.watch: Callable[[AddResult], None] = lambda result: None
        """Called with what each message came to, also in the background."""
        self._recent: dict[Owner, deque[Turn]] = {}
        self._outbox = Outbox(self.store, now, self._remember)

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
        """Finish the background add in hand and close the store; what waits there stays there."""
        self._outbox.close()
        self.store.close()

    def bank(self, user_id: str, agent_id: str = "", run_id: str = "") -> Bank:
        """The bank of one owner; ConfigError without a user_id."""
        return Bank(self.store, self.embedder, _owner(user_id, agent_id, run_id), now=self._now)

    # Remember

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
        expires: Moment | None = None,
        infer: bool = True,
        wait: bool = True,
        dry_run: bool = False,
        once: str = "",
    ) -> AddResult:
        """Remember what was said.

        The messages themselves are kept before any model runs, so that nothing is lost when a
        model fails; see `AddResult`. timestamp: when they were said, now by default; a message's
        own "timestamp" goes first. speaker: who said them, where a message has no "name".
        expires: from when on what they tell is out of date and not found any more. infer: False
        keeps each message as one entry, word for word, and asks no model. wait: False returns as
        soon as the messages are safe, and processes them in the background; see `flush`.
        dry_run: tell what would be done, and keep nothing. once: a name for this call; when the
        same owner's call of this name is repeated, because its reply was lost, nothing is added
        again, and the result tells what has become of the first.
        """
        bank = self.bank(user_id, agent_id, run_id)
        now = self._now()
        said = now if timestamp is None else extract.moment_of(timestamp)
        until = None if expires is None else extract.moment_of(expires)
        kept = _json(metadata or {})
        received = [
            Message(
                *(new_id(), bank.owner, self._redacted(turn), now),
                metadata=kept,
                expires=until,
                verbatim=not infer,
            )
            for turn in extract.turns_of(messages, said, speaker)
        ]
        if dry_run:
            fork, result = bank.fork(), AddResult()
            for message in received:
                result += self._processed(fork, message, stored=False)
            return result
        if wait:
            received = [self._outbox.claimed(message) for message in received]
        with self.store.transaction():
            if once and (first := self._first_call(bank.owner, once, received)):
                return self._became(bank.owner, first, rows=wait)
            for message in received:
                self.store.add_message(message)
        if not wait:
            self._outbox.submit(bank.owner)
            return AddResult(message_ids=tuple(m.id for m in received), pending=bool(received))
        result = AddResult()
        for message in received:
            result += self._outbox.process(message)
        return result

    def _first_call(self, owner: Owner, once: str, received: Sequence[Message]) -> list[str]:
        """The messages of the first call of this name; notes these, when this is the first."""
        name = hashlib.sha256(repr((owner, once)).encode("utf-8", "replace")).hexdigest()
        body = {"messages": [message.id for message in received]}
        if self.store.put_record(Record("add", name, self._now(), body, owner), new=True):
            return []
        known = self.store.record("add", name)
        return list(known.body["messages"]) if known else []

    def _became(self, owner: Owner, message_ids: Sequence[str], rows: bool) -> AddResult:
        """What has become of messages by now; rows: look up what they led to as well."""
        messages = [self.store.message(owner, message_id) for message_id in message_ids]
        result = AddResult(
            message_ids=tuple(message_ids),
            pending=any(message.state in ("pending", "working") for message in messages),
        )
        for message in messages:
            led_to = self._rows_of(message) if rows else ()
            result += AddResult(rows=led_to, usage=Usage(**message.usage))
            if message.state == "deferred":
                fact = Fact(message.turn.text, message.turn.text)
                told = FactResult(fact, "deferred", led_to, message.error)
                result += AddResult(facts=(told,))
        return result

    def _rows_of(self, message: Message) -> tuple[JournalRow, ...]:
        """What a message led to: its rows are younger than itself, but for the clocks' errors."""
        since = moved(message.id, -60)
        rows = self.store.journal_page(message.owner, after=since)
        return tuple(row for row in reversed(rows) if row.turn_id == message.id)

    def message(
        self, message_id: str, *, user_id: str, agent_id: str = "", run_id: str = ""
    ) -> tuple[Message, tuple[JournalRow, ...]]:
        """A message that was added, and the operations it has led to so far; UnknownRow."""
        owner = self.bank(user_id, agent_id, run_id).owner
        message = self.store.message(owner, message_id)
        return message, self._rows_of(message)

    def resume(self, deferred: bool = False) -> None:
        """Process in the background what waits in the store, of every owner; see `flush`.

        deferred: also what a model has failed at.
        """
        self._outbox.resume(deferred)

    def _redacted(self, turn: Turn) -> Turn:
        if not self.settings.redact:
            return turn
        text, caption = extract.redact(turn.text), extract.redact(turn.caption)
        return replace(turn, text=text, caption=caption)

    def _remember(self, message: Message) -> AddResult:
        """Process a claimed message."""
        bank = Bank(self.store, self.embedder, message.owner, now=self._now)
        result = self._processed(bank, message, stored=True)
        self.watch(result)
        return result

    def _processed(self, bank: Bank, message: Message, stored: bool) -> AddResult:
        recent = self._recent.setdefault(bank.owner, deque(maxlen=self.settings.context))
        agents = Agents() if message.verbatim else self.agents
        done: set[str] = set()
        if message.error:  # an earlier try has done a part
            rows = self.store.journal(bank.owner)
            done = {row.reason for row in rows if row.turn_id == message.id and not row.undone}
        conversation = remember(
            bank,
            message.turn,
            agents,
            self.settings,
            message=message if stored else None,
            context=tuple(recent),
            facts=_verbatim(message.turn) if message.verbatim else None,
            done=done,
        )
        if stored:
            recent.append(message.turn)
        return drive([conversation], agents)[0]

    def flush(self, timeout: float | None = None) -> None:
        """Wait for the background adds of this object.

        timeout: seconds, then StoreError. Raises what a background add raised; its message is
        deferred then.
        """
        self._outbox.flush(timeout)

    def retry(self, user_id: str, *, agent_id: str = "", run_id: str = "") -> AddResult:
        """Process what was deferred, and what a process that died left behind."""
        owner = self.bank(user_id, agent_id, run_id).owner
        return self._outbox.drain(owner, deferred=True)

    # Find

    def search(
        self,
        query: str,
        *,
        user_id: str,
        agent_id: str = "",
        run_id: str = "",
        k: int = 10,
        filters: Filters | None = None,
        as_of: Moment | None = None,
        valid_at: Moment | None = None,
        explain: bool = False,
    ) -> list[Hit]:
        """The k entries that fit a query best, best first.

        filters: see `memory_r1.filters`. as_of: search what was believed at that moment.
        valid_at: search what was so at that moment, as far as is known today. explain: say in
        `Hit.signals` what each reason adds to the score.
        """
        if k < 1:
            raise ConfigError(f"k is {k}; expected at least 1")
        bank = self.bank(user_id, agent_id, run_id)
        index, where = self._looked_at(bank, filters, as_of, valid_at)
        return retrieve.search(index, query, self.embedder, k=k, where=where, explain=explain)

    def context(
        self,
        query: str,
        *,
        user_id: str,
        agent_id: str = "",
        run_id: str = "",
        k: int = 10,
        filters: Filters | None = None,
    ) -> str:
        """The memories that fit a query, as quoted data to put into a prompt of your own.

        A message that repeats the block is remembered without it.
        """
        hits = self.search(
            query, user_id=user_id, agent_id=agent_id, run_id=run_id, k=k, filters=filters
        )
        return extract.recalled([hit.entry for hit in hits]) if hits else ""

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
        filters: Filters | None = None,
        as_of: Moment | None = None,
        valid_at: Moment | None = None,
    ) -> Answer:
        """Answer from memory and name the entries the answer rests on.

        k, per_speaker: see `Settings`. asked: when the question is asked, for "how long ago".
        filters, as_of, valid_at: see `search`. Raises ModelUnavailable.
        """
        settings = replace(
            self.settings,
            k=self.settings.k if k is None else k,
            per_speaker=self.settings.per_speaker if per_speaker is None else per_speaker,
        )
        moment = None if asked is None else extract.moment_of(asked)
        bank = self.bank(user_id, agent_id, run_id)
        index, where = self._looked_at(bank, filters, as_of, valid_at)
        conversation = respond(
            bank, question, self.agents, settings, asked=moment, index=index, where=where
        )
        return drive([conversation], self.agents)[0]

    def _looked_at(
        self, bank: Bank, filters: Filters | None, as_of: Moment | None, valid_at: Moment | None
    ) -> tuple[Index, Predicate]:
        """The entries to search in, and which of them may be found."""
        if as_of is not None and valid_at is not None:
            raise ConfigError("search with as_of (what was believed) or valid_at (what was so)")
        wanted = predicate(filters)
        if as_of is not None:
            moment = extract.moment_of(as_of)
            index = _index_of(bank, bank.as_of(moment))
        elif valid_at is not None:
            moment = extract.moment_of(valid_at)
            index = _index_of(bank, bank.valid_at(moment))
        else:
            moment, index = bank.now(), bank.index

        def where(entry: Entry) -> bool:
            alive = entry.expires is None or entry.expires > moment
            return alive and (wanted is None or wanted(entry))

        return index, where

    def get(self, entry_id: str, *, user_id: str, agent_id: str = "", run_id: str = "") -> Entry:
        """An entry, current or superseded; UnknownEntry."""
        return self.bank(user_id, agent_id, run_id).get(entry_id)

    def list(
        self,
        *,
        user_id: str,
        agent_id: str = "",
        run_id: str = "",
        filters: Filters | None = None,
        superseded: bool = False,
        newest: bool = False,
        after: str = "",
        limit: int | None = None,
        offset: int = 0,
    ) -> Entries:
        """The current entries, oldest first; the superseded and expired ones too when asked.

        filters: see `memory_r1.filters`. newest: the newest first. after: only those that follow
        the entry of this id, which need not be there any more. limit, offset: a page of them.
        """
        if offset < 0 or (limit is not None and limit < 0):
            raise ConfigError(f"limit is {limit}, offset {offset}; expected numbers from 0")
        bank = self.bank(user_id, agent_id, run_id)
        wanted, now = predicate(filters), bank.now()
        entries = _every(bank, newest, after) if superseded else _current(bank, newest, after)
        found = (
            entry
            for entry in entries
            if (superseded or entry.expires is None or entry.expires > now)
            and (wanted is None or wanted(entry))
        )
        return list(islice(found, offset, None if limit is None else offset + limit))

    # Correct

    def update(
        self,
        entry_id: str,
        text: str | None = None,
        *,
        user_id: str,
        agent_id: str = "",
        run_id: str = "",
        metadata: Mapping[str, Any] | None = None,
        expires: Moment | None = None,
    ) -> JournalRow:
        """Change by hand what an entry says, or what is kept with it; UnknownEntry.

        metadata is merged into what is there. expires: "never" takes an expiry away.
        """
        bank = self.bank(user_id, agent_id, run_id)
        if text is None and metadata is None and expires is None:
            raise ConfigError("what should change? Give a text, metadata or expires")
        if text is None:
            text = bank.get(entry_id).text
        until = None
        if expires is not None:
            until = NEVER if expires == "never" else extract.moment_of(expires)
        if not text.strip():
            raise ConfigError("the new text is empty; use delete to remove an entry")
        return bank.apply(
            [Update(entry_id, text)],
            reason="by hand",
            metadata=_json(metadata or {}),
            expires=until,
        )[0]

    def delete(
        self, entry_id: str, *, user_id: str, agent_id: str = "", run_id: str = ""
    ) -> JournalRow:
        """Take an entry out of search by hand; its history stays. UnknownEntry."""
        bank = self.bank(user_id, agent_id, run_id)
        return bank.apply([Delete(entry_id)], reason="by hand")[0]

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

    def recent(
        self,
        *,
        user_id: str,
        agent_id: str = "",
        run_id: str = "",
        before: str = "",
        limit: int = 50,
    ) -> Rows:
        """The last operations, the latest first; before: those that came before the row of this
        id."""
        owner = self.bank(user_id, agent_id, run_id).owner
        return self.store.journal_page(owner, before=before, limit=limit)

    def undo(
        self,
        target: str = "",
        *,
        since: Moment | None = None,
        user_id: str,
        agent_id: str = "",
        run_id: str = "",
    ) -> Rows:
        """Take back one operation, the last one on an entry, or all since a moment; exactly.

        target: the id of a journal row or of an entry. Returns the UNDO rows, the latest operation
        first. StoreError when a later operation touched the entry, or there is nothing to undo.
        """
        bank = self.bank(user_id, agent_id, run_id)
        if (since is None) == (not target):
            raise ConfigError("what to undo? Give the id of an operation or entry, or since when")
        if since is not None:
            return bank.undo_since(extract.moment_of(since))
        rows = [row for row in bank.journal(target) if row.state == "done" and row.op != "NOOP"]
        return [bank.undo(rows[-1].id if rows else target)]

    def proposals(self, *, user_id: str, agent_id: str = "", run_id: str = "") -> Rows:
        """Operations that wait for approval (setting `policy`), in order."""
        return self.bank(user_id, agent_id, run_id).proposals()

    def approve(
        self, journal_id: str, *, user_id: str, agent_id: str = "", run_id: str = ""
    ) -> JournalRow:
        """Do what was proposed; StoreError when its entry has been changed since."""
        return self.bank(user_id, agent_id, run_id).approve(journal_id)

    def reject(
        self, journal_id: str, *, user_id: str, agent_id: str = "", run_id: str = ""
    ) -> JournalRow:
        """Leave undone what was proposed; it stays in the journal as rejected."""
        return self.bank(user_id, agent_id, run_id).reject(journal_id)

    def feedback(
        self,
        answer: Answer,
        right: bool,
        *,
        user_id: str,
        agent_id: str = "",
        run_id: str = "",
        correct: str = "",
    ) -> Feedback:
        """Keep whether an answer of `ask` was right, and what would have been; for training."""
        if not answer.question:
            raise ConfigError("feedback is on an answer of `ask`; this one has no question")
        owner = self.bank(user_id, agent_id, run_id).owner
        used = tuple(entry.id for entry in answer.used)
        said = Feedback(
            *(new_id(), owner, self._now(), answer.question, answer.text, right, correct, used)
        )
        self.store.add_feedback(said)
        return said

    def forget(self, user_id: str, *, agent_id: str = "", run_id: str = "") -> dict[str, int]:
        """Erase everything about an owner for good; how much of what is the receipt.

        The caches of this process are emptied too. Another process of the same store may have the
        owner's index in memory until it needs the room or ends; nothing finds it there.
        """
        owner = self.bank(user_id, agent_id, run_id).owner
        try:
            return self.store.forget(owner)
        finally:  # also when the store says that text is left in its files for a while
            self._recent.pop(owner, None)
            self._outbox.forget(owner)
            forget_texts()

    # Look after

    def stats(self, user_id: str | None = None) -> Stats:
        """What is in the store, or of one user, and what adding it took."""
        counts = self.store.counts(user_id)
        usage = Usage(**counts.usage)
        adds = sum(counts.messages.values())
        per_add = {name: n / adds for name, n in asdict(usage).items()} if adds else {}
        return Stats(**{**vars(counts), "usage": usage}, per_add=per_add)

    def audit(self, *, user_id: str, agent_id: str = "", run_id: str = "") -> auditing.Audit:
        """What is doubtful in the content: duplicates, what expired, what no turn supports."""
        return auditing.audit(self.bank(user_id, agent_id, run_id))

    def check(self) -> tuple[str, ...]:
        """What is broken in the store, a line each; none when all invariants hold."""
        return auditing.check(self.store)


Entries = list[Entry]
Rows = list[JournalRow]


def _owner(user_id: str, agent_id: str, run_id: str) -> Owner:
    for name, value in (("user_id", user_id), ("agent_id", agent_id), ("run_id", run_id)):
        if not isinstance(value, str):
            raise ConfigError(f"whose memory? Expected {name} to be a name, got {value!r:.80}")
    if not user_id:
        raise ConfigError("whose memory? Expected user_id to be a name, got ''")
    return Owner(user_id, agent_id, run_id)


def _current(bank: Bank, newest: bool, after: str) -> Iterator[Entry]:
    """Read one by one: a page of many entries doesn't read the others."""
    index = bank.index
    here = index.place(after) if after else -1
    if newest:
        rows = range((here if after else len(index)) - 1, -1, -1)
    else:
        rows = range(here + (after in index), len(index)) if after else range(len(index))
    return map(index.entry, rows)


def _every(bank: Bank, newest: bool, after: str) -> Iterator[Entry]:
    entries = bank.entries(superseded=True)
    for entry in reversed(entries) if newest else entries:
        if not after or (entry.id < after if newest else entry.id > after):
            yield entry


def _verbatim(turn: Turn) -> list[Fact]:
    return [Fact(turn.text, turn.text)] if tidy(turn.text) else []


def _index_of(bank: Bank, entries: Entries) -> Index:
    """Some versions of entries, to search in."""
    return Index.build(entries, bank.embedder.embed([entry.text for entry in entries]))


def _json(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata as JSON will give it back; ConfigError when it can't."""
    check_depth(metadata, "metadata")
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
