"""the name of a model -> what lies where: a folder's files, an adapter's base, the hub's cache."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import httpx

from memory_r1.errors import ModelUnavailable
from memory_r1.types import Style

STYLE_FILE = "memory_r1.json"
"""Next to config.json: how the model's prompts are written, {"style": "compact"}."""
ADAPTER_FILE = "adapter_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "tokenizer_config.json",
)
_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json")


def is_path(name: str | Path) -> bool:
    """Whether a name is meant as a folder here and not as an id of the hub."""
    return isinstance(name, Path) or name.startswith((".", "/", "~")) or Path(name).is_dir()


def _unusable(folder: str, expected: str, seen: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{folder} is not a model: expected {expected}, {seen}. Point to a folder written by "
        "save_pretrained, to the output of a training run, or name a Hugging Face model"
    )


def base_of(path: str) -> str:
    """Where the full weights are: the path itself, or the base of an adapter folder.

    Raises ModelUnavailable for a folder in which something is missing.
    """
    folder = Path(path)
    if not is_path(path):
        return path
    if not folder.is_dir():
        raise _unusable(path, "a folder", "there is none")
    seen = "it holds " + (", ".join(sorted(f.name for f in folder.iterdir())[:12]) or "nothing")
    if (folder / ADAPTER_FILE).is_file():
        base = _read_json(folder / ADAPTER_FILE).get("base_model_name_or_path")
        if not isinstance(base, str) or not base:
            raise _unusable(path, f"base_model_name_or_path in {ADAPTER_FILE}", "it is not there")
        inside = folder / base
        return base_of(str(inside) if inside.is_dir() else base)
    if not (folder / "config.json").is_file():
        raise _unusable(path, f"config.json (or {ADAPTER_FILE})", seen)
    if not any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        raise _unusable(path, "weights, such as model.safetensors", seen)
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise _unusable(path, "a tokenizer, such as tokenizer.json", seen)
    return path


def style_of(path: str) -> Style | None:
    """What a folder says of how its prompts are written; ModelUnavailable for an unusable file."""
    file = Path(path) / STYLE_FILE
    if not is_path(path) or not file.is_file():
        return None
    match _read_json(file).get("style"):
        case "compact":
            return "compact"
        case "instruct":
            return "instruct"
        case other:
            raise _unusable(
                path, f'style "compact" or "instruct" in {STYLE_FILE}', f"got {other!r}"
            )


def version_of(base: str) -> str:
    """The base and, of a folder, what its files are: one that was trained anew is another."""
    if not is_path(base):
        return base
    files = sorted(p for p in Path(base).iterdir() if p.suffix in (".json", ".safetensors", ".bin"))
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return f"{Path(base).resolve()} {states}"


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unusable(str(file.parent), f"JSON in {file.name}", str(error)) from error
    if not isinstance(data, dict):
        raise _unusable(str(file.parent), f"a JSON object in {file.name}", f"got {data!r:.80}")
    return data


def check_name(name: str) -> None:
    """Refuse what is neither a path nor can be an id of the hub; ModelUnavailable."""
    if is_path(name):
        return
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise _no_model(name, "it is no folder here, and can't be a Hugging Face id") from error


def find_on_hub(name: str) -> None:
    """Refuse at once an id that is neither in the local cache nor to be had from the hub.

    The hub's own client would retry for a minute or more before it says so.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    if is_path(name) or isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    reason = "the environment forbids downloads (HF_HUB_OFFLINE)"
    if not constants.HF_HUB_OFFLINE:
        url = f"{constants.ENDPOINT}/{name}/resolve/main/config.json"
        try:
            found = httpx.head(url, timeout=20, follow_redirects=True)
        except httpx.HTTPError as error:
            reason = f"{constants.ENDPOINT} can't be reached ({error})"
        else:
            if found.status_code not in (401, 403, 404):  # a private model has a token of its own
                return
            if constants.HF_TOKEN_PATH and os.path.isfile(constants.HF_TOKEN_PATH):
                return
            reason = f"{constants.ENDPOINT} answered {found.status_code} for it"
    raise _no_model(name, f"it is no folder here, it is not in the local cache, and {reason}")


def _no_model(name: str, reason: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"no model {name!r}: {reason}. Expected rules, tiny, tiny-base, a folder, openai:MODEL, a "
        "URL with #MODEL, or a Hugging Face id"
    )
