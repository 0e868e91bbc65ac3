"""A training run, described by one TOML file: `runs/*.toml`, and `config.toml` in a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from memory_r1.errors import ConfigError
from memory_r1.llm import Role
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
    banks: Literal["agents", "observations"] = "agents"
    """Who makes the facts and the banks that episodes start from: the run's agents, or the
    ready-made facts that the file holds for its turns (LoCoMo's observations), without a model."""


@dataclass(frozen=True)
class Reward(Section):
    """[reward]: what an answer is paid for; docs/rewards.md."""

    name: str = "em"
    """"em" (exact match), "f1", "judge", or a function of your own as "module:function"."""
    judge: str | None = None
    """The model that grades answers (name = "judge"), by any name of a model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name == "judge" and self.judge is None:
            raise ConfigError("reward.name is 'judge'; say who judges, e.g. judge = 'openai:MODEL'")
        if self.name != "judge" and self.judge is not None:
            raise ConfigError(
                f"reward.judge is {self.judge!r}, but reward.name is {self.name!r}, which asks "
                "nobody; expected name = 'judge', or no judge"
            )


@dataclass(frozen=True)
class Teacher(Section):
    """[teacher]: whom to imitate (Memory-SFT, kind = "sft")."""

    model: str
    """Who plays the agents on the training dialogues: a service, a folder, a Hugging Face id."""
    roles: tuple[Literal["manager", "answer"], ...] = ("manager", "answer")
    """The agents it plays, and that are learned."""
    keep: Literal["all", "right"] = "right"
    """Learn from all of its episodes, or only from those that earned the whole reward."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.roles:
            raise ConfigError("teacher.roles is empty; expected 'manager', 'answer' or both")


@dataclass(frozen=True)
class Stages(Section):
    """[stages]: several trainings in one run, each with the partners the last ones left."""

    order: tuple[Literal["manager", "answer"], ...]
    """Who is trained, one stage after the other; a repeated one goes on from its own weights."""


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
    prompt_tokens: Count | None = None
    """Longest prompt to practise on; starts with a longer one are left out. None: any."""
    batch_tokens: Count = 32_768
    """Most tokens held while sampling, prompts and room for replies; memory and speed only."""
    questions: Count = 4
    """Questions asked about a decision of the Memory Manager, at most; the reward is their mean."""
    turns: Count = 1
    """Turns a Memory Manager's episode lasts, at most: 1 decides on one turn and is asked at once
    (Algorithm 1); more play a dialogue from an empty bank, asked at its end (Algorithm 5)."""
    window: Count | None = None
    """Turns before a decision that its bank is made of, anew for each (the paper: 50); None: all
    of them, one bank carried on."""
    per_speaker: Count | None = None
    """Show the Answer Agent the best so many memories of each speaker (the paper: 30); None: the
    best of all, as in serving."""
    resample: Natural = 0
    """Further draws per step, at most, in which groups that tied are made up for by other
    episodes (GRPO)."""


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
class Logo(Section):
    """[logo]: whole dialogues, and single sessions redone; its update is [grpo]'s.

    A step plays `rollout.prompts` dialogues, `rollout.group_size` rollouts each.
    """

    alpha: Amount = 0.7
    """A bank may hold so many words per word said; what is beyond is punished."""
    penalty: Amount = 0.2
    """Weight of that punishment."""
    credit: Literal["dialogue", "evidence", "traced"] = "evidence"
    """Who is paid by a final answer: all that was written; the sessions that hold its evidence; or
    the turns whose operations it rests on, by the entries it cites."""
    local: Share = 0.5
    """Chance of each session to be redone; 0: no local term."""
    rerollouts: Count = 4
    """How often a session is redone from one and the same bank."""
    noop_branch: bool = False
    """Also score the bank with the session left out, and compare the rerollouts with it."""
    local_questions: Count = 16
    """Questions that a redone session is scored on, at most."""
    final_questions: Count = 64
    """Questions that the end of a dialogue is scored on, at most."""
    ratio: Literal["turn", "token"] = "turn"
    """What is clipped: a completion's probability ratio per token on average, or each token's."""
    curriculum: tuple[Count, ...] = ()
    """Sessions of a dialogue that are played, stage after stage; none: always all."""
    stage_steps: tuple[Count, ...] = ()
    """Steps of every stage but the last, which lasts until the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.stage_steps) != max(0, len(self.curriculum) - 1):
            raise ConfigError(
                f"logo.curriculum has {len(self.curriculum)} stages and logo.stage_steps "
                f"{len(self.stage_steps)} numbers; expected one for every stage but the last"
            )
        if self.local and self.rerollouts + self.noop_branch < 2:
            raise ConfigError(
                "logo.rerollouts is 1; a redone session is compared with another, so it needs "
                "at least 2, or logo.noop_branch"
            )


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
class Lora(Section):
    """[lora]: train an adapter on the frozen model; without this section all weights are trained.

    There is no dropout: the policy that is updated must be the one that sampled.
    """

    rank: Count = 32
    """Width of the adapter: it adds rank x (inputs + outputs) parameters to a matrix."""
    alpha: Positive = 32.0
    """What the adapter adds is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("all-linear",)
    """The matrices it lies on, by the ends of their names (q_proj); all-linear: every one but the
    output head."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.targets or ("all-linear" in self.targets and len(self.targets) > 1):
            raise ConfigError(
                f"lora.targets is {list(self.targets)}; expected ['all-linear'] or the names of "
                "matrices, such as ['q_proj', 'v_proj']"
            )


@dataclass(frozen=True)
class Precision(Section):
    """[precision]: what a GPU keeps and computes in; what is trained is kept in float32."""

    weights: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of the frozen weights, under an adapter and of the partners; auto: as they were published
    (bfloat16 mostly), and float32 on a CPU."""
    compute: Literal["auto", "bfloat16", "float32"] = "auto"
    """Of matrix products (autocast); auto: bfloat16 where the device has it, float32 on a CPU."""


@dataclass(frozen=True)
class Budget(Section):
    """[budget]: what the run may use; a run that can't keep to it is refused before it starts."""

    gpu_gb: Positive | None = None
    """Memory of the GPU in GB (10^9 bytes); None: not checked."""


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
    gradient_checkpointing: bool = False
    """Compute each layer twice instead of keeping what is inside: less memory, the same result."""


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
class Verl(Section):
    """[verl]: where and how verl trains (engine = "verl")."""

    nodes: Count = 1
    """Machines of the Ray cluster."""
    gpus: Count = 4
    """GPUs per machine."""
    memory: Annotated[float, Range(above=0, high=1)] = 0.5
    """Share of a GPU's memory that vLLM takes for sampling."""
    micro_batch: Count = 2
    """Samples in one forward pass of a GPU; changes memory and speed, not the result."""
    prompt_tokens: Count = 4096
    """Longest prompt; what is longer is left out. The longest reply is rollout.max_tokens."""
    level: Literal["a", "b"] = "a"
    """a: one reply is a sample; b: an episode of several, repairs and later turns included."""
    answerer: str | None = None
    """Plays the frozen roles that the run file leaves open, usually `model` served at a URL the
    whole cluster reaches: "http://host:8000/v1?concurrency=64#model"."""
    overrides: Mapping[str, str] = field(default_factory=dict)
    """Further settings of verl by their dotted names; they win over ours."""


@dataclass(frozen=True)
class Processes(Section):
    """[processes]: what several processes share besides the work; docs/several_gpus.md."""

    sharding: Literal["none", "full"] = "none"
    """none: each holds all weights; full: each holds its part of weights, gradients and optimizer
    (FSDP). accelerate's settings may ask for the latter too."""


@dataclass(frozen=True)
class Watch(Section):
    """[watch]: where else a run is shown, beside the files of its folder."""

    tensorboard: bool = False
    """Write TensorBoard's event files into the run folder."""
    wandb: str | None = None
    """A project of Weights & Biases, "project" or "entity/project"."""


@dataclass(frozen=True)
class Sampler(Section):
    """[sampler]: a vLLM server that samples the rollouts; without it the trainer does."""

    url: str
    """Its OpenAI-compatible API, e.g. "http://localhost:8000/v1"."""
    model: str | None = None
    """What the server calls the base model; None: the one it serves."""
    folder: str | None = None
    """Where weights are left for the server, under the same path there; None: the run folder."""
    concurrency: Count = 64
    """Requests under way at once, one per prompt."""
    timeout: Positive = 600.0
    """Seconds for one request."""
    retries: Natural = 3
    """Further attempts of a request; then its group is dropped, if the server is still there."""
    wait: Amount = 900.0
    """Seconds a run pauses for a server that is gone, before it stops."""
    tolerance: Positive = 0.05
    """Most that sampled and recomputed log-probs may differ on average, in nats per token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(
                f"sampler.url is {self.url!r}; expected a URL such as 'http://localhost:8000/v1'"
            )


@dataclass(frozen=True)
class Run(Section):
    """Everything that decides what a run does."""

    kind: Literal["sft", "manager", "answer"]
    """What is trained: a model by worked examples, or one of the two agents by its outcome."""
    model: str
    """What training starts from: a bundled model, a Hugging Face id, a path, a run folder."""
    seed: Natural = 0
    """Of everything random; the same file and seed give the same run."""
    engine: Literal["local", "verl"] = "local"
    """Who trains: this program on one machine, or verl on a Ray cluster of GPUs."""
    algorithm: Literal["grpo", "ppo", "logo"] = "grpo"
    """How outcomes become an update; logo trains extractor and manager together (LoGo-GRPO)."""
    manager: str | None = None
    """The frozen Memory Manager that built the banks, where `answer` is trained; None: `model`."""
    answer: str | None = None
    """The frozen Answer Agent that earns the reward, where `manager` is trained; None: `model`."""
    extract: str | None = None
    """Who extracts facts; None: `model`; "rules": each turn is one fact."""
    world: World | None = None
    data: Data | None = None
    reward: Reward = Reward()
    stages: Stages | None = None
    teacher: Teacher | None = None
    sft: Sft = Sft()
    rollout: Rollout = Rollout()
    grpo: Grpo = Grpo()
    ppo: Ppo = Ppo()
    logo: Logo = Logo()
    optimizer: Optimizer = Optimizer()
    lora: Lora | None = None
    precision: Precision = Precision()
    budget: Budget = Budget()
    steps: Steps = Steps()
    eval: Eval = Eval()
    processes: Processes = Processes()
    watch: Watch = Watch()
    sampler: Sampler | None = None
    verl: Verl = Verl()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind == "sft":
            if self.engine == "verl":
                raise ConfigError("engine 'verl' trains the two agents; kind 'sft' runs locally")
            if self.teacher is None and (self.world or self.data):
                raise ConfigError(
                    "kind 'sft' writes lessons of its own; leave out [world] and [data], or name "
                    "a [teacher] to imitate on them"
                )
            if self.sampler:
                raise ConfigError("kind 'sft' samples nothing; leave out [sampler]")
        if self.imitates and self.kind != "sft":
            raise ConfigError(f"[teacher] is for kind 'sft', and kind is {self.kind!r}")
        if not self.gives_lessons and (self.world is None) == (self.data is None):
            seen = "both" if self.world else "neither"
            raise ConfigError(f"expected [world] or [data], one of them; {seen} is given")
        if self.engine == "verl" and self.sampler:
            raise ConfigError("engine 'verl' has a sampler of its own; leave out [sampler]")
        if self.data is not None and self.data.split == self.eval.split:
            raise ConfigError(
                f"data.split and eval.split are both {self.data.split!r}; held-out dialogues must "
                "not be trained on"
            )
        if self.kind == "manager" and self.manager is not None:
            raise ConfigError("'manager' names a frozen manager, but it is what is trained here")
        if self.kind == "answer" and self.answer is not None:
            raise ConfigError("'answer' names a frozen answerer, but it is what is trained here")
        if self.algorithm == "logo" and (
            self.kind != "manager" or self.engine != "local" or self.sampler
        ):
            raise ConfigError(
                "algorithm 'logo' trains the memory's side on this machine; expected "
                'kind = "manager", engine = "local" and no [sampler]'
            )
        grpo = self.kind != "sft" and self.algorithm in ("grpo", "logo")
        if grpo and self.rollout.group_size < 2:
            raise ConfigError(
                f"rollout.group_size is {self.rollout.group_size}; "
                "GRPO compares the rollouts of a group and needs at least 2"
            )
        _check_episodes(self)

    @property
    def imitates(self) -> bool:
        """Whether it is Memory-SFT: learning from what a teacher did on the dialogues."""
        return self.teacher is not None

    @property
    def gives_lessons(self) -> bool:
        """Whether it is the tiny model's warm start, which needs no dialogues."""
        return self.kind == "sft" and self.teacher is None

    @property
    def trains(self) -> tuple[Role, ...]:
        """The roles that the trained model plays afterwards."""
        if self.gives_lessons:
            return ("extract", "manage", "answer")
        names = self.teacher.roles if self.teacher else (self.kind,)
        return tuple(_ROLES[name] for name in dict.fromkeys(names))


_ROLES: Mapping[str, Role] = {"manager": "manage", "answer": "answer"}


def _check_episodes(run: Run) -> None:
    rollout = run.rollout
    if rollout.resample and (run.kind == "sft" or run.algorithm != "grpo"):
        raise ConfigError(
            f"rollout.resample is {rollout.resample}, which is for algorithm 'grpo': only there "
            "groups tie; leave it out"
        )
    if rollout.window is not None and rollout.turns > 1:
        raise ConfigError(
            f"rollout.window is {rollout.window} and rollout.turns is {rollout.turns}; episodes of "
            "several turns begin with an empty bank: leave one of them out"
        )
    if run.stages is None:
        return
    order = ", ".join(run.stages.order)
    if not order or run.kind != run.stages.order[0]:
        raise ConfigError(f"kind is {run.kind!r}, but stages.order is {order or 'empty'}")
    if run.engine != "local" or run.algorithm == "logo":
        raise ConfigError(
            "[stages] is played by this machine with algorithm 'grpo' or 'ppo'; with others run "
            "the stages one by one, each naming the last one's folder as its partner"
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
