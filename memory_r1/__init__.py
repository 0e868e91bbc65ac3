"""memory-r1: long-term memory for LLM agents that a trained agent manages."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memory_r1.aio import AsyncMemory
    from memory_r1.memory import Memory

__version__ = "0.1.0"
__all__ = ["AsyncMemory", "Memory", "__version__"]


def __getattr__(name: str) -> Any:
    """Load the facade when it is first asked for, so that `import memory_r1` takes no time."""
    if name == "Memory":
        from memory_r1.memory import Memory

        return Memory
    if name == "AsyncMemory":
        from memory_r1.aio import AsyncMemory

        return AsyncMemory
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
