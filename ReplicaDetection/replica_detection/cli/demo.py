"""`demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from replica_detection.cli.application import app
from replica_detection.cli.console import Bars, console

if TYPE_CHECKING:
    from replica_detection.audit.demo import Outcome


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="Folder for the made-up cohorts, the results and the reports.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(help="Another seed makes other patients.")] = 0,
) -> None:
    """Make two phantom cohorts with planted replicas, run the whole pipeline on them and write the reports.

    Head CT with hemorrhage and TOF-MRA of the circle of Willis; takes some minutes, needs no data and no network.
    """
    from replica_detection.audit.demo import run_demo

    with Bars() as progress:
        outcomes = run_demo(output, seed=seed, progress=progress)
    for outcome in outcomes:
        _print_outcome(outcome)
    for outcome in outcomes:
        console.print(f"Report of {outcome.title}: {outcome.page}")


def _print_outcome(outcome: Outcome) -> None:
    """A row for each kind of planted image: how many were flagged, and with the right training case."""
    table = Table(title=f"Demo: {outcome.title}")
    rows = outcome.rows()
    some = any(row.undecided for row in rows)
    columns = ("planted as", "images", "replica", "suspicious", *["undecided"] * some, "right patient's scan named")
    for column in columns:
        table.add_column(column, justify="left" if column == "planted as" else "right")
    for row in rows:
        new = row.kind == "novel"
        table.add_row(
            "new patients (1 in 20 flagged by chance)" if new else f"replica: {row.kind}",
            str(row.images),
            str(row.replicas),
            str(row.suspicious),
            *[str(row.undecided)] * some,
            "" if new else f"{row.right} of {row.images}",
        )
    console.print(table)
