"""Replicas of a scan, of the kinds that generative models produce."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from replica_detection.errors import ConfigurationError
from replica_detection.phantom.base import Phantom, smooth_field
from replica_detection.phantom.head_ct import make_head_ct
from replica_detection.phantom.tof_mra import make_tof_mra

MAKERS: dict[str, Callable[..., Phantom]] = {"head_ct": make_head_ct, "tof_mra": make_tof_mra}

# Arguments: the scan, random numbers, another training scan. Returns the replica.
ReplicaKind = Callable[[Phantom, np.random.Generator, Phantom], Phantom]

# Standard deviation of the added noise in HU or MR units, and root mean square of the warp in mm.
_NOISE = {"head_ct": 6.0, "tof_mra": 10.0}
_WARP_MM = 2.0


def _exact(phantom: Phantom, rng: np.random.Generator, other: Phantom) -> Phantom:
    """The scan itself, bit for bit."""
    return phantom


def _noise(phantom: Phantom, rng: np.random.Generator, other: Phantom) -> Phantom:
    """The scan with white noise as strong as the scanner's or stronger; magnitude images stay at 0 or more."""
    sigma = np.float32(_NOISE[phantom.use_case] * rng.uniform(0.7, 1.3))
    return _whole(phantom, phantom.image + sigma * rng.standard_normal(phantom.image.shape, dtype=np.float32))


def _intensity(phantom: Phantom, rng: np.random.Generator, other: Phantom) -> Phantom:
    """Other intensities. Head CT: HU times 0.92 to 1.08, plus up to 4 HU. MR: gamma of 0.75 to 1.35, another gain."""
    if phantom.use_case == "head_ct":
        factor = 1 + rng.choice([-1, 1]) * rng.uniform(0.03, 0.08)
        shift = rng.choice([-1, 1]) * rng.uniform(1.5, 4.0)
        scaled = phantom.image * np.float32(factor) + np.float32(shift)
        return _whole(phantom, np.where(phantom.image > -300, scaled, phantom.image))
    top = np.float32(max(float(phantom.image.max()), 1.0))
    gamma = np.float32(rng.choice([rng.uniform(0.75, 0.9), rng.uniform(1.12, 1.35)]))
    return _whole(phantom, top * np.float32(rng.uniform(0.8, 1.25)) * (phantom.image / top) ** gamma)


def _blur(phantom: Phantom, rng: np.random.Generator, other: Phantom) -> Phantom:
    """The scan blurred by a Gaussian of 0.8 to 1.2 voxels in plane and half of that across."""
    from scipy import ndimage

    sigma = rng.uniform(0.8, 1.2)
    return _whole(phantom, ndimage.gaussian_filter(phantom.image, (sigma, sigma, sigma / 2), truncate=3))


def _elastic(phantom: Phantom, rng: np.random.Generator, other: Phantom) -> Phantom:
    """The scan with image and mask warped smoothly, by 2 mm root mean square."""
    from scipy import ndimage

    spacing = phantom.spacing_mm
    axes = tuple(np.arange(n, dtype=np.float32) * s for n, s in zip(phantom.image.shape, spacing, strict=True))
    shift = np.stack([smooth_field(rng, axes, 35.0) for _ in range(3)])
    shift *= np.float32(_WARP_MM) / np.sqrt((shift**2).sum(0).mean())
    index = np.indices(phantom.image.shape, dtype=np.float32) + shift / np.reshape(spacing, (3, 1, 1, 1)).astype(
        np.float32
    )
    image = ndimage.map_coordinates(phantom.image, index, order=1, mode="nearest")
    mask = ndimage.map_coordinates(phantom.mask, index, order=0, mode="nearest")
    return _whole(replace(phantom, mask=mask), image)


def _blend(phantom: Phantom, rng: np.random.Generator, other: Phantom) -> Phantom:
    """The weighted mean of the scan (70 to 80 %) and another one; the mask is the scan's."""
    share = np.float32(rng.uniform(0.7, 0.8))
    return _whole(phantom, share * phantom.image + (1 - share) * other.image)


def _anatomy(phantom: Phantom, rng: np.random.Generator, other: Phantom) -> Phantom:
    """The same hematoma or vessel tree, voxel for voxel, in another patient's head."""
    return MAKERS[phantom.use_case](
        phantom.anatomy_seed, appearance_seed=int(rng.integers(2**40, 2**41)), visit=phantom.visit
    )


REPLICA_KINDS: dict[str, ReplicaKind] = {
    "exact": _exact,
    "noise": _noise,
    "intensity": _intensity,
    "blur": _blur,
    "elastic": _elastic,
    "blend": _blend,
    "anatomy": _anatomy,
}


def make_replica(kind: str, phantom: Phantom, rng: np.random.Generator, other: Phantom) -> Phantom:
    """A replica of a phantom made by this package.

    Args:
        kind: a name in `REPLICA_KINDS`.
        phantom: the training scan that is copied.
        rng: random numbers for strength and noise.
        other: another training scan of the same shape; `blend` alone uses it.

    Raises:
        ConfigurationError: an unknown kind, a phantom of no known use case, or another shape.
    """
    if kind not in REPLICA_KINDS:
        raise ConfigurationError(f"unknown replica kind '{kind}'; known: {', '.join(REPLICA_KINDS)}")
    if phantom.use_case not in MAKERS:
        raise ConfigurationError(f"replicas are made of phantoms of {', '.join(MAKERS)}, found '{phantom.use_case}'")
    if other.image.shape != phantom.image.shape:
        raise ConfigurationError(f"blending needs equal shapes, found {phantom.image.shape} and {other.image.shape}")
    return REPLICA_KINDS[kind](phantom, rng, other)


def _whole(phantom: Phantom, image: np.ndarray) -> Phantom:
    """The phantom with another image, clipped to the range of its modality and rounded to whole numbers."""
    low = -1024 if phantom.use_case == "head_ct" else 0
    return replace(phantom, image=np.rint(np.clip(image, low, 32767)).astype(np.float32))
