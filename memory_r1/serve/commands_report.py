"""`memory-r1 report`: the paper's tables and figures from run folders, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memory_r1.serve.console import AsJson, answer_json, explain

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from memory_r1.bench.tabulate import Grid


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(report)


def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders of benchmark and of training runs.", metavar="RUN..."),
    ],
    out: Annotated[Path, typer.Option(help="Folder that the report is written to.")],
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "Memory benchmark report",
    force: Annotated[bool, typer.Option("--force", help="Replace a report in OUT.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the paper's tables and figures from run folders, beside the paper's own numbers.

    OUT receives report.html (one page that needs nothing else), report.json, tables.md and
    figures/*.png. What the runs don't suffice for is listed with the commands that make it.
    """
    from rich.console import Console

    from memory_r1.bench import publish, tabulate
    from memory_r1.bench.figures import Missing
    from memory_r1.bench.gather import read

    made = publish.report(read(runs), title)
    page = publish.write(made, out, force=force)
    if as_json:
        answer_json(publish.as_json(made))
        return
    console = Console()
    for table in made.tables:
        console.print(_for_terminal(tabulate.main(table, intervals=False)))
        for note in tabulate.notes(table):
            explain(note)
    drawn = sum(1 for _ in made.drawings)
    every = [*made.of_all, *(figure for figures in made.of_table for figure in figures)]
    lacking = sorted({figure.title for figure in every if isinstance(figure, Missing)})
    figures = f"{drawn} figure{'' if drawn == 1 else 's'}"
    console.print(f"{figures} and all tables: {page}", soft_wrap=True, markup=False)
    if lacking:
        explain(f"Not drawn everywhere, the page says what is missing: {'; '.join(lacking)}.")


def _for_terminal(grid: Grid) -> RichTable:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(grid.title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
    )
    for i, heading in enumerate(grid.headings):
        table.add_column(heading, justify="right" if i else "left", no_wrap=i > 0)
    for line in grid.lines:
        cells = (
            Text(cell, style="bold" if i in line.best else "") for i, cell in enumerate(line.cells)
        )
        table.add_row(*cells, style="dim" if line.kind == "paper" else "")
    return table
