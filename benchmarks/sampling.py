"""How fast replies are sampled: ours, which shares prompts, beside `generate` of transformers.

    python benchmarks/sampling.py [--threads 1] [--rounds 3] [--prompts 32] [--samples 8] [--fixed]

Both sample at temperature 1 from the same random model of the tiny model's shape, in one batch.
A reply ends at any of a set of ids, so that it has about 25 tokens, as a trained model's would;
`generate` goes on until the longest is finished. With --fixed every reply has exactly 25 tokens.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from memory_r1.llm.sampler import sample

VOCABULARY, LONGEST, FIXED = 1294, 96, 25
END = list(range(1, 53))  # a share of 1/25 of a near-uniform distribution


def tiny(end: list[int]) -> Qwen2ForCausalLM:
    """A random model of 2.0M parameters, the tiny model's shape."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=end or None,
        pad_token_id=0,
    )
    return Qwen2ForCausalLM(config).eval()


def ours(model: Qwen2ForCausalLM, prompts: list[list[int]], samples: int, seed: int) -> int:
    """New tokens written by the shared-prefix sampler."""
    end = model.config.eos_token_id or ()
    longest = LONGEST if end else FIXED
    replies = sample(model, prompts, counts=samples, max_tokens=longest, end=end, seed=seed)
    return sum(len(reply.ids) for of in replies for reply in of)


@torch.no_grad()
def generate(model: Qwen2ForCausalLM, prompts: list[list[int]], samples: int, seed: int) -> int:
    """New tokens written by transformers, all prompts padded to one batch."""
    torch.manual_seed(seed)
    end = model.config.eos_token_id or []
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    whole = model.generate(
        ids,
        attention_mask=mask,
        do_sample=True,
        top_k=0,
        num_return_sequences=samples,
        max_new_tokens=LONGEST if end else FIXED,
    )
    new = whole[:, width:]
    ended = torch.isin(new, torch.tensor(end)).long()
    return int((ended.cumsum(1) - ended == 0).sum())


def timed(
    write: Callable[[Qwen2ForCausalLM, list[list[int]], int, int], int],
    model: Qwen2ForCausalLM,
    prompts: list[list[int]],
    samples: int,
    rounds: int,
) -> float:
    """Median of new tokens per second, after one round to warm up."""
    rates = []
    for seed in range(rounds + 1):
        started = time.perf_counter()
        rates.append(write(model, prompts, samples, seed) / (time.perf_counter() - started))
    return statistics.median(rates[1:])


def main() -> None:
    """Measure both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--fixed", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = tiny([] if options.fixed else END)
    lengths = torch.randint(90, 150, (options.prompts,)).tolist()
    prompts = [torch.randint(60, VOCABULARY, (n,)).tolist() for n in lengths]
    rates = {
        name: timed(write, model, prompts, options.samples, options.rounds)
        for name, write in (("ours", ours), ("generate", generate))
    }
    print(
        f"{options.prompts} prompts of about 120 tokens x {options.samples} replies of about 25, "
        f"{options.threads} thread(s), {os.cpu_count()} cores"
    )
    for name, rate in rates.items():
        print(f"  {name:<10}{rate:8.0f} new tokens/s")
    print(f"  ratio     {rates['ours'] / rates['generate']:8.2f}")


if __name__ == "__main__":
    main()
