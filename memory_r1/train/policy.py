"""The model being trained: sampling, log-probs and values on packed trees."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from memory_r1.llm.folders import STYLE_FILE
from memory_r1.llm.local import LocalLLM, _no_progress_bars
from memory_r1.llm.sampler import sample
from memory_r1.train.attention import attention_for, hidden_states
from memory_r1.train.batch import (
    Branch,
    Packed,
    Tree,
    by_tokens,
    pack,
)
from memory_r1.train.processes import present
from memory_r1.train.rollout import Step
from memory_r1.train.sharding import gathered, shard, spread, whole, with_weights
from memory_r1.types import Completion, Prompt, Style


class Policy:
    """A local model that is sampled and updated; as an LLM it answers with its present weights.

    What is trained is its adapter, where it has one, else all of its weights.
    """

    def __init__(
        self,
        llm: LocalLLM,
        *,
        temperature: float,
        max_tokens: int,
        compute: torch.dtype | None = None,
        began: LocalLLM | None = None,
        batch_tokens: int = 32_768,
        sharded: bool = False,
    ) -> None:
        """temperature: of sampling, and of the log-probs that are trained on.

        compute: what matrix products are computed in (autocast); None: in the weights' own dtype
        began:   what an adapter was before training, on the same weights: its reference
        sharded: each process of several keeps a part of the weights, from `shard` on
        """
        self.llm = llm
        self.name: str = llm.name
        self.style: Style = llm.style
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.compute = compute
        self.batch_tokens = batch_tokens
        self.began = began
        """The model that an adapter goes on from; None: all weights are trained."""
        self.processes = present()
        """Who works on the run; all of them call the same methods."""
        self.sharded = sharded and self.processes.number > 1
        """Whether the weights are spread over the processes once training begins (`shard`)."""
        llm.model.set_attn_implementation(attention_for(llm.model.device.type))
        if llm.adapter is not None:
            llm.weights.rest_on(llm.adapter)
            for parameter in llm.weights.parameters(llm.adapter).values():
                parameter.requires_grad_(True)

    @property
    def model(self) -> Any:
        """The transformers model, with the policy's adapter in effect unless another is in use."""
        return self.llm.model

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name: the adapter, or all weights."""
        if self.llm.adapter is not None:
            return self.llm.weights.parameters(self.llm.adapter)
        return dict(self.model.named_parameters())

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is trained; an optimizer is given them after `shard`."""
        return iter(self.named_parameters().values())

    def computing(self) -> AbstractContextManager[Any]:
        """Within it matrix products are computed in the policy's precision."""
        kind = self.model.device.type
        return torch.autocast(kind, dtype=self.compute, enabled=self.compute is not None)

    def generate(self, prompts: Sequence[Prompt], *, seed: int | None) -> list[Step]:
        """Complete prompts at the policy's temperature, or greedily without a seed.

        Prompts may repeat: each distinct one is computed once and its samples share it. Each
        process completes its share of them, and what it draws does not depend on which.
        """
        ids = [tuple(self.llm.encode(prompt)) for prompt in prompts]
        mine = self._share(ids)
        with self.llm.active() as model, self.computing():
            made = sample(
                model,
                [ids[i] for i in mine],
                max_tokens=self.max_tokens,
                temperature=0.0 if seed is None else self.temperature,
                end=self.llm.end_ids,
                seed=seed or 0,
                places=mine,
                batch_tokens=self.batch_tokens,
            )
        steps = {
            i: Step(
                ids[i],
                one.ids,
                one.logps,
                self.llm.decode(one.ids),
                prompts[i].text,
                one.finished,
            )
            for i, (one,) in zip(mine, made, strict=True)
        }
        return self.processes.put_together(steps, of=ids)

    def _share(self, ids: Sequence[tuple[int, ...]]) -> list[int]:
        """The prompts that this process completes: equal ones belong together."""
        distinct: dict[tuple[int, ...], list[int]] = {}
        for i, prompt in enumerate(ids):
            distinct.setdefault(prompt, []).append(i)
        groups = list(distinct.values())
        sizes = [len(ids[of[0]]) + len(of) * self.max_tokens for of in groups]
        return sorted(i for g in self.processes.share(sizes) for i in groups[g])

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

    def score(self, batch: MicroBatch, temperature: float | None = None) -> Scored:
        """`score` of the present weights, in the policy's precision and at its temperature."""
        heat = self.temperature if temperature is None else temperature
        with self.llm.active() as model, self.computing():
            return with_weights(model, lambda: score(model, batch, heat))

    def shard(self) -> None:
        """Spread the weights over the processes, where the run says so.

        Adapters in training stay whole. What is copied must have been copied: reference, critic.
        """
        if self.sharded:
            adapters = self.model.parameters() if self.llm.adapter is not None else ()
            learning = {parameter for parameter in adapters if parameter.requires_grad}
            shard(self.model, self.processes.number, whole=learning)

    def gathered(self) -> AbstractContextManager[None]:
        """Within it each process computes on its own, without gradients: to sample, to answer."""
        return gathered(self.model)

    def reference(self) -> Callable[[MicroBatch], Tensor]:
        """Log-probs under the policy as it was before training, (rows, tokens), no gradient.

        Of an adapter that is what it began as: the base, or the adapter it goes on from, both on
        the same weights. All weights are copied as they are now.
        """
        frozen = None if self.began else copy.deepcopy(self.model).eval().requires_grad_(False)
        if frozen is not None and self.sharded:
            shard(frozen, self.processes.number)

        heat = self.temperature

        def logps(batch: MicroBatch) -> Tensor:
            with torch.no_grad(), self.computing():
                if self.began is None:
                    return with_weights(frozen, lambda: score(frozen, batch, heat)).logp
                with self.began.active() as model:
                    return with_weights(model, lambda: score(model, batch, heat)).logp

        return logps

    def state(self) -> dict[str, Tensor]:
        """What training changes, for a checkpoint; whole in the first process."""
        if self.llm.adapter is None:
            return self._whole() if self.sharded else dict(self.model.state_dict())
        return {name: p.detach() for name, p in self.named_parameters().items()}

    def _whole(self) -> dict[str, Tensor]:
        """All weights put together in the first process; tied ones are one tensor, as ever."""
        named = list(self.model.named_parameters(remove_duplicate=False))
        first = {id(parameter): name for name, parameter in reversed(named)}
        tied = {name: first[id(p)] for name, p in named if first[id(p)] != name}
        parts = {n: part for n, part in self.model.state_dict().items() if n not in tied}
        state: dict[str, Tensor] = whole(parts, self.processes.first)
        return state | {name: state[twin] for name, twin in tied.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from such a state."""
        if self.llm.adapter is None:
            self.model.load_state_dict(spread(state, self.model.state_dict()))
        else:
            load_parameters(self.named_parameters(), state)

    def save(self, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Write the model, or its adapter, in Hugging Face form, as `LocalLLM` loads it.

        All processes call it and the first writes; with the state at hand, as `state` gave it,
        the first may call it alone.
        """
        if not (self.sharded and self.llm.adapter is None):
            if self.processes.first:
                self.llm.save(folder)
            return
        state = self.state() if state is None else state
        if self.processes.first:
            with _no_progress_bars():
                # A copy: transformers takes tied weights out of the one it is given.
                self.model.save_pretrained(folder, state_dict=dict(state))
            self.llm.tokenizer.save_pretrained(folder)
            style = json.dumps({"style": self.style})
            (folder / STYLE_FILE).write_text(style + "\n", "utf-8")


def load_parameters(into: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> None:
    """Write saved values into the parameters of the same names; KeyError when they differ."""
    if into.keys() != state.keys():
        raise KeyError(
            f"the state is of other parameters: {sorted(into.keys() ^ state.keys())[:4]}"
        )
    with torch.no_grad():
        for name, parameter in into.items():
            parameter.copy_(state[name])


class Valuer(Protocol):
    """A critic: a backbone, its own or with an adapter of its own, and a head."""

    head: nn.Linear

    def active(self) -> AbstractContextManager[Any]:
        """Its backbone; the values' gradients must be computed inside as well."""
        ...


def value_head(model: Any) -> nn.Linear:
    """One number per token, zero at first: a random critic would teach the policy noise."""
    head = nn.Linear(model.config.get_text_config().hidden_size, 1, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head.to(model.device)


class Critic(nn.Module):
    """What an unfinished completion is worth, beside a policy that is trained as a whole."""

    def __init__(self, model: Any) -> None:
        """model: its backbone is copied: the critic's gradient must not reach the policy."""
        super().__init__()
        self.backbone = copy.deepcopy(model.model)
        self.head = value_head(model)

    @contextmanager
    def active(self) -> Iterator[Any]:
        """The copied backbone."""
        yield self.backbone


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
    """Rows with one prompt become one tree; trees travel together up to a budget of tokens.

    A tree that is larger by itself is cut into several, which compute its prompt again.
    """
    by_prompt: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(rows):
        by_prompt.setdefault(row.step.prompt_ids, []).append(i)
    trees: list[Tree] = []
    members: list[list[int]] = []
    for prompt, of in by_prompt.items():
        for part in _within(budget - len(prompt), of, rows):
            trees.append(Tree(prompt, tuple(Branch(rows[i].step.ids) for i in part)))
            members.append(part)
    for chosen in by_tokens(trees, budget):
        flat = [i for t in chosen for i in members[t]]
        packed = pack([trees[t] for t in chosen], pad, device)
        lengths = torch.tensor([len(rows[i].step.ids) for i in flat], device=device)
        mask = torch.arange(int(lengths.max()), device=device)[None] < lengths[:, None]
        yield MicroBatch(flat, packed, mask)


def _within(room: int, of: Sequence[int], rows: Sequence[Row]) -> Iterator[list[int]]:
    """Rows of one prompt in parts whose completions fit the room, at least one row each."""
    part: list[int] = []
    used = 0
    for i in of:
        size = len(rows[i].step.ids)
        if part and used + size > room:
            yield part
            part, used = [], 0
        part.append(i)
        used += size
    yield part


class Scored(NamedTuple):
    """What a model says of sampled tokens, (rows, tokens), zero outside the mask."""

    logp: Tensor
    entropy: Tensor  # nats, without a gradient


def score(model: Any, batch: MicroBatch, temperature: float) -> Scored:
    """Log-probs of the sampled tokens and the entropy there, at the sampling temperature."""
    hidden = hidden_states(model.model, batch.packed, _attention_dtype(model))
    chosen, entropy = through_head(model.lm_head, hidden, batch.packed.target, temperature)
    return Scored(_as_rows(chosen, batch), _as_rows(entropy, batch))


def values(critic: Valuer, batch: MicroBatch) -> Tensor:
    """The critic's estimate before each sampled token, (rows, tokens), zero outside the mask."""
    with critic.active() as backbone:
        hidden = with_weights(
            backbone, lambda: hidden_states(backbone, batch.packed, _attention_dtype(backbone))
        )
    with torch.autocast(hidden.device.type, enabled=False):
        return _as_rows(critic.head(hidden.float())[:, 0], batch)


def _attention_dtype(model: Any) -> torch.dtype:
    kind = model.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    found: torch.dtype = model.dtype
    return found


LOGITS_AT_ONCE = 1 << 26
"""Numbers: 256 MB in fp32, of which a few copies live at once; 441 tokens of 152,064 words."""


def through_head(
    head: Any, hidden: Tensor, target: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probs of the targets and entropies, both (targets,) in fp32.

    Logits of (targets, vocabulary) may not fit, so they are made in chunks, and made again for the
    gradient, which is the same. What fits one chunk is computed once.
    """
    rows = max(1, LOGITS_AT_ONCE // int(head.weight.shape[0]))
    if len(target) <= rows:
        return _log_probs(head, hidden, target, temperature)
    parts: list[tuple[Tensor, Tensor]] = [
        checkpoint(_log_probs, head, h, t, temperature, use_reentrant=False)
        for h, t in zip(torch.split(hidden, rows), torch.split(target, rows), strict=True)
    ]
    return torch.cat([logp for logp, _ in parts]), torch.cat([entropy for _, entropy in parts])


def _log_probs(
    head: Any, hidden: Tensor, target: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logits = head(hidden).float() / temperature  # (targets, vocabulary)
    logps = logits.log_softmax(-1)
    chosen = logps.gather(-1, target[:, None])[:, 0]
    with torch.no_grad():
        entropy = -(logps.exp() * logps).sum(-1)
    return chosen, entropy


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
