"""`calibrate`, `mask-quality`: what readers' ratings say of a result, and what masks do to it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from replica_detection.cli.application import app
from replica_detection.cli.console import Bars, console, print_warnings

if TYPE_CHECKING:
    from replica_detection.readers.agreement import PairAgreement, RankCorrelation
    from replica_detection.readers.calibration import Calibration
    from replica_detection.readers.consensus import Consensus
    from replica_detection.readers.tables import ThresholdTransfer
    from replica_detection.results.result import DetectionResult

Result = Annotated[Path, typer.Argument(help="The output folder of `replica-detection detect`.")]
Ratings = Annotated[
    list[Path] | None,
    typer.Option(
        help="Ratings 1 to 4: a CSV with the columns synthetic_id,rating[,training_id,reader,...], or the store of a "
        "server. Several times for several files."
    ),
]
Rule = Annotated[
    str, typer.Option(help="Rule that combines several readers: majority, any, all or mean. 3 and 4 mean replica.")
]


@app.command()
def calibrate(
    result: Result,
    ratings: Ratings = None,
    output: Annotated[
        Path | None, typer.Option(help="The calibration file to write. Default: calibration.json in RESULT.")
    ] = None,
    tables: Annotated[
        Path | None, typer.Option(help="Folder for the tables. Default: the folder readers in RESULT.")
    ] = None,
    rule: Rule = "majority",
    method: Annotated[
        str,
        typer.Option(
            help="Which thresholds `detect --calibration` is to use: balanced-accuracy (grid of 0.01, as RELICT) or "
            "youden (all cuts, as Truong et al.). The file holds both."
        ),
    ] = "balanced-accuracy",
    k: Annotated[
        str, typer.Option("--k", help="Neighbourhoods for the table of how much a threshold depends on k.")
    ] = "10,25,50,100",
    apply: Annotated[
        Path | None,
        typer.Option(
            help="A calibration file of another cohort: how good are its thresholds here? Needs no --ratings."
        ),
    ] = None,
) -> None:
    """Turn readers' ratings into thresholds, and say how far readers agree and how
    much a threshold is worth.

    A reader looks at a synthetic image beside its nearest training case and
    rates 1 (different), 2 (similar, but another anatomy), 3 (nearly the same
    anatomy) or 4 (the same scan). 50 images are few, 100 are better, and both
    kinds must be among them; two or more readers show how far people agree.

    The smallest table that works, made by hand or in a spreadsheet:

        synthetic_id,rating

        synthetic_0001,4

        synthetic_0002,1

    Every figure has an interval. Read the cross-validated ones: the apparent
    ones, which papers print, use the same images that chose the threshold.

    Examples:

        replica-detection calibrate result --ratings anna.csv --ratings ben.csv

        replica-detection detect more/ --index my.rdindex --calibration result/calibration.json --output more_result

        replica-detection calibrate other_result --apply result/calibration.json --ratings other.csv
    """
    from replica_detection.readers.agreement import overall_alpha, pair_agreements, rank_correlations
    from replica_detection.readers.calibration import Calibration
    from replica_detection.readers.calibration import calibrate as make
    from replica_detection.readers.consensus import consensus, resolved
    from replica_detection.readers.rating_tables import read_ratings
    from replica_detection.readers.tables import (
        sensitivity_to_k,
        transfer,
        write_agreement,
        write_consensus,
        write_correlations,
        write_sensitivity_to_k,
        write_thresholds,
        write_transfer,
    )
    from replica_detection.results.result import DetectionResult

    if not ratings and apply is None:
        raise typer.BadParameter("give --ratings, or --apply with the calibration of another cohort")
    neighbourhoods = _whole_numbers(k)
    read = DetectionResult.read(result)
    folder = result / "readers" if tables is None else tables
    folder.mkdir(parents=True, exist_ok=True)
    labels = None
    if ratings:
        given = read_ratings(ratings)
        known, unknown = resolved(given, read)
        if unknown:
            print_warnings(
                [f"{len(unknown)} rated images are not in this result and are passed over, first {unknown[0]}"]
            )
        pairs, labels = pair_agreements(known), consensus(known, rule)
        write_agreement(folder / "agreement.csv", pairs)
        write_consensus(folder / "consensus.csv", labels, read)
        _print_agreement(pairs, overall_alpha(known), labels, rule)
        calibration = make(read, given, rule=rule, method=method, source=str(result), files=[str(p) for p in ratings])
        path = result / "calibration.json" if output is None else output
        calibration.write(path)
        correlations = rank_correlations(labels, read)
        write_thresholds(folder / "thresholds.csv", calibration)
        write_correlations(folder / "correlation.csv", correlations)
        by_k = sensitivity_to_k(read, labels, _patients(read), ks=neighbourhoods, method=method)
        write_sensitivity_to_k(folder / "sensitivity_to_k.csv", by_k)
        _print_thresholds(calibration, correlations)
        print_warnings(dict.fromkeys(f"k = {r.k}: {r.note}" for r in by_k if r.found is None))
        console.print(f"Calibration: {path}; use it with `replica-detection detect --calibration {path}`")
    if apply is not None:
        carried = transfer(Calibration.read(apply), read, labels)
        write_transfer(folder / "transfer.csv", carried)
        _print_transfer(carried, apply)
    console.print(f"Tables: {folder}")


@app.command("mask-quality")
def mask_quality(
    result: Result,
    output: Annotated[Path, typer.Option(help="Folder for table and plot.")],
    ratings: Ratings = None,
    rule: Rule = "majority",
    seed: Annotated[int, typer.Option(help="Another seed makes other noise.")] = 0,
) -> None:
    """Show how much the segmentation level depends on good masks.

    The synthetic images of a finished run are compared once more with their
    masks eroded, dilated and made noisy; the training masks stay. What is to be
    found are the readers' replicas, or without --ratings the images that the
    run itself flagged.

    Example: replica-detection mask-quality result --output mask_quality
    """
    from replica_detection.audit.mask_quality import mask_quality as run
    from replica_detection.audit.mask_quality import write_mask_quality
    from replica_detection.index.training_index import TrainingIndex
    from replica_detection.io.cohort import Cohort
    from replica_detection.readers.consensus import consensus, resolved
    from replica_detection.readers.rating_tables import read_ratings
    from replica_detection.results.result import DetectionResult

    read = DetectionResult.read(result)
    labels = consensus(resolved(read_ratings(ratings), read)[0], rule) if ratings else None
    masks = read.run.options.get("masks")
    with Bars() as progress:
        rows = run(
            read,
            TrainingIndex.open(Path(read.run.index)),
            Cohort.read(Path(read.run.synthetic.source), masks=masks),
            None if labels is None else {c: label.replica for c, label in labels.items()},
            seed=seed,
            progress=progress,
        )
    write_mask_quality(rows, output)
    table = Table("masks", "Dice with given", "measure", "nearest kept", "replicas flagged", "others flagged", "AUROC")
    for r in rows:
        shares = (r.nearest_kept, r.flagged_replicas, r.flagged_others, r.auroc)
        table.add_row(r.degradation, f"{r.dice_with_given:.2f}", r.measure, *(f"{v:.2f}" for v in shares))
    console.print(table)
    console.print(f"Table and plot: {output}")


def _whole_numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(f"--k is {text!r}: give whole numbers from 1 on, such as 10,25,50,100")
    return numbers


def _patients(result: DetectionResult):
    """Patient of each training case, while the index of the run is where it was."""
    from replica_detection.errors import ReplicaDetectionError
    from replica_detection.index.training_index import TrainingIndex

    try:
        index = TrainingIndex.open(Path(result.run.index))
    except ReplicaDetectionError:
        return None
    return index.patients if index.ids == result.neighbors.training_ids else None


def _print_agreement(pairs: list[PairAgreement], alpha: float, labels: dict[str, Consensus], rule: str) -> None:
    if pairs:
        table = Table(
            "readers", "cases", "same rating", "kappa", "quadratic kappa", "same decision", "kappa of decision"
        )
        for p in pairs:
            table.add_row(
                escape(" / ".join(p.readers)),
                str(p.cases),
                f"{p.percent:.0%}",
                f"{p.kappa:.2f}",
                f"{p.quadratic_kappa:.2f}",
                f"{p.replica_percent:.0%}",
                f"{p.replica_kappa:.2f}",
            )
        console.print(table)
        console.print(f"Krippendorff's alpha of all readers (ordinal): {alpha:.2f}")
    replicas = sum(c.replica for c in labels.values())
    console.print(f"Consensus ({rule}): {replicas} of {len(labels)} rated images are replicas")


def _print_thresholds(calibration: Calibration, correlations: list[RankCorrelation]) -> None:
    rho = {c.measure: c.spearman for c in correlations}
    table = Table(
        "measure", "threshold", "95 % interval", "balanced accuracy, apparent", "cross-validated", "Spearman",
        title=f"Thresholds by {calibration.method}, the deciding one first",
    )  # fmt: skip
    known = calibration.measures
    for name in calibration.order:
        found = known[name].found
        held_out = found.cross_validated
        table.add_row(
            name,
            f"{found.threshold:.2f}",
            f"{found.interval[0]:.2f} to {found.interval[1]:.2f}",
            f"{found.apparent.balanced_accuracy.value:.2f}",
            f"{held_out.balanced_accuracy:.2f}" if held_out else "too few labels",
            f"{rho[name]:.2f}",
        )
    console.print(table)


def _print_transfer(rows: list[ThresholdTransfer], source: Path) -> None:
    reference = "readers" if rows[0].reference == "readers" else "this run's own null"
    table = Table("measure", "method", "threshold", "balanced accuracy there", "here", "with a threshold of its own",
                  title=f"Thresholds of {escape(str(source))} here, against {reference}")  # fmt: skip
    for r in rows:
        table.add_row(
            r.measure,
            r.method,
            f"{r.threshold:.2f}",
            f"{r.there:.2f}",
            f"{r.here.balanced_accuracy:.2f}",
            f"{r.own:.2f}" if r.reference == "readers" else "",
        )
    console.print(table)
