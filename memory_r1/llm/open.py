"""The name of a model, a file or a service -> the agents that play the roles."""

from __future__ import annotations

import hashlib
import json
import os
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import get_args
from urllib.parse import parse_qsl

from memory_r1.errors import ConfigError, DataError
from memory_r1.llm import LLM, Agents, Role
from memory_r1.llm.rate import RateLimit

BUNDLED = ("tiny", "tiny-base")
"""The models inside this package."""
ROLES_FILE = "agents.json"
"""In the folder of a training run: which model plays which role."""


def open_agents(name: str | None) -> Agents:
    """The agents a name stands for.

    None, "rules"             no model
    "tiny", "tiny-base"       a bundled model
    a folder                  a training run (`agents.json`) or a Hugging Face model
    "openai:MODEL"            an OpenAI-compatible service (OPENAI_BASE_URL, OPENAI_API_KEY)
    "http://HOST/v1#MODEL"    the same, at this URL
    anything else             a model id of Hugging Face, run here

    A service is asked at most MEMORY_R1_RPM times and for MEMORY_R1_TPM tokens per minute, where
    these are set, and by MEMORY_R1_CONCURRENCY (8) requests at once;
    "http://HOST/v1?rpm=60&tpm=100000&concurrency=64#MODEL" says it for one URL.

    Raises ConfigError for a name that cannot be meant, DataError for an unusable `agents.json`,
    ModelUnavailable when the model can't be loaded, MissingExtra when that needs torch.
    """
    if name is None or name == "rules":
        return Agents()
    folder = folder_of(name)
    if name and (folder / ROLES_FILE).is_file():
        return _open_run(folder)
    llm = open_llm(name)
    return Agents(llm, llm, llm)


def folder_of(name: str) -> Path:
    """Where a model is: the folder of a bundled one, else the name taken as a path."""
    return Path(str(files("memory_r1"))) / "models" / name if name in BUNDLED else Path(name)


def open_llm(name: str) -> LLM:
    """The one model a name stands for; see `open_agents`."""
    if name.startswith("openai:"):
        return _open_service(name.removeprefix("openai:"), os.environ.get("OPENAI_BASE_URL", ""))
    if name.startswith(("http://", "https://")):
        url, _, model = name.partition("#")
        return _open_service(model, url)
    if not name.strip() or (name.startswith((".", "/", "~")) and not Path(name).is_dir()):
        raise ConfigError(
            f"no model is called {name!r}; expected rules, {', '.join(BUNDLED)}, a folder, "
            "openai:MODEL, a URL with #MODEL, or a Hugging Face id"
        )
    from memory_r1.llm.local import LocalLLM

    local = LocalLLM(str(folder_of(name)) if name in BUNDLED else name)
    local.identity = fingerprint(name)
    return local


def fingerprint(name: str | None) -> str:
    """A name, and for a model folder also what is in it, so that a retrained one is told apart."""
    if name is None:
        return ""
    folder = folder_of(name)
    if not folder.is_dir():
        return name
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors")):
        state = path.stat()
        digest.update(f"{path.relative_to(folder)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return f"{folder.name} {digest.hexdigest()[:12]}"


def _open_service(model: str, url: str) -> LLM:
    if not model:
        raise ConfigError(
            "which model? Write openai:MODEL, or the URL with the model after a #, such as "
            "http://localhost:8000/v1#my-model"
        )
    from memory_r1.llm.openai import OpenAILLM

    key = os.environ.get("OPENAI_API_KEY", "")
    base, _, query = (url or "https://api.openai.com/v1").partition("?")
    base = base.rstrip("/")
    requests, tokens, concurrency = _limits(base, query)
    limit = _limit_of(base, requests, tokens) if requests or tokens else None
    return OpenAILLM(model, base_url=base, api_key=key, limit=limit, concurrency=concurrency or 8)


_LIMITS = {
    "rpm": "MEMORY_R1_RPM",
    "tpm": "MEMORY_R1_TPM",
    "concurrency": "MEMORY_R1_CONCURRENCY",
}


def _limits(url: str, query: str) -> list[int | None]:
    """The limits of a service, in this order, from its URL's query, else from the environment."""
    given = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := given.keys() - _LIMITS.keys():
        raise ConfigError(
            f"unknown setting {min(unknown)!r} in {url}?{query}; expected rpm (requests per "
            "minute), tpm (tokens per minute) or concurrency (requests at once)"
        )
    numbers: list[int | None] = []
    for name, variable in _LIMITS.items():
        value = given.get(name, os.environ.get(variable, ""))
        if (value or name in given) and not re.fullmatch(r"[1-9][0-9]{0,11}", value):
            raise ConfigError(f"{name} ({variable}) is {value!r}; expected a number from 1")
        numbers.append(int(value) if value else None)
    return numbers


@cache
def _limit_of(url: str, requests: int | None, tokens: int | None) -> RateLimit:
    """One limit for all models of a service, however often they are opened."""
    return RateLimit(requests, tokens)


def _open_run(folder: Path) -> Agents:
    """The players of a training run; a model that plays several roles is loaded once."""
    path = folder / ROLES_FILE
    try:
        roles = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    if (
        not isinstance(roles, dict)
        or not roles.keys() <= set(get_args(Role))
        or not all(isinstance(player, str) for player in roles.values())
    ):
        raise DataError(
            f"{path} should name a model for extract, manage and answer, such as "
            f'{{"manage": "manager", "answer": "tiny-base"}}, got {roles!r:.200}'
        )
    opened: dict[str, LLM] = {}

    def player(role: str) -> LLM | None:
        name = roles.get(role, "rules")
        if name == "rules":
            return None
        name = str(folder / name) if (folder / name).is_dir() else name
        if name not in opened:
            opened[name] = open_llm(name)
        return opened[name]

    return Agents(extract=player("extract"), manage=player("manage"), answer=player("answer"))
