"""The default embedder: statistics of rotation-invariant local structure, tolerant of the changes a copy may have.

Nothing is downloaded and no network is trained; the fit takes some ten seconds on the training cohort.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.embedding.base import Embedder, no_file, register
from replica_detection.embedding.resampling import resampled
from replica_detection.embedding.views import Views
from replica_detection.errors import ConfigurationError, IndexFormatError
from replica_detection.progress import Progress, silent
from replica_detection.util.cores import kernel_threads, one_thread

# Sigmas of the Gaussian derivatives, in voxels of the working grid, and of the local contrast normalization.
SCALES = (1.2, 2.0, 3.0, 4.5)
CONTRAST_SIGMA = 4.0
# Contrast below this share of the intensity range counts as noise of an empty background and is not amplified to 1.
LEAST_CONTRAST = 0.05
# Soft shells about the centre: radius and width as a share of the mean half length.
SHELLS, SHELL_WIDTH = (0.0, 0.5, 1.0), 0.3
# Voxels of the working grid, by the number of dimensions.
WORKING_VOXELS = {2: 2**14, 3: 2**15}
LEAST_SIZE = 8
# Added to each variance before whitening, as a share of the mean variance.
SHRINKAGE = 1e-4
# Views of the fit in all, at least this many of each case, of at most this many cases.
TOTAL_VIEWS, MIN_VIEWS, MAX_CASES = 1000, 8, 125
# A null of training cases leaves out one in this many cases at a time.
FOLDS = 10
# Changes that a copy may have.
COPY_CHANGES = Views(
    rotation_degrees=15,
    shift=0.12,
    zoom=0.15,
    flips=(0, 1, 2),
    elastic=0.1,
    blur=2.0,
    noise=0.15,
    gamma=0.8,
    bias=0.6,
    lost=0.25,
)


@register
@dataclass(frozen=True)
class Invariants(Embedder):
    """Moments of Gaussian derivative invariants, whitened by the scatter of altered copies.

    Args:
        views: (cases, views, 920) float32, the moments of altered copies of training images; None: not fitted yet.
        cases: ids of these training images.
        used: number of views of each case in the whitening; the others replace cases that are left out.
        total: views of the fit in all, where not `TOTAL_VIEWS`: fewer are fitted sooner and whiten less well.

    1. The image is resampled to an isotropic working grid of at most 32,768 voxels (2D: 16,384 pixels), and its
       contrast is normalized locally.
    2. At four scales: the smoothed value L, |grad L|, the Laplacian, the Frobenius norm of the Hessian H, and
       g'Hg / |g|^2, each times its scale's power. None of them changes when the image is rotated or mirrored (ter Haar
       Romeny, Front-End Vision, chapter 6).
    3. Their means and covariances inside three soft shells about the centre and over the whole: 920 numbers.
    4. These are centred and whitened by the within-class scatter of random views of training images (rotated, shifted,
       mirrored, zoomed, warped, blurred, noisy, of other contrast, with a part lost): within-class covariance
       normalization (Hatch and Stolcke, ICASSP 2006). Directions in which a copy varies get small weights, the others
       large ones. Differences *between* training images do not enter. Still, the fit suits the images that it saw, so
       a null of training images whitens each by the views of other patients (`refit_without`).

    Layers for `memorization_index`: the moments of each scale, fine to coarse, before step 4.
    """

    views: np.ndarray | None = field(default=None, repr=False, compare=False)
    cases: tuple[str, ...] = ()
    used: int = 0
    total: int | None = field(default=None, repr=False, compare=False)
    kind = "invariants"
    version = 1

    @classmethod
    def make(cls, argument: str) -> Invariants:
        no_file(cls.kind, argument)
        return cls()

    @classmethod
    def restore(cls, settings: dict[str, Any], state: bytes | None, folder: Path) -> Invariants:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            stored = load(state or b"")
            return cls(stored["views"], tuple(json.loads(bytes(stored["cases"]))), int(stored["used"][0]))
        except (SafetensorError, ValueError, KeyError) as error:
            reason = f"holds a damaged fit of embedding 'invariants' ({error})"
            raise IndexFormatError(folder, reason, "Build the index again") from error

    @property
    def fitted(self) -> bool:
        return self.views is not None

    @cached_property
    def state(self) -> bytes | None:
        from safetensors.numpy import save

        if self.views is None:
            return None
        cases = np.frombuffer(json.dumps(self.cases).encode(), np.uint8)
        return save({"views": self.views, "cases": cases, "used": np.array([self.used], np.int32)})

    def describe(self, images: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
        return np.stack([moments(image, spacing_mm) for image in images])

    def project(self, described: np.ndarray) -> np.ndarray:
        centre, matrix = self._whitening
        return (np.asarray(described, np.float64) - centre) @ matrix

    def layers(self, images: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, ...]:
        features = self.describe(images, spacing_mm)
        return tuple(features[:, columns] for columns in _columns_by_scale())

    @property
    def is_fitted_on_training(self) -> bool:
        return True

    def refit_without(self, cases: Collection[str]) -> Invariants:
        assert self.views is not None
        kept = np.array([case not in cases for case in self.cases])
        # With the spare views, the whitening has as many views as in the whole fit; fewer would whiten less well.
        return Invariants(
            self.views[kept], tuple(c for c, k in zip(self.cases, kept, strict=True) if k), self.views.shape[1]
        )

    def fit(
        self, images: Iterable[tuple[str, np.ndarray]], spacing_mm: Sequence[float], progress: Progress = silent
    ) -> Invariants:
        """Raises ConfigurationError where there is no image."""
        cases = list(images)[:MAX_CASES]
        if not cases:
            raise ConfigurationError("embedding 'invariants' cannot be fitted without a training image")
        used = max(MIN_VIEWS, -(-(self.total or TOTAL_VIEWS) // len(cases)))
        count = used + -(-used // (FOLDS - 1))

        def views_of(i: int) -> np.ndarray:
            small = isotropic(cases[i][1], spacing_mm)
            # From the voxels, so that neither names nor order of the cohort matter.
            seed = zlib.crc32(small.tobytes())
            copies = (COPY_CHANGES.of(small, np.random.default_rng([seed, n])) for n in range(count))
            return np.stack([moments(view, (1.0,) * view.ndim) for view in copies])

        views = []
        # The threads here use all cores; threads of the matrix products would only compete with them.
        with one_thread(), ThreadPoolExecutor(min(8, kernel_threads())) as pool:
            for moments_of_case in pool.map(views_of, range(len(cases))):
                views.append(moments_of_case)
                progress("fitting", len(views), len(cases))
        return Invariants(np.stack(views), tuple(id for id, _ in cases), used)

    @cached_property
    def _whitening(self) -> tuple[np.ndarray, np.ndarray]:
        if self.views is None or not len(self.views):
            raise ConfigurationError("embedding 'invariants' must be fitted to a training cohort first")
        return whitening(self.views[:, : self.used].astype(np.float64))


def whitening(views: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre (F,) and matrix (F, F) of the whitening, from the moments of views (cases, views, F).

    A vector is (moments - centre) @ matrix. The scatter of the views about the mean of their case is then the identity,
    as far as the views determine it, and the mean over all cases is 0. Shrinkage adds `SHRINKAGE` times the mean
    variance to each variance.
    """
    flat = views.reshape(-1, views.shape[-1])
    scale = 1 / np.maximum(flat.std(0), 1e-9)
    within = ((views - views.mean(1, keepdims=True)) * scale).reshape(flat.shape)
    return flat.mean(0), scale[:, None] * _inverse_root(within, len(flat) - len(views))


def _inverse_root(rows: np.ndarray, freedom: int) -> np.ndarray:
    """(S + SHRINKAGE mean(eigenvalues of S) + 1e-12)^(-1/2), (F, F), of the scatter S = rows' rows / freedom."""
    count, F = rows.shape
    if count >= F:
        values, vectors = np.linalg.eigh(rows.T @ rows / freedom)
        values = np.maximum(values, 0)
        # The symmetric root does not depend on the signs of the eigenvectors, which are arbitrary.
        return (vectors / np.sqrt(values + SHRINKAGE * values.mean() + 1e-12)) @ vectors.T
    # Few rows: outside their span S is 0, and inside it has the eigenvalues of the small matrix rows rows'.
    values, vectors = np.linalg.eigh(rows @ rows.T / freedom)
    kept = values > 1e-12 * max(values[-1], 0)
    values, vectors = values[kept], vectors[:, kept]
    added = SHRINKAGE * values.sum() / F + 1e-12
    span = rows.T @ (vectors / np.sqrt(values * freedom))
    return np.eye(F) / np.sqrt(added) + (span * (1 / np.sqrt(values + added) - 1 / np.sqrt(added))) @ span.T


def moments(image: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Means and covariances (920,) float32 of the invariants of an image (X, Y[, Z]) inside each window."""
    small = normalized_contrast(isotropic(image, spacing_mm))
    channels = np.stack([c.ravel() for scale in SCALES for c in derivative_invariants(small, scale)])
    upper = np.triu_indices(len(channels))
    parts = []
    for window in windows(small.shape):
        mean = channels @ window
        centred = channels - mean[:, None]
        parts += [mean, ((centred * window) @ centred.T)[upper]]
    return np.concatenate(parts)


def isotropic(image: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Image (X, Y[, Z]) float32 resampled to voxels of one length along all axes.

    At most `WORKING_VOXELS` of them, at least 8 along each axis, and not smaller than the smallest spacing. An image
    whose size would change by at most 2 % stays unchanged.
    """
    shape, spacing = np.array(image.shape), np.array(spacing_mm, float)
    volume = float(np.prod(shape * spacing))
    step = max(float(spacing.min()), (volume / WORKING_VOXELS[image.ndim]) ** (1 / image.ndim))
    size = np.maximum(np.rint(shape * spacing / step), LEAST_SIZE).astype(int)
    if np.all(np.abs(size - shape) <= 0.02 * shape):
        return np.asarray(image, np.float32)
    return resampled(image, size.tolist())


def normalized_contrast(image: np.ndarray) -> np.ndarray:
    """Difference to the local mean, divided by the local standard deviation plus `LEAST_CONTRAST`, float32."""
    from scipy import ndimage

    centred = image - ndimage.gaussian_filter(image, CONTRAST_SIGMA, mode="nearest")
    spread = np.sqrt(np.maximum(ndimage.gaussian_filter(centred**2, CONTRAST_SIGMA, mode="nearest"), 0))
    return centred / (spread + np.float32(LEAST_CONTRAST))


def derivative_invariants(image: np.ndarray, scale: float) -> list[np.ndarray]:
    """L, |grad L|, trace H, Frobenius norm of H, and g'Hg / |g|^2 at one scale, each (X, Y[, Z]) float32."""
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(image, scale, mode="nearest", truncate=3)
    gradient = np.gradient(smooth)
    axes = range(image.ndim)
    hessian = {}
    for i in axes:
        second = np.gradient(gradient[i], axis=tuple(range(i, image.ndim)))
        for j, derivative in zip(
            range(i, image.ndim), second if isinstance(second, (list, tuple)) else [second], strict=True
        ):
            hessian[i, j] = hessian[j, i] = derivative
    steepness = sum(g * g for g in gradient)
    frobenius = sum(hessian[i, j] ** 2 for i in axes for j in axes)
    along = sum(gradient[i] * hessian[i, j] * gradient[j] for i in axes for j in axes)
    return [
        smooth,
        np.sqrt(steepness) * np.float32(scale),
        sum(hessian[i, i] for i in axes) * np.float32(scale**2),
        np.sqrt(frobenius) * np.float32(scale**2),
        along / (steepness + np.float32(1e-8)) * np.float32(scale**2),
    ]


@lru_cache(maxsize=8)
def windows(shape: tuple[int, ...]) -> np.ndarray:
    """Weights (4, voxels) float32, rows with sum 1: three shells about the centre, and the image without its rim."""
    offsets = np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in shape], indexing="ij")
    radius = np.sqrt(sum(o * o for o in offsets)) / (np.prod(shape) ** (1 / len(shape)) / 2)
    shells = [np.exp(-0.5 * ((radius - r) / SHELL_WIDTH) ** 2) for r in SHELLS]
    ellipsoid = np.sqrt(sum((o / max((n - 1) / 2, 0.5)) ** 2 for o, n in zip(offsets, shape, strict=True)))
    stacked = np.stack([*shells, np.clip((1.2 - ellipsoid) / 0.5, 0, 1)]).reshape(len(SHELLS) + 1, -1)
    return (stacked / stacked.sum(1, keepdims=True)).astype(np.float32)


def _positions() -> list[tuple[int, int]]:
    """The two channels of each entry of `moments`; (c, c) for a mean."""
    channels = 5 * len(SCALES)
    first, second = np.triu_indices(channels)
    one_window = [(c, c) for c in range(channels)] + list(zip(first.tolist(), second.tolist(), strict=True))
    return one_window * (len(SHELLS) + 1)


def _columns_by_scale() -> list[np.ndarray]:
    """For each scale, the entries of `moments` that use this scale alone."""
    scale = np.array(_positions()) // 5
    return [np.flatnonzero((scale == s).all(1)) for s in range(len(SCALES))]
