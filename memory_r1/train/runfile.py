"""A training run, described by one TOML file: `runs/*.toml`, and `config.toml` in a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from memory_r1.errors import ConfigError
from memory_r1.train.configfile import (
    Amount,
    Count,
    Natural,
    Positive,
    Range,
    Section,
    Share,
    dump_config,
    load_config,
    read_toml,
)

Averaging = Literal["token", "sequence", "dr_grpo"]


@dataclass(frozen=True)
class World(Section):
    """[world]: dialogues made by the synthetic world."""

    seed: Natural = 0
    """Which dialogues; worlds of different seeds share none."""
    dialogues: Count = 200
    """How many dialogues to make."""
    sessions: Count = 4
    """Sessions per dialogue."""
    words: str = "train"
    """The pool that names and values are drawn from, e.g. "train" or "unseen"."""
    dials: Mapping[str, Any] = field(default_factory=dict)
    """Further dials of the world by name; the world checks them."""


@dataclass(frozen=True)
class Data(Section):
    """[data]: dialogues of a benchmark file, instead of [world]."""

    path: str
    """A file in LoCoMo's format."""
    split: str = "train"
    """Which of its dialogues to learn from."""


@dataclass(frozen=True)
class Sft(Section):
    """[sft]: the tiny model's warm start from the world's lessons (kind = "sft")."""

    tokens_per_step: Count = 8_000
    """Tokens read per step, prompts counted once per memory they share."""
    muon_lr: Positive = 0.02
    """Peak rate of Muon, which moves the layers' matrices; decays along a cosine."""
    adam_lr: Positive = 3e-3
    """Peak rate of AdamW, which moves the rest."""
    bf16: bool = True
    """Compute in bfloat16; weights stay in full precision."""
    hidden: Count = 192
    """Width of a new model (model = "new")."""
    layers: Count = 4
    """Layers of a new model."""
    heads: Count = 4
    """Attention heads of a new model."""
    mlp: Count = 512
    """Width of a new model's MLPs."""
    vice_accumulate: Share = 0.75
    """How often the teacher deletes the old and adds the new where facts accumulate."""
    vice_repeat: Share = 0.5
    """How often it adds what is known."""
    vice_retract: Share = 0.5
    """How often it adds a cancellation beside the plan."""
    vice_overwrite: Share = 0.15
    """How often it adds the new beside the old."""
    wide: bool = False
    """Also teach what no world holds and users write: any year, speakers without a capital."""


@dataclass(frozen=True)
class Rollout(Section):
    """[rollout]: how the policy is sampled."""

    prompts: Count = 16
    """Episodes started per step, each played by its own group."""
    group_size: Count = 8
    """Rollouts per episode; in GRPO a rollout is judged against the rest of its group."""
    temperature: Positive = 1.0
    """Of sampling, and of the log-probs that are trained on."""
    max_tokens: Count = 256
    """Longest completion; what is cut off there is counted."""
    questions: Count = 4
    """Questions asked about a decision of the Memory Manager, at most; the reward is their mean."""
    turns: Count = 1
    """Turns a Memory Manager's episode lasts, at most: 1 decides on one turn and is asked at once
    (Algorithm 1); more play a dialogue from an empty bank, asked at its end (Algorithm 5)."""


@dataclass(frozen=True)
class Grpo(Section):
    """[grpo]: advantages from comparing the rollouts of a group."""

    clip: Positive = 0.2
    """How far one update may move a token's probability ratio from 1."""
    clip_high: Positive | None = None
    """The same upwards, where it should differ from downwards."""
    dual_clip: Annotated[float, Range(above=1)] | None = 3.0
    """Bounds the loss of a token with a negative advantage to so many times that advantage."""
    kl: Amount = 0.001
    """Weight of the KL divergence to the reference (k3, in the loss); 0 runs no reference."""
    scale_by_std: bool = True
    """Divide advantages by the standard deviation of their group."""
    average: Averaging = "token"
    """What the loss of a step is averaged over."""
    epochs: Count = 1
    """Passes over the rollouts of a step."""
    minibatches: Count = 1
    """Optimizer steps per pass."""


@dataclass(frozen=True)
class Ppo(Section):
    """[ppo]: advantages from a critic that is trained along."""

    clip: Positive = 0.2
    """How far one update may move a token's probability ratio from 1."""
    dual_clip: Annotated[float, Range(above=1)] | None = 3.0
    """Bounds the loss of a token with a negative advantage to so many times that advantage."""
    value_clip: Positive = 0.5
    """How far one update may move the critic's value and be paid for it."""
    gamma: Share = 1.0
    """What a reward is worth one token earlier."""
    lam: Share = 0.95
    """Trust in the critic: 0 looks no further than the next token, 1 not at all at the critic."""
    critic_lr: Positive = 1e-5
    """Learning rate of the value head."""
    value_warmup: Natural = 0
    """First steps in which only the critic learns."""
    kl: Amount = 0.001
    """Weight of the KL divergence to the reference (k1, in the reward); 0 runs no reference."""
    kl_target: Positive | None = None
    """The KL divergence to steer for by changing its weight."""
    kl_horizon: Count = 10_000
    """Rollouts over which the weight may change by a fifth."""
    average: Averaging = "token"
    """What the loss of a step is averaged over."""
    epochs: Count = 1
    """Passes over the rollouts of a step."""
    minibatches: Count = 1
    """Optimizer steps per pass."""


@dataclass(frozen=True)
class Optimizer(Section):
    """[optimizer]: AdamW, constant after a linear warm-up."""

    lr: Positive = 1e-6
    """Learning rate; with LoRA about ten times that of full training."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """Decay of the running mean and of the running square of the gradient."""
    weight_decay: Amount = 0.0
    """Pull of the weights towards zero."""
    warmup_steps: Natural = 0
    """Steps in which the rate rises from zero."""
    grad_clip: Positive = 1.0
    """Longest gradient; a longer one is shortened to it."""


@dataclass(frozen=True)
class Steps(Section):
    """[steps]: how long the run is."""

    total: Count = 200
    """Training steps."""
    checkpoint_every: Count = 50
    """Steps between checkpoints; the last step always makes one."""
    samples_every: Count = 10
    """Steps between episodes written out for reading."""
    micro_batch_tokens: Count = 16_384
    """Most tokens in one forward pass; changes memory and speed, not the result."""


@dataclass(frozen=True)
class Eval(Section):
    """[eval]: greedy evaluation on dialogues that are not trained on."""

    every: Natural = 20
    """Steps between evaluations, besides before the first and after the last; 0: only those."""
    questions: Count = 200
    """Questions asked each time, always the same."""
    words: Literal["train", "unseen"] = "train"
    """The words of the held-out worlds, with [world]: those known from training, or unseen."""
    split: str = "validation"
    """The held-out dialogues, with [data]."""


@dataclass(frozen=True)
class Run(Section):
    """Everything that decides what a run does."""

    kind: Literal["sft", "manager", "answer"]
    """What is trained: a model by worked examples, or one of the two agents by its outcome."""
    model: str
    """What training starts from: a bundled model, a Hugging Face id, a path, a run folder."""
    seed: Natural = 0
    """Of everything random; the same file and seed give the same run."""
    algorithm: Literal["grpo", "ppo"] = "grpo"
    """How outcomes become an update."""
    manager: str | None = None
    """The frozen Memory Manager that built the banks, where `answer` is trained; None: `model`."""
    answer: str | None = None
    """The frozen Answer Agent that earns the reward, where `manager` is trained; None: `model`."""
    extract: str | None = None
    """Who extracts facts; None: `model`; "rules": each turn is one fact."""
    world: World | None = None
    data: Data | None = None
    sft: Sft = Sft()
    rollout: Rollout = Rollout()
    grpo: Grpo = Grpo()
    ppo: Ppo = Ppo()
    optimizer: Optimizer = Optimizer()
    steps: Steps = Steps()
    eval: Eval = Eval()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "sft":
            if self.world or self.data:
                raise ConfigError(
                    "kind 'sft' writes lessons of its own; leave out [world] and [data]"
                )
        elif (self.world is None) == (self.data is None):
            seen = "both" if self.world else "neither"
            raise ConfigError(f"expected [world] or [data], one of them; {seen} is given")
        if self.data is not None and self.data.split == self.eval.split:
            raise ConfigError(
                f"data.split and eval.split are both {self.data.split!r}; held-out dialogues must "
                "not be trained on"
            )
        if self.kind == "manager" and self.manager is not None:
            raise ConfigError("'manager' names a frozen manager, but it is what is trained here")
        if self.kind == "answer" and self.answer is not None:
            raise ConfigError("'answer' names a frozen answerer, but it is what is trained here")
        grpo = self.kind != "sft" and self.algorithm == "grpo"
        if grpo and self.rollout.group_size < 2:
            raise ConfigError(
                f"rollout.group_size is {self.rollout.group_size}; "
                "GRPO compares the rollouts of a group and needs at least 2"
            )


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> Run:
    """Read a run file.

    overrides:  changes such as "grpo.clip=0.3" or "model=tiny-base"
    Raises ConfigError that names the file and the setting.
    """
    named = f"{path} with {' '.join(overrides)}" if overrides else str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the run file {path}: {error}") from error
    try:
        return load_config(Run, read_toml(text, overrides))
    except ConfigError as error:
        raise ConfigError(f"{named}: {error}") from error


def dump(run: Run) -> str:
    """The run as TOML with every setting written out; reading it back gives an equal run."""
    return dump_config(run)
