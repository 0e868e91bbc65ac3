"""texts -> unit vectors: a static model from a wheel, sentence-transformers, or a URL."""

from __future__ import annotations

import importlib.util
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable
from urllib.parse import urlsplit

import httpx
import numpy as np
from numpy.typing import NDArray

from memory_r1.caches import forgettable
from memory_r1.config import without_login
from memory_r1.errors import ConfigError, MissingExtra, ModelUnavailable

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

    None, "wordllama"                       the local default
    "sentence-transformers:NAME_OR_PATH"    a model of that library, run here
    "URL#MODEL"                             an OpenAI-compatible service, e.g.
                                            "http://localhost:11434/v1#nomic-embed-text"

    Raises ConfigError for another name, MissingExtra without sentence-transformers.
    """
    if name in (None, "", "wordllama", LocalEmbedder.name):
        return LocalEmbedder()
    assert name is not None
    if name.startswith(("http://", "https://")):
        return HttpEmbedder(name, api_key=api_key)
    if name.startswith(SentenceTransformersEmbedder.prefix):
        return SentenceTransformersEmbedder(name)
    raise ConfigError(
        f"unknown embedder {name!r}; expected 'wordllama', "
        "'sentence-transformers:NAME_OR_PATH', or a URL and a model such as "
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
            [_sound(text) for text in texts], add_special_tokens=False
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


class SentenceTransformersEmbedder:
    """A model of sentence-transformers, loaded at its first use.

    name: "sentence-transformers:" and a folder, or an id of Hugging Face. What is in the local
    cache is loaded without a network. Texts longer than the model's limit are cut by it.
    """

    prefix: Final = "sentence-transformers:"

    def __init__(self, name: str) -> None:
        """Raises MissingExtra, and ConfigError for a name without a model."""
        if importlib.util.find_spec("sentence_transformers") is None:
            raise MissingExtra(
                f"the embedder {name!r}", "sentence-transformers", "sentence-transformers"
            )
        self.name = name
        self._model_name = name.removeprefix(self.prefix)
        if not self._model_name.strip():
            raise ConfigError(
                f"the embedder {name!r} names no model; expected a folder or an id, "
                f"e.g. {self.prefix}all-MiniLM-L6-v2"
            )
        self._cache = _Cache(self._compute)
        self._loading = threading.Lock()
        self._held: Any = None

    @cached_property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._compute(["dimension"]).shape[1])

    def embed(self, texts: Sequence[str]) -> Floats:
        """(n, dim) unit vectors; see `Embedder.embed`."""
        return self._cache(texts, self.dim)

    def _compute(self, texts: Sequence[str]) -> Floats:
        vectors = self._model().encode(
            [_sound(text) for text in texts], convert_to_numpy=True, show_progress_bar=False
        )
        return _unit(_without_blanks(np.asarray(vectors, np.float32), texts))

    def _model(self) -> Any:
        with self._loading:
            if self._held is None:
                self._held = self._load()
        return self._held

    def _load(self) -> Any:
        from huggingface_hub import constants
        from sentence_transformers import SentenceTransformer

        try:
            try:
                return SentenceTransformer(self._model_name, local_files_only=True)
            except (OSError, ValueError):
                if Path(self._model_name).exists() or constants.HF_HUB_OFFLINE:
                    raise
                # Where there is no way to the hub, its own client would try for a minute.
                httpx.head(constants.ENDPOINT, timeout=20)
                return SentenceTransformer(self._model_name)
        except Exception as error:  # whatever its readers of weights and settings raise
            reason = " ".join(str(error).split())[:300]
            raise ModelUnavailable(
                f"the embedder {self.name!r} can't be loaded: {reason}. Expected a folder written "
                "by SentenceTransformer.save, or the id of a model that is in the local cache or "
                "can be downloaded"
            ) from error


class HttpEmbedder:
    """Any server with OpenAI's `/embeddings`: vLLM, Ollama, or a hosted one; threads may share it.

    name:    "URL#MODEL"
    api_key: sent as a bearer token; without one, OPENAI_API_KEY is sent to api.openai.com alone.
    retries: further attempts at a busy or absent server, with growing pauses.
    """

    def __init__(
        self,
        name: str,
        *,
        api_key: str | None = None,
        client: httpx.Client | None = None,
        retries: int = 3,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        name, login = without_login(name)
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
        self._key = api_key or ""
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = client or httpx.Client(timeout=60.0, auth=login)
        self._retries, self._sleep = retries, sleep
        self._cache = _Cache(self._compute)

    @cached_property
    def dim(self) -> int:
        """Length of a vector; asks the server once."""
        return int(self._ask(["dimension"]).shape[1])

    def embed(self, texts: Sequence[str]) -> Floats:
        """(n, dim) unit vectors; see `Embedder.embed`."""
        return self._cache(texts, self.dim)

    def _compute(self, texts: Sequence[str]) -> Floats:
        vectors = np.concatenate([self._ask(batch) for batch in _batches(texts)])
        if vectors.shape[1] != self.dim:
            raise self._unavailable(
                f"answered with vectors of {vectors.shape[1]} numbers, and of {self.dim} before: "
                "it serves another model by now. Let it serve the first again, or name the new "
                "one and run:  memory-r1 reindex"
            )
        return _unit(_without_blanks(vectors, texts))

    def _ask(self, texts: Sequence[str]) -> Floats:
        """(n, its dimension) as the server gives them.

        What is too much for it at once goes in halves, and a text that is too long for it is
        represented by its beginning: where the limit is, only the server knows.
        """
        # Servers refuse empty texts.
        response = self._post([_sound(text).strip() or "-" for text in texts])
        if response.status_code in _TOO_MUCH:
            if (half := len(texts) // 2) > 0:
                return np.concatenate([self._ask(texts[:half]), self._ask(texts[half:])])
            if len(texts[0]) > _SHORTEST:
                return self._ask([texts[0][: len(texts[0]) // 2]])
        return self._read(response, len(texts))

    def _post(self, texts: Sequence[str]) -> httpx.Response:
        body = {"model": self._model, "input": texts}
        for attempt in range(self._retries + 1):
            try:
                response = self._client.post(self._url, json=body, headers=self._headers)
                if response.status_code not in _BUSY or attempt == self._retries:
                    return response
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                if attempt == self._retries:
                    raise self._unavailable(
                        f"could not be reached ({type(error).__name__}: {error}); is it running?"
                    ) from error
            self._sleep(0.5 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _read(self, response: httpx.Response, number: int) -> Floats:
        if not response.is_success:
            raise self._unavailable(
                f"answered {response.status_code} for model {self._model!r}: {response.text[:200]}"
            )
        try:
            rows = sorted(response.json()["data"], key=lambda row: row["index"])
            with np.errstate(over="ignore"):  # what is too large becomes infinite: see below
                vectors = np.array([row["embedding"] for row in rows], np.float32)
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise self._unavailable(f"did not answer in OpenAI's form: {error!r}") from error
        if vectors.shape[:1] != (number,) or vectors.ndim != 2:
            raise self._unavailable(
                f"was sent {number} texts and answered with vectors of shape {vectors.shape}"
            )
        if not np.isfinite(vectors).all():
            raise self._unavailable("answered with vectors that hold no finite numbers")
        return vectors

    def _unavailable(self, problem: str) -> ModelUnavailable:
        if self._key:  # servers echo it
            problem = problem.replace(self._key, "[key]")
        return ModelUnavailable(f"the embedder at {self._url} {problem}")


_BUSY: Final = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_TOO_MUCH: Final = frozenset({400, 413, 422})
"""What servers answer when texts are too many or too long; also for other mistakes."""
_SHORTEST: Final = 200
"""Characters that every model takes: a shorter text is refused for another reason."""
_MOST_TEXTS: Final = 128
_MOST_CHARACTERS: Final = 200_000
"""In one request: OpenAI takes 300,000 tokens."""


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The texts in order, in requests of a size that servers take."""
    batch: list[str] = []
    for text in texts:
        full = sum(map(len, batch)) + len(text) > _MOST_CHARACTERS
        if batch and (full or len(batch) == _MOST_TEXTS):
            yield batch
            batch = []
        batch.append(text)
    yield batch


class _Cache:
    """Remembers the vectors of the texts used last; safe to share between threads."""

    def __init__(self, compute: Callable[[Sequence[str]], Floats]) -> None:
        self._compute = compute
        self._vectors: OrderedDict[str, Floats] = OrderedDict()
        self._lock = threading.Lock()
        forgettable(self, _Cache.clear)

    def clear(self) -> None:
        """Remember nothing."""
        with self._lock:
            self._vectors.clear()

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


def _without_blanks(vectors: Floats, texts: Sequence[str]) -> Floats:
    """The vectors, all zeros where a text holds nothing."""
    return np.where([[bool(text.strip())] for text in texts], vectors, np.float32(0))


def _sound(text: str) -> str:
    """Half a surrogate pair, which no tokenizer takes and no request can hold, is replaced."""
    return text.encode("utf-8", "replace").decode()
