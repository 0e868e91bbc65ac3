"""Attention for sampling: many rows look at one copy of their prompt's keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from memory_r1.errors import ConfigError


class SharedPrefix:
    """Keys and values of a batch: those of its prompts, and those its rows wrote themselves.

    First `read` the prompts, then `begin` with the rows, then `write` token after token.

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
        still = sorted(set(self.prompt_of))
        if len(still) * 4 <= self.prompts * 3:  # not at each one's end: all that stay are copied
            self._keep_prompts(still)
        self._lay_out()
        return order

    def _keep_prompts(self, still: Sequence[int]) -> None:
        self.prompts = len(still)
        self.lengths, self.real = self.lengths[still], self.real[still]
        for layer, (keys, values) in self.prefix.items():
            self.prefix[layer] = (keys[still], values[still])
        now = {prompt: i for i, prompt in enumerate(still)}
        self.prompt_of = [now[prompt] for prompt in self.prompt_of]

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
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
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
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        window: int | None,
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
        """Keep (kv heads, rows, d) as each row's latest; returns its own that are in the window."""
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
    shared_prefix: SharedPrefix | None = None,
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


ATTENTION = "shared_prefix"
AttentionInterface.register(ATTENTION, _attention)
