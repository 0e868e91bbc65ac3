"""mem0 under test: run by a Python that has mem0ai, see `peers_worker`.

One user a dialogue, the local Qdrant and the history in the dialogue's folder. Only mem0's public
interface is used, and its defaults, but for the model, temperature 0 and our embedder.
"""

from __future__ import annotations

import importlib
import os
import tempfile
from collections import Counter
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from memory_r1.bench.systems.peers_worker import (
    MAX_TOKENS,
    RETRIES,
    TIMEOUT,
    USER,
    Asked,
    Json,
    embedder_of,
    serve,
    vectors,
)
from memory_r1.embed import Embedder

_PARTS = {"fastembed": "keyword search", "spacy": "entities"}
"""What mem0 leaves out without saying so in its results where these are not installed."""
_OBSERVED = "The Observation Date of the new messages is {date}."


class Mem0:
    """The package; see `peers_worker.Package`."""

    def __init__(self, asked: Asked) -> None:
        """ImportError where mem0ai 2.x is missing."""
        # What it writes for its own purposes belongs to no dialogue, and not into the user's home.
        self._home = tempfile.TemporaryDirectory(prefix="memory-r1-mem0-")
        os.environ["MEM0_DIR"] = self._home.name
        found = version("mem0ai")  # PackageNotFoundError is an ImportError
        if not found.startswith("2."):
            raise ImportError(f"mem0ai {found} is installed; the worker speaks that of 2.x")
        self._asked = asked
        self._memory = importlib.import_module("mem0").Memory
        factory = importlib.import_module("mem0.utils.factory").EmbedderFactory
        factory.provider_to_class["huggingface"] = f"{Embedding.__module__}.Embedding"
        lost = [part for name, part in _PARTS.items() if find_spec(name) is None]
        self.about = f"mem0ai {found}" + (f" without {' and '.join(lost)}" if lost else "")
        self.model_errors: tuple[type[BaseException], ...] = (
            importlib.import_module("openai").OpenAIError,
            importlib.import_module("mem0.exceptions").LLMError,
        )

    def open(self, folder: Path, embedder: Embedder) -> Mem0Memories:
        """See `Package.open`."""
        usage: Counter[str] = Counter()

        def count(llm: object, response: Any, params: object) -> None:
            usage["calls"] += 1
            if response.usage is not None:
                usage["prompt_tokens"] += response.usage.prompt_tokens
                usage["completion_tokens"] += response.usage.completion_tokens

        model = {
            "model": self._asked.model,
            "openai_base_url": self._asked.url,
            "api_key": self._asked.key,
            "temperature": 0.0,
            "max_tokens": MAX_TOKENS,
            "response_callback": count,
        }
        size = embedder.dim
        ours = {"model": embedder.name, "embedding_dims": size}
        memory = self._memory.from_config(
            {
                "llm": {"provider": "openai", "config": model},
                "embedder": {"provider": "huggingface", "config": ours},
                "vector_store": {
                    "provider": "qdrant",
                    "config": {"path": str(folder / "qdrant"), "embedding_model_dims": size},
                },
                "history_db_path": str(folder / "history.db"),
            }
        )
        memory.llm.client = memory.llm.client.with_options(timeout=TIMEOUT, max_retries=RETRIES)
        return Mem0Memories(memory, usage)


class Mem0Memories:
    """One dialogue; see `peers_worker.Memories`."""

    def __init__(self, memory: Any, usage: Counter[str]) -> None:
        self._memory, self.usage = memory, usage

    def add(self, turn: Json) -> list[Json]:
        """See `Memories.add`.

        The open package takes no timestamp and reads every message as said today, so the turn's
        date is told where it can be: in the text, and as an instruction for this call.
        """
        observed = {"prompt": _OBSERVED.format(date=turn["date"])} if turn["date"] else {}
        added = self._memory.add(
            [{"role": turn["role"], "content": turn["text"]}],
            user_id=USER,
            metadata={"turn": turn["id"], "said": turn["said"]},
            **observed,
        )
        return [
            {"op": item["event"], "id": item["id"], "text": item["memory"]}
            for item in added["results"]
            if item["event"] != "NONE"
        ]

    def search(self, query: str, k: int) -> list[Json]:
        """See `Memories.search`."""
        found = self._memory.search(query, top_k=k, filters={"user_id": USER})
        return [
            {
                "id": item["id"],
                "text": item["memory"],
                "sources": [item["metadata"]["turn"]],
                "said": item["metadata"]["said"],
                "score": item["score"],
            }
            for item in found["results"]
        ]

    def close(self) -> None:
        """See `Memories.close`."""
        self._memory.close()
        self._memory.vector_store.client.close()


class Embedding:
    """Our embedder in mem0's form."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self._embedder = embedder_of(config.model)

    def embed(self, text: str, memory_action: str | None = None) -> list[float]:
        """One text."""
        return vectors(self._embedder, [text])[0]

    def embed_batch(self, texts: list[str], memory_action: str | None = None) -> list[list[float]]:
        """Several texts."""
        return vectors(self._embedder, texts)


if __name__ == "__main__":
    serve(Mem0)
