"""Results and pictures for tests of the report, from a seeded generator, with statistics as a run makes them."""

import itertools
import math
import zlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.ndimage import gaussian_filter

from replica_detection.report import Pair
from replica_detection.results.result import (
    IDENTICAL,
    NO_MASK,
    NO_MEASURE,
    REPEATED_TRAINING,
    SAME_PATIENT,
    SMALL_NULL,
    CaseSummary,
    CohortInfo,
    DetectionResult,
    Match,
    MeasureInfo,
    Neighbors,
    NullInfo,
    RunInfo,
)

ALPHA, K = 0.05, 50
MEASURES = {
    "mae": ("voxel", "distance", "mean absolute grey difference over the ROI, profile range [0, 1]", 0.05),
    "rmse": ("voxel", "distance", "root mean squared grey difference over the ROI, profile range [0, 1]", 0.05),
    "ssim": ("voxel", "similarity", "Gaussian 11-tap window, sigma 1.5, k1 0.01, k2 0.03, data range 1", 0.05),
    "embedding_cosine": ("feature", "similarity", "MedicalNet ResNet-50, grid 4 x 4 x 4, float32", 0.03),
    "embedding_rmse": ("feature", "distance", "MedicalNet ResNet-50, grid 4 x 4 x 4, float32", 0.03),
    "dice": ("segmentation", "similarity", "binary ROI masks; both empty: left out; one empty: 0", 0.08),
    "asd": ("segmentation", "distance", "mean over the surface voxels of both masks, mm", 0.1),
}


def make_result(
    cases: int = 60, null: int = 120, copies: int = 12, training: int = 200, seed: int = 0
) -> DetectionResult:
    """`copies` of the cases are copies of few training cases, one in 20 has no mask, and the last case has no value."""
    rng = np.random.default_rng(seed)
    synthetic_ids = tuple(f"synthetic_{i:04d}" for i in range(cases))
    training_ids = tuple(f"patient{i:04d}_ct" for i in range(training))
    copied = rng.permutation(cases - 1)[:copies] if cases > 1 else np.arange(copies)
    source = rng.choice(training, size=min(5, training), replace=False)
    common_null, common = rng.normal(size=null), rng.normal(size=cases)
    strength = np.zeros(cases)
    strength[copied] = rng.uniform(0.35, 1.0, len(copied))
    strength[copied[:3]] = 1
    nearest_all = rng.integers(0, training, cases)
    nearest_all[copied] = rng.choice(source, len(copied), p=_weights(len(source)))

    ratios, null_ratios, p_values = {}, {}, {}
    for name, (level, *_, spread) in MEASURES.items():
        own = 0.85 + spread * (0.6 * common + 0.8 * rng.normal(size=cases))
        null_ratios[name] = np.clip(0.85 + spread * (0.6 * common_null + 0.8 * rng.normal(size=null)), 0, 1)
        ratio = np.clip(own, 0, 1) * (1 - strength)
        if level == "segmentation":
            ratio[::20] = math.nan
        if cases:
            ratio[-1] = math.nan
        ratios[name] = ratio
        p_values[name] = _p(ratio, null_ratios[name])
    evidence, null_evidence = _combine(ratios, null_ratios, cases, null)
    overall_p = _p(-evidence, -null_evidence)
    overall_q = _bh(overall_p)
    q_values = {name: _bh(p) for name, p in p_values.items()}

    matches, summary = [], []
    for i, synthetic_id in enumerate(synthetic_ids):
        rows = []
        for name, (level, sense, *_rest) in MEASURES.items():
            strange = rng.random() < (0.1 if strength[i] else 0.5)
            j = int(rng.integers(0, training)) if strange else int(nearest_all[i])
            ratio = float(ratios[name][i])
            distance = ratio * 0.31
            rows.append(
                Match(
                    synthetic_id,
                    name,
                    level,
                    "" if math.isnan(ratio) else training_ids[j],
                    1 - distance if sense == "similarity" else distance,
                    distance,
                    ratio,
                    float(p_values[name][i]),
                    float(q_values[name][i]),
                    _verdict(p_values[name][i], q_values[name][i]),
                )
            )
        matches += rows
        named = [r.nearest_training_id for r in rows if r.nearest_training_id]
        nearest = max(named, key=named.count) if named else ""
        flagged = sorted({r.level for r in rows if r.verdict in ("replica", "suspicious")})
        agreeing = named.count(nearest) if nearest else 0
        score = float(1 - overall_p[i])
        verdict = _verdict(overall_p[i], overall_q[i])
        summary.append(CaseSummary(synthetic_id, verdict, score, nearest, tuple(flagged), agreeing))
    return DetectionResult(
        tuple(summary),
        tuple(matches),
        _neighbors(synthetic_ids, training_ids, rng),
        _run(training, ratios, null_ratios, p_values, evidence, null_evidence),
    )


def without_flags(result: DetectionResult) -> DetectionResult:
    """The same result as if nothing had been flagged."""

    def calm(row):
        return replace(row, verdict="novel") if row.verdict in ("replica", "suspicious") else row

    summary = tuple(replace(calm(c), levels_flagged=()) for c in result.summary)
    return replace(result, summary=summary, matches=tuple(calm(m) for m in result.matches))


def with_reasons(result: DetectionResult) -> DetectionResult:
    """The same result under a small null: the first flagged case is identical to its training case, suspicious cases
    and the two next ones are undecided, and the undefined cases have the other reasons in turn."""
    reasons = itertools.cycle((NO_MASK, SAME_PATIENT, REPEATED_TRAINING, NO_MEASURE))
    first, *rest = result.worklist()
    novel = [c.synthetic_id for c in rest if c.verdict == "novel" and c.nearest_training_id]
    undecided = {*novel[:2], *(c.synthetic_id for c in rest if c.verdict == "suspicious")}

    def reasoned(case: CaseSummary) -> CaseSummary:
        if case is first:
            return replace(case, verdict="replica", reason=IDENTICAL, score=1.0)
        if case.synthetic_id in undecided:
            return replace(case, verdict="undecided", levels_flagged=(), reason=SMALL_NULL)
        return replace(case, reason=next(reasons)) if case.verdict == "undefined" else case

    matches = tuple(
        replace(m, verdict="undecided") if m.synthetic_id in undecided and m.p_value < 0.2 else m
        for m in result.matches
    )
    size = result.run.null.size
    null = replace(result.run.null, kind="pooled", validation=8, cross_fitted=size - 8, agreement=0.41, missing=11)
    return replace(
        result, summary=tuple(map(reasoned, result.summary)), matches=matches, run=replace(result.run, null=null)
    )


def make_pairs(
    shape: tuple[int, ...] = (64, 64, 32), spacing: tuple[float, ...] | None = None
) -> Callable[[str, str], Pair]:
    """Heads of smooth noise; the synthetic one is an exact copy of the training case, or mixed with another head."""
    spacing = spacing or (1.0,) * len(shape)

    def pair(synthetic_id: str, training_id: str) -> Pair:
        rng = np.random.default_rng(zlib.crc32(f"{synthetic_id} {training_id}".encode()))
        training = _head(shape, rng)
        share = rng.choice([0, 0.15, 0.4])
        synthetic = np.clip((1 - share) * training + share * _head(shape, rng), 0, 1)
        return Pair(synthetic.astype(np.float32), training, spacing)

    return pair


def _head(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.sqrt(sum((a / r) ** 2 for a, r in zip(axes, (0.72, 0.9, 0.95), strict=False)))
    noise = gaussian_filter(rng.normal(size=shape), 2.5)
    fine = gaussian_filter(rng.normal(size=shape), 0.7)
    tissue = 0.38 + 0.12 * noise / noise.std() + 0.03 * fine / fine.std()
    lesion = np.exp(-8 * sum((a - c) ** 2 for a, c in zip(axes, rng.uniform(-0.4, 0.4, len(shape)), strict=True)))
    image = np.where(radius < 0.9, tissue + 0.4 * lesion, np.where(radius < 1, 0.95, 0.0))
    return np.clip(gaussian_filter(image, 0.6), 0, 1).astype(np.float32)


def _weights(n: int) -> np.ndarray:
    weights = 1 / np.arange(1, n + 1)
    return weights / weights.sum()


def _p(values: np.ndarray, null: np.ndarray) -> np.ndarray:
    p = (1 + (null[None] <= values[:, None]).sum(1)) / (len(null) + 1)
    # Like a fitted tail: below the null's smallest value, p falls on with the distance to it.
    if len(null):
        far = np.clip((null.min() - values) / max(null.std(), 1e-9), 0, 30)
        p = p * np.exp(-3 * np.nan_to_num(far))
    else:
        p = np.full(len(values), math.nan)
    return np.where(np.isnan(values), math.nan, p)


def _bh(p: np.ndarray) -> np.ndarray:
    q = np.full(len(p), math.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known])[::-1]]
    ranks = np.arange(len(order), 0, -1)
    if len(order):
        q[order] = np.minimum(1, np.minimum.accumulate(p[order] * len(order) / ranks))
    return q


def _verdict(p: float, q: float) -> str:
    if math.isnan(p):
        return "undefined"
    return "replica" if q <= ALPHA else "suspicious" if p <= ALPHA else "novel"


def _combine(ratios: dict, null_ratios: dict, cases: int, null: int) -> tuple[np.ndarray, np.ndarray]:
    def z(values: np.ndarray, name: str) -> np.ndarray:
        return (null_ratios[name].mean() - values) / null_ratios[name].std() if null else np.full(len(values), math.nan)

    own = np.array([z(ratios[n], n) for n in MEASURES]).reshape(len(MEASURES), cases)
    real = np.array([z(null_ratios[n], n) for n in MEASURES]).reshape(len(MEASURES), null)
    known = ~np.isnan(own)
    total = np.where(known, own, 0).sum(0) / np.maximum(known.sum(0), 1)
    return np.where(known.any(0), total, math.nan) / 0.7, real.mean(0) / 0.7


def _neighbors(synthetic_ids: tuple[str, ...], training_ids: tuple[str, ...], rng: np.random.Generator) -> Neighbors:
    shape = (len(synthetic_ids), min(K, len(training_ids)))
    training = {n: rng.integers(0, max(1, len(training_ids)), shape).astype(np.int32) for n in MEASURES}
    return Neighbors(synthetic_ids, training_ids, training, {n: np.sort(rng.random(shape), 1) for n in MEASURES})


def _run(training, ratios, null_ratios, p_values, evidence, null_evidence) -> RunInfo:
    def largest(name: str) -> float:
        values = ratios[name][p_values[name] <= ALPHA]
        return float(values.max()) if len(values) else math.nan

    size = len(null_evidence)
    return RunInfo(
        created="2026-03-01T14:05:31+00:00",
        alpha=ALPHA,
        k=K,
        device="cpu",
        profile={
            "profile": "head-ct",
            "dimensions": 3,
            "spacing": [1.0, 1.0, 1.0],
            "grid": [128, 128, 64],
            "intensity": {"window": [0, 100], "percentiles": None},
            "description": "head-ct: grid 128 x 128 x 64 of 1 x 1 x 1 mm, window 0 to 100",
        },
        synthetic=CohortInfo("/data/generator-v3/samples", len(evidence), (("/data/bad.nii.gz", "holds NaN only"),)),
        training=CohortInfo("/data/training", training),
        validation=CohortInfo("/data/validation", size, (("/data/validation/x.nrrd", "is truncated"),))
        if size
        else None,
        index="/results/run-7/training.rdindex",
        measures=tuple(
            MeasureInfo(n, level, sense, text, largest(n)) for n, (level, sense, text, _) in MEASURES.items()
        ),
        null=NullInfo(
            kind="validation" if size else "cross-fitted",
            size=size,
            case_ids=tuple(f"real{i}" for i in range(size)),
            ratios={n: tuple(map(float, v)) for n, v in null_ratios.items()},
            evidence=tuple(map(float, null_evidence)),
            removed=("real901", "real917"),
            tail_fitted=True,
        ),
        evidence=tuple(map(float, evidence)),
        evidence_threshold=float(np.quantile(null_evidence, 1 - ALPHA)) if size else math.nan,
        timings={"read": 12.3, "index": 340.0, "compare": 81.5, "calibrate": 0.42},
        versions={
            "replica-detection": "0.1.0",
            "python": "3.11.2",
            "numpy": "2.2.0",
            "torch": "2.13.0",
            "monai": "1.6.1",
        },
        warnings=(
            "4 synthetic images have an empty mask: no segmentation measure for them",
            "the null is small: its tail was fitted",
        ),
        options={"measures": list(MEASURES), "masks": None, "seed": 0},
    )
