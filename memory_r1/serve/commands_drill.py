"""`memory-r1 drill`: each agent of a system by itself, on banks that are right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from memory_r1.serve.console import AsJson, answer_json


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command()(drill)


def drill(
    data: Annotated[Path, typer.Option(help="A world file, from `memory-r1 world`.")],
    system: Annotated[
        str, typer.Option(help="tiny-base, tiny, the folder of a training run, a model.")
    ] = "tiny",
    k: Annotated[
        int | None, typer.Option(help="Entries the Answer Agent is shown, as in `bench`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure each agent alone on right banks: the manager's decisions, the answers.

    `bench world` plays both together instead.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from memory_r1.bench.drill import drill as play
    from memory_r1.bench.systems import open_system

    found = play(data, open_system(system), k=k)
    if as_json:
        answer_json(found)
        return

    def table(
        title: str, rows: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str]
    ) -> Table:
        made = Table("", *columns.values(), title=title, box=box.SIMPLE_HEAD, title_justify="left")
        for name, row in rows.items():
            cells = [row[column] for column in columns]
            made.add_row(name, *("-" if cell is None else str(cell) for cell in cells))
        return made

    console = Console()
    shares = {
        "n": "n",
        "right_operation": "operation",
        "right_entry": "entry",
        "merges": "merges",
        "merged_exactly": "exact",
        "malformed": "malformed",
    }
    console.print(table(f"{system}: decisions on right banks, %", found["manager"], shares))
    console.print(
        table(f"{system}: answers on right banks, %", found["answer"], {"n": "n", "em": "EM"})
    )
