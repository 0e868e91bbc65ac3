"""memory-r1: long-term memory for LLM agents that a trained agent manages."""

__version__ = "0.1.0"
