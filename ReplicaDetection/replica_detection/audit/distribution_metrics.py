"""Sets of vectors and images compared as wholes: CT score, Fréchet distance, MS-SSIM."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np

from replica_detection.audit.memorization_metrics import SIZE_MATCHED, SetMetric
from replica_detection.statistics.intervals import Estimate, percentile_interval, resamples

CT_CELLS, CT_DIMENSIONS, CT_SMALLEST_CELL = 3, 64, 20  # dgm-eval's settings
_KMEANS_STARTS = 10
_FRECHET_SUBSETS, _FRECHET_REPEATS, _CT_REPEATS = 10, 30, 300


def ct_score(training: np.ndarray, holdout: np.ndarray, synthetic: np.ndarray, *, seed: int = 0) -> SetMetric:
    """CT score (Meehan et al., AISTATS 2020): distances of synthetic and of unseen cases to training, compared by rank.

    Below 0, synthetic cases lie nearer to training than unseen ones do (copying); above 0, farther (underfitting).

    All vectors are projected onto the principal components of the training vectors and assigned to k-means cells. In
    each cell, the z score of Mann and Whitney's U compares the distances to the nearest training case of that cell. The
    CT score is the mean over the cells, weighted by their numbers of hold-out cases. Cells with CT_SMALLEST_CELL
    synthetic cases or fewer, or without training or hold-out cases, do not count. The interval is a bootstrap over
    synthetic and hold-out cases with the cells and distances kept. The z score grows with the sizes of the sets:
    compare sets of one size only.

    Args:
        training: (N, D) vectors, as `holdout` (H, D) and `synthetic` (Q, D).
    """
    if not len(holdout):
        return SetMetric("CT", Estimate(), cases=len(synthetic), note="no hold-out")
    training, holdout, synthetic = _principal(training, holdout, synthetic)
    centres = _kmeans(training, min(CT_CELLS, len(training)), seed)
    cells = [_cell_of(x, centres) for x in (training, holdout, synthetic)]
    near_holdout = _nearest_in_cell(holdout, cells[1], training, cells[0])
    near_synthetic = _nearest_in_cell(synthetic, cells[2], training, cells[0])
    value = _ct(near_holdout, cells[1], near_synthetic, cells[2])
    if math.isnan(value):
        note = f"no cell has more than {CT_SMALLEST_CELL} synthetic, a training and a hold-out case"
        return SetMetric("CT", Estimate(), cases=len(synthetic), note=note)
    drawn = [
        _ct(near_holdout[h], cells[1][h], near_synthetic[s], cells[2][s])
        for h, s in zip(
            resamples(len(holdout), _CT_REPEATS, seed=seed),
            resamples(len(synthetic), _CT_REPEATS, seed=seed + 1),
            strict=True,
        )
    ]
    return SetMetric("CT", Estimate(value, *percentile_interval(np.array(drawn))), "", 0.0, len(synthetic))


def _ct(holdout: np.ndarray, holdout_cells: np.ndarray, synthetic: np.ndarray, synthetic_cells: np.ndarray) -> float:
    weights, scores = [], []
    for cell in np.unique(synthetic_cells):
        real = holdout[(holdout_cells == cell) & np.isfinite(holdout)]
        made = synthetic[(synthetic_cells == cell) & np.isfinite(synthetic)]
        if len(made) > CT_SMALLEST_CELL and len(real):
            weights.append(len(real))
            scores.append(_mann_whitney_z(made, real))
    return float(np.average(scores, weights=weights)) if scores else math.nan


def _mann_whitney_z(made: np.ndarray, real: np.ndarray) -> float:
    """Standardized U, the number of pairs in which `made` is larger, with the published continuity correction."""
    from scipy.stats import rankdata

    m, n = len(made), len(real)
    u = float(rankdata(np.concatenate([made, real]))[:m].sum()) - m * (m + 1) / 2
    return (u - (m * n / 2 - 0.5)) / math.sqrt(m * n * (m + n + 1) / 12)


def _principal(training: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
    """All sets on the first CT_DIMENSIONS principal components of the training vectors, where they have more."""
    everything = [np.asarray(x, np.float64) for x in (training, *others)]
    mean = everything[0].mean(0)
    centred = [x - mean for x in everything]
    if centred[0].shape[1] <= CT_DIMENSIONS:
        return centred
    _, _, directions = np.linalg.svd(centred[0], full_matrices=False)
    return [x @ directions[:CT_DIMENSIONS].T for x in centred]


def _kmeans(points: np.ndarray, cells: int, seed: int) -> np.ndarray:
    """(cells, D) centres of the best of several starts from random points."""
    from scipy.cluster.vq import kmeans2

    rng = np.random.default_rng(seed)
    best, least = points[:1], math.inf
    for _ in range(_KMEANS_STARTS):
        first = points[rng.choice(len(points), cells, replace=False)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an empty cell only makes this start a worse one
            centres, labels = kmeans2(points, first, iter=100, minit="matrix")
        spread = float(((points - centres[labels]) ** 2).sum())
        if spread < least:
            best, least = centres, spread
    return best


def _cell_of(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return ((points[:, None] - centres[None]) ** 2).sum(-1).argmin(1)


def _nearest_in_cell(
    points: np.ndarray, cells: np.ndarray, training: np.ndarray, of_training: np.ndarray
) -> np.ndarray:
    """(n,) Euclidean distance to the nearest training case of the same cell; +inf where the cell has none."""
    from scipy.spatial import cKDTree

    near = np.full(len(points), np.inf)
    for cell in np.unique(cells):
        inside = training[of_training == cell]
        if len(inside):
            near[cells == cell] = cKDTree(inside).query(points[cells == cell])[0]
    return near


def frechet(
    synthetic: np.ndarray, real: np.ndarray, name: str = "FID", *, size: int | None = None, seed: int = 0
) -> SetMetric:
    """Fréchet distance of two sets of vectors: FID, on the given vectors instead of Inception's.

    It rewards copies. Small sets raise it: with `size`, it is the mean over random subsets of that many synthetic
    vectors, so that sets of different size, or the unseen cases, can be compared. The interval is the value plus and
    minus 1.96 bootstrap standard deviations. Percentiles would mislead, because resampled sets are biased themselves.

    Args:
        synthetic: (Q, D) vectors.
        real: (N, D) vectors; both sets need two.
    """
    variant, size = ("", len(synthetic)) if size is None else (SIZE_MATCHED, size)
    if min(size, len(real)) < 2:
        return SetMetric(name, Estimate(), cases=len(synthetic), note="fewer than two vectors")
    rng = np.random.default_rng(seed)
    repeats = _FRECHET_SUBSETS if size < len(synthetic) else 1
    subsets = [rng.choice(len(synthetic), size, replace=False) for _ in range(repeats)]
    value = float(np.mean([frechet_distance(synthetic[s], real) for s in subsets]))
    drawn = [
        frechet_distance(synthetic[a[:size]], real[b])
        for a, b in zip(
            resamples(len(synthetic), _FRECHET_REPEATS, seed=seed),
            resamples(len(real), _FRECHET_REPEATS, seed=seed + 1),
            strict=True,
        )
    ]
    spread = 1.96 * float(np.std(drawn, ddof=1))
    smallest = min(size, len(real))
    note = f"{smallest} vectors in {real.shape[1]} dimensions: strongly biased" if smallest <= real.shape[1] else ""
    return SetMetric(name, Estimate(value, value - spread, value + spread), variant, math.nan, len(synthetic), note)


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared Fréchet distance of two sets (n, D): |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    With the centred data F, scaled so that C = F^T F, the trace of the root is the sum of the singular values of
    F1 F2^T. A set of fewer vectors than dimensions therefore needs no covariance matrix. For a larger one, the
    symmetric root of C takes the place of F.
    """
    factors: list[np.ndarray] = []
    means: list[np.ndarray] = []
    for x in (np.asarray(first, np.float64), np.asarray(second, np.float64)):
        means.append(x.mean(0))
        centred = (x - means[-1]) / math.sqrt(len(x) - 1)
        factors.append(_root(centred.T @ centred) if len(x) > x.shape[1] else centred)
    product = factors[0] @ factors[1].T
    squared = product @ product.T if len(product) <= product.shape[1] else product.T @ product
    root = float(np.sqrt(np.maximum(np.linalg.eigvalsh(squared), 0)).sum())
    traces = sum(float((f * f).sum()) for f in factors)
    return max(float(((means[0] - means[1]) ** 2).sum()) + traces - 2 * root, 0.0)


def _root(covariance: np.ndarray) -> np.ndarray:
    """Symmetric square root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003
_WINDOW = 11


def scales_of(grid: Sequence[int]) -> int:
    """Number of MS-SSIM scales that fit into a grid, 0 to 5: each halves it, and the window of 11 must still fit."""
    # MONAI asks for (scales - 1)^2 windows as well.
    fitting = (n for n in range(1, len(_SCALE_WEIGHTS) + 1) if min(grid) // max(2 ** (n - 1), (n - 1) ** 2) >= _WINDOW)
    return max(fitting, default=0)


def ms_ssim(pairs: Sequence[tuple[np.ndarray, np.ndarray]], name: str = "MS-SSIM", *, seed: int = 0) -> SetMetric:
    """Mean MS-SSIM of pairs of images of one set; larger means less diverse.

    It does not show memorization (Dar et al.). MONAI's implementation is used, with a Gaussian window and data range 1.
    Where the grid is too small for five scales, only the first ones are used, with their weights scaled to a sum of 1,
    and the note says so.

    Args:
        pairs: images (grid) in [0, 1], 2D or 3D.
    """
    if not pairs:
        return SetMetric(name, Estimate(), note="no pair of images")
    import torch
    from monai.metrics.regression import compute_ms_ssim

    grid = pairs[0][0].shape
    scales = scales_of(grid)
    if not scales:
        return SetMetric(name, Estimate(), note=f"its window of {_WINDOW} does not fit into the grid")
    weights = np.array(_SCALE_WEIGHTS[:scales]) / (1 if scales == len(_SCALE_WEIGHTS) else sum(_SCALE_WEIGHTS[:scales]))
    values = np.array(
        [
            float(
                compute_ms_ssim(
                    torch.from_numpy(np.ascontiguousarray(a, np.float32))[None, None],
                    torch.from_numpy(np.ascontiguousarray(b, np.float32))[None, None],
                    spatial_dims=len(grid),
                    data_range=1.0,
                    kernel_size=_WINDOW,
                    kernel_sigma=1.5,
                    weights=weights.tolist(),
                )
            )
            for a, b in pairs
        ]
    )
    interval = percentile_interval(values[resamples(len(values), seed=seed)].mean(1))
    note = f"{scales} of 5 scales fit into the grid" if scales < len(_SCALE_WEIGHTS) else ""
    return SetMetric(name, Estimate(float(values.mean()), *interval), "", math.nan, len(values), note)
