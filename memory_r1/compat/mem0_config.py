"""mem0's configuration dict -> a memory of ours, or a sentence that says what to write."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from memory_r1.embed import Embedder, HttpEmbedder, open_embedder
from memory_r1.errors import ConfigError
from memory_r1.llm import Agents
from memory_r1.llm.open import open_agents
from memory_r1.llm.openai import OpenAILLM
from memory_r1.memory import Memory

URLS: Final = {
    "openai": "https://api.openai.com/v1",
    "ollama": "http://localhost:11434/v1",
    "vllm": "http://localhost:8000/v1",
    "lmstudio": "http://localhost:1234/v1",
}
"""Providers that answer in OpenAI's form, and where they are by default."""

_OPENAI: Final = "api.openai.com"

FILE: Final = "memory.db"
"""The store, by itself or inside the folder that a configured vector store was given."""

_SAMPLING: Final = frozenset(
    "temperature max_tokens top_p top_k enable_vision vision_details reasoning_effort "
    "is_reasoning_model http_client_proxies".split()
)
"""Settings of a mem0 model that change nothing here: each agent asks with its own."""
_SIZES: Final = frozenset({"embedding_dims", "embedding_model_dims"})
"""An embedder is asked for its length."""
_ELSEWHERE: Final = {
    "reranker": "leave it out: words, vectors, dates and speakers are ranked together already",
    "graph_store": "leave it out: there is no graph",
    "custom_instructions": "leave it out: the prompts are those that the agents are trained on",
    "custom_fact_extraction_prompt": "leave it out: see docs/migrate.md",
    "custom_update_memory_prompt": "leave it out: see docs/migrate.md",
}


def open_memory(config: Mapping[str, Any] | None) -> Memory:
    """The memory that a mem0 configuration means.

    Without "llm" no model is asked, and each message is one memory; without "embedder" the local
    one is used; without "vector_store" the store is memory.db. Raises ConfigError for what has no
    meaning here, with what to write instead.
    """
    if config is None:
        config = {}
    if not isinstance(config, Mapping):
        raise ConfigError(
            f"config should be a dict, got {type(config).__name__}; of a mem0 MemoryConfig, pass "
            "config.model_dump(), or write the few settings that count as a dict"
        )
    # An absent section and an empty one are the same; the journal is inside the store.
    given = {name: value for name, value in config.items() if value}
    for name in given.keys() - {"llm", "embedder", "vector_store", "history_db_path", "version"}:
        known = "expected llm, embedder or vector_store"
        raise ConfigError(f"{name!r} in the configuration: {_ELSEWHERE.get(name, known)}")
    return Memory(
        _store(given.get("vector_store")),
        llm=_agents(given.get("llm")),
        embedder=_embedder(given.get("embedder")),
    )


def _section(name: str, section: Any) -> tuple[str, dict[str, Any]]:
    """(provider, its settings that are set)"""
    settings = section.get("config") if isinstance(section, Mapping) else None
    provider = section.get("provider") if isinstance(section, Mapping) else None
    if not isinstance(provider, str) or not isinstance(settings or {}, Mapping):
        raise ConfigError(
            f"{name!r} should be {{'provider': ..., 'config': {{...}}}}, got {section!r:.80}"
        )
    return provider, {key: value for key, value in (settings or {}).items() if value is not None}


def _agents(section: Any) -> Agents:
    if section is None:
        return Agents()
    provider, settings = _section("llm", section)
    if provider == "memory-r1":  # any name that we know: "tiny", a training run, a URL
        return open_agents(_only(f"llm {provider}", settings, "model"))
    model, url, key = _service("llm", provider, settings, _SAMPLING)
    llm = OpenAILLM(model, base_url=url, api_key=key)
    return Agents(llm, llm, llm)


def _embedder(section: Any) -> Embedder:
    if section is None:
        return open_embedder()
    provider, settings = _section("embedder", section)
    settings = {key: value for key, value in settings.items() if key not in _SIZES}
    match provider:
        case "memory-r1":
            return open_embedder(_only(f"embedder {provider}", settings, "model"))
        case "huggingface":
            model = _only(f"embedder {provider}", settings, "model")
            return open_embedder(f"sentence-transformers:{model}")
    model, url, key = _service("embedder", provider, settings, frozenset())
    return HttpEmbedder(f"{url}#{model}", api_key=key or None)


def _service(
    name: str, provider: str, settings: Mapping[str, Any], unused: frozenset[str]
) -> tuple[str, str, str]:
    """(model, URL, key) of a provider in OpenAI's form."""
    if provider not in URLS:
        raise ConfigError(
            f"{name} provider {provider!r}: expected {', '.join(URLS)} or memory-r1. Anything "
            "that answers in OpenAI's form works as openai with a 'base_url'"
        )
    # Every provider has its own name for it, beside the one that they share.
    given = settings.get(f"{provider}_base_url") or settings.get("base_url")
    of_openai = provider == "openai" and (not given or urlsplit(given).hostname == _OPENAI)
    url = given or (of_openai and os.environ.get("OPENAI_BASE_URL")) or URLS[provider]
    # The key of the environment is for OpenAI, or for whom the environment names in its place.
    key = settings.get("api_key") or (of_openai and os.environ.get("OPENAI_API_KEY")) or ""
    known = {"model", "api_key", "base_url", f"{provider}_base_url"} | unused
    if unknown := settings.keys() - known:
        raise ConfigError(
            f"unknown setting {min(unknown)!r} of {name} {provider}; known are "
            f"{', '.join(sorted(known - unused))}"
        )
    if not settings.get("model"):
        raise ConfigError(
            f"which model? Write 'config': {{'model': ...}} for {name} provider {provider!r}"
        )
    url = str(url).rstrip("/")
    if provider == "ollama" and not url.endswith("/v1"):  # mem0 speaks Ollama's own protocol
        url += "/v1"
    return str(settings["model"]), url, str(key)


def _only(name: str, settings: Mapping[str, Any], key: str) -> str:
    if settings.keys() != {key}:
        raise ConfigError(f"{name} takes {key!r} and nothing else, got {sorted(settings)}")
    return str(settings[key])


def _store(section: Any) -> str:
    """The location of the store; see `memory_r1.store.open_store`."""
    if section is None:
        return FILE
    provider, settings = _section("vector_store", section)
    if provider == "memory-r1":
        return _only(f"vector_store {provider}", settings, "path")
    if provider == "pgvector" and "connection_string" in settings:
        return str(settings["connection_string"])
    if "path" in settings and not settings.keys() & {"host", "url"}:
        # A vector store on this machine keeps a folder; ours is one file in it.
        folder = Path(str(settings["path"])).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder / FILE)
    raise ConfigError(
        f"vector_store provider {provider!r}: memories live in one SQLite file, or in Postgres. "
        "Write 'vector_store': {'provider': 'memory-r1', 'config': {'path': 'memory.db'}}, with "
        "a path or postgresql://... as the path"
    )
