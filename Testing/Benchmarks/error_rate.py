"""`python Testing/Benchmarks/error_rate.py COHORT [PATIENTS.csv [SEEDS]]`: how often new images are called, and few
copies found, where the null is small.

For each of 50 random splits of a real cohort by patient (26 validation, 50 new, at most 76 training cases): the whole
pipeline with its defaults, once on the 50 new cases, and once on 45 of them with 5 changed copies of training cases.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from replica_detection.audit.planted_copies import changes, write_copy
from replica_detection.detection.detector import Detector
from replica_detection.detection.options import DetectionOptions
from replica_detection.index.build import build_index
from replica_detection.io.cohort import Case, Cohort
from replica_detection.io.volume import read_volume
from replica_detection.results.result import FLAGGED, DetectionResult

VALIDATION, NEW, TRAINING = 26, 50, 76
PLANTED = 5


def main(words: list[str]) -> int:
    if not 1 <= len(words) <= 3:
        print(__doc__)
        return 2
    cohort = Cohort.read(Path(words[0]), patients=Path(words[1]) if len(words) > 1 else None)
    clean, called, found, right, novel = [], [], [], [], []
    print("seed  none planted: replica suspicious | 5 planted: replica right  new called replica")
    for seed in range(int(words[2]) if len(words) > 2 else 50):
        without, with_copies, truth = _run(cohort, seed)
        replicas = [c for c in without.summary if c.verdict == "replica"]
        clean.append(not replicas)
        called.append(np.mean([c.verdict in FLAGGED for c in without.summary]))
        copies = [c for c in with_copies.summary if c.synthetic_id in truth]
        found.append(np.mean([c.verdict == "replica" for c in copies]))
        right.append(np.mean([c.nearest_training_id == truth[c.synthetic_id] for c in copies]))
        others = [c for c in with_copies.summary if c.synthetic_id not in truth]
        novel.append(np.mean([c.verdict == "replica" for c in others]))
        print(
            f"{seed:4d}  {len(replicas):21d} {called[-1]:10.3f} | {found[-1]:18.2f} {right[-1]:5.2f} {novel[-1]:10.3f}",
            flush=True,
        )
    print(f"None planted: no replica called in {np.mean(clean):.2f} of the runs, flagged {np.mean(called):.3f} of all.")
    print(
        f"{PLANTED} planted: called replica {np.mean(found):.3f}, right match {np.mean(right):.3f}, "
        f"new ones called replica {np.mean(novel):.3f}."
    )
    return 0


def _run(cohort: Cohort, seed: int) -> tuple[DetectionResult, DetectionResult, dict[str, str]]:
    rng = np.random.default_rng(seed)
    unseen, new, training = _split(cohort, rng)
    with tempfile.TemporaryDirectory() as folder:
        index = build_index(training, Path(folder) / "t.rdindex")
        detector = Detector(index, validation=unseen, options=DetectionOptions())
        copies, truth = _copies(training, Path(folder) / "copies", rng)
        without = detector.detect(new)
        planted = Cohort(new.source, (*new.cases[:-PLANTED], *copies))
        return without, detector.detect(planted), truth


def _split(cohort: Cohort, rng: np.random.Generator) -> Iterator[Cohort]:
    """Whole patients to each part, in a random order, until it has its size; what is too much is left out."""
    patients: dict[str, list[Case]] = {}
    for case in cohort.cases:
        patients.setdefault(case.patient or case.id, []).append(case)
    names = [sorted(patients)[i] for i in rng.permutation(len(patients))]
    for size in (VALIDATION, NEW, TRAINING):
        part: list[Case] = []
        while len(part) < size and names:
            part += patients[names.pop()]
        # Which of a part are judged or left out must not depend on the name.
        yield Cohort(cohort.source, tuple(part[i] for i in rng.permutation(len(part))[:size]))


def _copies(training: Cohort, folder: Path, rng: np.random.Generator) -> tuple[list[Case], dict[str, str]]:
    """Each of another training case, by another kind of change."""
    (folder / "images").mkdir(parents=True)
    cases, truth = [], {}
    chosen = [training.cases[i] for i in rng.permutation(len(training.cases))[: PLANTED + 1]]
    other = read_volume(*chosen[-1].files)
    kinds = changes(other.array.ndim)
    for n, (kind, source) in enumerate(
        zip(rng.choice(list(kinds), PLANTED, replace=False), chosen[:PLANTED], strict=True)
    ):
        volume = read_volume(*source.files)
        path, _ = write_copy(kinds[kind](volume, None, rng, other), volume, folder / "images", folder, f"copy_{n}")
        cases.append(Case(f"copy_{n}", (path,)))
        truth[f"copy_{n}"] = source.id
    return cases, truth


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
