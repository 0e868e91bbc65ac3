"""What a quickstart measured -> tables in the terminal, and one self-contained page of HTML."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from memory_r1.serve import quickstart_charts as charts
from memory_r1.serve.quickstart_measure import SYSTEMS, Measured, Row, mix
from memory_r1.serve.quickstart_story import Heard, Story

TITLES: Mapping[str, str] = {
    "new": "New dialogues, words known from training",
    "unseen": "New dialogues, names and values never seen",
}
"""What the two test worlds are called on the screen."""
HEADINGS: Mapping[str, str] = {
    "before": "before",
    "stage1": "stage 1",
    "both": "both",
}
VICE = (
    "tiny-base was taught a vice on purpose: where a second fact should join the first, its "
    "manager mostly deletes the old memory and adds the new one, as the untrained manager in the "
    "paper's Figure 1 does; and it mostly adds what is told again, and a cancellation beside its "
    "plan. Its card says how. So “before” is a staged beginning, and the "
    "gain shows that the reward mends it, not how good untrained language models are."
)
"""What must be said wherever tiny-base's numbers are shown."""


@dataclass(frozen=True)
class Stage:
    """One trained agent."""

    title: str
    rows: Sequence[Mapping[str, Any]]
    """Of metrics.jsonl."""
    config: str
    """The run file, every setting written out."""


@dataclass(frozen=True)
class Result:
    """Everything a report tells."""

    asked: Mapping[str, Any]
    before: Story
    after: Story
    stages: Sequence[Stage]
    measured: Sequence[Measured]
    about: Mapping[str, Any]
    """run.json of stage 1: code, libraries, machine."""
    seconds: Mapping[str, float]


def table(measured: Measured) -> Table:
    """Exact match per group before and after, for the terminal."""
    found = Table(
        title=f"{TITLES[measured.world]}: exact match, %",
        title_justify="left",
        caption="gain: both - before in points, with its 95% paired bootstrap interval",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
    )
    found.add_column("questions", no_wrap=True)
    for heading in ("n", *HEADINGS.values(), "gain", "95%"):
        found.add_column(heading, justify="right", no_wrap=True)
    for row in measured.rows:
        found.add_row(row.group, *cells(row), style="bold" if row.group == "all" else "")
    return found


def cells(row: Row) -> list[str]:
    """n, the systems' exact match, the gain and its interval, as text."""
    gain = row.gain
    return [
        str(row.n),
        *("-" if share is None else f"{share:.1f}" for share in row.em),
        f"{gain.difference:+.1f}",
        f"[{gain.low:+.1f}, {gain.high:+.1f}]",
    ]


def operations(measured: Measured) -> Table:
    """What the managers did, for the terminal; the trained one is the same in the last two rows."""
    found = Table(
        title="operations, % of all; entry: UPDATE and DELETE that name the right entry, %",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
    )
    for i, heading in enumerate(_OPERATION_HEADINGS):
        found.add_column(heading, justify="right" if i else "left")
    for row in operation_rows(measured):
        found.add_row(*row)
    return found


_OPERATION_HEADINGS = ("manager", "ADD", "UPDATE", "DELETE", "NOOP", "entry", "deferred")


def operation_rows(measured: Measured) -> list[list[str]]:
    """One row for the manager before and one for it after training, as text."""
    rows = []
    for name, heading in (("before", "before"), ("stage1", "trained")):
        bank = measured.bank[name]
        entry = bank["right_entry"]
        shares = [f"{share:.1f}" for share in mix(bank["operations"]).values()]
        deferred = str(bank["deferred_turns"])
        rows.append([heading, *shares, "-" if entry is None else f"{entry:.1f}", deferred])
    return rows


def write(out: Path, result: Result) -> Path:
    """Write OUT/results.json and OUT/report.html; returns the latter."""
    tables = {
        "asked": result.asked,
        "systems": SYSTEMS,
        "worlds": [
            asdict(one) | {"rows": [_plain(row) for row in one.rows]} for one in result.measured
        ],
        "seconds": result.seconds,
    }
    text = json.dumps(tables, indent=1, ensure_ascii=False)
    (out / "results.json").write_text(text + "\n", "utf-8")
    page = out / "report.html"
    page.write_text(html(result), "utf-8")
    return page


def _plain(row: Row) -> dict[str, Any]:
    return {"group": row.group, "n": row.n, "em": row.em, **row.gain._asdict()}


def html(result: Result) -> str:
    """The page."""
    asked, about = result.asked, result.about
    style = files("memory_r1.serve").joinpath("quickstart.css").read_text("utf-8")
    base = str(asked["base"]).split()[0]
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>memory-r1 quickstart</title><style>{style}</style></head><body><main>",
        "<h1>Learning to remember</h1>",
        f"<p>{escape(base)}, trained with {escape(str(asked['algo']).upper())} in two stages from "
        f"one signal: whether questions are answered right. Seed {asked['seed']}"
        f"{', a short run that shows only that everything works' if asked['short'] else ''}.</p>",
        *(f"<p class='note'>{escape(VICE)}</p>" for _ in range(base == "tiny-base")),
        "<h2>Two dogs</h2>",
        "<p>One dialogue, remembered before and after training. No training met its names.</p>",
        "<div class='pair'>",
        _story("Before", result.before),
        _story("After", result.after),
        "</div>",
        "<h2>Held-out dialogues</h2>",
        *(part for one in result.measured for part in _measured(one)),
        "<h2>Training</h2>",
        *map(_stage, result.stages),
        "<h2>How it was made</h2>",
        _facts(asked, about, result.seconds),
        "</main></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _story(title: str, story: Story) -> str:
    turns = "".join(_turn(turn) for turn in story.heard)
    bank = "".join(f"<li>{escape(text)}</li>" for text in story.bank) or "<li>nothing</li>"
    replies = "".join(
        f"<p>{escape(r.question)}<br><b class='{'good' if r.right else 'bad'}'>"
        f"{escape(r.answer or '(no answer)')}</b></p>"
        for r in story.replies
    )
    lost = "".join(f"<p class='bad'>{escape(sentence)}.</p>" for sentence in story.lost)
    return (
        f"<section><h3>{title}</h3><ol class='turns'>{turns}</ol>"
        "<h4>What the memory then holds</h4>"
        f"<ul>{bank}</ul>{replies}{lost or '<p>Nothing that was told is lost.</p>'}</section>"
    )


def _turn(turn: Heard) -> str:
    done = "".join(f"<code>{escape(str(op))}</code>" for op in turn.operations)
    failed = "".join(f"<code class='bad'>deferred: {escape(e)}</code>" for e in turn.errors)
    said = f"{escape(turn.day)} <b>{escape(turn.speaker)}</b> {escape(turn.text)}"
    return f"<li>{said}{done}{failed}</li>"


def _measured(one: Measured) -> Iterable[str]:
    yield f"<h3>{TITLES[one.world]}</h3>"
    yield (
        "<p>Exact match in percent. Before: the base pair; stage 1: the trained Memory Manager "
        "with the old Answer Agent; both: the trained pair. Gain: both minus before in points, "
        "with its 95% paired bootstrap interval.</p>"
    )
    headings = ("questions", "n", *HEADINGS.values(), "gain", "95%")
    yield _table(headings, [[row.group, *cells(row)] for row in one.rows])
    yield (
        "<p>The Memory Manager: shares of its operations, the share of its UPDATEs and DELETEs "
        "that name the right entry, and the turns whose reply was no operation.</p>"
    )
    yield _table(_OPERATION_HEADINGS, operation_rows(one))


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(
        f"<tr{' class=all' if row[0] == 'all' else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return (
        f"<div class='wide'><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _stage(stage: Stage) -> str:
    drawn = (
        charts.line_chart("Reward", stage.rows, "reward_mean"),
        charts.operations_chart("Operations", stage.rows),
        charts.line_chart("Entropy, nats", stage.rows, "entropy"),
    )
    return (
        f"<h3>{escape(stage.title)}</h3><div class='charts'>{''.join(drawn)}</div>"
        f"<details><summary>All settings of this stage</summary><pre>{escape(stage.config)}</pre>"
        "</details>"
    )


def _facts(asked: Mapping[str, Any], about: Mapping[str, Any], seconds: Mapping[str, float]) -> str:
    machine, libraries = about.get("machine", {}), about.get("libraries", {})
    rows = {
        "model": asked["base"],
        "algorithm": asked["algo"],
        "seed": asked["seed"],
        "memory-r1": asked["version"],
        "commit": about.get("commit") or "not in a checkout",
        "python": about.get("python", ""),
        "libraries": ", ".join(f"{name} {version}" for name, version in libraries.items()),
        "machine": f"{machine.get('system', '')}, {machine.get('cpus', '?')} CPUs"
        + "".join(f", {gpu}" for gpu in machine.get("gpus", ())),
        "seconds": ", ".join(f"{part} {value:.0f}" for part, value in seconds.items()),
        "begun": about.get("started", ""),
    }
    return _table(("what", ""), [[name, str(value)] for name, value in rows.items()])
