"""Everything at full length, and the table of docs/reliability.md: `make torture`.

    python tests/torture/run.py [--out out/torture] [--only NAME ...] [--seed 0] [--scale 1.0]

What each came to is written into OUT as it is done, and `--table` prints what is there. Ends with 1
when anything was found wrong. scale: 0.1 does a tenth.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from memory_r1.llm.open import open_agents  # noqa: E402
from torture import (  # noqa: E402
    hostile,
    injection,
    isolation,
    kills,
    races,
    servers,
    training,
    training_faults,
)
from torture.made import Figures  # noqa: E402

Torture = Callable[[float, int], dict[str, Figures]]


def _times(scale: float, count: int) -> int:
    return max(1, round(count * scale))


def sqlite_kills(scale: float, seed: int) -> dict[str, Figures]:
    """Clients of a SQLite file killed."""
    return kills.kill_clients(kills.new_sqlite, _times(scale, 400), seed, kills.SQLITE_LIVES)


def postgres_kills(scale: float, seed: int) -> dict[str, Figures]:
    """Clients of PostgreSQL killed, and PostgreSQL itself."""
    server = servers.Postgres()
    try:
        found = kills.kill_clients(server.new_url, _times(scale, 210), seed, kills.LIVES)
        found["PostgreSQL itself"] = servers.kill_postgres_often(server, _times(scale, 35), seed)
    finally:
        server.close()
    return found


def server_kills(scale: float, seed: int) -> dict[str, Figures]:
    """`memory-r1 serve` killed, also while it shuts down."""
    return {"serve": servers.kill_serve_often(_times(scale, 40), seed)}


def sqlite_races(scale: float, seed: int) -> dict[str, Figures]:
    """8 processes of 4 threads, and one of 32, on a SQLite file."""
    return {"32 at once": races.race_often(kills.new_sqlite, _times(scale, 10), 100, seed)}


def postgres_races(scale: float, seed: int) -> dict[str, Figures]:
    """The same on PostgreSQL."""
    server = servers.Postgres()
    try:
        return {"32 at once": races.race_often(server.new_url, _times(scale, 10), 50, seed)}
    finally:
        server.close()


def hostile_models(scale: float, seed: int) -> dict[str, Figures]:
    """Replies that no model should give."""
    return {
        style: hostile.torment(_times(scale, outputs), seed, style)
        for style, outputs in (("instruct", 80_000), ("compact", 40_000))
    }


def faces(scale: float, seed: int) -> dict[str, Figures]:
    """Three users through every face at once."""
    return {"every face": isolation.mingle(_times(scale, 5000), seed)}


def injections(scale: float, seed: int) -> dict[str, Figures]:
    """Stored texts that try to act; harmless ones beside them."""
    told = injection.ATTACKS[: _times(scale, len(injection.ATTACKS))]
    news = injection.HARMLESS[: _times(scale, len(injection.HARMLESS))]
    tiny = open_agents("tiny")
    return {
        "prompts": injection.in_quotes(told),
        "an obedient model": injection.swayed(injection.obedient(), told),
        "tiny, told attacks": injection.swayed(tiny, told),
        "tiny, told harmless news": injection.swayed(tiny, news),
        "tiny, answers among attacks": injection.answers_swayed("tiny", told),
        "tiny, answers among harmless news": injection.answers_swayed("tiny", news),
    }


def trainings(scale: float, seed: int) -> dict[str, Figures]:
    """Training killed, poisoned, without its judge, without room on the disk."""
    return training_faults.torment(list(training.RUNS), _times(scale, 15), seed)


TORTURES: Mapping[str, Torture] = {
    "sqlite-kills": sqlite_kills,
    "postgres-kills": postgres_kills,
    "server-kills": server_kills,
    "sqlite-races": sqlite_races,
    "postgres-races": postgres_races,
    "hostile-models": hostile_models,
    "injection": injections,
    "isolation": faces,
    "training": trainings,
}


def main() -> None:
    """See above."""
    options = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    options.add_argument("--out", type=Path, default=Path("out/torture"))
    options.add_argument("--only", nargs="+", choices=list(TORTURES), default=list(TORTURES))
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--scale", type=float, default=1.0)
    options.add_argument("--table", action="store_true", help="only print what is there")
    asked = options.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    wrong = 0
    for name in () if asked.table else asked.only:
        began = time.perf_counter()
        found = TORTURES[name](asked.scale, asked.seed)
        seconds = time.perf_counter() - began
        parts = {part: asdict(figures) for part, figures in found.items()}
        told = {"seed": asked.seed, "scale": asked.scale, "seconds": seconds, "parts": parts}
        told["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
        (asked.out / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n", "utf-8")
        for part, figures in found.items():
            wrong += len(figures.wrong)
            counts = ", ".join(f"{n:,} {what}" for what, n in figures.counts.items())
            print(f"{name}: {part}: {counts}; {len(figures.wrong)} wrong", flush=True)
            for line in figures.wrong[:5]:
                print(f"    {line}", flush=True)
    print_table(asked.out)
    sys.exit(1 if wrong else 0)


def print_table(out: Path) -> None:
    """What was found by now, as docs/reliability.md shows it."""
    print("\n| torture | part | figures | wrong |\n|---|---|---|---|")
    for name in TORTURES:
        path = out / f"{name}.json"
        if path.exists():
            for part, figures in json.loads(path.read_text("utf-8"))["parts"].items():
                counts = ", ".join(
                    f"{n:,} {w}".replace("_", " ") for w, n in figures["counts"].items()
                )
                print(f"| {name} | {part} | {counts} | {len(figures['wrong'])} |")


if __name__ == "__main__":
    main()
