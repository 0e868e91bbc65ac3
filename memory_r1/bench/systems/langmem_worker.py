"""LangMem under test: run by a Python that has langmem, see `peers_worker`.

One store manager a dialogue over LangGraph's in-memory store, which is written to the dialogue's
folder after every turn. The package's defaults, but for the model, temperature 0 and our embedder.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from memory_r1.bench.systems.peers_worker import (
    MAX_TOKENS,
    RETRIES,
    TIMEOUT,
    USER,
    Asked,
    Json,
    serve,
    vectors,
)
from memory_r1.embed import Embedder

_EARLIER = "Earlier messages, which you have read before:"


class Unreached(BaseException):
    """The model did not reply.

    No Exception, since trustcall, which LangMem asks models with, catches those: it would go on
    asking, two dozen times, and tell the model that it had been unreachable.
    """


class LangMem:
    """The package; see `peers_worker.Package`."""

    model_errors: tuple[type[BaseException], ...] = (Unreached,)

    def __init__(self, asked: Asked) -> None:
        """ImportError where langmem or what it needs is missing."""
        self.about = f"langmem {version('langmem')}"  # PackageNotFoundError is an ImportError
        self._langmem = importlib.import_module("langmem")
        self._stores = importlib.import_module("langgraph.store.memory")
        self._messages = importlib.import_module("langchain_core.messages")
        self._chat = importlib.import_module("langchain_openai").ChatOpenAI
        self._asked = asked

    def open(self, folder: Path, embedder: Embedder) -> LangMemMemories:
        """See `Package.open`."""
        usage: Counter[str] = Counter()
        store = self._stores.InMemoryStore(
            index={"dims": embedder.dim, "embed": partial(vectors, embedder)}
        )
        manager = self._langmem.create_memory_store_manager(
            _watched(self._chat, self._asked, usage), namespace=("memories", USER), store=store
        )
        return LangMemMemories(folder, store, manager, usage, self._messages)


def _watched(chat: Any, asked: Asked, usage: Counter[str]) -> Any:
    """LangChain's client of the model, which counts into `usage` and says so when it has none."""

    class Watched(chat):  # type: ignore[misc]
        def _generate(self, *args: Any, **rest: Any) -> Any:
            try:
                result = super()._generate(*args, **rest)
            except Exception as error:
                raise Unreached(f"{type(error).__name__}: {error}") from error
            said = getattr(result.generations[0].message, "usage_metadata", None) or {}
            usage["calls"] += 1
            usage["prompt_tokens"] += said.get("input_tokens", 0)
            usage["completion_tokens"] += said.get("output_tokens", 0)
            return result

    return Watched(
        model=asked.model,
        base_url=asked.url,
        api_key=asked.key,
        temperature=0.0,
        max_tokens=MAX_TOKENS,
        timeout=TIMEOUT,
        max_retries=RETRIES,
        use_responses_api=False,
        disable_streaming=True,
    )


class LangMemMemories:
    """One dialogue; see `peers_worker.Memories`."""

    def __init__(
        self,
        folder: Path,
        store: Any,
        manager: Any,
        usage: Counter[str],
        messages: Any,
    ) -> None:
        self._namespace = ("memories", USER)
        self._store, self._manager, self._messages = store, manager, messages
        self.usage = usage
        self._path = folder / "memories.json"
        self._kept: dict[str, Json] = {}
        """By key: the value, the ids of the turns it rests on, and when the last was said."""
        if self._path.exists():
            self._kept = json.loads(self._path.read_text("utf-8"))
            for key, one in self._kept.items():
                store.put(self._namespace, key, one["value"])

    def add(self, turn: Json) -> list[Json]:
        """See `Memories.add`."""
        make = self._messages
        told = make.AIMessage if turn["role"] == "assistant" else make.HumanMessage
        said = [told(turn["text"])]
        if turn["context"]:
            # LangMem joins messages of one kind, and the new one has to stand alone: the memories
            # it decides about are those nearest to the last message.
            said.insert(0, make.SystemMessage("\n".join([_EARLIER, *turn["context"]])))
        self._manager.invoke({"messages": said})
        changes = self._changed(turn)
        if changes:
            draft = self._path.with_suffix(".part")
            draft.write_text(json.dumps(self._kept, ensure_ascii=False), "utf-8")
            draft.replace(self._path)
        return changes

    def _changed(self, turn: Json) -> list[Json]:
        """What the store holds now and did not before, noted with the turn that it rests on."""
        now = {item.key: item.value for item in self._all()}
        changes: list[Json] = []
        for key, value in now.items():
            before = self._kept.get(key)
            if before is None or before["value"] != value:
                sources = [*(before["sources"] if before else ()), turn["id"]]
                self._kept[key] = {"value": value, "sources": sources, "said": turn["said"]}
                op = "UPDATE" if before else "ADD"
                changes.append({"op": op, "id": key, "text": _text(value)})
        for key in self._kept.keys() - now.keys():
            changes.append({"op": "DELETE", "id": key, "text": _text(self._kept.pop(key)["value"])})
        return changes

    def _all(self) -> list[Any]:
        found: list[Any] = self._store.search(self._namespace, limit=1_000_000)
        return found

    def search(self, query: str, k: int) -> list[Json]:
        """See `Memories.search`."""
        found = self._manager.search(query=query, limit=k)
        return [
            {
                "id": item.key,
                "text": _text(kept["value"]),
                "sources": kept["sources"],
                "said": kept["said"],
                "score": item.score,
            }
            for item in found
            if (kept := self._kept.get(item.key)) is not None
        ]

    def close(self) -> None:
        """Nothing is open: every turn was written."""


def _text(value: Json) -> str:
    """The words of a memory; of one without a plain text, all it holds."""
    content = value["content"]
    match content:
        case {"content": str(text)}:
            return text
    return json.dumps(content, ensure_ascii=False)


if __name__ == "__main__":
    serve(LangMem)
