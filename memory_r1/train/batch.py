"""Trees of tokens -> tensors: one prefix, many branches that don't see each other.

A prompt and its completions share one prefix (GRPO, PPO); a memory and several questions on it
share one as well (the tiny model's warm start). The prefix is computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface


@dataclass(frozen=True)
class Branch:
    """A continuation of a prefix. The first `given` tokens are input only; the rest is learned."""

    ids: tuple[int, ...]
    given: int = 0


@dataclass(frozen=True)
class Tree:
    """A prefix (at least one token) and its branches (each with at least one learned token)."""

    prefix: tuple[int, ...]
    branches: tuple[Branch, ...]

    @property
    def size(self) -> int:
        """Tokens in the packed sequence."""
        return len(self.prefix) + sum(len(branch.ids) for branch in self.branches)


class Packed(NamedTuple):
    """Trees packed one per row, and where the learned tokens are."""

    ids: Tensor  # (rows, width)
    positions: Tensor  # (rows, width), restarting after the prefix in every branch
    segments: Tensor  # (rows, width): 0 prefix, 1.. branch, -1 padding
    row: Tensor  # (targets,) row of each learned token
    parent: Tensor  # (targets,) column whose output predicts it
    target: Tensor  # (targets,) its id
    branch: Tensor  # (targets,) number of its branch, counted over all rows in order
    offset: Tensor  # (targets,) how many learned tokens of the branch come before it


def pack(trees: Sequence[Tree], pad: int, device: torch.device | str = "cpu") -> Packed:
    """Lay trees out in rows as wide as the largest tree."""
    width = max(tree.size for tree in trees)
    ids = torch.full((len(trees), width), pad)
    positions = torch.zeros((len(trees), width), dtype=torch.long)
    segments = torch.full((len(trees), width), -1)
    rows: list[int] = []
    parents: list[int] = []
    targets: list[int] = []
    numbers: list[int] = []
    offsets: list[int] = []
    number = 0
    for r, tree in enumerate(trees):
        start = len(tree.prefix)
        flat, where, which = list(tree.prefix), list(range(start)), [0] * start
        for b, branch in enumerate(tree.branches, 1):
            begin, n = len(flat), len(branch.ids)
            flat += branch.ids
            where += range(start, start + n)
            which += [b] * n
            learned = n - branch.given
            rows += [r] * learned
            parents += [begin + k - 1 if k else start - 1 for k in range(branch.given, n)]
            targets += branch.ids[branch.given :]
            numbers += [number] * learned
            offsets += range(learned)
            number += 1
        ids[r, : len(flat)] = torch.tensor(flat)
        positions[r, : len(flat)] = torch.tensor(where)
        segments[r, : len(flat)] = torch.tensor(which)
    columns = [
        torch.tensor(c, dtype=torch.long) for c in (rows, parents, targets, numbers, offsets)
    ]
    return Packed(*(t.to(device) for t in (ids, positions, segments, *columns)))


def attention_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """Who sees whom: (rows, width) segments -> (rows, 1, width, width), added to the scores.

    A token sees itself and what stands before it in the prefix and in its own branch. Nothing
    sees padding; padding sees the prefix, so that no row of the softmax is empty.
    """
    width = segments.shape[1]
    causal = torch.ones((width, width), dtype=torch.bool, device=segments.device).tril()
    same = segments[:, :, None] == segments[:, None, :]
    seen = causal & (same | (segments == 0)[:, None, :]) & (segments != -1)[:, None, :]
    mask = torch.zeros(seen.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


class Layout(NamedTuple):
    """Where the tokens of packed trees, laid end to end without padding, belong in attention."""

    prefix: Tensor  # (rows, prefix) number of each prefix token; anything where there is none
    branch: Tensor  # (rows, branches, length) the same for branches
    back: Tensor  # (tokens,) place of each token among prefixes, then branches, laid flat
    unseen: Tensor  # (rows, 1, 1, prefix) added to scores: lowest where there is no token
    dtype: torch.dtype


def layout(packed: Packed, dtype: torch.dtype) -> tuple[Layout, Tensor]:
    """The layout, and the number of every token: (rows, width), anything in the padding."""
    segments = packed.segments
    rows, width = segments.shape
    device = segments.device
    number = ((segments >= 0).flatten().cumsum(0) - 1).view(rows, width).clamp_min(0)
    own = segments == 0
    prefix, branches = int(own.sum(1).max()), int(segments.max())
    row, column = (segments > 0).nonzero(as_tuple=True)
    offset = packed.positions[row, column] - own.sum(1)[row]
    length = int(offset.max()) + 1
    slot = (row * branches + segments[row, column] - 1) * length + offset
    branch = torch.zeros(rows * branches * length, dtype=torch.long, device=device)
    branch[slot] = number[row, column]
    back = torch.empty(int((segments >= 0).sum()), dtype=torch.long, device=device)
    back[number[row, column]] = rows * prefix + slot
    row, column = own.nonzero(as_tuple=True)
    back[number[row, column]] = row * prefix + column
    unseen = torch.zeros((rows, 1, 1, prefix), dtype=dtype, device=device)
    unseen.masked_fill_(~own[:, None, None, :prefix], torch.finfo(dtype).min)
    return Layout(
        number[:, :prefix], branch.view(rows, branches, length), back, unseen, dtype
    ), number


def tree_attention(
    module: nn.Module,
    query: Tensor,  # (1, heads, tokens, head size)
    key: Tensor,  # (1, key heads, tokens, head size)
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    tree: Layout,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention that only computes what a tree lets its tokens see.

    A prefix attends to itself; each branch to its prefix and to itself. Beside a mask over the
    whole packed sequence this skips every branch's scores for all other branches.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    tokens = [t[0].transpose(0, 1) for t in (query * scaling, key, value)]  # (tokens, heads, size)
    rows, prefix = tree.prefix.shape
    branches, length = tree.branch.shape[1:]
    heads, size = tokens[0].shape[1:]

    def taken(where: Tensor, *shape: int) -> list[Tensor]:
        parts = [t.index_select(0, where.flatten()) for t in tokens]
        return [p.view(rows, *shape, heads, size).movedim(-2, 1) for p in parts]

    q, k, v = taken(tree.prefix, prefix)  # (rows, heads, prefix, size)
    scores = torch.matmul(q, k.transpose(2, 3)) + _causal(prefix, tree)
    on_prefix = torch.matmul(scores.softmax(-1), v)
    q, own_k, own_v = taken(tree.branch, branches, length)  # (rows, heads, branches, length, size)
    flat = (rows, heads, branches * length)
    to_prefix = torch.matmul(q.reshape(*flat, size), k.transpose(2, 3)) + tree.unseen
    to_own = torch.matmul(q, own_k.transpose(3, 4)) + _causal(length, tree)
    weights = torch.cat([to_prefix, to_own.reshape(*flat, length)], -1).softmax(-1)
    own_weights = weights[..., prefix:].reshape(rows, heads, branches, length, length)
    on_branch = torch.matmul(weights[..., :prefix], v)
    on_branch = on_branch + torch.matmul(own_weights, own_v).view(*flat, size)
    every = torch.cat([t.transpose(1, 2).reshape(-1, heads, size) for t in (on_prefix, on_branch)])
    return every.index_select(0, tree.back)[None], None


def _causal(length: int, tree: Layout) -> Tensor:
    low = torch.finfo(tree.dtype).min
    shape = (length, length)
    return torch.full(shape, low, dtype=tree.dtype, device=tree.back.device).triu(1)


TREE = "tree"
"""The name transformers knows `tree_attention` by."""
AttentionInterface.register(TREE, tree_attention)


def hidden_states(backbone: Any, packed: Packed, dtype: torch.dtype) -> Tensor:
    """Outputs that predict the learned tokens: (targets, hidden).

    With `tree` attention the trees travel end to end, without padding; with any other
    implementation as padded rows under a mask, which is the reference. `dtype` is the one
    attention is computed in (that of autocast, where it is on).
    """
    if backbone.config._attn_implementation == TREE:
        tree, number = layout(packed, dtype)
        real = packed.segments >= 0
        output = backbone(
            input_ids=packed.ids[real][None],
            # Four dimensions: transformers takes it as it is and makes none of its own.
            attention_mask=torch.zeros((1, 1, 1, 1), device=real.device),
            position_ids=packed.positions[real][None],
            use_cache=False,
            tree=tree,
        ).last_hidden_state[0]  # (tokens, hidden)
        chosen: Tensor = output[number[packed.row, packed.parent]]
        return chosen
    output = backbone(
        input_ids=packed.ids,
        attention_mask=attention_mask(packed.segments, dtype),
        position_ids=packed.positions,
        use_cache=False,
    ).last_hidden_state  # (rows, width, hidden)
    chosen = output[packed.row, packed.parent]
    return chosen


def by_tokens(trees: Sequence[Tree], budget: int) -> Iterator[list[int]]:
    """Micro-batches: positions of trees in `trees`, alike in size, at most `budget` padded tokens.

    A tree larger than the budget travels alone.
    """
    batch: list[int] = []
    for i in sorted(range(len(trees)), key=lambda i: -trees[i].size):
        if batch and (len(batch) + 1) * trees[batch[0]].size > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
