"""mem0 and LangMem, the real packages: they remember and search, our reader answers.

They live in an environment of their own and call their model by themselves; a worker there
(`peers_worker`) does as it is asked. What a package remembers it keeps in a folder beside the
bank, and the bank holds the same memories, with their turns, for resuming, counting and scoring.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from memory_r1.bank import Bank
from memory_r1.bench.systems.base import Options, agents, line_of, needed, settings_in
from memory_r1.bench.systems.peers_process import Json, Model, Peer, Worker, hidden
from memory_r1.bench.systems.reader import Reading, read_found
from memory_r1.data import Question
from memory_r1.errors import ConfigError, DataError, ModelUnavailable, StoreError
from memory_r1.extract import whole_turn, without_recalled
from memory_r1.llm import Agents, Call, Conversation
from memory_r1.llm.open import open_llm
from memory_r1.llm.openai import OpenAILLM
from memory_r1.llm.prompting import day
from memory_r1.remember import Usage
from memory_r1.store.sqlite import SqliteStore
from memory_r1.types import (
    Add,
    Answer,
    Completion,
    Delete,
    Entry,
    Hit,
    MemoryOp,
    Message,
    MessageState,
    Prompt,
    Style,
    Turn,
    Update,
)

PEERS: Mapping[str, Peer] = {
    "mem0": Peer("mem0ai", "mem0ai==2.2.1", "memory_r1.bench.systems.mem0_worker"),
    "langmem": Peer(
        "langmem", "langmem==0.0.30 langchain-openai", "memory_r1.bench.systems.langmem_worker"
    ),
}
"""By the name that --system takes."""
OWN_PYTHON = Path(".venv-peers/bin/python")
"""What `make peers` makes, and where it is looked for without --peer-python."""
FAILURES = 10
"""Turns in a row that a package may fail at; a model that it can't work with fails at all."""
_ID = "peer_id"
"""Key of the metadata of an entry: what the package calls it."""
_MADE = "peer"
"""Key of the store's meta: which package filled it."""


class PeerManager:
    """The package in the role of Memory Manager: its prompts are requests to the worker.

    It carries no `identity`: a request changes what is remembered, so a reply can't stand for it.
    """

    style: Style = "instruct"
    concurrent = True

    def __init__(self, model: Model, worker: Worker) -> None:
        self.name = model.name
        self._key, self._worker = model.key, worker
        self._lock = threading.Lock()
        self._failures = 0

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Completion]:
        """What became of each turn, as JSON: {"changes"} or {"failed": why}, and its "usage".

        ModelUnavailable when the package's model, or the worker, can't be had.
        """
        replies = self._worker.ask([json.loads(prompt.text) for prompt in prompts])
        return [self._read(reply) for reply in replies]

    def _read(self, reply: Json) -> Completion:
        usage = reply.get("usage", {})
        said: Json = {"usage": usage}
        match reply:
            case {"changes": list(changes)}:
                said["changes"] = changes
            case {"error": {"kind": "package", "text": str(text)}}:
                said["failed"] = hidden(text, self._key)
            case _:
                raise self._unavailable(reply)
        self._count("failed" in said, reply)
        return Completion(
            json.dumps(said),
            usage.get("prompt_tokens", 0),
            usage.get("completion_tokens", 0),
            seconds=reply.get("seconds", 0.0),
        )

    def _count(self, failed: bool, reply: Json) -> None:
        with self._lock:
            self._failures = self._failures + 1 if failed else 0
            if self._failures >= FAILURES:
                raise ModelUnavailable(
                    f"{self._worker.about} failed at {FAILURES} turns in a row with model "
                    f"{self.name!r}; the last time: {hidden(reply['error']['text'], self._key)}. "
                    "Check that the model can do what the package asks of it, such as tool calls"
                )

    def found(self, request: Json) -> list[Json]:
        """The memories that a search finds, best first. ModelUnavailable when it fails."""
        (reply,) = self._worker.ask([request])
        match reply:
            case {"found": list(found)}:
                return found
        raise self._unavailable(reply)

    def _unavailable(self, reply: Json) -> ModelUnavailable:
        text = hidden(str(reply.get("error", {}).get("text", reply)), self._key)
        return ModelUnavailable(
            f"{self._worker.about} with model {self.name!r}: {text}. Check that the model's "
            "server runs, that it serves this model, and OPENAI_API_KEY; then run the same again"
        )


@dataclass(frozen=True)
class PeerSystem(Reading):
    """A package that remembers and searches; our reader answers from what it found."""

    manager: PeerManager = field(kw_only=True)
    worker: Worker = field(kw_only=True)
    model: Model = field(kw_only=True)

    @property
    def built_by(self) -> str:
        """Package and version, what it does without, its model."""
        context = f" context={self.settings.context}" if self.name == "langmem" else ""
        return f"{self.worker.about} {self.model.url}#{self.model.name}{context}"

    @property
    def shares_banks(self) -> bool:
        """No: the package's own files lie beside the bank."""
        return False

    @property
    def rehearsable(self) -> bool:
        """No: the prompts are the package's."""
        return False

    @property
    def players(self) -> dict[str, str]:
        """The package's model in the roles of ours, and the reader's."""
        return {**super().players, "extract": self.model.name, "manage": self.model.name}

    def remember(
        self,
        bank: Bank,
        turn: Turn,
        message: Message,
        *,
        context: Sequence[Turn],
        last: bool,
    ) -> Conversation[None]:
        """See System.remember. What the package fails at, its model aside, is deferred with why.

        After a kill the turn is asked for again; the worker knows those that it took in.
        """
        request = self._request(bank)
        said: Json = {"changes": [], "usage": {}}
        if line_of(turn):
            request |= {"do": "add", "turn": _told(turn, context)}
            reply = yield Call("manage", Prompt((("user", json.dumps(request)),)))
            said = json.loads(reply.text)
        _settle(bank, turn, message, said, self)

    def answer(self, bank: Bank, question: Question) -> Conversation[Answer]:
        """Let the package search, then read what it found."""
        request = self._request(bank)
        request |= {"do": "search", "query": question.text, "k": self.shown}
        began = time.perf_counter()
        found = self.manager.found(request)
        took = {"search": time.perf_counter() - began}
        mirrored = {entry.metadata.get(_ID): entry for entry in bank.entries()}
        hits = [_hit(bank, one, mirrored.get(one["id"])) for one in found]
        return (yield from read_found(question, hits, self.agents.answer, took))

    def _request(self, bank: Bank) -> Json:
        return {"folder": str(self._folder(bank)), "embedder": bank.embedder.name}

    def _folder(self, bank: Bank) -> Path:
        """Where the package keeps its files of a dialogue: beside the bank's own file."""
        store = bank.store
        if not isinstance(store, SqliteStore):
            raise ConfigError(
                f"--system {self.name} keeps the package's files beside the bank, which therefore "
                f"has to be a SQLite file; this one is a {type(store).__name__}"
            )
        path = store.path
        folder = path.with_suffix(f".{self.name}").absolute()
        made = store.get_meta(_MADE)
        if made is None:
            store.set_meta(_MADE, self.built_by)
        elif made != self.built_by:
            raise ConfigError(
                f"{path} was filled by {made}, and this is {self.built_by}; choose another --out"
            )
        if not folder.is_dir():
            if store.messages(bank.owner, "done"):
                raise DataError(
                    f"{folder} is missing, where {self.worker.peer.package} keeps what "
                    f"{path} says it remembers; restore it, or choose another --out"
                )
            folder.mkdir()
        return folder

    def close(self) -> None:
        """End the worker."""
        self.worker.close()


def open_peer(name: str, options: Options) -> PeerSystem:
    """`mem0`, `langmem`: start the worker of the package.

    Raises ConfigError for models and settings that it can't be played with, and where the package
    or the Python is missing, with what to do.
    """
    settings_in(name)
    name = name.partition("?")[0]
    peer, model = PEERS[name], _model(name, options.manager or options.model)
    if options.settings.per_speaker is not None:
        raise ConfigError(f"--system {name} searches its own way, without --per-speaker; use --k")
    # The package reads and manages by itself: only who answers is opened.
    answerer = agents(Options(answer=options.answer or options.model))
    needed(name, answerer, "answer")
    python = options.peer_python or (str(OWN_PYTHON) if OWN_PYTHON.exists() else None)
    if python is None:
        raise ConfigError(
            f"--system {name} runs {peer.package} in an environment of its own; name its Python "
            f"with --peer-python. {peer.how}"
        )
    worker = Worker(peer, python, model)
    manager = PeerManager(model, worker)
    return PeerSystem(
        name,
        Agents(manage=manager, answer=answerer.answer),
        options.settings,
        manager=manager,
        worker=worker,
        model=model,
    )


def _model(name: str, asked: str | None) -> Model:
    """The service that a package is to call; it can't call models that we run ourselves."""
    if asked is None or not asked.startswith(("openai:", "http://", "https://")):
        raise ConfigError(
            f"--system {name} calls its model over HTTP by itself, and got {asked or 'none'}; add "
            "--model openai:MODEL or --model http://localhost:8000/v1#MODEL. A local model has to "
            "be served, for instance with vLLM or  transformers serve"
        )
    llm = open_llm(asked)
    assert isinstance(llm, OpenAILLM)
    llm.close()
    query = dict(parse_qsl(asked.partition("#")[0].partition("?")[2]))
    given = query.get("concurrency") or os.environ.get("MEMORY_R1_CONCURRENCY")
    return Model(
        name=llm.name,
        url=llm.base_url,
        key=os.environ.get("OPENAI_API_KEY", ""),
        concurrency=int(given or Model.concurrency),
    )


def _told(turn: Turn, context: Sequence[Turn]) -> Json:
    """A turn as a worker is told it: its words with date and speaker, like an entry of the rules.

    context: what LangMem is shown of the conversation before; mem0 keeps its own last ten messages.
    """
    return {
        "id": turn.id,
        "text": _words(turn),
        "role": turn.role,
        "date": day(turn.said) if turn.said else "",
        "said": turn.said.isoformat() if turn.said else None,
        "context": [_words(one) for one in context if line_of(one)],
    }


def _words(turn: Turn) -> str:
    return whole_turn(replace(turn, text=without_recalled(turn.text))).text


def _settle(bank: Bank, turn: Turn, message: Message, said: Json, system: PeerSystem) -> None:
    """Write what the package changed into the bank too, and the message's state with it."""
    changes: list[Json] = said.get("changes", [])
    state: MessageState = "deferred" if "failed" in said else "done"
    used = said["usage"]
    usage = Usage(
        used.get("calls", 0), used.get("prompt_tokens", 0), used.get("completion_tokens", 0)
    )
    known: dict[str, str] = {}
    if any(change["op"] != "ADD" for change in changes):
        known = {entry.metadata.get(_ID, ""): entry.id for entry in bank.entries()}
    with bank.store.transaction():
        for change in changes:
            op = _op(change, known)
            if op is not None:
                bank.apply(
                    [op],
                    turn=turn,
                    message_id=message.id,
                    reason=system.worker.about,
                    model=system.model.name,
                    metadata={_ID: change["id"]},
                )
        settled = replace(
            message,
            state=state,
            error=said.get("failed", ""),
            since=bank.now(),
            usage=asdict(Usage(**message.usage) + usage),
        )
        if not bank.store.set_message(settled, was=message):
            raise StoreError(f"message {message.id} was changed by another process meanwhile")


def _op(change: Json, known: Mapping[str, str]) -> MemoryOp | None:
    """A package's change as one of ours. None: it deletes what is not here."""
    entry_id = known.get(change["id"])
    match change["op"]:
        case "DELETE":
            return None if entry_id is None else Delete(entry_id)
        case "UPDATE" if entry_id is not None:
            return Update(entry_id, change["text"])
    return Add(change["text"])


def _hit(bank: Bank, one: Json, mirrored: Entry | None) -> Hit:
    """A memory that was found.

    One that the bank doesn't have was written by a worker that was killed before it noted the
    turn as taken in; it counts like the others.
    """
    score = float(one["score"] or 0.0)
    if mirrored is not None:
        return Hit(mirrored, score)
    said = datetime.fromisoformat(one["said"]) if one["said"] else None
    entry = Entry(
        id=one["id"],
        text=one["text"],
        owner=bank.owner,
        stored=bank.now(),
        sources=tuple(one["sources"]),
        said=said,
    )
    return Hit(entry, score)
