"""`index`, `detect`, `report`, `duplicates`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from replica_detection.cli.application import app
from replica_detection.cli.console import Bars, console, print_problems, print_result, print_warnings
from replica_detection.cli.options import (
    COHORT_HELP,
    Align,
    Alpha,
    Device,
    Embedding,
    K,
    LocalCluster,
    Masks,
    Measures,
    PatientPattern,
    Patients,
    Profile,
    Restart,
    Scheduler,
    Segment,
    SliceEmbedding,
    Strict,
    Workers,
    names,
)
from replica_detection.cli.places import work_places

if TYPE_CHECKING:
    from replica_detection.index.training_index import TrainingIndex

TrainingImages = Annotated[
    Path | None, typer.Option(help="Training images instead of an index; the index is kept in the output folder.")
]
Unseen = Annotated[
    Path | None,
    typer.Option(help="Real images that the generator never saw. Without: training images against each other."),
]
NullSize = Annotated[
    int, typer.Option(help="Null cases, at most: unseen images, then training images among themselves.", min=5)
]
CalibrationFile = Annotated[
    Path | None,
    typer.Option(help="Verdicts by readers' thresholds instead of the null: a file of `replica-detection calibrate`."),
]


@app.command()
def index(
    training: Annotated[Path, typer.Argument(help="The generator's training images. " + COHORT_HELP)],
    output: Annotated[Path, typer.Option(help="The index to write, by custom NAME.rdindex.")],
    profile: Profile = "generic",
    measures: Measures = None,
    masks: Masks = None,
    segment: Segment = None,
    embedding: Embedding = None,
    slice_embedding: SliceEmbedding = None,
    patients: Patients = None,
    patient_pattern: PatientPattern = None,
    append: Annotated[bool, typer.Option("--append", help="Add new cases to the existing index.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Afterwards, read everything back and compare.")] = False,
    strict: Strict = False,
    workers: Workers = None,
    scheduler: Scheduler = None,
    cluster: LocalCluster = None,
    restart: Restart = False,
) -> None:
    """Prepare a training cohort once, for many later runs.

    Give the same command again to continue an interrupted build.

    Example: replica-detection index training/ --output training.rdindex --profile head-ct --patients patients.csv
    """
    from replica_detection.index.build import append_cases, begin_anew, build_index
    from replica_detection.index.training_index import TrainingIndex

    if restart:
        begin_anew(output)
    with work_places(workers, scheduler, cluster) as places, Bars() as progress:
        if append:
            built = append_cases(
                TrainingIndex.open(output),
                training,
                masks=masks,
                patients=patients,
                patient_pattern=patient_pattern,
                strict=strict,
                workers=places,
                progress=progress,
            )
        else:
            built = build_index(
                training,
                output,
                profile=profile,
                measures=names(measures),
                segmenter=segment,
                embedding=embedding,
                slice_embedding=slice_embedding,
                masks=masks,
                patients=patients,
                patient_pattern=patient_pattern,
                strict=strict,
                workers=places,
                progress=progress,
            )
        faults = built.verify(progress) if verify else []
    _print_index(built, output)
    for fault in faults:
        console.print(f"[red]fault[/red] {fault}", markup=True)
    if verify and not faults:
        console.print("Verified: every stored row and every input file is as it was written.")
    if faults:
        raise typer.Exit(1)


def _print_index(built: TrainingIndex, output: Path) -> None:
    from replica_detection.detection.detector import collected

    print_problems(built.problems)
    print_warnings(collected(built.warnings, "training image"))
    console.print(f"{len(built)} cases in {output}: {built.preparation.describe()}")
    console.print(f"Measures: {', '.join(built.measure_names)}")


@app.command()
def detect(
    synthetic: Annotated[Path, typer.Argument(help="The images to test. " + COHORT_HELP)],
    output: Annotated[Path, typer.Option(help="Folder for tables and report.")],
    index: Annotated[Path | None, typer.Option(help="An index made by `replica-detection index`.")] = None,
    training: TrainingImages = None,
    validation: Unseen = None,
    measures: Measures = None,
    k: K = 50,
    alpha: Alpha = 0.05,
    profile: Profile = "generic",
    masks: Masks = None,
    training_masks: Annotated[Path | None, typer.Option(help="The same for --training.")] = None,
    validation_masks: Annotated[Path | None, typer.Option(help="The same for --validation.")] = None,
    segment: Segment = None,
    embedding: Embedding = None,
    slice_embedding: SliceEmbedding = None,
    patients: Patients = None,
    patient_pattern: PatientPattern = None,
    device: Device = "auto",
    null_size: NullSize = 500,
    align: Align = True,
    calibration: CalibrationFile = None,
    strict: Strict = False,
    workers: Workers = None,
    scheduler: Scheduler = None,
    cluster: LocalCluster = None,
    restart: Restart = False,
) -> None:
    """Say which synthetic images are replicas of which training images, and how sure that is.

    `replica`: closer to a training image than unseen real images are, among all images judged (q <= alpha).

    `suspicious`: the same for this image alone (p <= alpha); about a share alpha of new images is, by chance.

    An image that is identical to a training image is a `replica` whatever the null.

    `undecided`: closer than all of them, but there are too few of them to call it more than chance. Look at it.

    `novel`: no closer than unseen real images are.

    `undefined`: nothing to compare; the report gives the reason.

    Give the same command again to continue an interrupted run.

    Example: replica-detection detect synthetic/ --training training/ --validation unseen/ --output result
    """
    from replica_detection.detection.detector import detect as run
    from replica_detection.detection.detector import result_folder_index, result_folder_unfinished
    from replica_detection.detection.options import DetectionOptions
    from replica_detection.index.options import IndexOptions
    from replica_detection.readers.calibration import Calibration
    from replica_detection.report import write_report

    known = _index_or_images(index, training)
    thresholds = None if calibration is None else Calibration.read(calibration)
    if restart:
        _remove_unfinished(output, index)
    with work_places(workers, scheduler, cluster) as places, Bars() as progress:
        result = run(
            synthetic,
            known,
            validation=validation,
            masks=masks,
            training_masks=training_masks,
            validation_masks=validation_masks if validation is not None else None,
            # An index has its own patients, and without unseen images nothing else asks for them.
            patients=patients if index is None or validation is not None else None,
            patient_pattern=patient_pattern if index is None or validation is not None else None,
            options=DetectionOptions(names(measures), k, alpha, device, null_size, strict, align, thresholds, places),
            index_options=IndexOptions(profile, names(measures), segment, embedding, slice_embedding, strict, places),
            index_folder=result_folder_index(output),
            unfinished=result_folder_unfinished(output),
            progress=progress,
        )
        result.write(output)
        _forget_parts(result_folder_unfinished(output))
        page = write_report(result, output / "report", progress=progress)
    print_result(result, page)


def _index_or_images(index: Path | None, training: Path | None) -> TrainingIndex | Path:
    """The one that was given."""
    from replica_detection.index.training_index import TrainingIndex

    if index is not None and training is None:
        return TrainingIndex.open(index)
    if training is not None and index is None:
        return training
    raise typer.BadParameter("give either --index or --training")


def _forget_parts(folder: Path) -> None:
    from replica_detection.detection.finished_parts import forget

    forget(folder)


def _remove_unfinished(output: Path, index: Path | None) -> None:
    """Removes what unfinished runs left; `index` is that of the run, None for its own."""
    from replica_detection.detection.detector import result_folder_index, result_folder_unfinished
    from replica_detection.detection.null_distances import unfinished_nulls
    from replica_detection.index.build import begin_anew

    begin_anew(result_folder_index(output))
    for folder in (result_folder_unfinished(output), unfinished_nulls(index or result_folder_index(output))):
        _forget_parts(folder)


@app.command()
def report(
    result: Annotated[Path, typer.Argument(help="The output folder of `replica-detection detect`.")],
    max_pairs: Annotated[int, typer.Option(help="Flagged cases shown with pictures, at most.", min=0)] = 50,
) -> None:
    """Write RESULT/report/index.html again, from the tables of a finished run.

    Pictures need the index and the synthetic images where they were during the run, or beside the result if they moved
    together with it. Without them the page says so; a page that has pictures already is kept.
    """
    from replica_detection.report import write_report
    from replica_detection.report.page import no_pictures
    from replica_detection.report.pair_loader import loader_or_reason
    from replica_detection.results.result import DetectionResult

    read = DetectionResult.read(result)
    loader, reason = loader_or_reason(read)
    if loader is None:
        console.print(f"There are no pictures to draw: {escape(reason)}")
    with Bars() as progress:
        page = write_report(read, result / "report", loader or no_pictures, max_pairs=max_pairs, progress=progress)
    console.print(f"Report: {page}")


@app.command()
def duplicates(
    cohort: Annotated[Path, typer.Argument(help="A real cohort. " + COHORT_HELP)],
    other: Annotated[
        Path | None,
        typer.Argument(help="Another cohort, such as the test split, whose cases are searched in the first."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the table and the pictures.")] = Path("duplicates"),
    profile: Profile = "generic",
    measures: Measures = None,
    k: K = 50,
    alpha: Alpha = 0.05,
    embedding: Embedding = None,
    patients: Patients = None,
    patient_pattern: PatientPattern = None,
    device: Device = "auto",
    align: Align = True,
    strict: Strict = False,
    workers: Workers = None,
    scheduler: Scheduler = None,
    cluster: LocalCluster = None,
) -> None:
    """Find near-duplicates inside one cohort, or across two (a train/test split).

    Example: replica-detection duplicates all_scans/ --output duplicates
    """
    from replica_detection.audit.cohort_duplicates import find_duplicates
    from replica_detection.detection.detector import result_folder_index
    from replica_detection.detection.options import DetectionOptions
    from replica_detection.index.options import IndexOptions

    with work_places(workers, scheduler, cluster) as places, Bars() as progress:
        found = find_duplicates(
            cohort,
            other,
            patients=patients,
            patient_pattern=patient_pattern,
            options=DetectionOptions(names(measures), k, alpha, device, strict=strict, align=align, workers=places),
            index_options=IndexOptions(profile, names(measures), embedding=embedding, strict=strict, workers=places),
            index_folder=result_folder_index(output),
            progress=progress,
        )
        found.write(output)
    print_problems(found.problems)
    print_warnings(found.warnings)
    for pair in found.pairs[:20]:
        console.print(f"{pair.verdict:15s} {pair.first_id}  {pair.second_id}", highlight=False)
    where = f"among {found.cases} cases" if other is None else f"between {len(found.index)} and {found.cases} cases"
    console.print(f"{len(found.pairs)} pairs {where}: {output / 'duplicates.csv'}, pictures in {output / 'pairs'}")
