"""Images of one cohort on one grid: orientation, spacing, field of view and intensity, by MONAI transforms."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from replica_detection.errors import ConfigurationError
from replica_detection.io.volume import Volume
from replica_detection.preparation.grids import SAME_SPACING, orientation_of
from replica_detection.preparation.profiles import Intensity, Native, Preparation, Profile
from replica_detection.preparation.voxel_hash import hash_of_voxels

# A field of view that differs by more than this factor means that the file's spacing is not real.
IMPLAUSIBLE_EXTENT = 2.0
# Percentiles that span less than this share of an image's range would clip what a mostly empty image shows.
SMALLEST_CONTRAST = 0.02
# Voxels of a file in one of the grid, along an axis, beyond which they are averaged in blocks before the Gaussian.
WIDE = 32
# Air is -1000 HU. What lies below is padding: scanners and converters write -2000, -3024 or -32768 outside the field.
LOWEST_HU = -1024.0
# A value is an image's background where at least this share of the voxels has exactly that value, and at most so many
# per cent lie below.
BACKGROUND_SHARE, BELOW_BACKGROUND = 0.05, 1.0
# Labels of a prepared mask are uint8; 255 stands for every label above.
HIGHEST_LABEL = 255
PERCENTILES = (0.0, 0.1, 1.0, 5.0, 99.0, 99.5, 99.9, 100.0)


@dataclass(frozen=True)
class PreparedImage:
    """An image on the common grid.

    `image` is float32 in [0, 1] on the grid of the preparation, `mask` uint8 or None; `mask_origin` is the source of
    the mask: "file", "array" (given in memory), the name of a segmenter, or "" for none. `affine` (4, 4) goes from a
    voxel of the grid to mm RAS+ as the image's own file states them, so that results on the grid can be drawn over the
    file. `voxels` is `hash_of_voxels` of the image as it was read, before anything was changed; "" where nobody
    computed it.
    """

    image: np.ndarray
    mask: np.ndarray | None
    warnings: tuple[str, ...] = ()
    mask_origin: str = ""
    affine: np.ndarray = field(default_factory=lambda: np.eye(4))
    voxels: str = ""


@dataclass(frozen=True)
class _Summary:
    """The numbers that `plan` needs of a volume, so that only one large volume is in memory at a time."""

    shape: np.ndarray
    affine: np.ndarray
    spacing: np.ndarray
    trusted: bool
    levels: dict[float, float]
    padded: bool

    @classmethod
    def of(cls, volume: Volume) -> _Summary:
        values = np.percentile(volume.array, PERCENTILES)
        below = volume.array[volume.array < LOWEST_HU]
        # A few values again and again are padding; values that spread out are those of another modality.
        padded = below.size > 0 and np.sort(np.unique(below, return_counts=True)[1])[-3:].sum() > below.size / 2
        return cls(
            np.array(volume.array.shape),
            volume.affine,
            np.array(volume.spacing),
            volume.trusted,
            dict(zip(PERCENTILES, values.tolist(), strict=True)),
            bool(padded),
        )

    @property
    def floor(self) -> float:
        """The 5th percentile; of CT with padding not below -1024 HU."""
        return max(self.levels[5.0], LOWEST_HU) if self.padded else self.levels[5.0]


def plan(profile: Profile, volumes: Iterable[Volume]) -> Preparation:
    """Fix grid, spacing and intensity mapping from a sample of the training cohort.

    Args:
        profile: choices for the modality.
        volumes: some tens of volumes spread over the cohort; read one at a time.

    Raises:
        ConfigurationError: no volume, or none with the number of dimensions of the profile.
    """
    summaries = [_Summary.of(v) for v in volumes]
    dimensions = _dimensions(profile, summaries)
    summaries = [v for v in summaries if len(v.shape) == dimensions]
    native = _native(summaries)
    spacing = _spacing(profile, native)
    extent = np.array(native.extent)
    while math.prod(_grid(extent, spacing)) > profile.max_voxels:
        spacing = tuple(s * 1.02 for s in spacing)
    intensity = profile.intensity or _intensity(summaries)
    rounded = tuple(round(float(s), 6) for s in spacing)
    return Preparation(profile.name, dimensions, rounded, _grid(extent, rounded), intensity, native)


def prepare(
    volume: Volume, preparation: Preparation, mask: np.ndarray | None = None, mask_origin: str = ""
) -> PreparedImage:
    """Resample one image to the common grid.

    The array is reoriented to RAS, resampled only where its spacing differs by more than 2 %, and cropped or padded
    about its centre with its own border values. Where voxels grow, a Gaussian against aliasing comes first, and means
    over blocks where they grow very much. An image whose geometry is missing or impossible is taken to show the
    training cohort's typical field of view. In a fixed window (HU), values below -1024 count as -1024, and a constant
    background counts as the window's lower end. The same file always gives bit-identical arrays.

    Args:
        volume: (X, Y) or (X, Y, Z).
        mask: labels on the volume's grid, of any integer type. Negative ones become 0, those above 255 become 255.
        mask_origin: stored in the result.

    Raises:
        ConfigurationError: a 2D image for a 3D preparation, or the reverse.
    """
    if volume.array.ndim != preparation.dimensions:
        raise ConfigurationError(f"a {volume.array.ndim}D image where the training cohort is {preparation.dimensions}D")
    affine, note = believable_affine(volume, preparation.native)
    low, high = intensity_limits(volume.array, preparation.intensity)
    array, of_values = _in_window(volume.array, low) if preparation.intensity.window else (volume.array, ())
    image, grid_affine = _on_grid(array, affine, preparation, labels=False)
    scaled = np.clip((image - np.float32(low)) / np.float32(high - low), 0, 1)
    notes = (*volume.warnings, *note, *of_values)
    on_grid = None
    if mask is not None:
        byte_labels, of_labels = labels_in_a_byte(mask)
        on_grid = _on_grid(byte_labels, affine, preparation, labels=True)[0].astype(np.uint8)
        notes += of_labels
    stated = volume.affine @ np.linalg.inv(affine) @ grid_affine
    hashed = hash_of_voxels(volume.array)
    return PreparedImage(np.ascontiguousarray(scaled, np.float32), on_grid, notes, mask_origin, stated, hashed)


def intensity_limits(array: np.ndarray, intensity: Intensity) -> tuple[float, float]:
    """The two intensities that become 0 and 1.

    Where the percentiles are equal, minimum and maximum are used; an image of one value v gives (v, v + 1).
    """
    if intensity.window:
        return intensity.window
    low, high = (float(v) for v in np.percentile(array, intensity.percentiles or (0, 100)))
    if high <= low:
        low, high = float(array.min()), float(array.max())
    return low, high if high > low else low + 1.0


def labels_in_a_byte(mask: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """The labels as uint8, and notes on what that changed: below 0 is background, above 255 counts as 255.

    Ranking compares the foreground, any label above 0, which stays the same.
    """
    notes: tuple[str, ...] = ()
    if mask.dtype in (np.uint8, np.bool_) or mask.size == 0:
        return mask.astype(np.uint8, copy=False), notes
    if mask.min() < 0:
        notes += ("its mask has negative labels, which count as background",)
    if mask.max() > HIGHEST_LABEL:
        notes += (f"its mask has labels above {HIGHEST_LABEL}, which count as foreground with one label",)
    return np.clip(mask, 0, HIGHEST_LABEL).astype(np.uint8), notes


def _in_window(array: np.ndarray, low: float) -> tuple[np.ndarray, tuple[str, ...]]:
    """CT values without padding and with its background at the window's lower end, and notes on what that changed.

    Generators and scanners write different constants around the patient: differences between these are none of the
    patient's.
    """
    notes: tuple[str, ...] = ()
    # A window that begins below is not one of HU.
    if array.min() < LOWEST_HU <= low:
        array = np.maximum(array, np.float32(LOWEST_HU))
        notes += (f"it has values below {LOWEST_HU:g} HU, which are padding and count as {LOWEST_HU:g}",)
    # A few voxels may lie below the background, as ringing of a network beside an edge does.
    background = float(np.percentile(array, BELOW_BACKGROUND, method="lower"))
    if background > low and np.count_nonzero(array == background) >= BACKGROUND_SHARE * array.size:
        array = np.where(array <= background, np.float32(low), array)
        notes += ("its constant background is above the window's lower end and counts as it",)
    return array, notes


def _dimensions(profile: Profile, volumes: Sequence[_Summary]) -> int:
    """2 or 3: the profile's, else the most common one. Raises ConfigurationError where no volume has it."""
    counts = Counter(len(v.shape) for v in volumes)
    if not counts:
        raise ConfigurationError("the training cohort has no readable image")
    dimensions = profile.dimensions or counts.most_common(1)[0][0]
    if dimensions not in counts:
        raise ConfigurationError(
            f"profile '{profile.name}' is for {dimensions}D images, the training cohort holds {max(counts)}D images; "
            "choose another profile"
        )
    return dimensions


def _native(volumes: Sequence[_Summary]) -> Native:
    """Medians over the volumes with a geometry, or over all where none has one."""
    import nibabel as nib

    trusted = [v for v in volumes if v.trusted] or list(volumes)
    codes = ["".join(str(c) for c in nib.aff2axcodes(v.affine)) for v in trusted]
    shapes, spacings = [], []
    for v in trusted:
        order = _ras_order(v.affine, len(v.shape))
        shapes.append(v.shape[order])
        spacings.append(v.spacing[order])
    extents = np.array(shapes) * np.array(spacings)
    return Native(
        tuple(int(n) for n in np.median(shapes, 0)),
        tuple(round(float(s), 6) for s in np.median(spacings, 0)),
        tuple(round(float(e), 4) for e in np.median(extents, 0)),
        Counter(codes).most_common(1)[0][0],
    )


def _ras_order(affine: np.ndarray, dimensions: int) -> np.ndarray:
    """Array axes that run along R, A, S; a 2D image keeps its own two axes."""
    return np.arange(2) if dimensions == 2 else np.argsort(orientation_of(affine)[:, 0])


def _spacing(profile: Profile, native: Native) -> tuple[float, ...]:
    """The profile's spacing (mm), but not finer than the files' own, which would cost time without detail."""
    if profile.spacing is None:
        return native.spacing
    return tuple(max(a, b) for a, b in zip(profile.spacing, native.spacing, strict=True))


def _grid(extent: np.ndarray, spacing: tuple[float, ...]) -> tuple[int, ...]:
    """Number of voxels of `spacing` (mm) that cover `extent` (mm)."""
    return tuple(max(1, int(n)) for n in np.ceil(extent / np.array(spacing) - 1e-3))


def _intensity(volumes: Sequence[_Summary]) -> Intensity:
    """A fixed window for CT in HU; else the narrowest percentiles that keep enough contrast in every image."""
    levels = [v.levels for v in volumes]
    low, high = PERCENTILES[0], PERCENTILES[-1]
    air, mostly_air = (np.median([v[level] for v in levels]) <= -900 for level in (low, 5.0))
    if air and (mostly_air or np.median([v[high] for v in levels]) >= 300):
        floor, ceiling = min(v.floor for v in volumes), float(np.median([v[99.5] for v in levels]))
        return Intensity(window=(math.floor(floor), math.ceil(ceiling)))
    for pair in ((1.0, 99.0), (0.1, 99.9)):
        contrast = [(v[pair[1]] - v[pair[0]]) / max(v[high] - v[low], 1e-12) for v in levels]
        if min(contrast) >= SMALLEST_CONTRAST:
            return Intensity(percentiles=pair)
    return Intensity(percentiles=(low, high))


def believable_affine(volume: Volume, native: Native) -> tuple[np.ndarray, tuple[str, ...]]:
    """The volume's affine (4, 4) and no note; or, where its own is missing or impossible, one that fits the training
    cohort's typical field of view, and a note."""
    shape, dimensions = np.array(volume.array.shape), volume.array.ndim
    if volume.trusted:
        factor = (shape * np.array(volume.spacing))[_ras_order(volume.affine, dimensions)] / np.array(native.extent)
        if np.all((factor < IMPLAUSIBLE_EXTENT) & (factor > 1 / IMPLAUSIBLE_EXTENT)) or not _default(volume.affine):
            return volume.affine, ()
        reason = "its spacing of 1 mm is the default of a writer and does not fit the training cohort's field of view"
    else:
        reason = "it states no geometry"
    # Generators store arrays in the order of the images that they were trained on.
    affine = np.eye(4)
    affine[:dimensions, :dimensions] = 0
    for i, code in enumerate((native.axcodes if dimensions == 3 else "RAS")[:dimensions]):
        axis = "RLAPSI".index(code) // 2
        affine[axis, i] = (1 if code in "RAS" else -1) * native.extent[axis] / shape[i]
    note = f"{reason}: taken to show the same field of view as the training images"
    # A 2D image keeps its own axes, so only its pixel size can differ.
    a, b = (np.abs(m) if dimensions == 2 else m for m in (affine, volume.affine))
    return affine, () if np.allclose(a, b, atol=1e-3) else (note,)


def _default(affine: np.ndarray) -> bool:
    """True for axes of 1 mm without rotation, the default of writers without geometry (LPS and RAS)."""
    return bool(np.allclose(np.abs(affine[:3, :3]), np.eye(3), atol=1e-3))


def _on_grid(
    array: np.ndarray, affine: np.ndarray, preparation: Preparation, *, labels: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The array resampled to the grid, (X, Y[, Z]) float32, and the grid's affine (4, 4).

    Labels are resampled by nearest neighbour, with 0 outside; images linearly, with their edge values outside.
    """
    import torch
    from monai.data import MetaTensor
    from monai.transforms import GaussianSmooth, Orientation, ResizeWithPadOrCrop, SpatialResample

    flat = array.ndim == 2
    spacing = np.array((*preparation.spacing, 1.0)[:3])
    grid = (*preparation.grid, 1)[:3]
    data = np.ascontiguousarray(array[..., None] if flat else array, np.float32)
    image: Any = MetaTensor(torch.from_numpy(data)[None], affine=torch.from_numpy(np.asarray(affine, np.float64)))
    if not flat:
        image = Orientation("RAS", labels=None)(image)
    own = image.affine[:3, :3].numpy()
    own_spacing = np.linalg.norm(own, axis=0)
    if flat:
        own_spacing[2] = 1.0
    step = spacing / own_spacing
    if np.any(np.abs(step - 1) > SAME_SPACING):
        target = np.eye(4)
        target[:3, :3] = own * step
        shape = np.array(image.shape[1:])
        centre = image.affine.numpy() @ [*((shape - 1) / 2), 1]
        if not labels and np.any(step > 1.5):
            image, remaining = _in_blocks(image, step)
            image = GaussianSmooth([float(max(0.0, (f - 1) / 2)) for f in remaining])(image)
        size = np.where(np.abs(step - 1) > SAME_SPACING, np.array(grid), shape)
        target[:3, 3] = centre[:3] - target[:3, :3] @ ((size - 1) / 2)
        mode, outside = ("nearest", "zeros") if labels else ("bilinear", "border")
        image = SpatialResample(mode=mode, padding_mode=outside)(
            image, dst_affine=torch.from_numpy(target), spatial_size=[int(n) for n in size]
        )
    # Edge values, not a constant: padding of one shape must not make two images similar.
    image = ResizeWithPadOrCrop(grid, mode="constant" if labels else "edge")(image)
    result = np.asarray(image[0], np.float32)
    return result[..., 0] if flat else result, np.asarray(image.affine, np.float64)


def _in_blocks(image: Any, step: np.ndarray) -> tuple[Any, np.ndarray]:
    """Means over blocks of voxels along axes that become far coarser, and the factors (3,) that remain.

    A Gaussian as wide as hundreds of voxels takes too long; with blocks its width stays below `WIDE` voxels.
    """
    import torch
    from monai.data import MetaTensor

    shape = image.shape[1:]
    blocks = [min(n, int(f * 4 / WIDE)) if f > WIDE else 1 for f, n in zip(step, shape, strict=True)]
    if max(blocks) == 1:
        return image, step
    means = torch.nn.functional.avg_pool3d(image.as_tensor()[None], blocks)[0]
    to_voxel = np.diag([*blocks, 1.0])
    to_voxel[:3, 3] = (np.array(blocks) - 1) / 2
    return MetaTensor(means, affine=image.affine @ torch.from_numpy(to_voxel)), np.where(
        np.equal(blocks, shape), 1, step / blocks
    )
