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
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from memory_r1.errors import ConfigError


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
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    tree: Layout | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attention that only computes what a tree lets its tokens see.

    A prefix attends to itself; each branch to its prefix and to itself. Beside a mask over the
    whole packed sequence this skips every branch's scores for all other branches.
    Raises ConfigError for attention of another kind than full and softmax.
    """
    tree = _known(module, tree, more)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
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
    # Padding stands behind what it pads, where no real token looks.
    on_prefix = scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    q, own_k, own_v = taken(tree.branch, branches, length)  # (rows, heads, branches, length, size)
    flat = (rows, heads, branches * length)
    to_prefix = torch.matmul(q.reshape(*flat, size), k.transpose(2, 3)).add_(tree.unseen)
    to_own = torch.matmul(q, own_k.transpose(3, 4)).add_(_causal(length, tree))
    weights = torch.cat([to_prefix, to_own.reshape(*flat, length)], -1).softmax(-1)
    # Split, not sliced: the gradient of a slice is a tensor of zeros as large as all weights.
    far, near = torch.split(weights, [prefix, length], -1)
    own = torch.matmul(near.reshape(rows, heads, branches, length, length), own_v)
    on_branch = torch.matmul(far, v) + own.view(*flat, size)
    every = torch.cat([t.transpose(1, 2).reshape(-1, heads, size) for t in (on_prefix, on_branch)])
    return every.index_select(0, tree.back)[None], None


def fused_tree_attention(
    module: nn.Module,
    query: Tensor,  # (1, heads, tokens, head size)
    key: Tensor,  # (1, key heads, tokens, head size)
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    tree: Layout | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """`tree_attention` in torch's fused kernels, which keep no scores: for GPUs and long prompts.

    Prefixes are plain causal attention, flash attention's own case. A branch's few queries look at
    its prefix and itself laid side by side; the mask of that is small.
    """
    tree = _known(module, tree, more)
    rows, prefix = tree.prefix.shape
    branches, length = tree.branch.shape[1:]
    # Under autocast queries and keys may come back wider than values from the rotation.
    tokens = [t[0].transpose(0, 1).to(value.dtype) for t in (query, key, value)]
    heads, kv_heads, size = query.shape[1], key.shape[1], query.shape[-1]
    group = heads // kv_heads

    def taken(t: Tensor, where: Tensor) -> Tensor:  # (n, m) -> (n, heads, m, size)
        return t.index_select(0, where.flatten()).view(*where.shape, -1, size).transpose(1, 2)

    q, k, v = (taken(t, tree.prefix) for t in tokens)
    on_prefix = scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=scaling, enable_gqa=group > 1
    )  # padding stands behind what it pads, where no real token looks
    own = tree.branch.view(rows * branches, length)
    q, own_k, own_v = (taken(t, own) for t in tokens)
    k, v = (t.repeat_interleave(branches, 0) for t in (k, v))
    sees = torch.ones((length, length), dtype=torch.bool, device=own.device).tril()
    far = (tree.unseen[:, :, 0] == 0).repeat_interleave(branches, 0).expand(-1, length, -1)
    mask = torch.cat([far, sees.expand(rows * branches, -1, -1)], -1)[:, None]
    # Fused kernels with a mask want as many key heads as query heads: the queries of a group are
    # laid one after the other instead of copying keys and values for each.
    on_branch = scaled_dot_product_attention(
        q.reshape(-1, kv_heads, group * length, size),
        torch.cat([k, own_k], 2),
        torch.cat([v, own_v], 2),
        attn_mask=mask.repeat(1, 1, group, 1),
        scale=scaling,
    ).view(-1, heads, length, size)
    every = torch.cat([t.transpose(1, 2).reshape(-1, heads, size) for t in (on_prefix, on_branch)])
    return every.index_select(0, tree.back)[None], None


def _known(module: nn.Module, tree: Layout | None, more: dict[str, Any]) -> Layout:
    """ConfigError for a layer that attends in a way that would be computed wrongly here."""
    if tree is None or more.get("softcap") or more.get("s_aux") is not None:
        raise ConfigError(
            f"{type(module).__name__} attends in a way that is not known here (it caps scores, has "
            "sinks, or does not pass arguments on); it cannot be trained on packed trees"
        )
    window = more.get("sliding_window")
    longest = tree.prefix.shape[1] + tree.branch.shape[2]
    if window is not None and window < longest:
        raise ConfigError(
            f"a prompt with its reply has {longest} tokens and a layer of the model looks back "
            f"{window}; packed trees know full attention only: shorten prompts or take another "
            "model"
        )
    return tree


def _causal(length: int, tree: Layout) -> Tensor:
    low = torch.finfo(tree.dtype).min
    shape = (length, length)
    return torch.full(shape, low, dtype=tree.dtype, device=tree.back.device).triu(1)


TREE, FUSED = "tree", "fused_tree"
"""The names transformers knows `tree_attention` and `fused_tree_attention` by."""
AttentionInterface.register(TREE, tree_attention)
AttentionInterface.register(FUSED, fused_tree_attention)


def attention_for(device: str) -> str:
    """The fastest exact attention for packed trees on a kind of device.

    Prefixes run in the fused kernel on either. Branches are matrix products on a CPU, where the
    kernel's masked form is slow; elsewhere their scores of a long prompt would not fit.
    """
    return TREE if device == "cpu" else FUSED


def hidden_states(backbone: Any, packed: Packed, dtype: torch.dtype) -> Tensor:
    """Outputs that predict the learned tokens: (targets, hidden).

    With our two attentions the trees travel end to end, without padding; with any other
    implementation as padded rows under a mask, which is the reference. `dtype` is the one
    attention is computed in (that of autocast, where it is on).
    """
    if backbone.config._attn_implementation in (TREE, FUSED):
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
