"""The demonstration: two phantom cohorts with planted replicas through the whole pipeline."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Lock

from replica_detection.errors import ConfigurationError
from replica_detection.progress import Progress, silent
from replica_detection.results.result import FLAGGED, DetectionResult

NOVEL = "novel"
# The embedding is fitted by fewer altered copies than the default 1000: 6 seconds of CPU instead of 30.
VIEWS = 200
USE_CASES = {
    "head_ct": ("head CT with hemorrhage", "head-ct", "hemorrhage"),
    "tof_mra": ("TOF-MRA of the circle of Willis", "tof-mra", "vessels"),
}


@dataclass(frozen=True)
class OutcomeRow:
    """Verdicts on one kind of planted image; `right` counts those whose copied training case was named."""

    kind: str
    images: int
    replicas: int
    suspicious: int
    right: int
    undecided: int = 0


@dataclass(frozen=True)
class Outcome:
    """One use case of the demonstration.

    Attributes:
        title: of the use case.
        result: the run.
        truth: (transform, training id) of each synthetic id; the transform of a new patient is `novel`.
        page: the report.
    """

    title: str
    result: DetectionResult
    truth: dict[str, tuple[str, str]]
    page: Path

    def rows(self) -> list[OutcomeRow]:
        """A row for each kind of planted image, new patients last."""
        found = {c.synthetic_id: c for c in self.result.summary}
        kinds = dict.fromkeys(sorted({kind for kind, _ in self.truth.values()}, key=lambda k: (k == NOVEL, k)))
        rows = []
        for kind in kinds:
            cases = [(found[i], match) for i, (k, match) in self.truth.items() if k == kind and i in found]
            rows.append(
                OutcomeRow(
                    kind,
                    len(cases),
                    sum(c.verdict == "replica" for c, _ in cases),
                    sum(c.verdict == "suspicious" for c, _ in cases),
                    sum(c.nearest_training_id == match for c, match in cases),
                    sum(c.verdict == "undecided" for c, _ in cases),
                )
            )
        return rows

    @property
    def flagged_novel(self) -> int:
        """Number of new patients that were flagged."""
        return sum(c.verdict in FLAGGED and self.truth[c.synthetic_id][0] == NOVEL for c in self.result.summary)


def run_demo(
    output: str | os.PathLike[str],
    *,
    seed: int = 0,
    use_cases: Sequence[str] = tuple(USE_CASES),
    training: int = 8,
    validation: int = 12,
    novel: int = 2,
    per_kind: int = 1,
    progress: Progress = silent,
) -> list[Outcome]:
    """Makes phantom cohorts with planted replicas, runs the whole pipeline on them and writes the reports.

    Takes three minutes of CPU, the first time, when the kernels are compiled; needs no data and no network. The use
    cases run side by side, in threads. The validation patients alone are the null.

    Args:
        output: folder for the cohorts, the results and the reports; one folder in it for each use case.
        seed: another seed makes other patients.
        use_cases: `head_ct` (head CT with hemorrhage) and `tof_mra` (TOF-MRA of the circle of Willis).
        training: training patients of each cohort.
        validation: patients that the generator never saw; fewer than 19 tell p <= 0.05 by a fitted tail alone.
        novel: synthetic images of new patients.
        per_kind: replicas of each kind.
        progress: called with (stage, done, total), by one thread at a time.

    Returns:
        The planted truth beside the result, for each use case.

    Raises:
        ConfigurationError: an unknown use case.

    Example:
        ```python
        import replica_detection as rd

        outcomes = rd.run_demo("demo", use_cases=["head_ct"], training=4, validation=2, novel=1, per_kind=1)
        assert outcomes[0].page.is_file()
        ```
    """
    unknown = set(use_cases) - set(USE_CASES)
    if unknown:
        raise ConfigurationError(f"unknown use case '{sorted(unknown)[0]}'; known: {', '.join(USE_CASES)}")
    sizes = {"training": training, "validation": validation, "novel": novel, "per_kind": per_kind, "seed": seed}
    lock, stopped = Lock(), False

    def told(stage: str, done: int, total: int) -> None:
        with lock:
            if stopped:
                raise RuntimeError("the other use case failed")
            progress(stage, done, total)

    with ThreadPoolExecutor(max(1, len(use_cases))) as pool:
        running = [pool.submit(_run, name, Path(output) / name, sizes, told) for name in use_cases]
        try:
            done, _ = wait(running, return_when=FIRST_EXCEPTION)
        finally:
            stopped = True
        for outcome in done:
            outcome.result()
    return [outcome.result() for outcome in running]


def _run(use_case: str, folder: Path, sizes: dict[str, int], progress: Progress) -> Outcome:
    from replica_detection.detection.detector import detect, result_folder_index
    from replica_detection.detection.options import DetectionOptions
    from replica_detection.embedding.invariants import Invariants
    from replica_detection.index.build import build_index
    from replica_detection.io.cohort import read_together
    from replica_detection.phantom import make_demo_cohort
    from replica_detection.report import write_report

    def staged(stage: str, done: int, total: int) -> None:
        progress(f"{use_case} {stage}", done, total)

    title, profile, segmenter = USE_CASES[use_case]
    data = make_demo_cohort(use_case, folder / "data", **sizes, progress=partial(staged, "data"))
    # The true masks lie beside the images, but a generator's images come without: the program makes its own.
    training, validation = read_together(data / "training", data / "validation", patients=data / "patients.csv")
    # In this process: each worker would compile the kernels anew.
    index = build_index(
        training, result_folder_index(folder / "result"), profile=profile, segmenter=segmenter,
        embedding=Invariants(total=VIEWS), workers=1, progress=staged,
    )  # fmt: skip
    options = DetectionOptions(null_size=sizes["validation"], workers=1)
    result = detect(data / "synthetic", index, validation=validation, options=options, progress=staged)
    result.write(folder / "result")
    page = write_report(result, folder / "result" / "report")
    with (data / "truth.csv").open(newline="", encoding="utf-8") as f:
        truth = {row["synthetic_id"]: (row["transform"], row["training_id"]) for row in csv.DictReader(f)}
    return Outcome(title, result, truth, page)
