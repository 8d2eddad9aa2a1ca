"""`memorization`, `filter`, `selftest`: whole sets of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from replica_detection.cli.application import app
from replica_detection.cli.options import (
    Device,
    Patients,
    names,
    read_cohort,
)
from replica_detection.console import Bars, console, print_warnings

if TYPE_CHECKING:
    from replica_detection.progress import Progress
    from replica_detection.set_level_files import AssessedSet


@app.command()
def memorization(
    results: Annotated[
        list[Path], typer.Argument(help="Output folders of `replica-detection detect`, one for each synthetic set.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for table and curves.")],
    at: Annotated[
        str | None,
        typer.Option(help="Where the results stand on the axis (iterations, training cases), such as 5000,10000."),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(help="Real images that the generator never saw. Default: those of the first result."),
    ] = None,
    validation_masks: Annotated[Path | None, typer.Option(help="Their masks, for measures of masks.")] = None,
    patients: Patients = None,
    measures: Annotated[
        str | None,
        typer.Option(help="Comma-separated. Default: all of the feature level, or of the voxel level without one."),
    ] = None,
    null: Annotated[
        str,
        typer.Option(
            help="size-matched: pools of equal size, 5 % of fresh images pass the threshold. as-published: the papers' "
            "own formulas. Printed and drawn; the table holds both."
        ),
    ] = "size-matched",
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Of bootstraps and random draws.")] = 0,
) -> None:
    """Say how much whole synthetic sets repeat the training set; several results make a curve over training.

    N_copies: share of synthetic images that lie nearer to a training image than unseen images do (Dar et al.).

    N_mem: share of training images that some synthetic image lies nearer to than unseen images do (Dar et al.).

    AuthPct: percentage of synthetic images farther from their nearest training image than that one is from its own
    (Alaa et al.). CT: below 0 where synthetic images lie nearer to training than unseen ones (Meehan et al.). MI, ONI:
    means of the memorization index and of the overfit/novelty index (Deo et al.). FID and MS-SSIM are there because
    people ask for them: they do not show memorization, FID even rewards it.

    Every figure has a 95 % interval, and where it is known the value that entirely new images would give. The
    comparison is done again from the training index and the images, which must be where they were.

    Examples:

        replica-detection memorization result --output memorization

        replica-detection memorization epoch_*_result --at 50,100,200 --output curves
    """
    from replica_detection.cohort import Cohort
    from replica_detection.detection import resolve_device
    from replica_detection.index import TrainingIndex
    from replica_detection.memorization import set_level
    from replica_detection.results import DetectionResult
    from replica_detection.set_level import AS_PUBLISHED, SIZE_MATCHED
    from replica_detection.set_level_files import AssessedSet, write_set_level

    if null not in (SIZE_MATCHED, AS_PUBLISHED):
        raise typer.BadParameter(f"--null is {null!r}: it is {SIZE_MATCHED} or {AS_PUBLISHED}")
    places = _places(at, len(results))
    read = [DetectionResult.read(folder) for folder in results]
    unseen = None
    known = read[0].run.validation
    if validation is not None or known is not None:
        source = validation if validation is not None else Path(known.source)  # type: ignore[union-attr]
        unseen = read_cohort(source, validation_masks, patients, False)
    sets = []
    with Bars() as progress:
        for folder, result, place in zip(results, read, places, strict=True):
            index = TrainingIndex.open(Path(result.run.index))
            synthetic = Cohort.read(Path(result.run.synthetic.source), masks=result.run.options.get("masks"))
            figures = set_level(
                index,
                synthetic,
                unseen,
                measures=names(measures),
                device=resolve_device(device),
                seed=seed,
                progress=_of_set(progress, folder.name),
            )
            sets.append(AssessedSet(folder.name, place, tuple(figures)))
            if patients is None and any(e.patient for e in index.entries):
                print_warnings(["the training index knows patients: give --patients, or unseen scans of them count"])
    write_set_level(sets, output, variant=null)
    for one in sets:
        _print_set(one, null)
    if unseen is None:
        print_warnings(["no unseen images (--validation): the training images among themselves are the null"])
    console.print(f"Table and curves: {output}")


def _of_set(progress: Progress, name: str) -> Progress:
    """Bars of their own for each set."""
    return lambda stage, done, total: progress(f"{name}: {stage}", done, total)


def _places(at: str | None, count: int) -> list[float | None]:
    if at is None:
        return [None] * count
    try:
        places = [float(part) for part in at.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--at is {at!r}: give one number for each result, such as 100,200") from None
    if len(places) != count:
        raise typer.BadParameter(f"--at has {len(places)} numbers for {count} results")
    return list(places)


def _print_set(one: AssessedSet, variant: str) -> None:
    from replica_detection.set_level_files import shown

    table = Table("figure", "of", "value (95 % interval)", "new images give", title=escape(one.name))
    notes = []
    for row in shown(one, variant):
        figure = row.figure
        expected = "" if figure.expected != figure.expected else f"{figure.expected:.3g}"
        table.add_row(figure.name, row.basis, f"{figure.estimate:.3g}", expected)
        if figure.note:
            notes.append(f"{one.name}: {figure.name} of {row.basis}: {figure.note}")
    console.print(table)
    print_warnings(notes)
