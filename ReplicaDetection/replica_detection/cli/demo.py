"""`demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from replica_detection.cli.application import app
from replica_detection.cli.console import Bars, console


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
        console.print(outcome.table())
    for outcome in outcomes:
        console.print(f"Report of {outcome.title}: {outcome.page}")
