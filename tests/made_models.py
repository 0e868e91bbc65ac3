"""Models with random weights, made where a test needs one."""

from pathlib import Path


def random_tiny(path: Path) -> Path:
    """A Qwen2 of the tiny model's kind, far smaller, in this folder."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from memory_r1.train import sft, tokenizer

    torch.manual_seed(0)
    words = tokenizer.build()
    config = Qwen2Config(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=48,
        tie_word_embeddings=True,
        max_position_embeddings=256,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
    )
    sft.save(Qwen2ForCausalLM(config), words, path)
    return path
