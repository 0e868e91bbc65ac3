"""A whole GRPO step, ours and TRL's: sample, score, update, on the same model and prompts.

    python -m venv PEER
    PEER/bin/pip install trl==1.16.0 torch transformers
    python benchmarks/training_step.py --peer-python PEER/bin/python
    python benchmarks/training_step.py --peer-python PEER/bin/python --prompt 200 --completion 24

The model is a Qwen2 with random weights. Every completion has its full length, since no end token
can be drawn; rewards are drawn at random, so that no group ties; KL weight, learning rate, batch
and threads are the same on both sides. TRL runs with its own defaults otherwise, but without
gradient checkpointing, which would cost it time. Shown are seconds per step after a first one.
"""

from __future__ import annotations

import argparse
import json
import random
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


@dataclass(frozen=True)
class Load:
    """What a step consists of."""

    prompt: int
    """Tokens."""
    completion: int
    """Tokens."""
    group: int
    prompts: int
    steps: int
    kl: float
    threads: int

    def texts(self) -> list[str]:
        """The prompts of all steps, a first one to warm up included; the same on both sides."""
        chance = random.Random(0)
        return [
            " ".join(f"w{chance.randrange(WORDS)}" for _ in range(self.prompt))
            for _ in range(self.prompts * (self.steps + 1))
        ]


def write_model(folder: Path) -> int:
    """A Qwen2 with random weights and a tokenizer of whole words; returns its parameters."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    words = {f"w{i}": i for i in range(WORDS)} | {"<end>": WORDS, "<pad>": WORDS + 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>"
    ).save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=len(words),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        eos_token_id=WORDS,
        pad_token_id=WORDS + 1,
    )
    model = Qwen2ForCausalLM(config)
    model.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())


def ours(load: Load, folder: Path) -> list[dict[str, float]]:
    """Seconds of each step and of its phases, through the algorithm that trains."""
    import torch

    from memory_r1.llm.local import LocalLLM
    from memory_r1.train.episodes import Outcome
    from memory_r1.train.grpo import Grpo
    from memory_r1.train.policy import Policy
    from memory_r1.train.rollout import Rollout
    from memory_r1.train.runfile import Grpo as Settings
    from memory_r1.train.runfile import Run, World
    from memory_r1.types import Prompt

    torch.set_num_threads(load.threads)
    llm = LocalLLM(str(folder), dtype="float32", device="cpu").copy()
    llm.__dict__["end_ids"] = frozenset()
    policy = Policy(llm, temperature=1.0, max_tokens=load.completion)
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

    run = Run(kind="answer", model=str(folder), world=World(), grpo=Settings(kl=load.kl))
    stage: Any = SimpleNamespace(policy=policy, run=run, rollouts=rollouts, sampler=None)
    algorithm, found = Grpo(stage), []
    for step in range(load.steps + 1):
        began = time.perf_counter()
        metrics, _ = algorithm.step(step)
        phases = {k[8:]: v for k, v in metrics.items() if k.startswith("seconds_")}
        found.append({"step": time.perf_counter() - began, **phases})
    return found[1:]


def theirs(load: Load, folder: Path) -> list[dict[str, float]]:
    """The same by TRL's GRPOTrainer; run by another Python."""
    import torch
    from datasets import Dataset  # type: ignore[import-not-found]
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found]

    torch.set_num_threads(load.threads)
    chance = random.Random(1)
    stamps: list[float] = []

    class Stamp(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            stamps.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as out:
        config = GRPOConfig(
            output_dir=out,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            per_device_train_batch_size=load.group * load.prompts,
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
            model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
            processing_class=PreTrainedTokenizerFast.from_pretrained(folder),
            reward_funcs=lambda completions, **_: [chance.random() for _ in completions],
            args=config,
            train_dataset=Dataset.from_dict({"prompt": load.texts()}),
            callbacks=[Stamp()],
        )
        trainer.train()
    return [{"step": b - a} for a, b in zip(stamps, stamps[1:], strict=False)]


def main() -> None:
    """Measure both, print the ratio."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--peer-python", help="a Python that has trl")
    options.add_argument("--prompt", type=int, default=1000)
    options.add_argument("--completion", type=int, default=64)
    options.add_argument("--group", type=int, default=8)
    options.add_argument("--prompts", type=int, default=2)
    options.add_argument("--steps", type=int, default=3)
    options.add_argument("--kl", type=float, default=0.0)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--as-peer", nargs=2, help=argparse.SUPPRESS)
    asked = vars(options.parse_args())
    python, peer = asked.pop("peer_python"), asked.pop("as_peer")
    load = Load(**asked)
    if peer:
        Path(peer[1]).write_text(json.dumps(theirs(load, Path(peer[0]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        size = write_model(Path(folder, "model"))
        print(
            f"Qwen2 of {size / 1e6:.1f}M, P {load.prompt}, C {load.completion}, G {load.group}, "
            f"{load.prompts} prompts a step, KL {load.kl:g}, {load.threads} thread(s)"
        )
        mine = ours(load, Path(folder, "model"))
        step = show("ours", mine)
        if python:
            out = Path(folder, "trl.json")
            words = [w for k, v in asked.items() for w in (f"--{k}", str(v))]
            command = [python, __file__, *words, "--as-peer", str(Path(folder, "model")), str(out)]
            subprocess.run(command, check=True, stdout=sys.stderr)
            other = show("TRL", json.loads(out.read_text()))
            print(f"TRL takes {other / step:.1f} times as long")


def show(name: str, steps: list[dict[str, float]]) -> float:
    """Print the median step and its phases; returns its seconds."""
    medians = {k: statistics.median(step[k] for step in steps) for k in steps[0]}
    phases = ", ".join(f"{k} {v:.2f}" for k, v in medians.items() if k != "step")
    print(f"{name:<5} {medians['step']:8.2f} s per step" + (f"  ({phases})" if phases else ""))
    return medians["step"]


if __name__ == "__main__":
    main()
