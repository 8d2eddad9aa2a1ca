"""`memorization`, `filter`, `selftest`: whole sets of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from replica_detection.cli.application import app
from replica_detection.cli.console import Bars, console, print_warnings
from replica_detection.cli.options import (
    COHORT_HELP,
    Align,
    Alpha,
    Device,
    Embedding,
    K,
    LocalCluster,
    Measures,
    PatientPattern,
    Patients,
    Profile,
    Scheduler,
    Segment,
    SliceEmbedding,
    Workers,
    names,
)
from replica_detection.cli.places import work_places

if TYPE_CHECKING:
    from replica_detection.audit.memorization_tables import AssessedSet
    from replica_detection.audit.planted_verdicts import SelfTest

OtherReal = Annotated[
    Path, typer.Option(help="Real images that are not among the training images; 20 or more, better 100.")
]
TrainingIndexFolder = Annotated[
    Path | None, typer.Option(help="Instead of --training: an index made by `replica-detection index`.")
]
CalibrationFile = Annotated[
    Path | None, typer.Option(help="Verdicts by readers' thresholds: a file of `replica-detection calibrate`.")
]
SelftestSeed = Annotated[
    int, typer.Option(help="Another seed draws other copies and other halves of the validation images.")
]
KeepImages = Annotated[
    bool, typer.Option("--keep-images", help="Keep the planted copies. They are images of your patients.")
]


@app.command()
def memorization(
    results: Annotated[
        list[Path], typer.Argument(help="Output folders of `replica-detection detect`, one for each synthetic set.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for table and curves.")],
    at: Annotated[
        str | None,
        typer.Option(help="Positions of the results on the axis (iterations, training cases), such as 5000,10000."),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(help="Real images that the generator never saw. Default: those of the first result."),
    ] = None,
    validation_masks: Annotated[Path | None, typer.Option(help="Their masks, for measures of masks.")] = None,
    patients: Patients = None,
    patient_pattern: PatientPattern = None,
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
    seed: Annotated[int, typer.Option(help="Seed of bootstraps and random draws.")] = 0,
) -> None:
    """Say how much whole synthetic sets repeat the training set; several results
    make a curve over training.

    N_copies: share of synthetic images that lie nearer to a training image than
    unseen images do (Dar et al.).

    N_mem: share of training images that some synthetic image lies nearer to
    than unseen images do (Dar et al.).

    AuthPct: percentage of synthetic images farther from their nearest training
    image than that one is from its own (Alaa et al.). CT: below 0 where
    synthetic images lie nearer to training than unseen ones (Meehan et al.).
    MI, ONI: means of the memorization index and of the overfit/novelty index
    (Deo et al.). FID and MS-SSIM are there because people ask for them: they do
    not show memorization, FID even rewards it.

    Every figure has a 95 % interval, and where it is known the value that
    entirely new images would give. The comparison is done again from the
    training index and the images, which must be where they were.

    Examples:

        replica-detection memorization result --output memorization

        replica-detection memorization epoch_*_result --at 50,100,200 --output curves
    """
    from replica_detection.audit.memorization_metrics import AS_PUBLISHED, SIZE_MATCHED
    from replica_detection.audit.set_assessment import assess_set

    if null not in (SIZE_MATCHED, AS_PUBLISHED):
        raise typer.BadParameter(f"--null is {null!r}: it is {SIZE_MATCHED} or {AS_PUBLISHED}")
    with Bars() as progress:
        assessed = assess_set(
            results,
            at=_places(at),
            validation=validation,
            validation_masks=validation_masks,
            patients=patients,
            patient_pattern=patient_pattern,
            measures=names(measures),
            device=device,
            seed=seed,
            progress=progress,
        )
    assessed.write(output, variant=null)
    for one in assessed.sets:
        _print_set(one, null)
    print_warnings(assessed.warnings)
    console.print(f"Table and curves: {output}")


def _places(at: str | None) -> list[float] | None:
    try:
        return None if at is None else [float(part) for part in at.split(",")]
    except ValueError:
        raise typer.BadParameter(f"--at is {at!r}: give one number for each result, such as 100,200") from None


def _print_set(one: AssessedSet, variant: str) -> None:
    from replica_detection.audit.memorization_tables import shown

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


@app.command("filter")
def filter_set(
    result: Annotated[Path, typer.Argument(help="The output folder of `replica-detection detect`.")],
    output: Annotated[Path, typer.Option(help="New folder for the images that stay, and manifest.csv.")],
    without_suspicious: Annotated[
        bool,
        typer.Option("--without-suspicious", help="Leave out suspicious and undecided images too, not only replicas."),
    ] = False,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Do not look for near-duplicates among the synthetic images.")
    ] = False,
    only_list: Annotated[bool, typer.Option("--list", help="Copy nothing; only write the manifest.")] = False,
    synthetic: Annotated[
        Path | None, typer.Option(help="Where the synthetic images are now, if they were moved since the run.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Copy a synthetic set without its replicas, and without near-duplicates among
    the synthetic images themselves.

    The source is only read. The manifest says of every image whether it stays,
    and if not, why: replica of which training case, near-duplicate of which
    image that stays. Of near-duplicates the one with the lowest score stays.

    Suspicious and undecided images, and those that could not be judged, stay.
    The manifest and a warning say so; --without-suspicious leaves the first two
    out.

    What stays is not proved to be unlike the training images: the run's error
    rates, and everything that it cannot see, apply to it.

    Example: replica-detection filter result --output synthetic_filtered
    """
    from replica_detection.audit.filtering import filter_replicas

    with Bars() as progress:
        done = filter_replicas(
            result,
            output,
            images=synthetic,
            without_suspicious=without_suspicious,
            keep_duplicates=keep_duplicates,
            copy=not only_list,
            device=device,
            progress=progress,
        )
    print_warnings(done.warnings)
    others = done.cases - len(done.kept_ids) - done.flagged - done.duplicates
    console.print(
        f"{len(done.kept_ids)} of {done.cases} images stay; {done.flagged} went by their verdict, {done.duplicates} as "
        f"near-duplicates of images that stay{f', {others} since the run did not judge them' if others else ''}. "
        f"{'Listed in' if only_list else 'Images and reasons:'} {output}"
    )


@app.command()
def selftest(
    validation: OtherReal,
    output: Annotated[Path, typer.Option(help="New folder for tables and pictures.")],
    training: Annotated[Path | None, typer.Option(help="The training images. " + COHORT_HELP)] = None,
    index: TrainingIndexFolder = None,
    copies: Annotated[int, typer.Option(help="Training images copied for each kind of change.", min=1)] = 10,
    measures: Measures = None,
    k: K = 50,
    alpha: Alpha = 0.05,
    profile: Profile = "generic",
    training_masks: Annotated[Path | None, typer.Option(help="Masks of the training images.")] = None,
    validation_masks: Annotated[Path | None, typer.Option(help="Masks of the validation images.")] = None,
    segment: Segment = None,
    embedding: Embedding = None,
    slice_embedding: SliceEmbedding = None,
    patients: Patients = None,
    patient_pattern: PatientPattern = None,
    device: Device = "auto",
    align: Align = True,
    calibration: CalibrationFile = None,
    seed: SelftestSeed = 0,
    keep_images: KeepImages = False,
    workers: Workers = None,
    scheduler: Scheduler = None,
    cluster: LocalCluster = None,
) -> None:
    """Measure on your own images what would be found, before you trust a result.

    Copies of training images are planted: exact, noisy, brighter or darker,
    compressed, cropped, rotated by 3 and 5 degrees, flipped, blended with
    another image. They are judged together with half of the validation images,
    while the other half is in the null. The table says for each change how many
    were found, and for the held-out images how many were flagged by mistake.

    A change that is not found here will not be found in synthetic images
    either.

    Example: replica-detection selftest --training training/ --validation
    unseen/ --output selftest
    """
    from replica_detection.audit.selftest import selftest as run
    from replica_detection.detection.options import DetectionOptions
    from replica_detection.index.options import IndexOptions
    from replica_detection.index.training_index import TrainingIndex
    from replica_detection.readers.calibration import Calibration

    if (index is None) == (training is None):
        raise typer.BadParameter("give either --training or --index")
    thresholds = None if calibration is None else Calibration.read(calibration)
    with work_places(workers, scheduler, cluster) as places, Bars() as progress:
        tested = run(
            training if index is None else TrainingIndex.open(index),
            validation,
            output,
            training_masks=training_masks,
            validation_masks=validation_masks,
            patients=patients,
            patient_pattern=patient_pattern,
            options=DetectionOptions(
                names(measures), k, alpha, device, align=align, calibration=thresholds, workers=places
            ),
            index_options=IndexOptions(profile, names(measures), segment, embedding, slice_embedding, workers=places),
            copies=copies,
            seed=seed,
            keep_images=keep_images,
            progress=progress,
        )
    _print_selftest(tested)
    print_warnings(tested.warnings)
    console.print(f"Tables, plot and examples: {output}")


def _print_selftest(found: SelfTest) -> None:
    from replica_detection.audit.planted_verdicts import UNSEEN

    unseen = next(r for r in found.rows if r.kind == UNSEEN)
    some = any(row.undecided for row in found.rows)
    table = Table(
        "planted", "images", "found (95 % interval)", "as replica", *["undecided"] * some, "right case named", "AUROC",
        title=f"At a measured false-positive rate of {unseen.flagged:.2f} on {unseen.images} unseen images"
        + f" ({unseen.undecided} undecided)" * bool(unseen.undecided),
    )  # fmt: skip
    for row in found.rows:
        if row.kind != UNSEEN:
            table.add_row(
                row.kind,
                str(row.images),
                f"{row.flagged:.2f}",
                f"{row.replica.value:.2f}",
                *[str(row.undecided)] * some,
                f"{row.right.value:.2f}",
                f"{row.auroc:.2f}",
            )
    console.print(table)
