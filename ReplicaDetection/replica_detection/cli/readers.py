"""`calibrate`, `mask-quality`: thresholds from readers' ratings, and the effect of poor masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from replica_detection.cli.application import app
from replica_detection.cli.console import Bars, console, print_warnings

if TYPE_CHECKING:
    from replica_detection.audit.reader_study import ReaderStudy
    from replica_detection.readers.agreement import PairAgreement, RankCorrelation
    from replica_detection.readers.calibration import Calibration
    from replica_detection.readers.consensus import Consensus
    from replica_detection.readers.tables import ThresholdTransfer

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
    from replica_detection.audit.reader_study import CALIBRATION_FILE
    from replica_detection.audit.reader_study import calibrate as run

    if not ratings and apply is None:
        raise typer.BadParameter("give --ratings, or --apply with the calibration of another cohort")
    study = run(result, ratings, rule=rule, method=method, ks=_whole_numbers(k), apply=apply)
    folder = result / "readers" if tables is None else tables
    study.write(folder)
    if study.calibration is not None:
        path = result / CALIBRATION_FILE if output is None else output
        study.calibration.write(path)
        _print_study(study)
        console.print(f"Calibration: {path}; use it with `replica-detection detect --calibration {path}`")
    if apply is not None:
        _print_transfer(study.carried, apply)
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

    with Bars() as progress:
        quality = run(result, ratings, rule=rule, seed=seed, progress=progress)
    quality.write(output)
    table = Table("masks", "Dice with given", "measure", "nearest kept", "replicas flagged", "others flagged", "AUROC")
    for r in quality.rows:
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


def _print_study(study: ReaderStudy) -> None:
    if study.unknown:
        unknown = study.unknown
        print_warnings([f"{len(unknown)} rated images are not in this result and are passed over, first {unknown[0]}"])
    assert study.calibration is not None and study.labels is not None
    _print_agreement(study.agreement, study.alpha, study.labels, study.rule)
    _print_thresholds(study.calibration, study.correlations)
    print_warnings(dict.fromkeys(f"k = {r.k}: {r.note}" for r in study.by_k if r.reader_threshold is None))


def _print_agreement(pairs: Sequence[PairAgreement], alpha: float, labels: dict[str, Consensus], rule: str) -> None:
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


def _print_thresholds(calibration: Calibration, correlations: Sequence[RankCorrelation]) -> None:
    rho = {c.measure: c.spearman for c in correlations}
    table = Table(
        "measure", "threshold", "95 % interval", "balanced accuracy, apparent", "cross-validated", "Spearman",
        title=f"Thresholds by {calibration.method}, the deciding one first",
    )  # fmt: skip
    known = calibration.measures
    for name in calibration.order:
        found = known[name].reader_threshold
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


def _print_transfer(rows: Sequence[ThresholdTransfer], source: Path) -> None:
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
