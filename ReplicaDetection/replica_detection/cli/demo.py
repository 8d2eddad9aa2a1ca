"""`demo`."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from replica_detection.cli.application import app
from replica_detection.cli.console import Bars, console

_PLAN = """\
Two cohorts of made-up patients, side by side: head CT with hemorrhage, and TOF-MRA of the circle of Willis. For each:
1. {training} training scans, {validation} unseen ones and {novel} synthetic ones of new patients are made,
   and synthetic replicas of training scans, {per_kind} of each kind, such as exact, noise, blur or blend.
2. The training scans are indexed, with masks that the program makes itself.
3. Every synthetic and unseen scan is compared with every training scan, also in other positions.
4. Verdicts and a report are written.
This takes three minutes of CPU, about two on two idle cores, the first time, when the kernels are compiled."""

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

    Head CT with hemorrhage and TOF-MRA of the circle of Willis; takes three minutes of CPU, needs no data and no
    network.
    """
    from replica_detection.audit.demo import run_demo

    sizes = {name: argument.default for name, argument in signature(run_demo).parameters.items()}
    console.print(_PLAN.format(**sizes))
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
