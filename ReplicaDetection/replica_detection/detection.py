"""detect(): the whole pipeline, from two cohorts to a DetectionResult."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from replica_detection import calibration
from replica_detection.cohort import Cohort
from replica_detection.comparison import CohortQueries, Distances, compare
from replica_detection.errors import ConfigurationError
from replica_detection.index import TrainingIndex
from replica_detection.loading import nothing_usable
from replica_detection.measures import Measure
from replica_detection.nulls import cross_fitted_distances, validation_distances
from replica_detection.progress import Progress, silent
from replica_detection.results import (
    CaseSummary,
    CohortInfo,
    DetectionResult,
    Match,
    MeasureInfo,
    Neighbors,
    NullInfo,
    RunInfo,
    levels_differ,
)
from replica_detection.versions import package_versions


@dataclass(frozen=True)
class Options:
    """How a detection is run.

    `measures` None: all that the index serves. `k`: neighbourhood of the distance ratio. `alpha`: error rate of the
    verdicts. `device`: auto, cpu or cuda. `null_size`: training cases used at most for a cross-fitted null.
    """

    measures: tuple[str, ...] | None = None
    k: int = 50
    alpha: float = 0.05
    device: str = "auto"
    null_size: int = 500
    strict: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ConfigurationError(f"--alpha is {self.alpha}: it must lie between 0 and 1")
        if self.k < 1:
            raise ConfigurationError(f"--k is {self.k}: it must be at least 1")


def detect(
    synthetic: Cohort,
    index: TrainingIndex,
    *,
    validation: Cohort | None = None,
    options: Options | None = None,
    masks: Path | None = None,
    progress: Progress = silent,
) -> DetectionResult:
    """Compares every synthetic case with every training case and says which are replicas.

    Args:
        synthetic: the images to be judged.
        index: the training cohort.
        validation: real cases that the generator never saw; without them the null comes from the training cohort
            itself, each case compared with the cases of other patients.
        masks: where the synthetic cohort's masks were read from; only noted in the result, for its pictures.
        progress: called with (stage, done, total).

    Raises:
        InputError: no synthetic image can be read, or the first that cannot with `strict`.
        ConfigurationError: options that do not fit the index.
    """
    options = options or Options()
    clock = _Clock()
    device = resolve_device(options.device)
    measures = index.measures(options.measures, device)
    with clock.stage("null"):
        null = (
            cross_fitted_distances(index, measures, size=options.null_size, progress=progress)
            if validation is None
            else validation_distances(validation, index, measures, strict=options.strict, progress=progress)
        )
    with clock.stage("compare"):
        found = compare(CohortQueries(synthetic, index, strict=options.strict), index, measures, progress=progress)
    if not found.ids:
        raise nothing_usable(synthetic.source, (*synthetic.problems, *found.problems))
    with clock.stage("statistics"):
        judged = judge(found, null, measures, index, k=options.k, alpha=options.alpha)
    run = RunInfo(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        alpha=options.alpha,
        k=min(options.k, len(index)),
        device=device,
        profile={**index.preparation.to_json(), "description": index.preparation.describe()},
        synthetic=_cohort_info(synthetic, found),
        training=CohortInfo(index.source, len(index), tuple((p.path, p.message) for p in index.problems)),
        validation=None if validation is None else _cohort_info(validation, null),
        index=str(index.folder),
        measures=judged.measures,
        null=judged.null,
        evidence=judged.evidence,
        evidence_threshold=judged.evidence_threshold,
        timings=clock.seconds,
        versions=package_versions(),
        warnings=(
            *judged.warnings,
            *collected(index.warnings, "training image"),
            *collected(null.warnings if validation is not None else (), "validation image"),
            *collected(found.warnings, "synthetic image"),
        ),
        options={
            "null_size": options.null_size,
            "strict": options.strict,
            "masks": None if masks is None else str(masks),
            "segmenter": index.segmenter_settings,
        },
    )
    return DetectionResult(judged.summary, judged.matches, judged.neighbors, run)


def resolve_device(device: str) -> str:
    """`auto` becomes cuda where torch sees a GPU, else cpu. Raises ConfigurationError for cuda without one."""
    if device == "cpu":
        return device
    import torch

    available = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if available else "cpu"
    if not device.startswith("cuda"):
        raise ConfigurationError(f"unknown device '{device}'; known: auto, cpu, cuda")
    if not available:
        raise ConfigurationError(f"--device {device}: torch sees no CUDA device here; use --device cpu")
    return device


@dataclass(frozen=True)
class Judged:
    """Tables and statistics of one comparison, before they become a result."""

    summary: tuple[CaseSummary, ...]
    matches: tuple[Match, ...]
    neighbors: Neighbors
    measures: tuple[MeasureInfo, ...]
    null: NullInfo
    evidence: tuple[float, ...]
    evidence_threshold: float
    warnings: tuple[str, ...]


def judge(
    found: Distances,
    null: Distances,
    measures: Sequence[Measure],
    index: TrainingIndex,
    *,
    k: int,
    alpha: float,
    null_kind: str | None = None,
) -> Judged:
    """From distances to p values, q values and verdicts, per measure and overall.

    Null cases that nearly equal a training case (leaked or duplicated scans) are left out of the null. The overall
    statistic (`calibration.Combination`) is compared with that of the same null cases, so that its error rate holds
    whatever the dependence between measures.
    """
    groups = index.patients
    near = {m.name: calibration.nearest(found.by_measure[m.name], k, groups) for m in measures}
    null_near = {m.name: calibration.nearest(null.by_measure[m.name], k, groups) for m in measures}
    values = np.stack([calibration.evidence(near[m.name].ratio) for m in measures], 1)
    null_values = np.stack([calibration.evidence(null_near[m.name].ratio) for m in measures], 1)
    levels = tuple(m.level for m in measures)
    leaked = calibration.near_duplicates(null_values, levels)
    null_values = null_values[~leaked]
    kept_ids = tuple(i for i, bad in zip(null.ids, leaked, strict=True) if not bad)
    with_tail = calibration.tail_needed(len(null_values), len(values), alpha)

    per_measure = [calibration.Null.fit(column, with_tail=with_tail) for column in null_values.T]
    p = np.stack([n.p_values(v) for n, v in zip(per_measure, values.T, strict=True)], 1)
    q = np.stack([calibration.benjamini_hochberg(column) for column in p.T], 1)
    verdict = calibration.verdicts(p, q, alpha)

    combination = calibration.Combination.fit(null_values, levels)
    by_level, null_by_level = combination.levels_of(values), combination.null_levels(null_values)
    overall, null_overall = calibration.combined(by_level), calibration.combined(null_by_level)
    overall_null = calibration.Null.fit(null_overall, with_tail=with_tail)
    p_all = overall_null.p_values(overall)
    q_all = calibration.benjamini_hochberg(p_all)
    verdict_all = calibration.verdicts(p_all, q_all, alpha)
    score = overall_null.score(overall)
    level_p = {
        name: calibration.Null.fit(null_by_level[name], with_tail=with_tail).p_values(column)
        for name, column in by_level.items()
    }

    standard = combination.standard(values)
    matches, summary = [], []
    training_ids = index.ids
    for i, case in enumerate(found.ids):
        for j, m in enumerate(measures):
            n = near[m.name]
            distance = float(n.distance[i])
            named = training_ids[n.index[i]] if n.index[i] >= 0 else ""
            matches.append(
                Match(
                    case,
                    m.name,
                    m.level,
                    named,
                    m.value(distance) if math.isfinite(distance) else math.nan,
                    distance,
                    float(n.ratio[i]),
                    float(p[i, j]),
                    float(q[i, j]),
                    str(verdict[i, j]),
                )
            )
        flagged = tuple(name for name in by_level if level_p[name][i] <= alpha)
        choices = [int(near[m.name].index[i]) for m in measures]
        winner = _overall_nearest(choices, standard[i], levels)
        summary.append(
            CaseSummary(
                case,
                str(verdict_all[i]),
                float(score[i]),
                training_ids[winner] if winner >= 0 else "",
                flagged,
                sum(c == winner for c in choices) if winner >= 0 else 0,
                levels_differ(flagged, matches[-len(measures) :]),
            )
        )
    return Judged(
        tuple(summary),
        tuple(matches),
        Neighbors(
            found.ids,
            training_ids,
            {m.name: near[m.name].neighbors.astype(np.int32) for m in measures},
            {m.name: near[m.name].neighbor_distances for m in measures},
        ),
        tuple(
            MeasureInfo(m.name, m.level, m.sense, m.definition, _ratio_threshold(n, alpha))
            for m, n in zip(measures, per_measure, strict=True)
        ),
        NullInfo(
            null_kind or null.kind,
            len(null_values),
            kept_ids,
            {m.name: tuple(np.exp(-column).tolist()) for m, column in zip(measures, null_values.T, strict=True)},
            tuple(null_overall.tolist()),
            tuple(i for i, bad in zip(null.ids, leaked, strict=True) if bad),
            overall_null.tail is not None,
        ),
        tuple(overall.tolist()),
        overall_null.threshold(alpha),
        tuple(_warnings(found, null, leaked, near, overall_null, len(values), alpha, null_kind or null.kind)),
    )


def _overall_nearest(choices: Sequence[int], standard: np.ndarray, levels: Sequence[str]) -> int:
    """The training case with the largest summed evidence inside the strongest level; -1 where there is none."""
    best: dict[str, dict[int, float]] = {}
    for choice, strength, level in zip(choices, standard, levels, strict=True):
        if choice >= 0 and math.isfinite(strength):
            # Positive weights, so that two measures agreeing always outweigh either alone.
            votes = best.setdefault(level, {})
            votes[choice] = votes.get(choice, 0.0) + max(float(strength), 0.0) + 1e-3
    if not best:
        return next((c for c in choices if c >= 0), -1)
    strongest = max(best.values(), key=lambda votes: max(votes.values()))
    return max(strongest, key=lambda choice: strongest[choice])


def _ratio_threshold(null: calibration.Null, alpha: float) -> float:
    threshold = null.threshold(alpha)
    return math.exp(-threshold) if math.isfinite(threshold) else math.nan


def _warnings(
    found: Distances,
    null: Distances,
    leaked: np.ndarray,
    near: dict[str, calibration.Nearest],
    overall: calibration.Null,
    tests: int,
    alpha: float,
    kind: str,
) -> Iterator[str]:
    who = "validation" if kind == "validation" else "training"
    size = len(overall.values)
    if size == 0:
        yield f"only {len(null.ids)} null cases: no p value can be given; add real cases with --validation"
    elif size + 1 < 1 / alpha:
        yield (
            f"the null has {size} cases: without a fitted tail no p value below {1 / (size + 1):.3f} is possible; "
            "verdicts rest on the fit; add real cases with --validation"
        )
    if leaked.any():
        names = [i for i, bad in zip(null.ids, leaked, strict=True) if bad]
        shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
        yield (
            f"{len(names)} {who} cases nearly equal a training case and were left out of the null ({shown}); "
            "look at them with `replica-detection duplicates`"
        )
    for name in near:
        blind = sum(n < 0 for n in near[name].index)
        if blind:
            yield f"{name}: {blind} of {len(found.ids)} images could not be compared (no mask, or an empty one)"
        rows = null.by_measure[name][~leaked]
        if len(rows) and np.isfinite(rows).any(1).sum() < calibration.SMALLEST_NULL <= len(rows):
            yield f"{name}: too few null cases could be compared, so it gives no p value (are their masks missing?)"
    undefined = sorted(
        {found.ids[i] for n in near.values() for i in np.flatnonzero((n.index >= 0) & np.isnan(n.ratio))}
    )
    if undefined:
        yield (
            f"the distance ratio of {len(undefined)} cases is undefined (first {undefined[0]}): all their nearest "
            "training cases are identical; remove duplicates from the training cohort"
        )


def _cohort_info(cohort: Cohort, distances: Distances) -> CohortInfo:
    problems = (*cohort.problems, *distances.problems)
    return CohortInfo(str(cohort.source), len(distances.ids), tuple((p.path, p.message) for p in problems))


def collected(warnings: Sequence[tuple[str, str]], noun: str) -> Iterator[str]:
    """One line for each kind of warning, with how many images it concerns."""
    kinds: dict[str, list[str]] = {}
    for case, text in warnings:
        kinds.setdefault(text, []).append(case)
    for text, cases in kinds.items():
        yield f"{len(cases)} {noun}{'s' if len(cases) > 1 else ''} (first {cases[0]}): {text}"


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def result_folder_index(output: Path) -> Path:
    """Where `detect --training` keeps the index that it builds."""
    return output / "index.rdindex"
