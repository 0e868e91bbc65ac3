"""The name of a model -> how large it is, and how it was trained, as far as its folder says so."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from memory_r1.llm import Role
from memory_r1.llm.open import ROLES_FILE, folder_of

_KINDS = {"manage": "manager", "answer": "answer", "extract": "sft"}
"""What a run file calls the training of a role."""
_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s?([bBmM])(?![a-zA-Z])")


def trained(name: str, role: Role) -> dict[str, Any] | None:
    """How the player of a role was trained: {"algorithm", "reward", "model", "seed"}.

    From the run file that `memory-r1 train` leaves in its folder; None for what has none, as base
    models and services, whose training we can't know.
    """
    for folder in _folders(name, role):
        path = folder / "config.toml"
        if not path.is_file():
            continue
        config = tomllib.loads(path.read_text("utf-8"))
        if config.get("kind") in (_KINDS[role], "sft"):
            algorithm = "sft" if config["kind"] == "sft" else config.get("algorithm")
            return {
                "algorithm": algorithm,
                "reward": _reward(config) if algorithm != "sft" else None,
                "model": config.get("model"),
                "seed": config.get("seed"),
            }
    return None


def _reward(config: Mapping[str, Any]) -> str:
    """The name in [reward]; runs from before there was that section were paid for exact match."""
    return str(config.get("reward", {}).get("name", "em"))


def size_of(name: str) -> float | None:
    """Billions of parameters of the model that answers: from its weights, else from its name."""
    for folder in _folders(name, "answer"):
        sizes = [_parameters(path) for path in sorted(folder.glob("model*.safetensors"))]
        if sizes:
            return round(sum(sizes) / 1e9, 4)
    found = _SIZE.findall(name)
    if not found:
        return None
    number, unit = found[-1]
    return float(number) / (1 if unit in "bB" else 1000)


def _folders(name: str, role: Role) -> Iterator[Path]:
    """Where the player of a role may say what it is: its own folder, and the run it came from."""
    folder = folder_of(name)
    roles = folder / ROLES_FILE
    if roles.is_file():
        player = str(json.loads(roles.read_text("utf-8")).get(role, "rules"))
        inside = folder / player
        if inside.is_dir():
            yield inside
            yield inside.resolve().parent
        elif player != "rules":
            yield folder_of(player)
    elif folder.is_dir():
        yield folder
        yield folder.resolve().parent


def _parameters(path: Path) -> int:
    from safetensors import safe_open

    with safe_open(path, "np") as weights:
        slices = (weights.get_slice(name).get_shape() for name in weights.keys())  # noqa: SIM118
        total = 0
        for shape in slices:
            count = 1
            for length in shape:
                count *= length
            total += count
    return total
