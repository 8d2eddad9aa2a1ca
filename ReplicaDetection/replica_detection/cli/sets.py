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
    Measures,
    Patients,
    Profile,
    Segment,
    SliceEmbedding,
    names,
    read_cohort,
    refuse_what_an_index_has,
)

if TYPE_CHECKING:
    from replica_detection.audit.memorization_tables import AssessedSet
    from replica_detection.audit.selftest import SelfTest
    from replica_detection.progress import Progress


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
    from replica_detection.audit.memorization import set_level
    from replica_detection.audit.memorization_metrics import AS_PUBLISHED, SIZE_MATCHED
    from replica_detection.audit.memorization_tables import AssessedSet, write_set_level
    from replica_detection.detection.detector import resolve_device
    from replica_detection.index.training_index import TrainingIndex
    from replica_detection.io.cohort import Cohort
    from replica_detection.results.result import DetectionResult

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
        bool, typer.Option("--without-suspicious", help="Leave out suspicious images too, not only replicas.")
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

    What stays is not proved to be unlike the training images: the run's error
    rates, and everything that it cannot see, apply to it.

    Example: replica-detection filter result --output synthetic_filtered
    """
    from replica_detection.audit.filtering import decide, write_filtered
    from replica_detection.audit.synthetic_duplicates import near_duplicate_groups
    from replica_detection.detection.detector import resolve_device
    from replica_detection.index.training_index import TrainingIndex
    from replica_detection.io.cohort import Cohort
    from replica_detection.results.result import DetectionResult

    read = DetectionResult.read(result)
    run = read.run
    source = Path(run.synthetic.source) if synthetic is None else synthetic
    cohort = Cohort.read(source, masks=run.options.get("masks"))
    decisions = decide(read, cohort, without_suspicious=without_suspicious)
    if not keep_duplicates:
        stays = {d.synthetic_id for d in decisions if d.kept}
        rest = Cohort(cohort.source, tuple(c for c in cohort.cases if c.id in stays))
        index = TrainingIndex.open(Path(run.index))
        measures = index.measures([m.name for m in run.measures], resolve_device(device), aligning=False)
        with Bars() as progress:
            groups = near_duplicate_groups(rest, index, measures, alpha=run.alpha, progress=progress)
        decisions = decide(read, cohort, groups, without_suspicious=without_suspicious)
    write_filtered(decisions, source, output, copy=not only_list)
    kept = sum(d.kept for d in decisions)
    duplicates = sum(bool(d.kept_instead) for d in decisions)
    flagged = sum(not d.kept and d.case is not None and d.summary is not None for d in decisions) - duplicates
    console.print(
        f"{kept} of {len(cohort)} images stay; {flagged} went by their verdict, {duplicates} as near-duplicates of "
        f"images that stay. {'Listed in' if only_list else 'Images and reasons:'} {output}"
    )


@app.command()
def selftest(
    validation: Annotated[
        Path, typer.Option(help="Real images that are not among the training images; 20 or more, better 100.")
    ],
    output: Annotated[Path, typer.Option(help="New folder for tables and pictures.")],
    training: Annotated[Path | None, typer.Option(help="The training images. " + COHORT_HELP)] = None,
    index: Annotated[
        Path | None, typer.Option(help="Instead of --training: an index made by `replica-detection index`.")
    ] = None,
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
    device: Device = "auto",
    align: Align = True,
    calibration: Annotated[
        Path | None, typer.Option(help="Verdicts by readers' thresholds: a file of `replica-detection calibrate`.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Another seed draws other copies and other halves of the validation images.")
    ] = 0,
    keep_images: Annotated[
        bool, typer.Option("--keep-images", help="Keep the planted copies. They are images of your patients.")
    ] = False,
) -> None:
    """Measure on your own images what would be found, before you trust a result.

    Copies of training images are planted: exact, noisy, brighter or darker,
    compressed, cropped, rotated by 3 and 5 degrees, flipped, blended with
    another image. They are judged together with half of the validation images,
    while the other half is the null. The table says for each change how many
    were found, and for the held-out images how many were flagged by mistake.

    A change that is not found here will not be found in synthetic images
    either.

    Example: replica-detection selftest --training training/ --validation
    unseen/ --output selftest
    """
    import tempfile

    from replica_detection.audit.selftest import selftest as run
    from replica_detection.audit.selftest_tables import write_selftest
    from replica_detection.detection.detector import DetectionOptions
    from replica_detection.errors import InputError
    from replica_detection.index.build import build_index
    from replica_detection.index.training_index import TrainingIndex
    from replica_detection.readers.calibration import Calibration

    if (index is None) == (training is None):
        raise typer.BadParameter("give either --training or --index")
    if index is not None:
        refuse_what_an_index_has(segment, training_masks, embedding, slice_embedding)
    # An index that an interrupted self-test left is built to its end; anything else is somebody's work.
    if output.exists() and not (output.is_dir() and all(p.name.startswith("index.rdindex") for p in output.iterdir())):
        raise InputError(output, "exists already", "Name a new folder")
    thresholds = None if calibration is None else Calibration.read(calibration)
    options = DetectionOptions(names(measures), k, alpha, device, align=align, calibration=thresholds)
    unseen = read_cohort(validation, validation_masks, patients, False)
    output.mkdir(parents=True, exist_ok=True)
    with Bars() as progress, tempfile.TemporaryDirectory(prefix="replica-detection-") as temporary:
        if training is not None:
            opened = build_index(
                training,
                output / "index.rdindex",
                profile=profile,
                measures=options.measures,
                segmenter=segment,
                embedding=embedding,
                slice_embedding=slice_embedding,
                patients=patients,
                masks=training_masks,
                progress=progress,
            )
        else:
            assert index is not None
            opened = TrainingIndex.open(index)
        planted = output / "planted" if keep_images else Path(temporary)
        planted.mkdir(exist_ok=True)
        found = run(opened, unseen, planted, options=options, copies=copies, seed=seed, progress=progress)
        found.result.write(output / "result")
        write_selftest(found, opened, planted, output)
    _print_selftest(found)
    print_warnings(found.result.run.warnings)
    console.print(f"Tables, plot and examples: {output}")


def _print_selftest(found: SelfTest) -> None:
    from replica_detection.audit.selftest import UNSEEN

    unseen = next(r for r in found.rows if r.kind == UNSEEN)
    table = Table(
        "planted", "images", "found (95 % interval)", "as replica", "right case named", "AUROC",
        title=f"At a measured false-positive rate of {unseen.flagged:.2f} on {unseen.images} unseen images",
    )  # fmt: skip
    for row in found.rows:
        if row.kind != UNSEEN:
            table.add_row(
                row.kind,
                str(row.images),
                f"{row.flagged:.2f}",
                f"{row.replica.value:.2f}",
                f"{row.right.value:.2f}",
                f"{row.auroc:.2f}",
            )
    console.print(table)
