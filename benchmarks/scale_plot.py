"""What scale.py has written -> a table, and a plot of growth with its exponents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Figures = dict[str, Any]


class Row(NamedTuple):
    """One thing that is measured at every size."""

    name: str
    step: str
    figure: str
    scaled: bool = False
    """Of some owners: times all entries over theirs."""


class Point(NamedTuple):
    """What it took at one size, in milliseconds (calls) or seconds (jobs)."""

    wall: float
    processor: float


CALLS = (
    Row("search, known user", "searches", "search, known user"),
    Row("search, new user", "searches", "search, new user"),
    Row("search, heavy user", "searches", "search, heavy user"),
    Row("add, known user", "adds", "add, known user"),
    Row("add, heavy user", "adds", "add, heavy user"),
    Row("list, page of 50", "pages", "list, page of 50"),
    Row("journal, page of 50", "pages", "journal, page of 50"),
    Row("stats of a user", "pages", "stats of a user"),
)
JOBS = (
    Row("open", "searches", "open"),
    Row("first search, heavy user", "searches", "first search, heavy user"),
    Row("whole journal, heavy user", "pages", "whole journal, heavy user"),
    Row("stats of everybody", "pages", "stats of everybody"),
    Row("forget of a user with 400", "adds", "forget"),
    Row("migrate", "migrate", "migrate"),
    Row("backup while writing", "backup", "backup"),
    Row("check of the structure", "checks", "check of the structure"),
    Row("replay of all journals *", "checks", "replay", scaled=True),
    Row("export of all *", "exports", "export", scaled=True),
    Row("restore of all *", "exports", "restore", scaled=True),
    Row("writing all, in transactions of 400 *", "adds", "written together", scaled=True),
    Row("copying all in the database", "build", "copy"),
    Row("check, all owners", "whole", "check"),
    Row("export, all owners", "whole", "export of all"),
    Row("restore, all owners", "whole", "restore of all"),
    Row("reindex", "whole", "reindex"),
)


def states(out: Path, kind: str) -> dict[int, Figures]:
    """Size -> what is known of it."""
    found = [json.loads(path.read_text()) for path in out.glob(f"{kind}_[0-9]*.json")]
    return {state["size"]: state for state in sorted(found, key=lambda state: state["size"])}


def points(known: Mapping[int, Figures], row: Row) -> dict[int, Point]:
    """Size -> what it took, where it was measured."""
    found = {}
    for size, state in known.items():
        if figure := state.get(row.step, {}).get("figures", {}).get(row.figure):
            times = size / figure["entries"] if row.scaled else 1
            wall = figure["p50"] if "p50" in figure else figure["s"]
            found[size] = Point(wall * times, figure["cpu"] * times)
    return found


def exponent(found: Mapping[int, Point]) -> float | None:
    """b of the best a * size ** b for the processor's time; None with fewer than three sizes."""
    seen = {size: point.processor for size, point in found.items() if point.processor > 0}
    if len(seen) < 3:
        return None
    slope, _ = np.polyfit(np.log(list(seen)), np.log(list(seen.values())), 1)
    return float(slope)


def table(out: Path) -> str:
    """Both stores, as Markdown: by the clock, and of processors."""
    lines = []
    for kind in ("sqlite", "postgres"):
        if not (known := states(out, kind)):
            continue
        lines += [f"| {kind} | " + " | ".join(f"{size:,}" for size in known) + " | grows as |"]
        lines += ["|---" * (len(known) + 2) + "|"]
        for unit, rows in (("ms", CALLS), ("s", JOBS)):
            for row in rows:
                found, power = points(known, row), exponent(points(known, row))
                cells = [
                    f"{_short(found[size].wall)} / {_short(found[size].processor)}"
                    if size in found
                    else "not measured"
                    for size in known
                ]
                grows = "" if power is None else f"n^{power:.2f}"
                lines.append(f"| {row.name}, {unit} | " + " | ".join(cells) + f" | {grows} |")
        lines.append("")
    return "\n".join(lines)


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 99.5 else f"{number:.2g}"


def draw(out: Path, target: Path) -> None:
    """The processor's time over the size, both axes logarithmic, one row per store."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = [kind for kind in ("sqlite", "postgres") if states(out, kind)]
    figure, axes = pyplot.subplots(
        len(kinds), 2, figsize=(15, 5.5 * len(kinds)), squeeze=False, layout="constrained"
    )
    for line, kind in zip(axes, kinds, strict=True):
        for panel, unit, rows in zip(line, ("ms", "s"), (CALLS, JOBS), strict=True):
            for number, row in enumerate(rows):
                found = points(states(out, kind), row)
                sizes = [size for size in found if found[size].processor > 0]
                power = exponent(found)
                panel.plot(
                    sizes,
                    [found[size].processor for size in sizes],
                    "o--" if row.scaled else "o-",
                    label=row.name if power is None else f"{row.name}: n^{power:.2f}",
                    color=pyplot.get_cmap("tab20")(number),
                )
            what = "one call" if unit == "ms" else "whole jobs (*: from ten owners)"
            panel.set_title(f"{kind}, {what}, processor time")
            panel.set(xscale="log", yscale="log", xlabel="entries in the store", ylabel=unit)
            panel.grid(alpha=0.3)
            panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(target, dpi=80)
    pyplot.close(figure)
