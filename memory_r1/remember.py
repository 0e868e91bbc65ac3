"""turn -> facts -> operations -> a changed bank: the way into the memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, NamedTuple, TypeVar

from memory_r1 import extract, manage, retrieve
from memory_r1.bank import Bank
from memory_r1.config import Settings
from memory_r1.errors import MalformedReply, ModelUnavailable, StoreError, UnknownEntry
from memory_r1.llm import LLM, Agents, Conversation
from memory_r1.llm.prompting import tidy
from memory_r1.text import terms
from memory_r1.types import (
    Add,
    Delete,
    Entry,
    Fact,
    JournalRow,
    MemoryOp,
    Message,
    MessageState,
    Noop,
    Turn,
    Update,
)

T = TypeVar("T")
FactStatus = Literal["stored", "deferred", "failed"]


@dataclass(frozen=True)
class FactResult:
    """What became of one fact."""

    fact: Fact
    status: FactStatus
    """stored: decided and journaled; deferred: kept, `retry` will try again; failed: neither."""
    rows: tuple[JournalRow, ...] = ()
    """The operations it led to. Where several facts were decided together, each operation is
    told of the fact whose words it shares most; a fact without one changed nothing."""
    error: str = ""


@dataclass(frozen=True)
class Usage:
    """What something took."""

    calls: int = 0
    """Times a model was asked."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    embeddings: int = 0
    """Texts the embedder was given."""

    def __add__(self, other: Usage) -> Usage:
        """Both together."""
        mine, theirs = asdict(self), asdict(other)
        return Usage(**{name: mine[name] + theirs[name] for name in mine})


@dataclass(frozen=True)
class AddResult:
    """What `add` did: operations as journal rows, and the fate of every fact."""

    rows: tuple[JournalRow, ...] = ()
    facts: tuple[FactResult, ...] = ()
    message_ids: tuple[str, ...] = ()
    usage: Usage = Usage()
    pending: bool = False
    """True when the messages are kept and will be processed in the background."""

    @property
    def complete(self) -> bool:
        """True when nothing waits, nothing was deferred and nothing failed."""
        return not self.pending and all(fact.status == "stored" for fact in self.facts)

    def __add__(self, other: AddResult) -> AddResult:
        """Both, in order."""
        return AddResult(
            self.rows + other.rows,
            self.facts + other.facts,
            self.message_ids + other.message_ids,
            self.usage + other.usage,
            self.pending or other.pending,
        )


class _Decision(NamedTuple):
    """What the Memory Manager wants done about some facts of a turn."""

    facts: tuple[Fact, ...]
    ops: tuple[MemoryOp, ...]
    model: str
    prompt_hash: str = ""
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
    message: Message | None = None,
    context: Sequence[Turn] = (),
    facts: Sequence[Fact] | None = None,
    done: Collection[str] = (),
) -> Conversation[AddResult]:
    """Read a turn and let the Memory Manager edit the bank, all or nothing.

    message: the turn as it is stored, claimed by the caller: its metadata and expiry are kept with
    the entries, its state is set in the same transaction. Without one nothing can be deferred,
    only fail. facts: those of the turn, when they are known already. done: texts of facts to skip.
    What a model's malformed reply or absence left undone is in the result.
    """
    spent = [Usage()]
    outcome = yield from _counted(
        _outcome(bank, turn, agents, settings, context, facts, done), spent
    )
    looked_up = sum(len(decision.facts) for decision in outcome.decisions)
    return _settle(bank, turn, settings, message, outcome, spent[0] + Usage(embeddings=looked_up))


def _counted(conversation: Conversation[T], spent: list[Usage]) -> Conversation[T]:
    """The same conversation; what it asks of models is added to `spent[0]`."""
    try:
        call = next(conversation)
        while True:
            spent[0] += Usage(calls=1)
            try:
                reply = yield call
            except ModelUnavailable as error:
                call = conversation.throw(error)
            else:
                spent[0] += Usage(0, reply.prompt_tokens, reply.completion_tokens)
                call = conversation.send(reply)
    except StopIteration as stop:
        result: T = stop.value
        return result


def _outcome(
    bank: Bank,
    turn: Turn,
    agents: Agents,
    settings: Settings,
    context: Sequence[Turn],
    facts: Sequence[Fact] | None,
    done: Collection[str],
) -> Conversation[_Outcome]:
    try:
        if facts is None:
            facts = yield from _facts(turn, agents.extract, context)
    except (MalformedReply, ModelUnavailable) as error:
        return _Outcome([], {extract.whole_turn(turn): str(error)})
    left = [fact for fact in facts if fact.text not in done]
    return (yield from _decide(bank, turn, left, agents.manage, settings))


def _facts(turn: Turn, llm: LLM | None, context: Sequence[Turn]) -> Conversation[list[Fact]]:
    turn = replace(turn, text=extract.without_recalled(turn.text))
    if turn.role not in ("user", "assistant") or not (tidy(turn.text) or turn.caption):
        return []  # instructions, tool output and what was recalled are no memories
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
            related = _related(
                draft, batch, None if llm is None else settings.shown_to_manage(style)
            )
            if style != "compact":  # a compact model is trained to see for itself what is known
                known = {fact: entry for fact in batch if (entry := manage.known(fact, related))}
                decisions += [
                    _Decision((fact,), (Noop(entry.id),), "rules") for fact, entry in known.items()
                ]
                batch = tuple(fact for fact in batch if fact not in known)
            if not batch:
                continue
            if llm is None:
                decided = _Decision(batch, tuple(Add(fact.text) for fact in batch), "rules")
            else:
                ops = yield from manage.decide(batch, related, llm.style)
                if style == "instruct":
                    ops = manage.settled(ops, related)
                prompt = manage.render(batch, related, llm.style)
                decided = _Decision(batch, tuple(ops), llm.name, prompt.hash)
            if draft is not bank:
                rows = draft.apply(decided.ops, turn=turn, policy=settings.policy)
                decided = decided._replace(drafted=tuple(rows))
            decisions.append(decided)
        except MalformedReply as error:
            undecided |= dict.fromkeys(batch, str(error))
        except ModelUnavailable as error:  # nor will it be there for the facts that follow
            taken = {fact for decision in decisions for fact in decision.facts}
            rest = [fact for fact in facts if fact not in taken and fact not in undecided]
            undecided |= dict.fromkeys(rest, str(error))
            break
    return _Outcome(decisions, undecided)


def _related(bank: Bank, facts: Sequence[Fact], k: int | None) -> list[Entry]:
    """The entries, not expired, that a decision on facts has to look at.

    The k nearest, which the Memory Manager is shown; without a k those that hold all words of a
    fact: the rules only ask which of them say just that.
    """
    index = bank.index
    if k is None:
        same = [manage.undated(fact.text) for fact in facts]
        found = [entry for text in same for entry in retrieve.containing(index, text)]
    else:
        found = retrieve.related(index, [fact.text for fact in facts], bank.embedder, k=k)
    now = bank.now()
    return [entry for entry in found if entry.expires is None or entry.expires > now]


def _settle(
    bank: Bank,
    turn: Turn,
    settings: Settings,
    message: Message | None,
    outcome: _Outcome,
    usage: Usage,
) -> AddResult:
    """Apply all decisions and set the message's state, in one transaction."""
    decisions, undecided = outcome
    applied: list[tuple[_Decision, list[JournalRow]]] = []
    try:
        # The embedder may be slow: its vectors are cached before other writers have to wait.
        ops = [op for decision in decisions for op in decision.ops]
        written = [op.text for op in ops if isinstance(op, Add | Update)]
        bank.embedder.embed(written)
        usage += Usage(embeddings=len(written))
        with bank.store.transaction():
            applied = _apply(bank, turn, settings, message, decisions)
            _set_state(bank, message, undecided, usage)
    except _TakenOver as error:
        undecided = {fact: str(error) for decision in decisions for fact in decision.facts}
        decisions, applied = [], []
    except (UnknownEntry, ModelUnavailable) as error:
        # Meanwhile another process changed an entry, or the embedder went away.
        every = {fact: str(error) for decision in decisions for fact in decision.facts}
        undecided, decisions, applied = every | undecided, [], []
        _set_state(bank, message, undecided, usage)
    left: FactStatus = "deferred" if message else "failed"
    return AddResult(
        rows=tuple(row for _, rows in applied for row in rows),
        facts=(
            *(result for decision, rows in applied for result in _told(decision, rows)),
            *(FactResult(fact, left, error=error) for fact, error in undecided.items()),
        ),
        message_ids=(message.id,) if message else (),
        usage=usage,
    )


def _apply(
    bank: Bank,
    turn: Turn,
    settings: Settings,
    message: Message | None,
    decisions: Sequence[_Decision],
) -> list[tuple[_Decision, list[JournalRow]]]:
    """Apply decisions in order; entries that were new on the draft get the ids they have here."""
    ids: dict[str, str] = {}
    applied = []
    for decision in decisions:
        only = decision.facts[0] if len(decision.facts) == 1 else None
        rows = bank.apply(
            [_renamed(op, ids) for op in decision.ops],
            turn=turn,
            message_id=message.id if message else "",
            reason=" ; ".join(fact.text for fact in decision.facts),
            model=decision.model,
            prompt_hash=decision.prompt_hash,
            quote=only.quote if only else "",
            happened=only.happened if only else None,
            metadata=message.metadata if message else None,
            expires=message.expires if message else None,
            policy=settings.policy,
        )
        for drafted, row in zip(decision.drafted, rows, strict=False):
            ids[drafted.entry_id] = row.entry_id
        applied.append((decision, rows))
    return applied


def _renamed(op: MemoryOp, ids: Mapping[str, str]) -> MemoryOp:
    match op:
        case Update(entry_id) | Delete(entry_id) | Noop(entry_id) if entry_id in ids:
            return replace(op, entry_id=ids[entry_id])
    return op


def _told(decision: _Decision, rows: Sequence[JournalRow]) -> list[FactResult]:
    """The rows of a decision, each with the fact that it shares most words with."""
    of: dict[Fact, list[JournalRow]] = {fact: [] for fact in decision.facts}
    words = {fact: set(terms(fact.text)) for fact in of}
    for row in rows:
        entry = row.after or row.before
        said = set(terms(entry.text)) if entry else set()
        of[max(of, key=lambda fact: len(said & words[fact]))].append(row)
    return [FactResult(fact, "stored", tuple(mine)) for fact, mine in of.items()]


class _TakenOver(StoreError):
    """The message was claimed by somebody else while it was being processed."""


def _set_state(
    bank: Bank, message: Message | None, undecided: Mapping[Fact, str], usage: Usage
) -> None:
    if message is None:
        return
    error = next(iter(undecided.values()), "")
    state: MessageState = "deferred" if error else "done"
    spent = asdict(Usage(**message.usage) + usage)
    settled = replace(message, state=state, error=error, since=bank.now(), usage=spent)
    if not bank.store.set_message(settled, was=message):
        raise _TakenOver(
            f"message {message.id} took so long that another process has taken it over"
        )
