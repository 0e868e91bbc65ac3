"""question + retrieved entries -> the best of them by a model that only compares."""

from __future__ import annotations

import importlib.util
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import httpx

from memory_r1.bank import Bank
from memory_r1.bench.systems.base import Options, System, agents, needed, settings_in
from memory_r1.bench.systems.reader import Reading, read_found
from memory_r1.data import Question
from memory_r1.errors import ConfigError, MissingExtra, ModelUnavailable
from memory_r1.llm import Conversation
from memory_r1.llm.prompting import day, tidy
from memory_r1.types import Answer, Entry

KEEP: Final = 10
"""Entries that the reader is shown."""
KEY: Final = "MEMORY_R1_RERANKER_KEY"
"""Sent to a reranking service as a bearer token, where it is set."""
_RETRIED: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class Reranker(Protocol):
    """Says how well texts fit a query; threads may share it."""

    name: str

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """(texts,) one score each, higher is better; on any scale.

        Raises ModelUnavailable when the model can't be reached, loaded or understood.
        """
        ...


def open_reranker(name: str) -> Reranker:
    """The reranker a name stands for.

    "http://HOST/v1/rerank#MODEL"   a service that answers as vLLM's, Jina's and Cohere's do
    anything else                   a cross-encoder: a folder, or an id of Hugging Face

    Raises ConfigError for a name that can't be meant, MissingExtra when a cross-encoder needs
    sentence-transformers.
    """
    if name.startswith(("http://", "https://")):
        return HttpReranker(name)
    if not name.strip() or (name.startswith((".", "/", "~")) and not _path(name).is_dir()):
        raise ConfigError(
            f"no reranker is called {name!r}; expected the folder or the Hugging Face id of a "
            "cross-encoder, such as cross-encoder/ms-marco-MiniLM-L6-v2, or the URL of a service "
            "with its model, such as http://localhost:8000/v1/rerank#my-reranker"
        )
    return CrossEncoderReranker(name)


class CrossEncoderReranker:
    """A cross-encoder of sentence-transformers on this machine, loaded at its first use.

    What is in the local cache is loaded without a network. Texts longer than the model's limit
    are cut by it.
    """

    def __init__(self, name: str) -> None:
        if importlib.util.find_spec("sentence_transformers") is None:
            raise MissingExtra(
                f"the reranker {name!r}", "sentence-transformers", "sentence-transformers"
            )
        self.name = _path(name).name if _path(name).is_dir() else name
        self._model_name = str(_path(name)) if _path(name).is_dir() else name
        self._lock = threading.Lock()
        self._held: Any = None

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """(texts,) see `Reranker.scores`."""
        if not texts:
            return []
        pairs = [(tidy(query), tidy(text)) for text in texts]
        with self._lock:
            if self._held is None:
                self._held = self._load()
            found = self._held.predict(pairs, show_progress_bar=False, convert_to_numpy=True)
        if found.shape != (len(texts),):
            raise self._unavailable(
                f"gives scores of shape {found.shape} for {len(texts)} texts; expected one each: "
                "it is a classifier of another kind"
            )
        return _finite([float(score) for score in found], self._unavailable)

    def _load(self) -> Any:
        from huggingface_hub import constants
        from sentence_transformers import CrossEncoder

        try:
            try:
                return CrossEncoder(self._model_name, local_files_only=True)
            except (OSError, ValueError):
                if Path(self._model_name).exists() or constants.HF_HUB_OFFLINE:
                    raise
                # Where there is no way to the hub, its own client would try for a minute.
                httpx.head(constants.ENDPOINT, timeout=20)
                return CrossEncoder(self._model_name)
        except Exception as error:  # whatever its readers of weights and settings raise
            reason = " ".join(str(error).split())[:300]
            raise self._unavailable(
                f"can't be loaded: {reason}. Expected a folder written by CrossEncoder.save, or "
                "the id of a model that is in the local cache or can be downloaded"
            ) from error

    def _unavailable(self, problem: str) -> ModelUnavailable:
        return ModelUnavailable(f"the reranker {self.name!r} {problem}")


class HttpReranker:
    """A client of `POST URL` with {model, query, documents}; threads may share it.

    A busy or broken server is asked again with growing pauses; then ModelUnavailable says what
    happened.
    """

    def __init__(
        self,
        name: str,
        *,
        timeout: float = 60.0,
        retries: int = 3,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """name: "URL#MODEL"; ConfigError without a model."""
        self._url, _, self.name = name.partition("#")
        if not self.name:
            raise ConfigError(
                f"the reranker {name!r} names no model; expected URL#MODEL, such as "
                "http://localhost:8000/v1/rerank#my-reranker"
            )
        self._key = os.environ.get(KEY, "")
        self._retries, self._sleep = retries, sleep
        self._client = httpx.Client(
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
        )

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """(texts,) see `Reranker.scores`."""
        if not texts:
            return []
        body = {
            "model": self.name,
            "query": tidy(query),
            "documents": [tidy(text) for text in texts],
        }
        response = self._post(body)
        if not response.is_success:
            raise self._unavailable(f"HTTP {response.status_code}: {_said(response)}")
        try:
            found = {
                int(row["index"]): float(row["relevance_score"])
                for row in response.json()["results"]
            }
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise self._unavailable(f"not a list of results: {_said(response)}") from error
        if set(found) != set(range(len(texts))):
            raise self._unavailable(f"it scored {len(found)} texts of {len(texts)}")
        return _finite([found[i] for i in range(len(texts))], self._unavailable)

    def close(self) -> None:
        """Close connections."""
        self._client.close()

    def _post(self, body: dict[str, Any]) -> httpx.Response:
        for attempt in range(self._retries + 1):
            try:
                response = self._client.post(self._url, json=body)
            except httpx.InvalidURL as error:
                raise self._unavailable(f"the URL is not valid: {error}") from error
            except httpx.HTTPError as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                if response.status_code not in _RETRIED:
                    return response
                problem = f"HTTP {response.status_code}: {_said(response)}"
            if attempt < self._retries:
                self._sleep(0.5 * 2**attempt)
        raise self._unavailable(f"{problem} ({self._retries + 1} attempts)")

    def _unavailable(self, problem: str) -> ModelUnavailable:
        if self._key:  # servers echo it
            problem = problem.replace(self._key, "[key]")
        return ModelUnavailable(
            f"the reranker {self.name!r} at {self._url} did not reply: {problem}. Check that the "
            f"server runs, that it serves this model, and {KEY}."
        )


def _said(response: httpx.Response) -> str:
    """The start of the server's own words."""
    return " ".join(response.text[:300].split()) or "(no text)"


def _finite(scores: list[float], unavailable: Callable[[str], ModelUnavailable]) -> list[float]:
    if not all(map(math.isfinite, scores)):
        raise unavailable("gave scores that are no finite numbers")
    return scores


def _path(name: str) -> Path:
    return Path(name).expanduser()


def open_rerank(name: str, options: Options) -> System:
    """`rerank`, with a setting in the name: `rerank?keep=10`."""
    keep = settings_in(name, keep=KEEP)["keep"]
    players = needed(name, agents(options), "answer")
    if options.reranker is None:
        raise ConfigError(
            f"--system {name} needs a reranker; add for instance  "
            "--reranker cross-encoder/ms-marco-MiniLM-L6-v2"
        )
    reranker = open_reranker(options.reranker)
    return Rerank(name, players, options.settings, reranker=reranker, keep=keep)


@dataclass(frozen=True)
class Rerank(Reading):
    """The bank of `memory-r1`; of what search finds, a reranker keeps the best for the reader."""

    reranker: Reranker | None = None
    keep: int = KEEP

    @property
    def players(self) -> dict[str, str]:
        """The reranker too."""
        return {**super().players, **({"rerank": self.reranker.name} if self.reranker else {})}

    @property
    def shown(self) -> int:
        """Those that are kept; `settings.k` says how many are searched before."""
        return self.keep

    def answer(self, bank: Bank, question: Question) -> Conversation[Answer]:
        """Search, rerank, read the best; `Answer.scores` are the reranker's."""
        assert self.reranker is not None
        began = time.perf_counter()
        hits = self.find(bank, question.text)
        found = time.perf_counter()
        scores = self.reranker.scores(question.text, [_text(hit.entry) for hit in hits])
        scored = [replace(hit, score=score) for hit, score in zip(hits, scores, strict=True)]
        # Of equals, the one that search put first.
        best = sorted(scored, key=lambda hit: -hit.score)[: self.keep]
        took = {"search": found - began, "rerank": time.perf_counter() - found}
        return (yield from read_found(question, best, self.agents.answer, took))

    def close(self) -> None:
        """Close the connections of a service."""
        if isinstance(self.reranker, HttpReranker):
            self.reranker.close()


def _text(entry: Entry) -> str:
    """An entry as the reranker reads it: with its date, like everybody who reads it."""
    date = f"[{day(entry.said)}] " if entry.said else ""
    return entry.text if entry.text.startswith(date) else date + entry.text
