"""The application that the commands of the other files register with, and its entry point."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from replica_detection.cli.console import run_guarded
from replica_detection.version import __version__

app = typer.Typer(
    name="replica-detection",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Finds synthetic medical images that are replicas of a real patient's scan.\n\n"
        "Start with [bold]replica-detection demo[/bold]. With your own data:\n\n"
        "    replica-detection detect SYNTHETIC --training TRAINING --validation UNSEEN --output RESULT\n\n"
        "SYNTHETIC, TRAINING and UNSEEN are folders of NIfTI, NRRD, MetaImage, DICOM, PNG, JPEG or other image files. "
        "UNSEEN holds real images that the generator never saw: they tell how alike different patients look. "
        "The answer is RESULT/report/index.html and the tables beside it.\n\n"
        "Exit codes: 0 done, 1 the run failed, 2 wrong arguments."
    ),
)


def _version(show: bool) -> None:
    if show:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


def main() -> None:
    """Entry point: turns every foreseen error into one message and an exit code."""
    sys.exit(run_guarded(app))
