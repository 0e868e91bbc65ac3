"""token prompts -> sampled replies with log-probabilities; a prompt's keys and values are shared.

A prompt is read once, however many replies it gets: P + G x C tokens instead of G x (P + C).
Serving and training use this one sampler. There is no top-p, top-k or penalty on purpose: the
log-probabilities are those of the distribution the tokens were drawn from.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from memory_r1.errors import ConfigError


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
    batch_tokens: int = 32_768,
) -> list[list[Sample]]:
    """Write `counts` replies to every prompt: one list per prompt, in order.

    model:         a causal LM of transformers (or a peft model around one), left as it was
    prompts:       token ids, at least one each; equal prompts are read once
    end:           ids that finish a reply
    counts:        replies per prompt: one number, or one per prompt
    temperature:   0 is greedy; then the replies to equal prompts are computed once
    seed:          one for all, or one per prompt; the draws of a reply depend on its prompt's seed
                   (a single seed: and place in the list) and its number, not on its batch
    batch_tokens:  most tokens held at once, of padded prompts and of room for their replies; a
                   prompt that needs more travels alone

    Raises ConfigError for a setting out of range, and for a model whose attention is of a kind
    that is not known here.
    """
    numbers = [counts] * len(prompts) if isinstance(counts, int) else list(counts)
    _check(model, prompts, numbers, max_tokens, temperature, seed)
    distinct: dict[tuple[int, ...], list[int]] = {}
    for i, prompt in enumerate(prompts):
        distinct.setdefault(tuple(prompt), []).append(i)
    results: list[list[Sample]] = [[] for _ in prompts]
    groups = list(distinct.items())
    places = [[(i, s) for i in members for s in range(numbers[i])] for _, members in groups]
    rows = [
        [tuple(wanted)] if temperature == 0 and wanted else [(place,) for place in wanted]
        for wanted in places
    ]
    found: dict[tuple[int, int], Sample] = {}
    with _sampling(model):
        sizes = [(len(prompt), len(of)) for (prompt, _), of in zip(groups, rows, strict=True)]
        for batch in _batches(sizes, max_tokens, batch_tokens):
            work = [_Row(b, place) for b, g in enumerate(batch) for place in rows[g]]
            uniforms = None if temperature == 0 else _uniforms(work, seed, max_tokens)
            texts = [groups[g][0] for g in batch]
            replies = _decode(model, texts, work, max_tokens, temperature, frozenset(end), uniforms)
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
    if not isinstance(seed, int) and len(seed) != len(prompts):
        raise ConfigError(f"expected one seed, or one for each of {len(prompts)} prompts")
    if not all(len(prompt) for prompt in prompts):
        raise ConfigError("an empty prompt cannot be continued; give it at least one token")
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        raise ConfigError(f"layers of kind {', '.join(sorted(unknown))} cannot be sampled from here")


@contextmanager
def _sampling(model: Any) -> Iterator[None]:
    """The model without dropout and gradients and with our attention; afterwards as it was."""
    before = model.config._attn_implementation
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        model.set_attn_implementation(_NAME)
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


def _uniforms(rows: Sequence[_Row], seed: int | Sequence[int], max_tokens: int) -> Tensor:
    """The draws of each reply: (rows, max_tokens) in [0, 1)."""

    def stream(prompt: int, number: int) -> np.random.Generator:
        key = (seed, prompt, number) if isinstance(seed, int) else (seed[prompt], number)
        return np.random.default_rng(key)

    return torch.from_numpy(np.stack([stream(*row.places[0]).random(max_tokens) for row in rows]))


def _decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[_Row],
    max_tokens: int,
    temperature: float,
    end: frozenset[int],
    uniforms: Tensor | None,
) -> list[Sample]:
    """Write one reply per row, all rows in step; a row leaves the batch when it is finished."""
    device = next(model.parameters()).device
    shared = _SharedPrefix([len(prompt) for prompt in prompts], device)
    ids: list[list[int]] = [[] for _ in rows]
    logps: list[list[float]] = [[] for _ in rows]
    finished = [False] * len(rows)
    live = list(range(len(rows)))  # the row in each line of the batch
    uniforms = None if uniforms is None else uniforms.to(device)
    logits = shared.read(model, prompts)[[row.prompt for row in rows]]
    shared.begin([row.prompt for row in rows])
    for step in range(max_tokens):
        drawn = None if uniforms is None else uniforms[live, step]
        tokens, chances = draw(logits, temperature, drawn)
        for i, token, logp in zip(live, tokens.tolist(), chances.tolist(), strict=True):
            if not finished[i]:
                ids[i].append(token)
                logps[i].append(logp)
                finished[i] = token in end
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


class _SharedPrefix:
    """Keys and values of a batch: those of its prompts, and those its rows wrote themselves.

    Tokens go through the model as one long line, (1, tokens), so that nothing but attention knows
    of padding; attention is ours, and is handed this object by the model.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = torch.tensor(lengths, device=device)  # (prompts,)
        self.prompts, self.width = len(lengths), max(lengths)
        columns = torch.arange(self.width, device=device)
        self.real = columns < self.lengths[:, None]  # (prompts, width)
        self.padded = min(lengths) < self.width
        self.prefix: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> (prompts, kv heads, width, d)
        self.own: dict[int, tuple[Tensor, Tensor]] = {}  # layer -> (rows, kv heads, capacity, d)
        self.written = -1  # tokens each row has written; -1 while the prompts are read
        self.masks: dict[int | None, Tensor] = {}

    def read(self, model: Any, prompts: Sequence[Sequence[int]]) -> Tensor:
        """The prompts through the model: logits of what follows each, (prompts, vocabulary)."""
        device = self.lengths.device
        line = torch.tensor([[token for prompt in prompts for token in prompt]], device=device)
        logits: Tensor = model(
            input_ids=line,
            position_ids=self.real.nonzero()[:, 1][None],
            use_cache=False,
            logits_to_keep=self.lengths.cumsum(0) - 1,
            shared_prefix=self,
        ).logits
        if len(self.prefix) != model.config.get_text_config().num_hidden_layers:
            raise ConfigError(
                f"{type(model).__name__} has layers whose attention is not exchangeable "
                "(transformers' AttentionInterface); it cannot be sampled from here"
            )
        return logits[0]

    def begin(self, prompt_of: Sequence[int]) -> None:
        """From here on rows are written. prompt_of: the prompt of each row, ascending."""
        self.prompt_of = list(prompt_of)
        self.written = 0
        self._lay_out()

    def write(self, model: Any, tokens: Tensor) -> Tensor:
        """One more token of each row: (rows,) -> logits of the next, (rows, vocabulary)."""
        self.masks.clear()
        logits: Tensor = model(
            input_ids=tokens[None],
            position_ids=(self.start + self.written)[None],
            use_cache=False,
            shared_prefix=self,
        ).logits
        self.written += 1
        return logits[0]

    def drop(self, lines: Sequence[int]) -> list[int]:
        """Take rows out of the batch. Returns, for each line that stays, the line it held before.

        The last rows move into the gaps, so that only they are copied.
        """
        gone = set(lines)
        left = len(self.prompt_of) - len(gone)
        gaps = [line for line in lines if line < left]
        movers = [line for line in range(left, len(self.prompt_of)) if line not in gone]
        order = list(range(left))
        for gap, mover in zip(gaps, movers, strict=True):
            order[gap] = mover
        for layer, pair in self.own.items():
            for tensor in pair if gaps else ():
                tensor[gaps, :, : self.written] = tensor[movers, :, : self.written]
            self.own[layer] = (pair[0][:left], pair[1][:left])
        self.prompt_of = [self.prompt_of[line] for line in order]
        self._lay_out()
        return order

    def _lay_out(self) -> None:
        """Give each row a cell of the grid (prompts, slots) in which it meets its prompt."""
        filled = [0] * self.prompts
        slots = []
        for prompt in self.prompt_of:
            slots.append(filled[prompt])
            filled[prompt] += 1
        self.slots = max(filled)
        device = self.lengths.device
        cells = [p * self.slots + s for p, s in zip(self.prompt_of, slots, strict=True)]
        self.cell = torch.tensor(cells, device=device)  # (rows,)
        self.row = torch.zeros(self.prompts * self.slots, dtype=torch.long, device=device)
        self.row[self.cell] = torch.arange(len(cells), device=device)
        self.dense = cells == list(range(self.prompts * self.slots))
        self.start = self.lengths[self.prompt_of]  # (rows,) position of the first written token

    def to_grid(self, rows: Tensor) -> Tensor:
        """(rows, kv heads, group, n) -> (prompts, kv heads, slots * group, n)."""
        grid = rows if self.dense else rows.index_select(0, self.row)
        _, heads, group, n = rows.shape
        grid = grid.view(self.prompts, self.slots, heads, group, n).transpose(1, 2)
        return grid.reshape(self.prompts, heads, self.slots * group, n)

    def to_rows(self, grid: Tensor, group: int) -> Tensor:
        """The way back."""
        _, heads, _, n = grid.shape
        rows = grid.view(self.prompts, heads, self.slots, group, n).transpose(1, 2)
        rows = rows.reshape(self.prompts * self.slots, heads, group, n)
        return rows if self.dense else rows.index_select(0, self.cell)

    def attend_prompts(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """Causal attention within each prompt; keys and values are kept. Tensors (heads, tokens, d)
        in and (tokens, heads, d) out."""

        def padded(line: Tensor) -> Tensor:
            grid = line.new_zeros(self.prompts, self.width, line.shape[0], line.shape[2])
            grid[self.real] = line.transpose(0, 1)
            return grid.transpose(1, 2).contiguous()

        keys, values = self.prefix[layer] = padded(key), padded(value)
        mask = None
        if window is not None and window < self.width:
            mask = self.real.new_ones(self.width, self.width).tril().triu(1 - window)
        # Padding stands behind what it pads, where no real token looks.
        seen = scaled_dot_product_attention(
            padded(query),
            keys,
            values,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=query.shape[0] != key.shape[0],
        )
        return seen.transpose(1, 2)[self.real]

    def attend_rows(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """One new token per row looks at the row's prompt and at what the row wrote; one softmax
        over both. Tensors (heads, rows, d) in and (rows, heads, d) out."""
        kv_heads, rows, d = key.shape
        group = query.shape[0] // kv_heads
        queries = query.transpose(0, 1).reshape(rows, kv_heads, group, d) * scale
        own_keys, own_values = self._append(layer, key, value, window)
        keys, values = self.prefix[layer]
        far = torch.matmul(self.to_grid(queries), keys.transpose(2, 3))
        if self.padded or window is not None:
            far += self._mask(window, far.dtype)
        near = torch.matmul(queries, own_keys.transpose(2, 3))
        weights = torch.cat([self.to_rows(far, group), near], -1).softmax(-1)
        read = torch.matmul(self.to_grid(weights[..., : self.width]), values)
        seen = torch.matmul(weights[..., self.width :], own_values)
        return (seen + self.to_rows(read, group)).view(rows, kv_heads * group, d)

    def _append(
        self, layer: int, key: Tensor, value: Tensor, window: int | None
    ) -> tuple[Tensor, Tensor]:
        """Keep (kv heads, rows, d) as each row's latest; returns all its own still in the window."""
        heads, rows, d = key.shape
        if layer not in self.own or self.own[layer][0].shape[2] == self.written:
            # Doubled when full: replies are mostly far shorter than they are allowed to be.
            grown = (key.new_empty(rows, heads, max(32, 2 * self.written), d) for _ in range(2))
            bigger = next(grown), next(grown)
            for old, new in zip(self.own.get(layer, ()), bigger, strict=False):
                new[:, :, : self.written] = old
            self.own[layer] = bigger
        first = max(0, self.written + 1 - window) if window is not None else 0
        keys, values = self.own[layer]
        keys[:, :, self.written] = key.transpose(0, 1)
        values[:, :, self.written] = value.transpose(0, 1)
        return keys[:, :, first : self.written + 1], values[:, :, first : self.written + 1]

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Minus infinity where a prompt is padding or out of the window: (prompts, 1, 1, width)."""
        if window not in self.masks:
            seen = self.real
            if window is not None:
                columns = torch.arange(self.width, device=seen.device)
                seen = seen & (columns > (self.lengths + self.written - window)[:, None])
            mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
            self.masks[window] = mask.masked_fill_(~seen, -torch.inf)[:, None, None]
        return self.masks[window]


def _attention(
    module: nn.Module,
    query: Tensor,  # (1, heads, tokens, d)
    key: Tensor,  # (1, kv heads, tokens, d)
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    shared_prefix: _SharedPrefix | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    if shared_prefix is None or more.get("softcap") or more.get("s_aux") is not None:
        raise ConfigError(
            f"{type(module).__name__} attends in a way that is not known here (it caps scores, "
            "has sinks, or does not pass arguments on); it cannot be sampled from"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    reading = shared_prefix.written < 0
    attend = shared_prefix.attend_prompts if reading else shared_prefix.attend_rows
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    return attend(layer, query[0], key[0], value[0], scale, sliding_window)[None], None


_NAME = "shared_prefix"
AttentionInterface.register(_NAME, _attention)
