"""Output of the command line: progress bars, tables, and every error as one message."""

from __future__ import annotations

import io
import math
import os
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from replica_detection.errors import ConfigurationError, ReplicaDetectionError
from replica_detection.io.cohort import Problem
from replica_detection.results import wording
from replica_detection.results.result import (
    FLAGGED,
    IDENTICAL,
    TO_REVIEW,
    VERDICTS,
    CaseSummary,
    DetectionResult,
    NullInfo,
)
from replica_detection.util.files import write_advice

console = Console(soft_wrap=True)
errors = Console(stderr=True, soft_wrap=True)
STYLES = {
    "replica": "bold red",
    "suspicious": "yellow",
    "undecided": "magenta",
    "novel": "green",
    "undefined": "dim",
}
SHOWN_PROBLEMS = 10
SHOWN_CASES = 5
# Names of arguments in the library's messages, as options of the command line.
FLAGS = {
    "training_masks": "--training-masks",
    "validation_masks": "--validation-masks",
    "patients or patient_pattern": "--patients or --patient-pattern",
    "patient_pattern": "--patient-pattern",
    "slice_embedding": "--slice-embedding",
    "as validation": "with --validation",
    "segmenter and training_masks": "--segment and --training-masks",
    "embedding and slice_embedding": "--embedding and --slice-embedding",
    "give masks or a segmenter": "give --masks or --segment",
    "at has": "--at has",
    "this folder as output": "this folder as --output",
    "without_suspicious": "--without-suspicious",
    "with measures that include it": "with --measures that include it",
}
INTERRUPTED = 130  # typer's exit code for Ctrl-C


# Stages that tell at their beginning how much an interrupted run left.
RESUMED = ("preparing", "null", "comparing")


class Bars:
    """A progress callback that draws a bar for each stage, with the time left; without a terminal it prints nothing."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("{task.description:>12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=errors,
            disable=not errors.is_terminal,
        )
        self.tasks: dict[str, object] = {}

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self.tasks:
            if done and stage in RESUMED:
                errors.print(f"{stage}: goes on where it stopped, {done} of {total} are done")
            self.tasks[stage] = self.progress.add_task(stage, total=total)
        self.progress.update(self.tasks[stage], completed=done, total=total)  # type: ignore[arg-type]


def print_problems(problems: Iterable[Problem]) -> None:
    """Files that were left out and what else was told of them, the first few in full."""
    listed = list(dict.fromkeys(problems))
    for problem in listed[:SHOWN_PROBLEMS]:
        errors.print(f"[yellow]problem[/yellow] {escape(problem.path)}: {escape(problem.message)}")
    if len(listed) > SHOWN_PROBLEMS:
        errors.print(f"[yellow]problem[/yellow] {len(listed) - SHOWN_PROBLEMS} more; all are in the result")


def print_warnings(warnings: Iterable[str]) -> None:
    """One line for each."""
    for warning in warnings:
        errors.print(f"[yellow]note[/yellow] {escape(with_flags(warning))}")


def with_flags(message: str) -> str:
    """The message of the library, with options of the command line instead of arguments."""
    return re.sub("|".join(rf"\b{name}\b" for name in FLAGS), lambda found: FLAGS[found.group()], message)


def print_result(result: DetectionResult, page: Path) -> None:
    """Counts, the most replica-like cases and the path of the report."""
    run = result.run
    cohorts = (run.training, run.validation, run.synthetic)
    print_problems(Problem(path, message) for c in cohorts if c for path, message in c.skipped)
    print_warnings(run.warnings)
    _print_most_replica_like(result)
    total = len(result.summary)
    shown = {"replica": "replicas"}
    counts = [
        f"[{STYLES[v]}]{result.count(v)} {shown.get(v, v)}[/]"
        for v in VERDICTS
        if result.count(v) or v not in ("undecided", "undefined")
    ]
    console.print(f"{total} synthetic images against {run.training.cases} training images: {', '.join(counts)}")
    _print_reasons(result)
    console.print(f"Null: {_null_words(run.null)}; alpha {run.alpha:g}. Verdicts speak of resemblance only.")
    if "align" in run.timings:
        each = run.timings["align"] / max(1, total)
        console.print(f"Aligned with up to ten candidates each, {each:.2f} s a case (--no-align leaves it out)")
    console.print(f"Report: {page}")


def _print_most_replica_like(result: DetectionResult) -> None:
    """The flagged and undecided cases with the highest scores, as a table."""
    listed = [c for c in result.worklist() if c.verdict in TO_REVIEW]
    if not listed:
        return
    flagged, undecided = sum(c.verdict in FLAGGED for c in listed), result.count("undecided")
    kinds = [f"{flagged} flagged"] * bool(flagged) + [f"{undecided} undecided"] * bool(undecided)
    table = Table(title=f"Most replica-like of {' and '.join(kinds)} images")
    for column in ("synthetic", "verdict", "score", "nearest training case", "levels"):
        table.add_column(column)
    for case in listed[:15]:
        table.add_row(
            escape(case.synthetic_id),
            f"[{STYLES[case.verdict]}]{case.verdict}[/]" + (", identical" if case.reason == IDENTICAL else ""),
            wording.score(case.score) if math.isnan(case.score) else f"{case.score:.4f}",
            escape(case.nearest_training_id),
            " ".join(case.levels_flagged) + (" ≠" if case.levels_differ else ""),
        )
    console.print(table)
    differing = sum(bool(c.levels_differ) for c in listed)
    if differing:
        console.print(f"≠ levels name different training cases ({differing} images; see the report)")


def _print_reasons(result: DetectionResult) -> None:
    """Identical and undecided images by name, with what would settle the latter; undefined ones by their reason."""
    cases = result.worklist()
    identical = [c for c in cases if c.reason == IDENTICAL]
    if identical:
        pairs = [f"{c.synthetic_id} = {c.nearest_training_id}" for c in identical]
        console.print(escape(f"Identical to a training image, or a mirrored or turned copy: {_first(pairs)}"))
    undecided = [c.synthetic_id for c in cases if c.verdict == "undecided"]
    if undecided:
        null = result.run.null
        why = f"{wording.undecided_reason(null)}. {wording.missing_sentence(null)}"
        console.print(escape(f"Undecided: {_first(undecided)}; {why}"))
    undefined: dict[str, list[CaseSummary]] = {}
    for case in cases:
        if case.verdict == "undefined" and case.reason:
            undefined.setdefault(wording.reason(case), []).append(case)
    for sentence, group in undefined.items():
        console.print(escape(f"{_first([c.synthetic_id for c in group])}: {sentence}"))


def _first(names: list[str]) -> str:
    """The first few names, and the number of the others."""
    more = len(names) - SHOWN_CASES
    return ", ".join(names[:SHOWN_CASES]) + (f" and {more} more" if more > 0 else "")


def _null_words(null: NullInfo) -> str:
    if null.kind == "pooled":
        return f"{null.validation} validation and {null.cross_fitted} cross-fitted training cases"
    return f"{null.size} {null.kind} cases"


def run_guarded(app: typer.Typer) -> int:
    """Runs the application; every foreseen error becomes one message. REPLICA_DETECTION_DEBUG=1 shows tracebacks."""
    debug = bool(os.environ.get("REPLICA_DETECTION_DEBUG"))
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a letter of a case id must not end the run.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = app(standalone_mode=False)
        return _stopped() if code == INTERRUPTED else code if isinstance(code, int) else 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except (KeyboardInterrupt, typer.Abort):
        return _stopped()
    except ConfigurationError as error:
        return _fail(with_flags(str(error)), debug, code=2)
    except ReplicaDetectionError as error:
        return _fail(with_flags(str(error)), debug)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(
            f"{where}{error.strerror or error}. {write_advice(error, 'Check free space and permissions')}.", debug
        )
    except MemoryError:
        return _fail("out of memory. Use smaller images, a profile with a coarser grid, or a larger machine.", debug)
    except Exception as error:
        # Usage errors carry their own way of being shown.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            return int(error.exit_code)
        return _fail(f"unexpected {type(error).__name__}: {error}. Please report it.", debug)


def _stopped() -> int:
    errors.print("Stopped. No half-written file was left; the same `index` or `detect` goes on where it stopped.")
    return 1


def _fail(message: str, debug: bool, code: int = 1) -> int:
    if debug:
        traceback.print_exc(file=sys.stderr)
    errors.print(f"[bold red]error[/] {escape(message)}")
    return code
