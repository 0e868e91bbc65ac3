"""The model being trained: sampling, log-probs and values on packed trees."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from memory_r1.llm.local import LocalLLM
from memory_r1.llm.sampler import sample
from memory_r1.train.batch import Branch, Packed, Tree, by_tokens, hidden_states, pack
from memory_r1.train.rollout import Step
from memory_r1.types import Completion, Prompt, Style


class Policy:
    """A local model that is sampled and updated; as an LLM it answers with its present weights."""

    def __init__(self, llm: LocalLLM, *, temperature: float, max_tokens: int) -> None:
        """temperature: of sampling, and of the log-probs that are trained on."""
        self.llm = llm
        self.name: str = llm.name
        self.style: Style = llm.style
        self.temperature = temperature
        self.max_tokens = max_tokens
        if llm.model.device.type == "cpu":
            llm.model.set_attn_implementation("tree")

    @property
    def model(self) -> Any:
        """The transformers model."""
        return self.llm.model

    def generate(self, prompts: Sequence[Prompt], *, seed: int | None) -> list[Step]:
        """Complete prompts at the policy's temperature, or greedily without a seed.

        Prompts may repeat: each distinct one is computed once and its samples share it.
        """
        ids = [tuple(self.llm.encode(prompt)) for prompt in prompts]
        made = sample(
            self.model,
            ids,
            max_tokens=self.max_tokens,
            temperature=0.0 if seed is None else self.temperature,
            end=self.llm.end_ids,
            seed=seed or 0,
        )
        return [
            Step(
                prompt_ids,
                one.ids,
                one.logps,
                self.llm.decode(one.ids),
                prompt.text,
                one.finished,
            )
            for prompt, prompt_ids, (one,) in zip(prompts, ids, made, strict=True)
        ]

    def complete(
        self,
        prompts: Sequence[Prompt],
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        schema: Mapping[str, Any] | None = None,
    ) -> list[Completion]:
        """Greedy completions (the LLM protocol), for evaluation."""
        return [
            Completion(step.text, len(step.prompt_ids), len(step.ids), step.finished)
            for step in self.generate(prompts, seed=None)
        ]

    def save(self, folder: Path) -> None:
        """Write the model in Hugging Face form, as `LocalLLM` loads it."""
        self.llm.save(folder)


class Critic(nn.Module):
    """What an unfinished completion is worth: a backbone of its own and one number per token."""

    def __init__(self, backbone: nn.Module, hidden: int) -> None:
        """backbone: copied, so that the critic's gradient never reaches the policy."""
        super().__init__()
        self.backbone = copy.deepcopy(backbone)
        self.head = nn.Linear(hidden, 1, dtype=torch.float32)
        # Zero at first: a random critic would teach the policy noise.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


@dataclass(frozen=True)
class Row:
    """One completion to learn from."""

    step: Step
    episode: int
    """Number of its episode; the rows of one episode follow each other in order."""
    advantage: float = 0.0
    """Of all its tokens, where the algorithm gives one per completion (GRPO)."""


class MicroBatch(NamedTuple):
    """Rows that travel through the model together, prompts shared."""

    rows: list[int]
    """Which rows, in the order of the tensors' first axis."""
    packed: Packed
    mask: Tensor  # (rows, tokens) bool


def micro_batches(
    rows: Sequence[Row], budget: int, pad: int, device: torch.device
) -> Iterator[MicroBatch]:
    """Rows with one prompt become one tree; trees travel together up to a budget of tokens."""
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        by_prompt.setdefault(row.step.prompt_ids, []).append(i)
    members = list(by_prompt.values())
    trees = [
        Tree(prompt, tuple(Branch(rows[i].step.ids) for i in of))
        for prompt, of in by_prompt.items()
    ]
    for chosen in by_tokens(trees, budget):
        flat = [i for t in chosen for i in members[t]]
        packed = pack([trees[t] for t in chosen], pad, device)
        lengths = torch.tensor([len(rows[i].step.ids) for i in flat], device=device)
        mask = torch.arange(int(lengths.max()), device=device)[None] < lengths[:, None]
        yield MicroBatch(flat, packed, mask)


class Scored(NamedTuple):
    """What a model says of sampled tokens, (rows, tokens), zero outside the mask."""

    logp: Tensor
    entropy: Tensor  # nats, without a gradient


def score(model: Any, batch: MicroBatch, temperature: float) -> Scored:
    """Log-probs of the sampled tokens and the entropy there, at the sampling temperature."""
    hidden = hidden_states(model.model, batch.packed, model.dtype)
    logits = model.lm_head(hidden).float() / temperature  # (targets, vocabulary)
    logps = logits.log_softmax(-1)
    chosen = logps.gather(-1, batch.packed.target[:, None])[:, 0]
    with torch.no_grad():
        entropy = -(logps.exp() * logps).sum(-1)
    return Scored(_as_rows(chosen, batch), _as_rows(entropy, batch))


def values(critic: Critic, batch: MicroBatch) -> Tensor:
    """The critic's estimate before each sampled token, (rows, tokens), zero outside the mask."""
    dtype = next(critic.backbone.parameters()).dtype
    hidden = hidden_states(critic.backbone, batch.packed, dtype)
    return _as_rows(critic.head(hidden.float())[:, 0], batch)


def _as_rows(per_target: Tensor, batch: MicroBatch) -> Tensor:
    rows = per_target.new_zeros(batch.mask.shape)
    return rows.index_put((batch.packed.branch, batch.packed.offset), per_target)


def sampled_logps(rows: Sequence[Row], batch: MicroBatch) -> Tensor:
    """The log-probs the sampler noted, (rows, tokens)."""
    noted = torch.zeros(batch.mask.shape, device=batch.mask.device)
    for k, i in enumerate(batch.rows):
        logps = rows[i].step.logps
        noted[k, : len(logps)] = torch.tensor(logps)
    return noted
