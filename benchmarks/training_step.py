"""A whole GRPO step, ours and TRL's: sample, score, update, on the same model and prompts.

    python -m venv PEER
    PEER/bin/pip install trl==1.16.0 peft torch transformers
    python benchmarks/training_step.py --peer-python PEER/bin/python --kl 0.001
    python benchmarks/training_step.py --peer-python PEER/bin/python --prompt 200 --completion 24
    python benchmarks/training_step.py --peer-python PEER/bin/python --device cuda \\
        --model 0.5b 3b 7b --lora 32 --prompt 4000 --completion 100 --peer-batch 8 --peak 989

Models are Qwen2s with random weights: one of 8.0M parameters, and those of Qwen2.5's architectures.
Every completion has its full length, since no end token can be drawn; rewards are drawn at random,
so that no group ties; KL weight, learning rate, batch, adapter and threads are the same on both
sides. TRL samples with `generate` and runs with its own defaults otherwise, but without gradient
checkpointing, which would cost it time, unless --checkpointing is given (for both).

Shown are medians after a first step: seconds by the clock and of this process' CPUs, sampled tokens
per second, peak memory (on a GPU what was allocated there, else of the process), and with --peak,
the device's TFLOP/s, the utilisation: what the model must compute in a step at least, with each
prompt read once per pass, as a share of what the device could compute in that time.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

WORDS = 8_000
"""Prompts are made of so many, whatever the model knows."""


@dataclass(frozen=True)
class Shape:
    """A Qwen2."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = True

    @property
    def layer_weights(self) -> int:
        """Numbers in the matrices of all layers."""
        attention = 2 * self.hidden * (self.hidden + self.hidden // self.heads * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.inner)


SHAPES = {
    "8m": Shape(256, 704, 8, 8, 4, WORDS + 2),
    "0.5b": Shape(896, 4864, 24, 14, 2, 151_936),
    "3b": Shape(2048, 11_008, 36, 16, 2, 151_936),
    "7b": Shape(3584, 18_944, 28, 28, 4, 152_064, tied=False),
}


@dataclass(frozen=True)
class Load:
    """What a step consists of, and where it runs."""

    model: str
    prompt: int
    """Tokens."""
    completion: int
    """Tokens."""
    group: int
    prompts: int
    steps: int
    kl: float
    lora: int
    """Rank; 0: all weights are trained."""
    device: str
    threads: int
    micro_batch: int
    """Tokens in one forward pass of ours."""
    peer_batch: int
    """Completions in one forward pass of TRL's; 0: all."""
    checkpointing: bool

    @property
    def dtype(self) -> str:
        """Of the model's weights; what is trained is kept in float32 by us."""
        return "float32" if self.device == "cpu" else "bfloat16"

    def texts(self) -> list[str]:
        """The prompts of all steps, a first one to warm up included; the same on both sides."""
        chance = random.Random(0)
        return [
            " ".join(f"w{chance.randrange(WORDS)}" for _ in range(self.prompt))
            for _ in range(self.prompts * (self.steps + 1))
        ]

    def flops(self) -> float:
        """What the model must compute in a step: each prompt once per pass, causal attention."""
        shape, written = SHAPES[self.model], self.prompts * self.group * self.completion
        seen = self.prompts * (
            self.prompt**2 / 2
            + self.group * (self.completion * self.prompt + self.completion**2 / 2)
        )  # pairs of tokens of which one looks at the other
        forward = (
            2 * shape.layer_weights * (self.prompts * self.prompt + written)
            + 2 * shape.hidden * shape.vocabulary * written
            + 4 * shape.hidden * shape.layers * seen
        )
        backward = 1 if self.lora else 2  # frozen weights need no gradient of their own
        return forward * (2 + backward + bool(self.kl))  # sampled, scored, learned from


def write_model(load: Load, folder: Path) -> None:
    """A Qwen2 with random weights and a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    shape = SHAPES[load.model]
    end = shape.vocabulary - 2
    words = {f"w{i}": i for i in range(end)} | {"<end>": end, "<pad>": end + 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>"
    ).save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=len(words),
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=32_768,
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end + 1,
    )
    torch.set_default_dtype(getattr(torch, load.dtype))
    with torch.device(load.device):
        model = Qwen2ForCausalLM(config)
    model.save_pretrained(folder)


class Watch:
    """Seconds and memory of each step."""

    def __init__(self, device: str) -> None:
        self.found: list[dict[str, float]] = []
        self._cuda = device != "cpu"
        self._last = self._now()

    def _now(self) -> tuple[float, float]:
        if self._cuda:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()

    def step(self, **phases: float) -> None:
        """A step is over."""
        now = self._now()
        wall, cpu = (b - a for a, b in zip(self._last, now, strict=True))
        self.found.append({"step": wall, "cpu": cpu, "memory": self._memory(), **phases})
        self._last = now

    def _memory(self) -> float:
        if self._cuda:
            import torch

            return torch.cuda.max_memory_allocated() / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def ours(load: Load, folder: Path) -> list[dict[str, float]]:
    """Seconds of each step and of its phases, through the algorithm that trains."""
    import torch

    from memory_r1.llm.local import LocalLLM
    from memory_r1.train.adapters import open_policy
    from memory_r1.train.episodes import Outcome
    from memory_r1.train.grpo import Grpo
    from memory_r1.train.rollout import Rollout
    from memory_r1.train.runfile import Grpo as Settings
    from memory_r1.train.runfile import Lora, Optimizer, Run, Steps, World
    from memory_r1.train.runfile import Rollout as Sampled
    from memory_r1.types import Prompt

    torch.set_num_threads(load.threads)
    run = Run(
        kind="answer",
        model=str(folder),
        world=World(),
        grpo=Settings(kl=load.kl),
        lora=Lora(rank=load.lora, alpha=2 * load.lora) if load.lora else None,
        optimizer=Optimizer(lr=1e-6),
        rollout=Sampled(max_tokens=load.completion),
        steps=Steps(micro_batch_tokens=load.micro_batch, gradient_checkpointing=load.checkpointing),
    )
    policy = open_policy(run, LocalLLM(str(folder), device=load.device))
    policy.llm.__dict__["end_ids"] = frozenset()
    texts, chance = iter(load.texts()), random.Random(1)
    groups = [g for g in range(load.prompts) for _ in range(load.group)]

    def rollouts(step: int) -> tuple[list[Any], list[int]]:
        shown = [Prompt((("user", next(texts)),)) for _ in range(load.prompts)]
        made = policy.generate([shown[g] for g in groups], seed=step)
        assert all(len(one.ids) == load.completion for one in made)
        assert all(len(one.prompt_ids) == load.prompt for one in made)
        episode = SimpleNamespace(malformed=0, about="", operations=())
        rewards = [chance.random() for _ in made]
        played = [
            Rollout(episode, (one,), Outcome(reward, 0.0, 0.0, {}))  # type: ignore[arg-type]
            for one, reward in zip(made, rewards, strict=True)
        ]
        return played, groups

    stage: Any = SimpleNamespace(policy=policy, run=run, rollouts=rollouts, sampler=None)
    algorithm, watch = Grpo(stage), Watch(load.device)
    for step in range(load.steps + 1):
        metrics, _ = algorithm.step(step)
        watch.step(**{k[8:]: v for k, v in metrics.items() if k.startswith("seconds_")})
    return watch.found[1:]


def theirs(load: Load, folder: Path) -> list[dict[str, float]]:
    """The same by TRL's GRPOTrainer; run by another Python."""
    import torch
    from datasets import Dataset  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found]

    torch.set_num_threads(load.threads)
    chance, watch = random.Random(1), Watch(load.device)
    together = load.peer_batch or load.group * load.prompts
    adapter = None
    if load.lora:
        from peft import LoraConfig

        adapter = LoraConfig(
            r=load.lora,
            lora_alpha=2 * load.lora,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )

    class Stamp(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.step()

    with tempfile.TemporaryDirectory() as out:
        config = GRPOConfig(
            output_dir=out,
            use_cpu=load.device == "cpu",
            bf16=load.dtype == "bfloat16",
            gradient_checkpointing=load.checkpointing,
            per_device_train_batch_size=together,
            gradient_accumulation_steps=load.group * load.prompts // together,
            num_generations=load.group,
            max_completion_length=load.completion,
            generation_kwargs={"min_new_tokens": load.completion},
            max_steps=load.steps + 1,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            beta=load.kl,
            temperature=1.0,
            shuffle_dataset=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=1000,
        )
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, load.dtype)),
            processing_class=PreTrainedTokenizerFast.from_pretrained(folder),
            reward_funcs=lambda completions, **_: [chance.random() for _ in completions],
            args=config,
            train_dataset=Dataset.from_dict({"prompt": load.texts()}),
            callbacks=[Stamp()],
            peft_config=adapter,
        )
        trainer.train()
    return watch.found[1:]


PARTS = {"write": write_model, "ours": ours, "theirs": theirs}


def main() -> None:
    """Measure both, print the ratio."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--peer-python", help="a Python that has trl")
    options.add_argument("--model", nargs="+", choices=SHAPES, default=["8m"])
    options.add_argument("--prompt", type=int, default=1000)
    options.add_argument("--completion", type=int, default=64)
    options.add_argument("--group", type=int, default=8)
    options.add_argument("--prompts", type=int, default=2)
    options.add_argument("--steps", type=int, default=3)
    options.add_argument("--kl", type=float, default=0.0)
    options.add_argument("--lora", type=int, default=0, help="rank; 0: all weights")
    options.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--micro-batch", type=int, default=16_384, help="tokens, ours")
    options.add_argument("--peer-batch", type=int, default=0, help="completions, TRL's; 0: all")
    options.add_argument("--checkpointing", action="store_true")
    options.add_argument("--peak", type=float, help="the device's TFLOP/s")
    options.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    asked = vars(options.parse_args())
    python, peak, part = (asked.pop(name) for name in ("peer_python", "peak", "part"))
    if part:
        name, folder = part[0], Path(part[1])
        found = PARTS[name](Load(**json.loads((folder / "load.json").read_text())), folder)
        (folder / "found.json").write_text(json.dumps(found))
        return
    for model in asked.pop("model"):
        compare(Load(model=model, **asked), python, peak)


def compare(load: Load, python: str | None, peak: float | None) -> None:
    """Measure one model on both sides, each in a process of its own, and print."""
    print(f"{load}\n{load.flops() / 1e12:.3g} TFLOP a step")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "load.json").write_text(json.dumps(vars(load)))

        def run(part: str, by: str = sys.executable) -> Any:
            command = [by, __file__, "--part", part, folder]
            subprocess.run(command, check=True, stdout=sys.stderr)
            return json.loads(Path(folder, "found.json").read_text())

        run("write")
        mine = show("ours", run("ours"), load, peak)
        if python:
            other = show("TRL", run("theirs", python), load, peak)
            wall, cpu = (other[clock] / mine[clock] for clock in ("step", "cpu"))
            print(f"TRL takes {wall:.2f} times as long, and {cpu:.2f} times the CPU's time")


def show(
    name: str, steps: list[dict[str, float]], load: Load, peak: float | None
) -> dict[str, float]:
    """Print the median step and its phases; returns it."""
    one = {k: statistics.median(step[k] for step in steps) for k in steps[0]}
    phases = ", ".join(f"{k} {one[k]:.2f}" for k in ("sample", "update") if k in one)
    tokens = load.prompts * load.group * load.completion
    words = [
        f"{one['step']:8.2f} s per step" + (f" ({phases})" if phases else ""),
        f"{one['cpu']:.2f} s of CPU",
        f"{tokens / one['step']:,.0f} tokens/s",
        f"peak {one['memory']:.1f} GB",
    ]
    if peak:
        words.append(f"utilisation {load.flops() / one['step'] / peak / 1e12:.0%}")
    print(f"{name:<5} {', '.join(words)}")
    return one


if __name__ == "__main__":
    main()
