"""Trees of tokens -> tensors: one prefix, many branches that don't see each other.

A prompt and its completions share one prefix (GRPO, PPO); a memory and several questions on it
share one as well (the tiny model's warm start). The prefix is computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


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
