"""run file -> DIR/verl: all that verl needs to train it; launched where verl, vLLM and GPUs are."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console

from memory_r1.config import Settings
from memory_r1.data import recognise
from memory_r1.embed import open_embedder
from memory_r1.errors import ConfigError, DataError, MemoryR1Error
from memory_r1.llm import Agents, Role
from memory_r1.llm.open import ROLES_FILE, open_agents
from memory_r1.train.construct import starts
from memory_r1.train.cost import announce
from memory_r1.train.players import kept
from memory_r1.train.runfile import Run, dump
from memory_r1.train.stage import MODEL, dialogues_of, player_of
from memory_r1.train.verl.overrides import TRAINER, answerer_of, overrides
from memory_r1.train.verl.samples import AGENT, ONE_REPLY, Row, rows, write

FOLDER = "verl"
AGENT_LOOP = "agent_loop.yaml"
CHECKPOINTS = "checkpoints"
_SCRIPT = """\
#!/usr/bin/env bash
# Checks and trains this run with verl 0.9.1. Start it where Ray sees the GPUs; what stands after
# its name are further overrides for verl. PYTHON names the interpreter that has verl.
set -euo pipefail
here="$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)"
python="${{PYTHON:-python3}}"
cd "$here"
mapfile -t settings < overrides.txt
settings+=(
{paths}
)
{environment}\
"$python" -m memory_r1.train.verl.check "${{settings[@]}}" "$@"
"$python" -m verl.trainer.main_ppo "${{settings[@]}}" "$@"
# verl leaves shards: put them together, and beside the model who plays which role.
step="$(cat checkpoints/latest_checkpointed_iteration.txt)"
"$python" -m verl.model_merger merge --backend fsdp \\
  --local_dir "checkpoints/global_step_$step/actor" --target_dir "../{model}"
cp {roles} ../
"""


def launch(run: Run, out: Path, *, resume: bool = False, console: Console | None = None) -> bool:
    """Write `out/verl` and train where that is possible; else say what is missing and what to do.

    Returns whether it trained. Raises ConfigError for what verl can't do, DataError without
    practice, ModelUnavailable when a frozen agent that builds the banks can't be reached, and
    MemoryR1Error when verl itself gave up.
    """

    def say(text: str) -> None:
        shown.print(text, markup=False, highlight=False, soft_wrap=True)

    shown = console or Console(stderr=True)
    folder = out / FOLDER
    if not resume and (folder / CHECKPOINTS).exists():
        raise ConfigError(f"{folder} holds a run already; go on with --resume, or name another one")
    if not (resume and (folder / "launch.sh").is_file()):
        prepare(run, out, say)
    script = folder / "launch.sh"
    if lacking := missing():
        say(
            f"not trained: {', '.join(lacking)} missing on this machine. All that verl needs is in "
            f"{folder}: copy it to the cluster, install memory-r1 and verl there, and start "
            f"bash {script.name} in it (docs/verl.md)"
        )
        return False
    command = ["bash", str(script), f"trainer.resume_mode={'auto' if resume else 'disable'}"]
    ended = subprocess.run(["env", f"PYTHON={sys.executable}", *command], check=False)
    if ended.returncode:
        raise MemoryR1Error(
            f"verl ended with status {ended.returncode}; its output above says why. "
            f"--resume goes on from the last checkpoint in {folder}"
        )
    return True


def missing() -> list[str]:
    """What this machine lacks to train with verl; [] when nothing."""
    lacking = [name for name in ("verl", "vllm", "ray") if not _installed(name)]
    if not _sees_gpu():
        lacking.append("a GPU")
    return lacking


def _installed(name: str) -> bool:
    """Without importing it: any folder of that name can be imported."""
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def _sees_gpu() -> bool:
    if not _installed("torch"):
        return False
    import torch

    return torch.cuda.is_available()


def prepare(run: Run, out: Path, say: Callable[[str], None] = lambda text: None) -> Path:
    """Write `out/verl` and return it: the samples, the settings, the script that trains.

    Raises as `launch` does.
    """
    settings = overrides(run)  # first: what verl can't do should be known before banks are built
    roles: tuple[Role, ...] = ("extract", "manage")
    builders = {role: builder_of(run, role) for role in roles}
    train, val = _samples(run, builders, say)
    folder = out / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    (out / "config.toml").write_text(dump(run), "utf-8")
    paths = {
        "data.train_files": write(folder, "train", train).name,
        "data.val_files": write(folder, "val", val).name,
        "trainer.default_local_dir": CHECKPOINTS,
    }
    if run.verl.level == "b":
        (folder / AGENT_LOOP).write_text(agent_loop(run), "utf-8")
        paths["actor_rollout_ref.rollout.agent.agent_loop_config_path"] = AGENT_LOOP
    (folder / "overrides.txt").write_text("\n".join(settings) + "\n", "utf-8")
    (folder / "launch.sh").write_text(script(run, paths), "utf-8")
    (folder / ROLES_FILE).write_text(players(run, builders, out), "utf-8")
    say(f"{len(train)} samples to practise on, {len(val)} held out, in {folder}")
    return folder


def _samples(
    run: Run, builders: Mapping[Role, str], say: Callable[[str], None]
) -> tuple[list[Row], list[Row]]:
    """The rows to train on and those held out, as `stage.prepare` would choose their episodes."""
    # Kept replies make a preparation that was stopped go on where it was.
    makers = kept(
        Agents(
            extract=open_agents(builders["extract"]).extract,
            manage=open_agents(builders["manage"]).manage,
        )
    )
    # The paper's protocol may show each speaker's best; episodes are played as banks are made.
    settings, embedder = Settings(per_speaker=run.rollout.per_speaker), open_embedder()
    practised, held_out = dialogues_of(run)
    say(f"building banks from {len(practised) + len(held_out)} dialogues")
    announce(run, makers, embedder, settings, practised, say)
    practice = starts(run, makers, embedder, settings, practised, practised=True)
    tested = starts(run, makers, embedder, settings, held_out)
    picked = random.Random(f"{run.seed}/held out").sample(
        range(len(tested)), min(run.eval.questions, len(tested))
    )
    as_rows = partial(
        rows,
        agent=ONE_REPLY if run.verl.level == "a" else AGENT,
        settings=settings,
        reward=run.reward.name,
        benchmark=recognise(Path(run.data.path)).name if run.data else "world",
    )
    train = as_rows(practice, split="train")
    val = as_rows([tested[i] for i in sorted(picked)], split="val")
    if not train or not val:
        raise DataError(
            f"expected episodes to practise on and held-out ones, got {len(train)} and {len(val)}"
        )
    # verl counts in epochs of whole steps, and divides by zero when the rows are too few for one;
    # twice as many, because those with too long a prompt will be left out.
    laps = -(-2 * run.rollout.prompts // len(train))
    return train * laps, val


def builder_of(run: Run, role: Role) -> str:
    """Who plays a role while the banks are built. ConfigError when the run file names nobody."""
    frozen = run.extract if role == "extract" else run.manager
    named = frozen or run.verl.answerer
    if named is None and run.data is not None and run.data.banks == "observations":
        return "rules"  # nobody is asked: the file holds the facts
    if named is None:
        who = "extract" if role == "extract" else "manager"
        if run.kind == "manager" and role == "manage":
            who = "verl.answerer"  # `manager` would name the one that is trained
        raise ConfigError(
            f"who plays {role!r} while the banks are built? Set {who} to a model, a service such "
            'as "http://HOST:8000/v1#MODEL", or "rules"; verl.answerer plays every open role'
        )
    return named


def agent_loop(run: Run) -> str:
    """The file that tells verl of our agent loop; JSON is YAML."""
    loop = {
        "name": AGENT,
        "_target_": "memory_r1.train.verl.loop.EpisodeLoop",
        "answerer": answerer_of(run),
        "judge": run.reward.judge,
    }
    return json.dumps([loop], indent=2) + "\n"


def script(run: Run, paths: dict[str, str]) -> str:
    """launch.sh: the exact command, with the paths of the folder it lies in."""
    lines = "\n".join(f"  \"{name}='$here/{path}'\"" for name, path in paths.items())
    external = f"export VERL_USE_EXTERNAL_MODULES={TRAINER}\n" if run.verl.level == "b" else ""
    return _SCRIPT.format(paths=lines, environment=external, model=MODEL, roles=ROLES_FILE)


def players(run: Run, builders: Mapping[Role, str], out: Path) -> str:
    """agents.json of the trained run: the model it will hold, and its frozen partners."""
    named: dict[Role, str] = {**builders, "answer": answerer_of(run) or "rules"}
    named = {role: _beside(player_of(name, role), out) for role, name in named.items()}
    named[run.trains[0]] = MODEL
    return json.dumps(named, indent=2, sort_keys=True) + "\n"


def _beside(player: str, out: Path) -> str:
    """A folder as seen from the run's, so that both can be moved together; else the name."""
    return (
        os.path.relpath(Path(player).resolve(), out.resolve()) if Path(player).is_dir() else player
    )
