"""token prompts -> sampled replies with log-probabilities; a prompt's keys and values are shared.

A prompt is read once, however many replies it gets: P + G x C tokens instead of G x (P + C).
Serving and training use this one sampler. There is no top-p, top-k or penalty on purpose: the
log-probabilities are those of the distribution the tokens were drawn from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from memory_r1.errors import ConfigError
from memory_r1.llm.prefix import ATTENTION, SharedPrefix

if TYPE_CHECKING:
    from memory_r1.llm.guide import Guide


class Sample(NamedTuple):
    """One reply."""

    ids: tuple[int, ...]
    """Its tokens, the end token included when it finished."""
    logps: tuple[float, ...]
    """Log-probability of each token under the distribution it was drawn from: the model's at this
    temperature (greedy: at temperature 1), computed in fp32."""
    finished: bool
    """False when it was cut off at `max_tokens`."""


class _Row(NamedTuple):
    """A reply to be written."""

    prompt: int  # which of the distinct prompts
    places: tuple[tuple[int, int], ...]  # (prompt as the caller counts, sample) it is the reply for


def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    end: Collection[int],
    counts: int | Sequence[int] = 1,
    temperature: float = 1.0,
    seed: int | Sequence[int] = 0,
    places: Sequence[int] | None = None,
    batch_tokens: int = 32_768,
    guides: Callable[[], Guide] | None = None,
    watch: Callable[[Sequence[int]], None] | None = None,
) -> list[list[Sample]]:
    """Write `counts` replies to every prompt: one list per prompt, in order.

    model:         a causal LM of transformers (or a peft model around one), left as it was
    prompts:       token ids, at least one each; equal prompts are read once
    end:           ids that finish a reply
    counts:        replies per prompt: one number, or one per prompt
    temperature:   0 is greedy; then the replies to equal prompts are computed once
    seed:          one for all, or one per prompt; the draws of a reply depend on its prompt's seed
                   (a single seed: and place in the list) and its number, not on its batch
    places:        the places of the prompts in the list that they are a part of, ascending, where
                   others write the rest; None: they are all
    batch_tokens:  most tokens held at once, of padded prompts and of room for their replies; a
                   prompt that needs more travels alone
    guides:        makes the guide of a reply, which names the tokens it may go on with; the
                   others' chances are zero
    watch:         shown the tokens so far of a batch's first reply after each step

    Raises ConfigError for a setting out of range, and for a model whose attention is of a kind
    that is not known here.
    """
    numbers = [counts] * len(prompts) if isinstance(counts, int) else list(counts)
    _check(model, prompts, numbers, max_tokens, temperature, seed)
    seeds = _seeds(seed, range(len(prompts)) if places is None else places)
    distinct: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        distinct.setdefault(tuple(prompt), []).append(i)
    results: list[list[Sample]] = [[] for _ in prompts]
    groups = list(distinct.items())
    wanted = [[(i, s) for i in members for s in range(numbers[i])] for _, members in groups]
    rows = [[tuple(of)] if temperature == 0 and of else [(place,) for place in of] for of in wanted]
    found: dict[tuple[int, int], Sample] = {}
    with _sampling(model):
        sizes = [(len(prompt), len(of)) for (prompt, _), of in zip(groups, rows, strict=True)]
        for batch in _batches(sizes, max_tokens, batch_tokens):
            work = [_Row(b, place) for b, g in enumerate(batch) for place in rows[g]]
            uniforms = None if temperature == 0 else _uniforms(work, seeds, max_tokens)
            texts = [groups[g][0] for g in batch]
            replies = _decode(
                *(model, texts, work, max_tokens, temperature, frozenset(end)),
                *(uniforms, guides, watch),
            )
            for row, reply in zip(work, replies, strict=True):
                found |= dict.fromkeys(row.places, reply)
    for i, number in enumerate(numbers):
        results[i] = [found[i, s] for s in range(number)]
    return results


def _check(
    model: Any,
    prompts: Sequence[Sequence[int]],
    counts: Sequence[int],
    max_tokens: int,
    temperature: float,
    seed: int | Sequence[int],
) -> None:
    if max_tokens < 1 or temperature < 0:
        raise ConfigError(
            f"expected max_tokens >= 1 and temperature >= 0, got {max_tokens} and {temperature}"
        )
    if len(counts) != len(prompts) or min(counts, default=0) < 0:
        raise ConfigError(f"expected a count of replies for each of {len(prompts)} prompts")
    seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
    if len(seeds) != len(prompts) or min(seeds, default=0) < 0:
        raise ConfigError(f"expected one seed from 0, or one for each of {len(prompts)} prompts")
    if not all(len(prompt) for prompt in prompts):
        raise ConfigError("an empty prompt cannot be continued; give it at least one token")
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        raise ConfigError(
            f"the model has layers of kind {', '.join(sorted(unknown))}; the sampler knows only "
            "full and sliding attention"
        )


@contextmanager
def _sampling(model: Any) -> Iterator[None]:
    """The model without dropout and gradients and with our attention; afterwards as it was."""
    before = model.config._attn_implementation
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        model.set_attn_implementation(ATTENTION)
        with torch.no_grad():
            yield
    finally:
        model.set_attn_implementation(before)
        for module in training:
            module.training = True


def _batches(sizes: Sequence[tuple[int, int]], room: int, budget: int) -> Iterator[list[int]]:
    """Prompts of like length together. sizes: (tokens, replies) of each."""
    batch: list[int] = []
    replies = 0
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i][0]):
        tokens, wanted = sizes[i]
        if not wanted:
            continue
        width = sizes[batch[0]][0] if batch else tokens
        if batch and (len(batch) + 1) * width + (replies + wanted) * room > budget:
            yield batch
            batch, replies = [], 0
        batch.append(i)
        replies += wanted
    if batch:
        yield batch


def _seeds(seed: int | Sequence[int], places: Sequence[int]) -> list[tuple[int, ...]]:
    """What the draws of each prompt depend on."""
    if isinstance(seed, int):
        return [(seed, place) for place in places]
    return [(own,) for own in seed]


def _uniforms(rows: Sequence[_Row], seeds: Sequence[tuple[int, ...]], max_tokens: int) -> Tensor:
    """The draws of each reply: (rows, max_tokens) in [0, 1)."""

    def stream(prompt: int, number: int) -> np.random.Generator:
        return np.random.default_rng((*seeds[prompt], number))

    return torch.from_numpy(np.stack([stream(*row.places[0]).random(max_tokens) for row in rows]))


def _decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[_Row],
    max_tokens: int,
    temperature: float,
    end: frozenset[int],
    uniforms: Tensor | None,
    guides: Callable[[], Guide] | None,
    watch: Callable[[Sequence[int]], None] | None,
) -> list[Sample]:
    """Write one reply per row, all rows in step; a row leaves the batch when it is finished."""
    device = next(model.parameters()).device
    shared = SharedPrefix([len(prompt) for prompt in prompts], device)
    ids: list[list[int]] = [[] for _ in rows]
    logps: list[list[float]] = [[] for _ in rows]
    finished = [False] * len(rows)
    live = list(range(len(rows)))  # the row in each line of the batch
    guided = None if guides is None else [guides() for _ in rows]
    uniforms = None if uniforms is None else uniforms.to(device)
    logits = shared.read(model, prompts)[[row.prompt for row in rows]]
    shared.begin([row.prompt for row in rows])
    for step in range(max_tokens):
        if guided is not None:
            logits = _within(logits, [None if finished[i] else guided[i] for i in live])
        drawn = None if uniforms is None else uniforms[live, step]
        tokens, chances = draw(logits, temperature, drawn)
        for i, token, logp in zip(live, tokens.tolist(), chances.tolist(), strict=True):
            if not finished[i]:
                ids[i].append(token)
                logps[i].append(logp)
                finished[i] = token in end
                if guided is not None:
                    guided[i].take(token)
        if watch is not None:
            watch(ids[0])
        done = [line for line, i in enumerate(live) if finished[i]]
        if step + 1 == max_tokens or len(done) == len(live):
            break
        if len(done) * _SLACK >= len(live):
            lines = shared.drop(done)
            live, tokens = [live[line] for line in lines], tokens[lines]
        logits = shared.write(model, tokens)
    return [Sample(tuple(i), tuple(p), f) for i, p, f in zip(ids, logps, finished, strict=True)]


_SLACK = 16
"""Finished rows are dropped once they are one of so many: dropping costs a little as well."""


def _within(logits: Tensor, guides: Sequence[Guide | None]) -> Tensor:
    """The logits, minus infinity where a row's guide forbids the token. (rows, vocabulary)"""
    width = logits.shape[1]
    free = np.ones(width, np.bool_)  # a row that is finished: what it draws is thrown away
    allowed = np.stack([free if guide is None else guide.allowed()[:width] for guide in guides])
    return logits.masked_fill(~torch.from_numpy(allowed).to(logits.device), float("-inf"))


def draw(logits: Tensor, temperature: float, uniforms: Tensor | None) -> tuple[Tensor, Tensor]:
    """One token per row, by inverting the distribution's cumulative sum at a uniform number.

    logits: (rows, vocabulary); uniforms: (rows,) in [0, 1), or None for the likeliest token.
    Returns tokens and their log-probabilities, (rows,) each.
    """
    logits = logits.float()
    if uniforms is None:
        best, tokens = logits.max(-1)
        return tokens, best - logits.logsumexp(-1)
    chances = (logits / temperature).softmax(-1)
    # In doubles: summed over 150,000 words in fp32, rare tokens would be lost or doubled, and a
    # uniform next to 1 could point behind the last token.
    double = torch.float32 if chances.device.type == "mps" else torch.float64
    total = chances.cumsum(-1, dtype=double)
    target = uniforms.to(double)[:, None] * total[:, -1:]
    tokens = torch.searchsorted(total, target, right=True).clamp_(max=logits.shape[-1] - 1)
    return tokens[:, 0], chances.gather(-1, tokens)[:, 0].log()
