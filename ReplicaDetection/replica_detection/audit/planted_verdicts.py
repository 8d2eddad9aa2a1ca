"""Verdicts on planted copies of the user's own training images, and on unseen images beside them.

Two questions of an audit (Koeken et al., arXiv 2510.01793) on local data: are planted copies found, and how many real
unseen patients are flagged by mistake?
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from replica_detection.audit.planted_copies import changes, write_copy
from replica_detection.detection.detector import Detector
from replica_detection.detection.options import DetectionOptions
from replica_detection.errors import ConfigurationError, InputError
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Case, Cohort
from replica_detection.io.volume import read_mask, read_volume
from replica_detection.progress import Progress, silent
from replica_detection.results.result import FLAGGED, IDENTICAL, DetectionResult
from replica_detection.statistics.intervals import Estimate, share
from replica_detection.statistics.thresholds import auroc

UNSEEN = "unseen, held out"
SMALLEST_HALF = 5


@dataclass(frozen=True)
class SelfTestRow:
    """The verdicts on one kind of image.

    `flagged`: called replica or suspicious; for UNSEEN, the false-positive rate. `replica`: called replica; `right`:
    the copied training case named; `auroc`: of the score against the held-out cases. `by_measure`: flagged by each.
    `undecided` counts images that are neither flagged nor cleared, since the null is too small.
    """

    kind: str
    images: int
    flagged: Estimate
    replica: Estimate
    right: Estimate
    auroc: float
    by_measure: dict[str, Estimate]
    undecided: int = 0


@dataclass(frozen=True)
class SelfTest:
    """Rows of the table, the held-out cases first, with the run that they come from and the truth about its copies.

    `warnings`: those of the run, and what limits the table: held-out cases that are training cases, undecided images.
    """

    rows: tuple[SelfTestRow, ...]
    result: DetectionResult
    truth: dict[str, tuple[str, str]]  # synthetic id -> (kind, training id)
    warnings: tuple[str, ...] = ()


def judge_planted(
    index: TrainingIndex,
    validation: Cohort,
    folder: Path,
    *,
    options: DetectionOptions | None = None,
    copies: int = 10,
    seed: int = 0,
    progress: Progress = silent,
) -> SelfTest:
    """Plants copies of training cases among real ones that neither generator nor null have seen, and judges them all.

    Half of the validation patients are in the null. The other half are held out and judged beside the copies, which
    measures the false-positive rate. Held-out cases that are identical to a training case were not unseen: they are in
    no row, and a warning names them.

    Args:
        index: the training cohort; its images must be where they were, in files or in memory.
        validation: real cases that are not in it.
        folder: where the copies are written (`images/`, `masks/`); exists and is empty.
        options: of the detection.
        copies: training cases copied for each kind of change, drawn at random.
        seed: of the draws.

    Raises:
        ConfigurationError: too few validation patients to halve.
        InputError: a training image is gone, or more than half of the validation cases of either half are training
            cases, so that the table would say nothing.
    """
    null, held_out = halves(validation, seed)
    planted = list(_planted(index, folder, copies, seed, progress))
    cases = (*held_out.cases, *(case for case, _, _ in planted))
    taken = [c.id for c in cases]
    if len(set(taken)) < len(taken):
        raise ConfigurationError("a validation case has the name of a planted copy (selftest_0000 ...); rename it")
    detector = Detector(index, validation=null, options=options, progress=progress)
    if detector.null.refused:
        raise InputError(validation.source, detector.null.warnings[0], "The rows of held-out images would say nothing")
    result = detector.detect(Cohort(folder, cases, held_out.problems), progress=progress)
    identical = {c.synthetic_id for c in result.summary if c.reason == IDENTICAL}
    leaked = [case.id for case in held_out.cases if case.id in identical]
    if len(leaked) > len(held_out) / 2:
        advice = "Give scans that the generator never saw"
        raise InputError(validation.source, f"are training cases, most of them ({_few(leaked)})", advice)
    truth = {case.id: (UNSEEN, "") for case in held_out.cases if case.id not in identical}
    truth |= {case.id: (kind, training_id) for case, kind, training_id in planted}
    rows = tuple(_rows(result, truth))
    return SelfTest(rows, result, truth, (*_limits(rows, leaked), *result.run.warnings))


def halves(validation: Cohort, seed: int = 0) -> tuple[Cohort, Cohort]:
    """The cohort in two, at random, patients kept whole; the first half is the larger one of an odd number."""
    patients: dict[str, list[Case]] = {}
    for case in validation.cases:
        patients.setdefault(f"patient {case.patient}" if case.patient else f"case {case.id}", []).append(case)
    if len(patients) < 2 * SMALLEST_HALF:
        raise ConfigurationError(
            f"{validation.source} holds {len(patients)} patients: a self-test needs {2 * SMALLEST_HALF}, half for the "
            "null and half to measure false positives; 40 or more give useful figures"
        )
    groups = list(patients.values())
    order = np.random.default_rng(seed).permutation(len(groups))
    middle = (len(groups) + 1) // 2
    chosen = {case.id for k in order[:middle] for case in groups[k]}
    first = tuple(c for c in validation.cases if c.id in chosen)
    second = tuple(c for c in validation.cases if c.id not in chosen)
    return Cohort(validation.source, first, validation.problems), Cohort(validation.source, second)


def _planted(
    index: TrainingIndex, folder: Path, copies: int, seed: int, progress: Progress
) -> Iterator[tuple[Case, str, str]]:
    """(case, kind of change, training id) of every copy, written under a neutral name."""
    images, masks = folder / "images", folder / "masks"
    images.mkdir()
    masks.mkdir()
    kinds = changes(index.preparation.dimensions)
    rng = np.random.default_rng([seed, 1])
    count = min(copies, len(index))
    plan = [(kind, int(i)) for kind in kinds for i in rng.choice(len(index), count, replace=False)]
    for number, (kind, position) in enumerate(plan):
        entry = index.entries[position]
        case = index.case(position)
        volume = read_volume(case)
        mask = read_mask(case, volume) if case.has_mask else None
        other = index.case((position + int(rng.integers(1, max(len(index), 2)))) % len(index))
        copy = kinds[kind](volume, mask, np.random.default_rng([seed, number]), read_volume(other))
        name = f"selftest_{number:04d}"
        image_file, mask_file = write_copy(copy, volume, images, masks, name)
        yield Case(name, (image_file,), mask_file), kind, entry.id
        progress("planting", number + 1, len(plan))


def _rows(result: DetectionResult, truth: dict[str, tuple[str, str]]) -> Iterator[SelfTestRow]:
    summary = {c.synthetic_id: c for c in result.summary}
    flagged = {(m.measure, m.synthetic_id): m.verdict in FLAGGED for m in result.matches}
    unseen = [summary[i].score for i, (kind, _) in truth.items() if kind == UNSEEN and i in summary]
    for kind in dict.fromkeys(k for k, _ in truth.values()):
        ids = [i for i, (k, _) in truth.items() if k == kind and i in summary]
        cases = [summary[i] for i in ids]
        right = [c.nearest_training_id == truth[c.synthetic_id][1] for c in cases]
        scores = np.array([c.score for c in cases] + unseen)
        yield SelfTestRow(
            kind,
            len(cases),
            _share([c.verdict in FLAGGED for c in cases]),
            _share([c.verdict == "replica" for c in cases]),
            Estimate() if kind == UNSEEN else _share(right),
            math.nan if kind == UNSEEN else auroc(-scores, np.arange(len(scores)) < len(cases)),
            {m.name: _share([flagged[m.name, i] for i in ids]) for m in result.run.measures},
            sum(c.verdict == "undecided" for c in cases),
        )


def _limits(rows: Sequence[SelfTestRow], leaked: Sequence[str]) -> Iterator[str]:
    """Warnings of the table: held-out cases that it leaves out, and images that are neither flagged nor cleared."""
    if leaked:
        yield (
            f"{len(leaked)} held-out validation cases are identical to a training case and are in no row of the table "
            f"({_few(leaked)}); look at the others with `replica-detection duplicates`"
        )
    undecided = sum(row.undecided for row in rows)
    if undecided:
        yield (
            f"{undecided} images are undecided and count as not flagged (column `undecided`): the null is too small; "
            "with more validation images these shares rise"
        )


def _few(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + (" ..." if len(ids) > 5 else "")


def _share(values: Sequence[bool]) -> Estimate:
    return share(sum(values), len(values))
