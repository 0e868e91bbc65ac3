"""texts -> unit vectors: a small static model from a wheel, or any OpenAI-compatible URL."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable
from urllib.parse import urlsplit

import httpx
import numpy as np
from numpy.typing import NDArray

from memory_r1.errors import ConfigError, ModelUnavailable

Floats = NDArray[np.float32]

CACHED_TEXTS: Final = 50_000
"""How many texts an embedder remembers the vectors of (50 MB at 256 dimensions)."""


@runtime_checkable
class Embedder(Protocol):
    """Anything that turns texts into vectors whose dot product tells how alike they are."""

    @property
    def name(self) -> str:
        """Stored beside the vectors: those of another embedder can't be compared with them."""
        ...

    @property
    def dim(self) -> int:
        """Length of a vector."""
        ...

    def embed(self, texts: Sequence[str]) -> Floats:
        """(n, dim) one unit vector per text; all zeros where a text holds nothing.

        Raises ModelUnavailable when the model can't be reached or loaded.
        """
        ...


def open_embedder(name: str | None = None, *, api_key: str | None = None) -> Embedder:
    """The embedder of this name.

    name: None or "wordllama" for the local default; "URL#MODEL" for an OpenAI-compatible one,
    e.g. "http://localhost:11434/v1#nomic-embed-text".
    """
    if name in (None, "", "wordllama", LocalEmbedder.name):
        return LocalEmbedder()
    assert name is not None
    if name.startswith(("http://", "https://")):
        return HttpEmbedder(name, api_key=api_key)
    raise ConfigError(
        f"unknown embedder {name!r}; expected 'wordllama', or a URL and a model such as "
        "'http://localhost:11434/v1#nomic-embed-text'"
    )


class LocalEmbedder:
    """WordLlama's static token vectors, averaged: no torch, no network, ~10k texts/s on a core.

    The two files are read straight from the wordllama wheel. Importing that package would pull
    in an HTTP client and switch the root logger of the user's program to INFO.
    """

    name: Final = "wordllama-l2-supercat-256"
    dim: Final = 256

    def __init__(self) -> None:
        self._cache = _Cache(self._compute)

    def embed(self, texts: Sequence[str]) -> Floats:
        """(n, 256) unit vectors; see `Embedder.embed`."""
        return self._cache(texts, self.dim)

    def _compute(self, texts: Sequence[str]) -> Floats:
        batches = [self._pool(texts[i : i + 64]) for i in range(0, len(texts), 64)]
        return _unit(np.concatenate(batches))

    def _pool(self, texts: Sequence[str]) -> Floats:
        """(n, 256) sums of token vectors; a sum and a mean point the same way."""
        tokenizer, table = self._model
        encoded = tokenizer.encode_batch_fast(
            # Half a surrogate pair is no text that a tokenizer takes.
            [text.encode("utf-8", "replace").decode() for text in texts],
            add_special_tokens=False,
        )
        lengths = np.array([len(one) for one in encoded])
        ids = np.fromiter(chain.from_iterable(one.ids for one in encoded), np.int64)
        sums = np.zeros((len(texts), self.dim), np.float32)
        some = lengths > 0
        if some.any():
            starts = (np.cumsum(lengths) - lengths)[some]
            sums[some] = np.add.reduceat(table[np.minimum(ids, len(table) - 1)], starts, axis=0)
        return sums

    @cached_property
    def _model(self) -> tuple[Any, Floats]:
        try:
            from safetensors.numpy import load_file
            from tokenizers import Tokenizer

            spec = importlib.util.find_spec("wordllama")
            if spec is None or spec.origin is None:
                raise ImportError("No module named 'wordllama'")
            folder = Path(spec.origin).parent
            tokenizer = Tokenizer.from_file(
                str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json")
            )
            (table,) = load_file(folder / "weights" / "l2_supercat_256.safetensors").values()
        except Exception as error:  # tokenizers raises bare Exceptions
            raise ModelUnavailable(
                f"the local embedder could not be loaded ({error}). Reinstall it with:  "
                "pip install --force-reinstall wordllama"
            ) from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer, table.astype(np.float32)


class HttpEmbedder:
    """Any server with OpenAI's `/embeddings`: vLLM, Ollama, or a hosted one.

    name:    "URL#MODEL"
    api_key: sent as a bearer token; without one, OPENAI_API_KEY is sent to api.openai.com alone.
    """

    def __init__(
        self, name: str, *, api_key: str | None = None, client: httpx.Client | None = None
    ) -> None:
        url, _, model = name.partition("#")
        if not model:
            raise ConfigError(
                f"the embedder {name!r} names no model; expected URL#MODEL, "
                "e.g. http://localhost:11434/v1#nomic-embed-text"
            )
        self.name = name
        self._url, self._model = url.rstrip("/") + "/embeddings", model
        if api_key is None and urlsplit(url).hostname == "api.openai.com":
            api_key = os.environ.get("OPENAI_API_KEY")
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = client or httpx.Client(timeout=60.0)
        self._cache = _Cache(self._compute)

    @cached_property
    def dim(self) -> int:
        """Length of a vector; asks the server once."""
        return int(self._compute(["dimension"]).shape[1])

    def embed(self, texts: Sequence[str]) -> Floats:
        """(n, dim) unit vectors; see `Embedder.embed`."""
        return self._cache(texts, self.dim)

    def _compute(self, texts: Sequence[str]) -> Floats:
        batches = [self._ask(texts[i : i + 128]) for i in range(0, len(texts), 128)]
        return _unit(np.concatenate(batches))

    def _ask(self, texts: Sequence[str]) -> Floats:
        # Servers refuse empty texts.
        body = {"model": self._model, "input": [text.strip() or "-" for text in texts]}
        try:
            reply = self._client.post(self._url, json=body, headers=self._headers)
            reply.raise_for_status()
            rows = sorted(reply.json()["data"], key=lambda row: row["index"])
            vectors = np.array([row["embedding"] for row in rows], np.float32)
        except httpx.HTTPStatusError as error:
            raise ModelUnavailable(
                f"the embedder at {self._url} answered {error.response.status_code} for model "
                f"{self._model!r}: {error.response.text[:200]}"
            ) from error
        except httpx.HTTPError as error:
            raise ModelUnavailable(
                f"the embedder at {self._url} could not be reached ({error}); is it running?"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ModelUnavailable(
                f"the embedder at {self._url} did not answer in OpenAI's form: {error!r}"
            ) from error
        if vectors.shape[:1] != (len(texts),) or vectors.ndim != 2:
            raise ModelUnavailable(
                f"the embedder at {self._url} was sent {len(texts)} texts and answered with "
                f"vectors of shape {vectors.shape}"
            )
        return vectors


class _Cache:
    """Remembers the vectors of the texts used last; safe to share between threads."""

    def __init__(self, compute: Callable[[Sequence[str]], Floats]) -> None:
        self._compute = compute
        self._vectors: OrderedDict[str, Floats] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, texts: Sequence[str], dim: int) -> Floats:
        if isinstance(texts, str):
            raise TypeError("embed() takes a list of texts, not one text")
        found: dict[str, Floats] = {}
        with self._lock:
            for text in texts:
                if (vector := self._vectors.get(text)) is not None:
                    self._vectors.move_to_end(text)
                    found[text] = vector
        missing = [text for text in dict.fromkeys(texts) if text not in found]
        if missing:
            found.update(zip(missing, self._compute(missing), strict=True))
            with self._lock:
                for text in missing:
                    # A copy, or one remembered row would keep its whole batch in memory.
                    self._vectors[text] = found[text].copy()
                while len(self._vectors) > CACHED_TEXTS:
                    self._vectors.popitem(last=False)
        return np.array([found[text] for text in texts], np.float32).reshape(len(texts), dim)


def _unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
