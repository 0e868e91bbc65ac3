"""Attention on packed trees: who sees whom, computed without the scores of who doesn't."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from memory_r1.errors import ConfigError
from memory_r1.train.batch import Packed


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
    return Layout(number[:, :prefix], branch.view(rows, branches, length), back, unseen), number


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
    """Attention that only computes what a tree lets its tokens see: for CPUs.

    A prefix attends to itself; each branch to its prefix and to itself. Beside a mask over the
    whole packed sequence this skips every branch's scores for all other branches.
    Raises ConfigError for attention of another kind than full and softmax.
    """
    tree = _known(module, tree, more)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    tokens = _tokens(query, key, value)
    rows, branches, length = tree.branch.shape
    heads, size = tokens[0].shape[1:]
    q, k, v = (_taken(t, tree.prefix) for t in tokens)
    # Padding stands behind what it pads, where no real token looks.
    on_prefix = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling)
    own = (_taken(t, tree.branch.view(rows * branches, length)) for t in tokens)
    unseen = tree.unseen.to(value.dtype)
    on_branch = _OnBranches.apply(*own, k, v, unseen, scaling)  # type: ignore[no-untyped-call]
    every = torch.cat([t.transpose(1, 2).reshape(-1, heads, size) for t in (on_prefix, on_branch)])
    return every.index_select(0, tree.back)[None], None


def _tokens(*parts: Tensor) -> list[Tensor]:
    """(1, heads, tokens, size) -> (tokens, heads, size) each, of one dtype: under autocast queries
    and keys may come back from the rotation wider than values."""
    return [t[0].transpose(0, 1).to(parts[-1].dtype) for t in parts]


def _taken(tokens: Tensor, where: Tensor) -> Tensor:
    """Tokens by number: (tokens, heads, size) at (n, m) -> (n, heads, m, size)."""
    taken = tokens.index_select(0, where.flatten())
    return taken.view(*where.shape, *tokens.shape[1:]).transpose(1, 2)


class _OnBranches(torch.autograd.Function):
    """What branches see: their whole prefix, and themselves causally, in one softmax.

    The CPU's flash kernel runs on each of the two, and also tells the logarithm of its softmax's
    denominator; the shares of the two in the whole follow from these. The kernel's backward pass
    knows a softmax by its output and that logarithm alone, so it runs on each part with those of
    the whole, and no scores are ever kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,  # (rows * branches, heads, length, size)
        key: Tensor,
        value: Tensor,
        far_key: Tensor,  # (rows, heads, prefix, size)
        far_value: Tensor,
        unseen: Tensor,  # (rows, 1, 1, prefix) added to the scores
        scale: float | None,
    ) -> Tensor:
        far, far_log = (
            _regrouped(t, len(query))
            for t in _FLASH(
                *(_regrouped(query, len(far_key)), far_key, far_value),
                attn_mask=unseen,
                scale=scale,
            )
        )
        near, near_log = _FLASH(query, key, value, is_causal=True, scale=scale)
        log = torch.logaddexp(far_log, near_log)
        out = torch.lerp(near, far, (far_log - log).exp()[..., None].to(far.dtype))
        ctx.save_for_backward(query, key, value, far_key, far_value, unseen, out, log)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, far_key, far_value, unseen, out, log = ctx.saved_tensors
        far_grad, far_query, far_out, far_log = (
            _regrouped(t, len(far_key)) for t in (grad, query, out, log)
        )
        far = _FLASH_BACKWARD(
            *(far_grad, far_query, far_key, far_value, far_out, far_log, 0.0, False),
            attn_mask=unseen,
            scale=ctx.scale,
        )
        near = _FLASH_BACKWARD(grad, query, key, value, out, log, 0.0, True, scale=ctx.scale)
        by_query = near[0] + _regrouped(far[0], len(query))
        return by_query, *near[1:], *far[1:], None, None


_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _regrouped(t: Tensor, n: int) -> Tensor:
    """(m, heads, length, ...) -> (n, heads, m * length / n, ...): branches side by side in the row
    of their prefix, or each in one of its own."""
    tokens = t.transpose(1, 2)
    return tokens.reshape(n, -1, *tokens.shape[2:]).transpose(1, 2)


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
    """`tree_attention` for GPUs.

    Prefixes are plain causal attention, flash attention's own case. A branch's few queries look at
    its prefix and itself laid side by side; the mask of that is small.
    """
    tree = _known(module, tree, more)
    rows, prefix = tree.prefix.shape
    branches, length = tree.branch.shape[1:]
    tokens = _tokens(query, key, value)
    heads, kv_heads, size = query.shape[1], key.shape[1], query.shape[-1]
    group = heads // kv_heads

    q, k, v = (_taken(t, tree.prefix) for t in tokens)
    on_prefix = scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=scaling, enable_gqa=group > 1
    )  # padding stands behind what it pads, where no real token looks
    own = tree.branch.view(rows * branches, length)
    q, own_k, own_v = (_taken(t, own) for t in tokens)
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


TREE, FUSED = "tree", "fused_tree"
"""The names transformers knows `tree_attention` and `fused_tree_attention` by."""
AttentionInterface.register(TREE, tree_attention)
AttentionInterface.register(FUSED, fused_tree_attention)


def attention_for(device: str) -> str:
    """The fastest exact attention for packed trees on a kind of device.

    Both run in torch's fused kernels, which keep no scores. What a branch sees of its prefix and of
    itself is computed apart on a CPU, whose kernel joins the two; elsewhere under a mask.
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
