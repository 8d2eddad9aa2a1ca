"""The base class of segmenters, their registry, the working grid of a volume, and operations on masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np

from replica_detection.errors import ConfigurationError
from replica_detection.io.volume import Volume
from replica_detection.preparation.grids import orientation_of

S = TypeVar("S", bound=Callable[..., Any])


class Segmenter(ABC):
    """Segments the region of interest where the user gives no mask.

    A subclass is a frozen dataclass whose fields are the settings that decide the mask, in physical units. `window`
    are the intensities shown black and white in pictures of its masks; None takes them from each image.
    """

    window: ClassVar[tuple[float, float] | None] = None

    @property
    @abstractmethod
    def name(self) -> str:
        """Name on the command line, e.g. `vessels`."""

    @property
    @abstractmethod
    def version(self) -> int:
        """Increases whenever the same settings give another mask than before, so that a stored mask is known as old."""

    @property
    @abstractmethod
    def labels(self) -> dict[int, str]:
        """Name of each value of the mask, without the background 0."""

    @abstractmethod
    def segment(self, volume: Volume) -> np.ndarray:
        """The mask on the volume's own grid; the same volume and settings always give the same mask.

        Returns:
            (X, Y, Z) uint8, 0 outside; all 0 where there is nothing to segment.

        Raises:
            ConfigurationError: this segmenter cannot work on such an image.
        """

    def settings(self) -> dict[str, Any]:
        """Everything that decides the mask, ready for JSON."""
        options: dict[str, Any] = asdict(self) if is_dataclass(self) else {}
        return {"name": self.name, "version": self.version, **options}


SEGMENTERS: dict[str, Callable[..., Segmenter]] = {}


def register(name: str) -> Callable[[S], S]:
    """Class decorator: makes a segmenter known by its name."""

    def keep(segmenter: S) -> S:
        SEGMENTERS[name] = segmenter
        return segmenter

    return keep


def make_segmenter(name: str, **options: Any) -> Segmenter:
    """The segmenter of a name.

    Args:
        name: a name in `SEGMENTERS`; text after a colon, as in `network:FILE`, is its first argument.
        options: its settings, where they differ from the defaults.

    Raises:
        ConfigurationError: an unknown name, an unknown option, or a value out of range.
    """
    kind, colon, argument = name.partition(":")
    if kind not in SEGMENTERS:
        raise ConfigurationError(f"unknown segmenter '{name}'; known: {', '.join(SEGMENTERS)}")
    maker = SEGMENTERS[kind]
    known = [f.name for f in fields(maker) if f.init] if is_dataclass(maker) else list(options)
    if unknown := [option for option in options if option not in known]:
        raise ConfigurationError(f"segmenter '{kind}' has no option '{unknown[0]}'; it has: {', '.join(known)}")
    try:
        return maker(*([argument] if colon else []), **options)
    except TypeError as error:
        raise ConfigurationError(f"segmenter '{name}' cannot be made: {error}") from error


def require_3d(segmenter: Segmenter, volume: Volume) -> None:
    """Raises ConfigurationError for a single slice."""
    if volume.array.ndim != 3 or min(volume.array.shape) < 3:
        size = " × ".join(map(str, volume.array.shape))
        raise ConfigurationError(f"segmenter '{segmenter.name}' needs a 3D volume, found {size} voxels: give masks")


def require_positive(segmenter: Segmenter, *names: str) -> None:
    """Raises ConfigurationError where a setting is not a number above 0."""
    for name in names:
        value = getattr(segmenter, name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
            raise ConfigurationError(f"segmenter '{segmenter.name}': {name} must be above 0, found {value!r}")


@dataclass(frozen=True)
class WorkingGrid:
    """A grid with axes along R, A, S and voxels of at least some size, and the mapping of a volume to it and back.

    Args:
        order: the volume's axes that run along R, A, S.
        flipped: True for those that run in the opposite direction.
        shape: (3,) size along R, A, S before voxels are merged.
        factors: (3,) number of voxels merged into one along R, A, S.
        spacing_mm: (3,) of the working grid along R, A, S.
    """

    order: tuple[int, ...]
    flipped: tuple[bool, ...]
    shape: tuple[int, ...]
    factors: tuple[int, ...]
    spacing_mm: tuple[float, ...]

    @classmethod
    def of(cls, volume: Volume, voxel_mm: float = 0.0) -> WorkingGrid:
        """The grid on which whole voxels are merged to a size of about `voxel_mm`; 0 merges none.

        A volume without a trusted geometry keeps its stored axes, the last one across the slices.
        """
        orientation = orientation_of(volume.affine) if volume.trusted else np.array([[0, 1], [1, 1], [2, 1]])
        order = tuple(int(np.flatnonzero(orientation[:, 0] == axis)[0]) for axis in range(3))
        spacing = volume.spacing[list(order)]
        factors = tuple(max(1, int(voxel_mm / s + 0.5)) for s in spacing)
        return cls(
            order,
            tuple(bool(orientation[axis, 1] < 0) for axis in order),
            tuple(volume.array.shape[axis] for axis in order),
            factors,
            tuple(float(s * f) for s, f in zip(spacing, factors, strict=True)),
        )

    def to_grid(self, array: np.ndarray) -> np.ndarray:
        """The image (X, Y, Z) on the working grid, float32: merged voxels take their mean."""
        return merge(self._mirrored(array.transpose(self.order)), self.factors)

    def to_volume(self, level: np.ndarray) -> np.ndarray:
        """Mask (X, Y, Z) uint8 on the volume's own grid: 1 where the interpolated `level` is above 0."""
        fine = unmerge(level, self.factors, self.shape) > 0
        return np.ascontiguousarray(self._mirrored(fine).transpose(np.argsort(self.order)), np.uint8)

    def _mirrored(self, array: np.ndarray) -> np.ndarray:
        return array[tuple(slice(None, None, -1 if f else 1) for f in self.flipped)]


def merge(array: np.ndarray, factors: tuple[int, ...]) -> np.ndarray:
    """Means of blocks of `factors` voxels, float32; a last block that is not full is filled with edge values."""
    array = np.asarray(array, np.float32)
    if set(factors) == {1}:
        return np.ascontiguousarray(array)
    missing = [(0, -n % f) for n, f in zip(array.shape, factors, strict=True)]
    array = np.pad(array, missing, mode="edge") if any(m for _, m in missing) else array
    blocks = [size for n, f in zip(array.shape, factors, strict=True) for size in (n // f, f)]
    return array.reshape(blocks).mean(axis=(1, 3, 5))


def unmerge(array: np.ndarray, factors: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """`array` interpolated linearly at the voxel centres of the grid that it was merged from, of size `shape`."""
    from scipy import ndimage

    if set(factors) == {1}:
        return array
    step = 1 / np.array(factors, float)
    return ndimage.affine_transform(
        array.astype(np.float32), step, (step - 1) / 2, output_shape=shape, order=1, mode="nearest"
    )


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest connected part (26 neighbours); all False for an empty mask."""
    from scipy import ndimage

    labels, count = ndimage.label(mask, np.ones((3, 3, 3)))
    return labels == (1 + np.argmax(np.bincount(labels.ravel())[1:])) if count else np.zeros(mask.shape, bool)


def reach(mask: np.ndarray, spacing_mm: tuple[float, ...], mm: float) -> np.ndarray:
    """The mask dilated by `mm`: voxels whose centre is at most that far from one of the mask's; an empty mask stays."""
    from scipy import ndimage

    if not mask.any():
        return mask
    box = bounding_box(mask, spacing_mm, mm)
    grown = np.zeros(mask.shape, bool)
    grown[box] = ndimage.distance_transform_edt(~mask[box], sampling=spacing_mm) <= mm + 1e-6
    return grown


def bounding_box(mask: np.ndarray, spacing_mm: tuple[float, ...], margin_mm: float) -> tuple[slice, ...]:
    """Slices around a mask that is not empty, with a margin of `margin_mm` inside the volume."""
    box = []
    for axis, step in enumerate(spacing_mm):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        pad = int(margin_mm / step) + 1
        box.append(slice(max(0, int(hit[0]) - pad), int(hit[-1]) + pad + 1))
    return tuple(box)


def fill_small_holes(mask: np.ndarray, spacing_mm: tuple[float, ...], largest_mm2: float) -> np.ndarray:
    """The mask with its holes within each slice (third axis) filled, up to a size of `largest_mm2`."""
    from scipy import ndimage

    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[:, 1, 1] = in_plane[1, :, 1] = True
    labels, count = ndimage.label(~mask, in_plane)
    small = np.bincount(labels.ravel(), minlength=count + 1) * spacing_mm[0] * spacing_mm[1] <= largest_mm2
    for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        small[np.unique(edge)] = False
    return mask | small[labels]


def spread(values: np.ndarray) -> float:
    """Standard deviation from the median absolute deviation, robust to outliers; 0 for no values."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values)))) if values.size else 0.0
