"""Rendered prompts are golden files, so that a changed prompt is a reviewed diff.

MEMORY_R1_WRITE_GOLDEN=1 writes them anew.
"""

import os
from pathlib import Path

from memory_r1.types import Prompt

FOLDER = Path(__file__).parent / "golden"


def assert_golden(name: str, prompt: Prompt) -> None:
    shown = "".join(f"--- {role}\n{content}\n" for role, content in prompt.messages)
    path = FOLDER / f"{name}.txt"
    if os.environ.get("MEMORY_R1_WRITE_GOLDEN"):
        path.write_text(shown, "utf-8")
    assert path.read_text("utf-8") == shown
