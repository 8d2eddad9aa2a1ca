"""The demonstration: two phantom cohorts with planted replicas through the whole pipeline."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from replica_detection.progress import Progress, silent
from replica_detection.results.result import FLAGGED, DetectionResult

if TYPE_CHECKING:
    from rich.table import Table

USE_CASES = {
    "head_ct": ("head CT with hemorrhage", "head-ct", "hemorrhage"),
    "tof_mra": ("TOF-MRA of the circle of Willis", "tof-mra", "vessels"),
}


@dataclass(frozen=True)
class Outcome:
    """One use case: the planted truth beside what was found."""

    title: str
    result: DetectionResult
    truth: dict[str, tuple[str, str]]  # synthetic id -> (transform, training id)
    page: Path

    def table(self) -> Table:
        """A row for each kind of planted image: how many were flagged, and with the right training case."""
        from rich.table import Table

        table = Table(title=f"Demo: {self.title}")
        for column in ("planted as", "images", "replica", "suspicious", "right patient's scan named"):
            table.add_column(column, justify="left" if column == "planted as" else "right")
        found = {c.synthetic_id: c for c in self.result.summary}
        kinds = dict.fromkeys(sorted({kind for kind, _ in self.truth.values()}, key=lambda k: (k == "novel", k)))
        for kind in kinds:
            cases = [(found[i], match) for i, (k, match) in self.truth.items() if k == kind and i in found]
            right = sum(c.nearest_training_id == match for c, match in cases)
            table.add_row(
                "new patients (1 in 20 flagged by chance)" if kind == "novel" else f"replica: {kind}",
                str(len(cases)),
                str(sum(c.verdict == "replica" for c, _ in cases)),
                str(sum(c.verdict == "suspicious" for c, _ in cases)),
                "" if kind == "novel" else f"{right} of {len(cases)}",
            )
        return table

    @property
    def flagged_novel(self) -> int:
        return sum(c.verdict in FLAGGED and self.truth[c.synthetic_id][0] == "novel" for c in self.result.summary)


def run_demo(output: Path, *, seed: int = 0, progress: Progress = silent) -> list[Outcome]:
    """Makes both cohorts under `output`, detects, writes the reports."""
    from replica_detection.detection.detector import detect, result_folder_index
    from replica_detection.index.build import build_index
    from replica_detection.io.cohort import Cohort
    from replica_detection.phantom import make_demo_cohort
    from replica_detection.report import write_report
    from replica_detection.report.pair_loader import PairLoader

    outcomes = []
    for use_case, (title, profile, segmenter) in USE_CASES.items():

        def staged(stage: str, done: int, total: int, name: str = use_case) -> None:
            progress(f"{name} {stage}", done, total)

        data = make_demo_cohort(
            use_case,
            output / use_case / "data",
            training=36,
            novel=12,
            per_kind=2,
            seed=seed,
            progress=partial(staged, "data"),
        )
        folder = output / use_case / "result"
        patients = data / "patients.csv"
        # The true masks lie beside the images, but a generator's images come without: the program makes its own.
        training = Cohort.read(data / "training", patients=patients)
        validation = Cohort.read(data / "validation", patients=patients)
        synthetic = Cohort.read(data / "synthetic")
        index = build_index(
            training,
            result_folder_index(folder),
            profile=profile,
            segmenter=segmenter,
            progress=staged,
        )
        result = detect(synthetic, index, validation=validation, progress=staged)
        result.write(folder)
        page = write_report(result, folder / "report", PairLoader(index, synthetic))
        with (data / "truth.csv").open(newline="", encoding="utf-8") as f:
            truth = {row["synthetic_id"]: (row["transform"], row["training_id"]) for row in csv.DictReader(f)}
        outcomes.append(Outcome(title, result, truth, page))
    return outcomes
