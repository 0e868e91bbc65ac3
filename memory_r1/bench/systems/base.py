"""What every system under test is: something that remembers turns in a bank and answers from it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from memory_r1.bank import Bank
from memory_r1.config import Settings
from memory_r1.data import Question
from memory_r1.errors import ConfigError, MalformedReply, StoreError
from memory_r1.extract import whole_turn, without_recalled
from memory_r1.llm import LLM, Agents, Call, Conversation, Role
from memory_r1.llm.open import open_agents
from memory_r1.llm.prompting import json_in, repair, tidy, without_thinking
from memory_r1.remember import Usage, remember
from memory_r1.respond import respond
from memory_r1.store import new_id
from memory_r1.types import (
    Add,
    Answer,
    Entry,
    JournalRow,
    MemoryOp,
    Message,
    MessageState,
    OpName,
    Prompt,
    Turn,
    Update,
)

JSON_TOKENS: Final = 1024
"""Room for what a model replies about one turn."""
T = TypeVar("T")


@dataclass(frozen=True)
class System:
    """Memory-R1 itself, with the agents given: what a user's `Memory` does, nothing else.

    Other systems override `remember` and `answer`, and `built_by` when the first changes.
    """

    name: str
    agents: Agents
    settings: Settings = field(default_factory=Settings)

    @property
    def built_by(self) -> str:
        """What makes the bank: systems with the same agents and the same text here share banks."""
        extract, manage = self.agents.extract, self.agents.manage
        related = self.settings.shown_to_manage(manage.style) if manage else 0
        context = self.settings.context if extract and extract.style == "instruct" else 0
        return f"memory-r1 related={related} context={context} policy={self.settings.policy}"

    @property
    def distillation(self) -> bool:
        """Whether the Answer Agent chooses among the entries before it answers."""
        return self.agents.answer is not None

    @property
    def shares_banks(self) -> bool:
        """Whether all that is remembered is in the bank's file, so that a copy of it will do."""
        return True

    @property
    def rehearsable(self) -> bool:
        """Whether a dry run with stand-ins for its agents says what it will need."""
        return True

    @property
    def players(self) -> dict[str, str]:
        """The name of the model in each role."""
        roles = {"extract": self.agents.extract, "manage": self.agents.manage}
        return {
            role: llm.name if llm else "rules"
            for role, llm in {**roles, "answer": self.agents.answer}.items()
        }

    @property
    def shown(self) -> int | None:
        """Entries that an answer is made from, at most; None: all that is remembered."""
        answerer = self.agents.answer
        return self.settings.shown_to_answer(answerer.style if answerer else None)

    def remember(
        self,
        bank: Bank,
        turn: Turn,
        message: Message,
        *,
        context: Sequence[Turn],
        last: bool,
    ) -> Conversation[None]:
        """Take in one turn, all or nothing, and mark `message` as processed with it.

        context: the turns before it, oldest first, `settings.context` of them. last: it is the
        last turn of its session. ModelUnavailable as the runner throws it in must not be caught.
        """
        yield from remember(
            bank, turn, self.agents, self.settings, message=message, context=context
        )

    def answer(self, bank: Bank, question: Question) -> Conversation[Answer]:
        """Answer from the bank, as it is now.

        `Answer.retrieved` is what was chosen among what is remembered; empty where nothing was
        chosen because everything is shown.
        """
        return respond(bank, question.text, self.agents, self.settings, asked=question.asked)

    def close(self) -> None:
        """Let go of what was opened; called once, at the end of a run."""


@dataclass(frozen=True)
class Options:
    """What the command line says about a system beside its name."""

    model: str | None = None
    """Plays every role that the system has; what `manager` and `answer` don't say."""
    manager: str | None = None
    """Reads the turns and manages the bank."""
    answer: str | None = None
    """Answers."""
    reranker: str | None = None
    """Puts what was found in a better order; see `rerank.open_reranker`."""
    peer_python: str | None = None
    """The Python that other packages are installed for."""
    settings: Settings = field(default_factory=Settings)


def agents(options: Options, base: Agents | None = None) -> Agents:
    """The models that the options name, else those of `base`."""
    if options.model is not None:
        base = open_agents(options.model)
    base = base or Agents()
    keeper = base if options.manager is None else open_agents(options.manager)
    answerer: LLM | None = base.answer
    if options.answer is not None:
        answerer = open_agents(options.answer).answer
    return Agents(extract=keeper.extract, manage=keeper.manage, answer=answerer)


_MISSING: dict[Role, str] = {
    "extract": "reads the turns; add for instance  --manager tiny-base",
    "manage": "manages the memories; add for instance  --manager tiny-base",
    "answer": "answers; add for instance  --answer tiny-base",
}


def needed(name: str, players: Agents, *roles: Role) -> Agents:
    """The players, when a model plays each of these roles.

    Raises ConfigError with the option to add when one is missing.
    """
    for role in roles:
        if getattr(players, role) is None:
            raise ConfigError(f"--system {name} needs a model that {_MISSING[role]}")
    return players


def following(name: str, players: Agents, role: Role) -> Agents:
    """The players, when the model in this role follows instructions that it was not trained on.

    Raises ConfigError for none, and for a compact model.
    """
    llm = getattr(players, role)
    if llm is None or llm.style == "compact":
        seen = f"; {llm.name!r} knows only the prompts it was trained on" if llm else ""
        option = "--answer" if role == "answer" else "--manager"
        raise ConfigError(
            f"--system {name} needs a model that follows instructions{seen}; add for instance  "
            f"{option} openai:gpt-4o-mini"
        )
    return players


def settings_in(name: str, **defaults: int) -> dict[str, int]:
    """The settings that a system's name carries, such as "rag-bm25?words=256", over the defaults.

    Raises ConfigError for an unknown one, naming the nearest, and for anything but numbers from 1.
    """
    kind, _, query = name.partition("?")
    found = dict(defaults)
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in defaults:
            near = difflib.get_close_matches(key, defaults, 1)
            known = f"known are {', '.join(defaults)}" if defaults else "it has none"
            hint = f"did you mean {near[0]!r}?" if near else known
            raise ConfigError(f"unknown setting {key!r} of --system {kind}; {hint}")
        if not re.fullmatch("[1-9][0-9]{0,8}", value):
            raise ConfigError(
                f"setting {key!r} of --system {kind} is {value!r}; expected a number from 1"
            )
        found[key] = int(value)
    return found


def line_of(turn: Turn) -> str:
    """A turn as a transcript shows it, `Ann: I keep bees [shares a hive]`; "" for nothing said.

    Instructions, tool output and what was recalled from a memory are nothing said, as for all
    systems.
    """
    turn = replace(turn, text=without_recalled(turn.text))
    if turn.role not in ("user", "assistant") or not (tidy(turn.text) or turn.caption):
        return ""
    return whole_turn(replace(turn, said=None)).text


def settle(
    bank: Bank,
    messages: Sequence[Message],
    ops: Sequence[MemoryOp] = (),
    *,
    turn: Turn | None = None,
    model: str = "rules",
    prompt_hash: str = "",
    error: str = "",
    usage: Usage | None = None,
) -> None:
    """Apply operations and mark the messages they come from as processed, in one transaction.

    turn: what the operations rest on, the last message's by default. error: why the messages wait
    for another try instead. usage: what it took, told of the last message.
    Raises StoreError when somebody else has processed one of them meanwhile.
    """
    state: MessageState = "deferred" if error else "done"
    written = [op.text for op in ops if isinstance(op, Add | Update)]
    bank.embedder.embed(written)  # may be slow: cached before other writers have to wait
    last = messages[-1]
    with bank.store.transaction():
        bank.apply(
            ops, turn=turn or last.turn, message_id=last.id, model=model, prompt_hash=prompt_hash
        )
        for message in messages:
            spent = Usage(**message.usage)
            if message is last:
                spent += (usage or Usage()) + Usage(embeddings=len(written))
            settled = replace(
                message, state=state, error=error, since=bank.now(), usage=asdict(spent)
            )
            if not bank.store.set_message(settled, was=message):
                raise StoreError(
                    f"message {message.id} was processed by somebody else meanwhile; "
                    "one process at a time may play a dialogue"
                )


def write(
    bank: Bank,
    before: Entry | None,
    after: Entry,
    message: Message,
    *,
    model: str = "rules",
    prompt_hash: str = "",
    reason: str = "",
) -> None:
    """Write an entry as it is given, with its journal row, where `Bank.apply` would say too much.

    An operation of `apply` makes an entry rest on the turn that caused it and takes over its date.
    A note that is only filed differently rests on what it rested on before. before: the version
    that `after` follows; None for a new entry.
    """
    vector = bank.embedder.embed([after.text])[0]
    op: OpName = "DELETE" if after.superseded else "UPDATE" if before else "ADD"
    bank.store.put(after, vector)
    bank.store.add_journal(
        JournalRow(
            id=new_id(),
            owner=bank.owner,
            op=op,
            at=bank.now(),
            entry_id=after.id,
            before=before,
            after=after,
            turn_id=message.id,
            reason=reason,
            model=model,
            prompt_hash=prompt_hash,
        )
    )


def next_version(bank: Bank, entry: Entry, text: str, metadata: Mapping[str, Any]) -> Entry:
    """The entry with another text and metadata, resting on what it rested on."""
    return replace(
        entry, text=text, metadata=dict(metadata), stored=bank.now(), version=entry.version + 1
    )


def asked_json(
    role: Role,
    prompt: Prompt,
    schema: Mapping[str, Any],
    read: Callable[[Any], T],
    spent: list[Usage],
) -> Conversation[T]:
    """What `read` makes of the JSON object that the model replies with; one chance to repair.

    read: raises ValueError, TypeError or LookupError for what it doesn't take. spent: what it
    takes is added to its only item. Raises MalformedReply, and ModelUnavailable as it comes.
    """
    shown = prompt
    for last in (False, True):
        completion = yield Call(role, shown, JSON_TOKENS, schema)
        spent[0] += Usage(1, completion.prompt_tokens, completion.completion_tokens)
        try:
            found = json_in(completion.text, lambda value: isinstance(value, dict))
            try:
                return read(found)
            except (ValueError, TypeError, LookupError) as error:
                raise MalformedReply(
                    f"expected the form that was asked for, got {found!r:.200}"
                ) from error
        except MalformedReply as error:
            if last:
                raise
            shown = repair(prompt, without_thinking(completion.text), error)
    raise AssertionError("the second attempt returns or raises")
