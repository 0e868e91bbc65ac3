"""run file + a model's config -> parameters, memory and time, before anything is loaded (no torch).

Numbers are for one GPU with bfloat16. Parameter counts are exact; activations were measured on
small models (tests/test_estimate.py holds them to it), the rest is arithmetic.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from memory_r1.errors import ConfigError
from memory_r1.llm.folders import ADAPTER_FILE, base_of, is_path
from memory_r1.llm.open import folder_of
from memory_r1.train.runfile import Lora, Run

GB: Final = 1e9
PROMPT_TOKENS: Final = 4096
"""The paper's longest prompt, where neither the run file nor the data says otherwise."""
LOGITS_AT_ONCE: Final = 1 << 26
"""As policy.LOGITS_AT_ONCE, which needs torch to be read."""
OVERHEAD: Final = 1.5e9
"""CUDA's context, its libraries' workspaces, and what lies between blocks."""
KINDS: Final = ("llama", "mistral", "qwen2", "qwen3")


@dataclass(frozen=True)
class Shape:
    """What of a model's config decides how large it is."""

    kind: str
    hidden: int
    layers: int
    heads: int
    key_heads: int
    head: int
    """Numbers per attention head."""
    mlp: int
    words: int
    tied: bool
    """Whether the output head is the embedding again."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """From a config.json; ConfigError for a kind of model whose parts aren't known here."""
        kind = str(config.get("model_type"))
        if kind not in KINDS:
            raise ConfigError(
                f"a model of type {kind!r} can't be estimated; expected {', '.join(KINDS)}"
            )
        heads = int(config["num_attention_heads"])
        return cls(
            kind,
            int(config["hidden_size"]),
            int(config["num_hidden_layers"]),
            heads,
            int(config.get("num_key_value_heads") or heads),
            int(config.get("head_dim") or config["hidden_size"] // heads),
            int(config["intermediate_size"]),
            int(config["vocab_size"]),
            bool(config.get("tie_word_embeddings", False)),
        )

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """The matrices of a layer: inputs and outputs."""
        queries, keys = self.heads * self.head, self.key_heads * self.head
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.mlp),
            "up_proj": (self.hidden, self.mlp),
            "down_proj": (self.mlp, self.hidden),
        }

    @property
    def backbone(self) -> int:
        """Parameters without an output head of its own."""
        layer = sum(inputs * outputs for inputs, outputs in self.matrices.values())
        layer += 2 * self.hidden  # norms
        if self.kind == "qwen2":
            layer += (self.heads + 2 * self.key_heads) * self.head  # biases
        if self.kind == "qwen3":
            layer += 2 * self.head  # norms of queries and keys
        return self.words * self.hidden + self.layers * layer + self.hidden

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.backbone + (0 if self.tied else self.words * self.hidden)

    def adapter(self, lora: Lora) -> int:
        """Parameters of one adapter."""
        chosen = [
            sizes
            for name, sizes in self.matrices.items()
            if lora.targets == ("all-linear",) or name in lora.targets
        ]
        return self.layers * lora.rank * sum(inputs + outputs for inputs, outputs in chosen)


KNOWN: Final = {
    "Qwen/Qwen2.5-3B-Instruct": Shape("qwen2", 2048, 36, 16, 2, 128, 11008, 151936, True),
    "Qwen/Qwen2.5-7B-Instruct": Shape("qwen2", 3584, 28, 28, 4, 128, 18944, 152064, False),
    "Qwen/Qwen2.5-14B-Instruct": Shape("qwen2", 5120, 48, 40, 8, 128, 13824, 152064, False),
    "meta-llama/Llama-3.1-8B-Instruct": Shape("llama", 4096, 32, 32, 8, 128, 14336, 128256, False),
}
"""The paper's models, whose configs need not be at hand."""


def shape_of(model: str) -> Shape:
    """The shape of a model by its name, folder (an adapter's: its base) or config.json.

    Raises ConfigError when nothing is known of it here.
    """
    if model in KNOWN:
        return KNOWN[model]
    path = folder_of(model)
    if path.is_dir() and (path / ADAPTER_FILE).is_file():
        return shape_of(base_of(str(path)))
    file = path if path.suffix == ".json" else path / "config.json"
    if not file.is_file() and not is_path(model):
        file = _in_cache(model) or file
    try:
        config = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"nothing is known of the size of {model!r}: {error}. Expected a folder with a "
            f"config.json, that file, or one of {', '.join(KNOWN)}"
        ) from error
    return Shape.of(config)


def _in_cache(model: str) -> Path | None:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    found = try_to_load_from_cache(model, "config.json")
    return Path(found) if isinstance(found, str) else None


@dataclass(frozen=True)
class Need:
    """GPU memory in bytes."""

    kept: Mapping[str, float]
    """There all the time."""
    sampling: Mapping[str, float]
    """There while rollouts are sampled."""
    updating: Mapping[str, float]
    """There while the gradient is computed."""

    @property
    def peak(self) -> float:
        """The most there is at once."""
        phases = max(sum(self.sampling.values()), sum(self.updating.values()))
        return sum(self.kept.values()) + phases


def need(run: Run, shape: Shape, prompt_tokens: int | None = None, processes: int = 1) -> Need:
    """What a process needs at worst: the longest prompts, every reply as long as is allowed.

    prompt_tokens: the longest prompt; None: what the run file allows, else 4096
    processes: over which the run's [processes] may spread the weights
    """
    prompt = prompt_tokens or run.rollout.prompt_tokens or PROMPT_TOKENS
    ppo = run.algorithm == "ppo"
    bf16 = run.precision.compute != "float32"
    width = 2 if bf16 else 4
    kl = run.ppo.kl if ppo else run.grpo.kl
    frozen = 4 if run.precision.weights == "float32" else 2
    kept: dict[str, float] = {}
    if run.lora is not None:
        adapter = shape.adapter(run.lora)
        trained = adapter * (2 if ppo else 1)
        kept["base"] = frozen * shape.parameters
        # A partner may be an adapter as well: the manager that stage 2 works with.
        kept["adapters"] = 4.0 * (trained + adapter)
    else:
        trained = shape.parameters + (shape.backbone if ppo else 0)
        kept["trained weights"] = 4.0 * trained
        kept["partners"] = frozen * shape.parameters if _own_partners(run) else 0.0
        kept["reference"] = 4.0 * shape.parameters if kl else 0.0
        kept["copies for autocast"] = 2.0 * trained if bf16 else 0.0
    kept["optimizer"] = 8.0 * trained
    kept["overhead"] = OVERHEAD
    kept = {name: size for name, size in kept.items() if size}
    updating = {"gradients": 4.0 * trained, **_update(run, shape, prompt, width)}
    whole = Need(kept, _sample(run, shape, prompt, width), updating)
    if processes == 1 or run.processes.sharding == "none":
        return whole
    return _spread(whole, run.lora is not None, 4.0 * shape.parameters, processes)


def _spread(whole: Need, adapter: bool, policy: float, processes: int) -> Need:
    """With frozen weights in shares, or (all weights trained) all but partners and copies.

    policy: bytes of its weights, where they are trained; they are gathered to be sampled
    """
    parts = {"base"} if adapter else {"trained weights", "reference", "optimizer", "gradients"}

    def shares(of: Mapping[str, float]) -> dict[str, float]:
        return {k: size / processes if k in parts else size for k, size in of.items()}

    gathered = whole.kept["base"] if adapter else policy
    sampling = {**whole.sampling, "gathered weights": gathered}
    return Need(shares(whole.kept), sampling, shares(whole.updating))


def _own_partners(run: Run) -> bool:
    """Whether a frozen role is played here by the model that training started from."""
    roles = {"extract": run.extract}
    roles |= {"answer": run.answer} if run.kind == "manager" else {"manager": run.manager}
    return any(name is None or _is_local(name) for name in roles.values())


def _is_local(name: str) -> bool:
    return name != "rules" and not name.startswith(("openai:", "http://", "https://"))


def _sample(run: Run, shape: Shape, prompt: int, width: int) -> dict[str, float]:
    group, room = run.rollout.group_size, run.rollout.max_tokens
    at_once = max(1, run.rollout.batch_tokens // (prompt + group * room))
    held = at_once * (prompt + group * room)
    read = at_once * prompt
    per_token = shape.layers * 2 * shape.key_heads * shape.head * width
    inner = 3 * shape.mlp + 4 * shape.hidden + 2 * shape.heads * shape.head
    return {
        "keys and values": float(held * per_token),
        "reading prompts": float(read * inner * width),
        # Logits, chances, and their sums in double precision.
        "drawing": float(at_once * group * shape.words * (width + 16)),
    }


def _update(run: Run, shape: Shape, prompt: int, width: int) -> dict[str, float]:
    room = run.rollout.max_tokens
    tokens = max(run.steps.micro_batch_tokens, prompt + room)
    targets = tokens * room // (prompt + room)
    layer = activations(shape, run, tokens, prompt)
    stream = 2 if run.lora is not None and width == 2 else 4
    if run.steps.gradient_checkpointing:
        inside = shape.layers * tokens * shape.hidden * stream + 2 * layer
    else:
        inside = (shape.layers + 1) * layer
    rows = min(targets, max(1, LOGITS_AT_ONCE // shape.words))
    return {
        "activations": inside,
        "logits": float(rows * shape.words * (width + 16)),
    }


def activations(shape: Shape, run: Run, tokens: int, prompt: int) -> float:
    """Bytes that one layer keeps for the gradient of so many tokens, packed as trees.

    Linear in the layer's widths; measured with torch's hooks for saved tensors on small Llama,
    Qwen2 and Qwen3 models (fused tree attention; within a quarter, tests/test_estimate.py).
    """
    half = run.precision.compute != "float32"
    queries, keys = shape.heads * shape.head, shape.key_heads * shape.head
    norms = (8.0 if run.lora is None else 0.0) + (18.0 if half else 16.0)
    one = 0.5 if half else 1.0
    per_token = norms * shape.hidden + one * 16.0 * (queries + shape.mlp)
    if shape.kind == "qwen3":
        per_token += (5.0 if half else 6.0) * (queries + keys)
    if run.lora is not None:
        per_token += 4.0 * one * 7 * run.lora.rank
    group = min(run.rollout.group_size, max(1, (tokens - prompt) // run.rollout.max_tokens))
    replies = min(run.rollout.max_tokens, tokens - prompt)
    tree = prompt + group * replies
    trees = max(1, tokens // tree)
    seen = group * (prompt + replies)  # keys that branches see, each its own
    width = 4 * one
    copied = trees * 2 * width * keys * seen
    masks = trees * width * (shape.heads // shape.key_heads) * replies * seen
    return tokens * per_token + copied + masks


def settings_that_fit(
    run: Run, shape: Shape, gpu_gb: float, prompt_tokens: int | None = None, processes: int = 1
) -> list[str] | None:
    """The nearest changes of the run file that fit into so much memory; None: there are none."""
    for changed, changes in _changes(run, prompt_tokens or run.rollout.prompt_tokens):
        if need(changed, shape, prompt_tokens, processes).peak <= gpu_gb * GB:
            return changes
    return None


def _changes(run: Run, prompt: int | None) -> Iterator[tuple[Run, list[str]]]:
    """Ever farther from the run file: first what costs only time, then what is trained."""
    least = (prompt or PROMPT_TOKENS) + run.rollout.max_tokens
    loras = [run.lora] if run.lora is not None else [None, Lora()]
    if run.lora is not None and run.lora.rank > 16:
        loras.append(replace(run.lora, rank=16))
    for lora in loras:
        for twice in sorted({run.steps.gradient_checkpointing, True}):
            for micro in _halves(run.steps.micro_batch_tokens, least):
                for held in _halves(run.rollout.batch_tokens, least):
                    steps = replace(
                        run.steps, gradient_checkpointing=twice, micro_batch_tokens=micro
                    )
                    rollout = replace(run.rollout, batch_tokens=held)
                    changed = replace(run, lora=lora, steps=steps, rollout=rollout)
                    yield changed, _differences(run, changed)


def _halves(size: int, least: int) -> list[int]:
    found = [size]
    while found[-1] // 2 >= least:
        found.append(found[-1] // 2)
    return found


def _differences(run: Run, changed: Run) -> list[str]:
    found = []
    if changed.lora is not None and changed.lora != run.lora:
        found.append(f"lora.rank={changed.lora.rank}")
    if changed.steps.gradient_checkpointing != run.steps.gradient_checkpointing:
        found.append("steps.gradient_checkpointing=true")
    if changed.steps.micro_batch_tokens != run.steps.micro_batch_tokens:
        found.append(f"steps.micro_batch_tokens={changed.steps.micro_batch_tokens}")
    if changed.rollout.batch_tokens != run.rollout.batch_tokens:
        found.append(f"rollout.batch_tokens={changed.rollout.batch_tokens}")
    return found


def check_fits(
    run: Run,
    gpu_gb: float | None = None,
    prompt_tokens: int | None = None,
    processes: int = 1,
) -> None:
    """Refuse a run that can't fit its GPU, naming the nearest settings that do.

    gpu_gb: of each process; None: the run file's [budget], and if it has none nothing is checked
    Raises ConfigError.
    """
    limit = run.budget.gpu_gb if gpu_gb is None else gpu_gb
    if limit is None or run.kind == "sft" or run.engine != "local":
        return
    shape = shape_of(run.model)
    needed = need(run, shape, prompt_tokens, processes).peak / GB
    if needed <= limit:
        return
    changes = settings_that_fit(run, shape, limit, prompt_tokens, processes)
    if changes:
        remedy = f"what fits: {' '.join(changes)}"
    else:
        smaller = [
            name
            for name, other in KNOWN.items()
            if other.parameters < shape.parameters
            and settings_that_fit(run, other, limit, prompt_tokens, processes) is not None
        ]
        largest = max(smaller, key=lambda name: KNOWN[name].parameters, default=None)
        remedy = "no setting of this model fits; " + (
            f"the largest known one that does is {largest}" if largest else "take a larger GPU"
        )
    raise ConfigError(
        f"training {run.model} needs about {needed:.1f} GB and the GPU has {limit:g} GB; {remedy}"
    )


@dataclass(frozen=True)
class Pace:
    """How much a run computes. Completion tokens are an upper limit: replies are mostly shorter."""

    steps: int
    rollouts: int
    """Per step."""
    prompt_tokens: int
    """Per step; a prompt is read once for its whole group."""
    completion_tokens: int
    """Per step, at most."""

    def hours(self, tokens_per_second: float) -> float:
        """At most, at so many completion tokens a second over the whole step (metrics.jsonl)."""
        return self.steps * self.completion_tokens / tokens_per_second / 3600


def pace(run: Run, prompt_tokens: float | None = None) -> Pace:
    """What the run file asks for. prompt_tokens: the mean prompt, where it is known."""
    prompt = prompt_tokens or run.rollout.prompt_tokens or PROMPT_TOKENS
    rollouts = run.rollout.prompts * run.rollout.group_size
    turns = run.rollout.turns if run.kind == "manager" else 1
    return Pace(
        run.steps.total,
        rollouts,
        round(run.rollout.prompts * turns * prompt),
        rollouts * turns * run.rollout.max_tokens,
    )
