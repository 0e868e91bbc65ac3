"""kind = "sft": a run file -> the tiny model, from nothing or from another tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from memory_r1.errors import ConfigError
from memory_r1.llm.local import LocalLLM
from memory_r1.llm.open import ROLES_FILE, open_agents
from memory_r1.train import checkpoint, tokenizer
from memory_r1.train.lessons import Teacher, Vice
from memory_r1.train.runfile import Run
from memory_r1.train.runlog import RunLog
from memory_r1.train.stage import MODEL
from memory_r1.train.teach import Schedule, Teaching, exact_replies

GOES_ON = 10_000
"""Added to the teacher's seed where a model goes on learning."""
NEW = "new"
"""The name of a model that does not exist yet."""


def teach(
    run: Run,
    out: Path,
    *,
    resume: bool = False,
    command: Sequence[str] = (),
    watch: Callable[[int, Mapping[str, float]], None] = lambda step, metrics: None,
) -> None:
    """Teach a tiny model and leave a run folder; it computes on a GPU where there is one.

    Held out: fresh dialogues of the same kind of words, and of unseen words (eval_*).
    """
    saved = checkpoint.latest(out / checkpoint.FOLDER) if resume else None
    loaded = checkpoint.load(saved) if saved else None
    first = loaded.step if loaded else 0
    settings = run.sft
    with RunLog(out, run, command, resume=first if resume else None) as log:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model, words = _student(run)
        model.to(device)
        log.say(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters on {device}")
        vice = Vice(
            settings.vice_accumulate,
            settings.vice_repeat,
            settings.vice_retract,
            settings.vice_overwrite,
        )
        schedule = Schedule(
            run.steps.total,
            settings.tokens_per_step,
            settings.muon_lr,
            settings.adam_lr,
        )
        teaching = Teaching(
            model,
            words,
            # A tiny model that goes on is told nothing that its first training told it.
            Teacher(run.seed if run.model == NEW else run.seed + GOES_ON, vice, wide=settings.wide),
            schedule,
            bf16=settings.bf16,
            micro=run.steps.micro_batch_tokens,
            curriculum=run.model == NEW,
        )
        if loaded is not None:
            teaching.restore(loaded.states)
        for number in range(first, run.steps.total):
            metrics = teaching.step(number)
            done = number + 1
            last = done == run.steps.total
            if last or (run.eval.every and done % run.eval.every == 0):
                metrics |= _evaluate(teaching, run)
            log.log(done, metrics)
            watch(done, metrics)
            if last or done % run.steps.checkpoint_every == 0:
                checkpoint.save(out / checkpoint.FOLDER, done, states=teaching.state())
        save(model, words, out / MODEL)
        (out / ROLES_FILE).write_text(
            json.dumps(dict.fromkeys(("extract", "manage", "answer"), MODEL), indent=2) + "\n",
            encoding="utf-8",
        )


def _student(run: Run) -> tuple[Any, Any]:
    """The model and its tokenizer: a new one of the run's shape, or a copy of a tiny one."""
    if run.model != NEW:
        llm = open_agents(run.model).manage
        if not isinstance(llm, LocalLLM) or llm.style != "compact":
            raise ConfigError(
                f"sft teaches the compact style: model {run.model!r} is no tiny model; expected "
                f"{NEW!r}, tiny-base or the folder of one"
            )
        model = llm.copy().model
        model.set_attn_implementation("tree")
        return model.float(), llm.tokenizer
    from transformers import Qwen2Config, Qwen2ForCausalLM

    words = tokenizer.build()
    torch.manual_seed(run.seed)
    config = Qwen2Config(
        vocab_size=len(words),
        hidden_size=run.sft.hidden,
        num_hidden_layers=run.sft.layers,
        num_attention_heads=run.sft.heads,
        num_key_value_heads=run.sft.heads,
        intermediate_size=run.sft.mlp,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        attn_implementation="tree",
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
        bos_token_id=None,
    )
    return Qwen2ForCausalLM(config), words


def _evaluate(teaching: Teaching, run: Run) -> dict[str, float]:
    """Shares of exactly right replies on words of the training kind and on unseen ones."""
    found: dict[str, float] = {}
    for name, words in (("new", "mixed"), ("unseen", "unseen")):
        shares = exact_replies(
            teaching.model,
            teaching.tokenizer,
            words=words,  # type: ignore[arg-type]
            seed=run.seed + 1,
            dialogues=max(1, run.eval.questions // 20),
            micro=run.steps.micro_batch_tokens,
            bf16=run.sft.bf16,
        )
        found |= {f"eval_{name}/{role}": share for role, share in shares.items()}
    return found


def save(model: Any, words: Any, folder: Path) -> None:
    """Write a compact model in bfloat16 and Hugging Face form, as `LocalLLM` loads it."""
    state = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    kept = {name: tensor.cpu() for name, tensor in state.items() if name != "lm_head.weight"}
    model.save_pretrained(folder, state_dict=kept)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["dtype"] = "bfloat16"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    words.save_pretrained(folder)
    (folder / "memory_r1.json").write_text(json.dumps({"style": "compact"}) + "\n", "utf-8")
