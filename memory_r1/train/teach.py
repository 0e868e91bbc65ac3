"""The tiny model's warm start: supervised lessons from the world, packed as trees.

Muon on the matrices and AdamW on the rest beat AdamW alone at equal time; both rates decay along
a cosine from the start, because a constant one left the model restless.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from memory_r1.data.world import WorldWords
from memory_r1.errors import MemoryR1Error
from memory_r1.llm.prompting import ARROW, KNOWN
from memory_r1.train.attention import hidden_states
from memory_r1.train.batch import Branch, Packed, Tree, by_tokens, pack
from memory_r1.train.lessons import Lesson, Teacher, Vice


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    steps: optimizer steps in all. A rate rises for `warmup` steps and falls along a cosine to a
    fiftieth.
    """

    steps: int
    tokens_per_step: int
    muon_lr: float
    adam_lr: float
    warmup: int = 50

    def share(self, step: int) -> float:
        """The share of the peak rate at a step."""
        cosine = 0.98 * (1 + math.cos(math.pi * min(1.0, step / self.steps))) / 2
        return min(1.0, (step + 1) / self.warmup) * (0.02 + cosine)


def tree_of(lesson: Lesson, tokenizer: Any) -> Tree:
    """A lesson in tokens; every reply ends with the end token, which is learned too."""
    texts = [lesson.prefix, *(part for e in lesson.endings for part in (e.given, e.reply))]
    prefix, *parts = tokenizer(texts)["input_ids"]
    end = tokenizer.eos_token_id
    branches = [
        Branch((*given, *reply, end), len(given))
        for given, reply in zip(parts[::2], parts[1::2], strict=True)
    ]
    return Tree(tuple(prefix), tuple(branches))


def optimizers(model: nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, norms and biases."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=schedule.muon_lr, momentum=0.95, weight_decay=0.0),
        torch.optim.AdamW(rest, lr=schedule.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def deciding(packed: Packed, markers: Tensor) -> Tensor:
    """Weights of the learned tokens: 2 where the reply decides (its first token, and what follows
    a label: another memory or the answer), else 1. (targets,)"""
    heavy = (packed.offset == 0) | torch.isin(packed.target, markers)
    return 1.0 + heavy.float()


class Teaching:
    """The state of a warm start; `step` is one optimizer step."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        teacher: Teacher,
        schedule: Schedule,
        *,
        bf16: bool,
        micro: int,
        curriculum: bool = True,
    ) -> None:
        """bf16: compute in it (weights stay fp32). micro: most padded tokens in a forward pass.

        curriculum: begin with few memories per bank, as a new model needs it.
        """
        self.curriculum = curriculum
        self.model, self.tokenizer, self.teacher = model, tokenizer, teacher
        self.schedule, self.bf16, self.micro = schedule, bf16, micro
        self.optimizers = optimizers(model, schedule)
        self.tokens = 0

    def step(self, number: int) -> dict[str, float]:
        """Read fresh lessons, move the weights; returns the step's metrics."""
        trees = self.read(number / self.schedule.steps if self.curriculum else 1.0)
        loss = backward(
            self.model, self.tokenizer, trees, _learned(trees), bf16=self.bf16, micro=self.micro
        )
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), 1.0))
        if not norm < float("inf"):
            raise MemoryR1Error(
                f"the gradient became {norm} at step {number + 1}; the last checkpoint is sound. "
                "Start a new folder with lower sft rates"
            )
        share = self.schedule.share(number)
        rates = (self.schedule.muon_lr * share, self.schedule.adam_lr * share)
        for optimizer, lr in zip(self.optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return {"tokens": self.tokens, "loss": float(loss), "grad_norm": norm, "lr": rates[0]}

    def read(self, progress: float) -> list[Tree]:
        """The lessons of one step."""
        trees: list[Tree] = []
        while sum(tree.size for tree in trees) < self.schedule.tokens_per_step:
            lessons = self.teacher.lessons(progress)
            trees += [tree_of(lesson, self.tokenizer) for lesson in lessons]
        self.tokens += sum(tree.size for tree in trees)
        return trees

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        version, internal, gauss = self.teacher.rng.getstate()
        return {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "teacher": [version, list(internal), gauss],
            "tokens": self.tokens,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from such a state."""
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        version, internal, gauss = state["teacher"]
        self.teacher.rng.setstate((version, tuple(internal), gauss))
        self.tokens = state["tokens"]


def backward(
    model: nn.Module,
    tokenizer: Any,
    trees: Sequence[Tree],
    learned: int,
    *,
    bf16: bool,
    micro: int,
) -> Tensor:
    """Add the gradients of the weighted loss, and return the loss: a scalar without gradient.

    learned: how many learned tokens the loss is a mean over, all micro-batches together, so that it
    doesn't depend on how the trees are split.
    """
    device = next(model.parameters()).device
    markers = torch.tensor(tokenizer.convert_tokens_to_ids([ARROW, KNOWN, ","]), device=device)
    total = torch.zeros((), device=device)
    for members in by_tokens(trees, micro):
        packed = pack([trees[i] for i in members], tokenizer.pad_token_id, device)
        logits = reply_logits(model, packed, bf16)
        losses = cross_entropy(logits.float(), packed.target, reduction="none")
        loss = (losses * deciding(packed, markers)).sum() / learned
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total


def _learned(trees: Sequence[Tree]) -> int:
    return sum(len(branch.ids) - branch.given for tree in trees for branch in tree.branches)


def reply_logits(model: Any, packed: Packed, bf16: bool) -> Tensor:
    """Logits that predict the learned tokens: (targets, vocabulary)."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    with torch.autocast(packed.ids.device.type, dtype=torch.bfloat16, enabled=bf16):
        logits: Tensor = model.lm_head(hidden_states(model.model, packed, dtype))
    return logits


@torch.no_grad()
def exact_replies(
    model: Any,
    tokenizer: Any,
    *,
    words: WorldWords,
    seed: int,
    dialogues: int,
    micro: int,
    bf16: bool,
) -> dict[str, float]:
    """Share of whole replies a greedy decoder would get exactly right, by role.

    Asked of banks of 16 to 28 memories and a teacher without vice; a reply is right when every one
    of its tokens is the most likely one after the right tokens before it.
    """
    teacher = Teacher(seed, Vice(0, 0, 0, 0), words=words, sizes=(16, 28), untidy=0.0)
    lessons = [lesson for _ in range(dialogues) for lesson in teacher.lessons(1.0)]
    right: dict[str, list[bool]] = {}
    trees = [tree_of(lesson, tokenizer) for lesson in lessons]
    for members in by_tokens(trees, micro):
        packed = pack(
            [trees[i] for i in members], tokenizer.pad_token_id, next(model.parameters()).device
        )
        wrong = reply_logits(model, packed, bf16).argmax(-1) != packed.target
        branches = torch.zeros(int(packed.branch.max()) + 1, device=wrong.device)
        branches.index_add_(0, packed.branch, wrong.float())
        verdicts = iter((branches == 0).tolist())
        for i in members:
            for ending in lessons[i].endings:
                verdict = next(verdicts)
                for name in dict.fromkeys((ending.role, ending.name)):
                    right.setdefault(name, []).append(verdict)
    return {name: sum(of) / len(of) for name, of in sorted(right.items())}
