"""Data of a segmentation training: prepared cases in memory, their split by patient, and augmented crops."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from replica_detection.errors import ConfigurationError, InputError
from replica_detection.io.cohort import Case, Cohort, Problem
from replica_detection.io.volume import read_mask, read_volume
from replica_detection.preparation.loading import sample_volumes
from replica_detection.preparation.prepare import plan
from replica_detection.preparation.profiles import Intensity, profile_named
from replica_detection.progress import Progress
from replica_detection.segmentation.network import NetworkGrid
from replica_detection.segmentation.training_options import SegmentationOptions

if TYPE_CHECKING:
    import torch


@dataclass
class TrainingData:
    """Cases of a training on the network's grid.

    Args:
        labels: name of each mask value; the n-th is channel n, 0 is background.
        spacing_mm: (3,) along R, A, S.
        intensity: mapping to [0, 1].
        cache_bytes: largest size of the prepared cases in memory.
        training, validation: cases of different patients.
        problems: cases that are left out.
        largest: (3,) largest size of a case on the grid.
    """

    labels: dict[int, str]
    spacing_mm: tuple[float, ...]
    intensity: Intensity
    cache_bytes: int
    training: list[Case] = field(default_factory=list)
    validation: list[Case] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    largest: tuple[int, ...] = (1, 1, 1)
    _kept: dict[Any, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    _size: int = 0

    def sample(self, case: Case) -> dict[str, np.ndarray]:
        """`image` (1, X, Y, Z) float16 in [0, 1] and `label` (1, X, Y, Z) uint8 channel numbers.

        Raises:
            InputError: a file that is not in memory cannot be read.
        """
        image, mask = self._kept.get(case) or self.read(case)
        channels = np.zeros(256, np.uint8)
        channels[list(self.labels)] = np.arange(1, len(self.labels) + 1)
        return {"image": image[None], "label": channels[mask][None]}

    def read(self, case: Case) -> tuple[np.ndarray, np.ndarray]:
        """Image float16 and mask uint8 with its own values, (X, Y, Z); kept in memory up to `cache_bytes`."""
        volume = read_volume(case)
        mask = read_mask(case, volume)
        if volume.array.ndim != 3 or min(volume.array.shape) < 3:
            raise InputError(case.image, "is no 3D volume", "Train with 3D volumes")
        if mask.dtype != np.uint8:
            raise InputError(
                case.mask or case.image, "has labels outside 0 to 255", "Number the labels between 0 and 255"
            )
        grid = NetworkGrid.of(volume, self.spacing_mm)
        pair = grid.image(volume.array, self.intensity).astype(np.float16), grid.labels(mask)
        size = pair[0].nbytes + pair[1].nbytes
        if self._size + size <= self.cache_bytes:
            self._size += size
            self._kept[case] = pair
        return pair


def prepare_data(
    cohort: Cohort, validation: Cohort | None, options: SegmentationOptions, progress: Progress
) -> TrainingData:
    """Read every case once, find the labels, and split off a validation where none is given.

    Raises:
        InputError, ConfigurationError: as `train_segmentation`.
    """
    _require_apart(cohort, validation)
    problems: list[Problem] = []
    masked = [_with_masks(c, problems) for c in (cohort, validation) if c is not None]
    sample = sample_volumes(Cohort(cohort.source, tuple(masked[0])))
    preparation = plan(profile_named(options.profile or "generic"), sample)
    if preparation.dimensions != 3:
        raise ConfigurationError("only 3D images can be trained on; these are 2D")
    spacing = options.spacing_mm or preparation.spacing
    labels = dict(sorted((options.labels or {}).items()))
    data = TrainingData(labels, spacing, preparation.intensity, options.cache_mb * 2**20, problems=problems)
    usable = _read_all(data, masked, progress)
    if options.labels is None:
        present = sorted(set().union(*(values for _, values in usable[0])))
        data.labels = {v: f"label {v}" if len(present) > 1 else "foreground" for v in present}
    marked = [[(case, bool(values & set(data.labels))) for case, values in part] for part in usable]
    _require_marked(cohort, marked[0], options.labels)
    if validation is None:
        data.training, data.validation = _split(cohort, marked[0], options.seed)
    else:
        _require_marked(validation, marked[1], data.labels)
        data.training, data.validation = ([case for case, _ in part] for part in marked)
    return data


def _read_all(
    data: TrainingData, cohorts: Sequence[Sequence[Case]], progress: Progress
) -> list[list[tuple[Case, set[int]]]]:
    """Readable cases of each cohort with their mask values above 0; the others become problems of `data`."""
    usable: list[list[tuple[Case, set[int]]]] = [[] for _ in cohorts]
    done, total = 0, sum(map(len, cohorts))
    for part, cases in zip(usable, cohorts, strict=True):
        for case in cases:
            done += 1
            progress("preparing", done, total)
            try:
                image, mask = data.read(case)
            except InputError as error:
                data.problems.append(Problem.of(error))
                continue
            part.append((case, {int(v) for v in np.unique(mask)} - {0}))
            data.largest = tuple(max(a, b) for a, b in zip(data.largest, image.shape, strict=True))
    return usable


def augmentation(patch: list[int], channels: int, flips: tuple[int, ...]) -> Any:
    """A MONAI transform from a sample to a list of one random crop, image float32 and label uint8, randomly changed.

    A crop's centre is background in half of the crops, else one of the labels that the case has.
    """
    from monai.transforms import (
        CastToTyped,
        Compose,
        RandAdjustContrastd,
        RandAffined,
        RandCropByLabelClassesd,
        RandFlipd,
        RandGaussianNoised,
        RandScaleIntensityd,
        RandShiftIntensityd,
        SpatialPadd,
    )

    both = ("image", "label")
    ratios = [1.0] + [1.0 / (channels - 1)] * (channels - 1)
    return Compose(
        [
            SpatialPadd(both, patch, mode="edge"),
            RandCropByLabelClassesd(both, "label", patch, ratios, num_classes=channels, num_samples=1, warn=False),
            CastToTyped(both, (np.float32, np.uint8)),
            *(RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in flips),
            RandAffined(
                both,
                prob=0.3,
                rotate_range=(0.2, 0.2, 0.2),
                scale_range=(0.15, 0.15, 0.15),
                mode=("bilinear", "nearest"),
                padding_mode="border",
            ),
            RandScaleIntensityd("image", 0.2, prob=0.3),
            RandShiftIntensityd("image", 0.1, prob=0.3),
            RandAdjustContrastd("image", prob=0.2, gamma=(0.7, 1.5)),
            RandGaussianNoised("image", prob=0.3, std=0.03),
        ]
    )


def batches(
    data: TrainingData, crop: Any, crops: int, batch: int, rng: np.random.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields images and labels (B, 1, X, Y, Z) of one epoch; a thread makes the next batch while one is used."""
    import torch

    order = np.concatenate([rng.permutation(len(data.training)) for _ in range(crops)])
    seeds = rng.integers(2**31, size=len(order))

    def make(start: int) -> tuple[torch.Tensor, torch.Tensor]:
        samples = []
        for i in range(start, min(len(order), start + batch)):
            crop.set_random_state(seed=int(seeds[i]))
            samples.append(crop(data.sample(data.training[order[i]]))[0])
        images, truth = (torch.stack([c[key].as_tensor() for c in samples]) for key in ("image", "label"))
        return images, truth

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(make, 0)
        for start in range(0, len(order), batch):
            current = following.result()
            if start + batch < len(order):
                following = pool.submit(make, start + batch)
            yield current


def _with_masks(cohort: Cohort, problems: list[Problem]) -> list[Case]:
    """Cases with a mask; the others are added to `problems`. Raises InputError where none has one."""
    cases = [case for case in cohort.cases if case.has_mask]
    if not cases:
        raise InputError(cohort.source, "holds no case with a mask", "Give the folder of the masks")
    without = [case for case in cohort.cases if not case.has_mask]
    problems += [Problem(str(case.image), "has no mask. Give one to train with it.") for case in without]
    return cases


def _require_apart(cohort: Cohort, validation: Cohort | None) -> None:
    """Raises ConfigurationError where a patient, or a file, is in both cohorts."""
    if validation is None:
        return
    patients = {case.patient for case in cohort.cases if case.patient is not None}
    images = {_identity(case) for case in cohort.cases}
    for case in validation.cases:
        if case.patient in patients or _identity(case) in images:
            raise ConfigurationError(
                f"validation case '{case.id}' is of a patient who is trained on; validate on other patients"
            )


def _identity(case: Case) -> object:
    """Equal for two cases of one image: its file, or the checksum of an image in memory."""
    return case.image.resolve() if case.files else case.checksum()


def _require_marked(cohort: Cohort, marked: Sequence[tuple[Case, bool]], labels: Mapping[int, str] | None) -> None:
    """Raises InputError where no case is left, or none has a label."""
    if not marked:
        raise InputError(cohort.source, "holds no case with a mask that can be read", "Mend the files")
    if not any(is_marked for _, is_marked in marked):
        lacking = "masks that are empty everywhere" if labels is None else f"no voxel of the labels {sorted(labels)}"
        raise InputError(cohort.source, f"has {lacking}", "Give masks in which something is marked")


def _split(cohort: Cohort, marked: Sequence[tuple[Case, bool]], seed: int) -> tuple[list[Case], list[Case]]:
    """Cases for training and for validation: a fifth of the patients with labels, at least one, and a fifth of the
    patients without labels are held out."""
    patients: dict[str, bool] = {}
    for case, is_marked in marked:
        name = case.patient or f"case {case.id}"
        patients[name] = patients.get(name, False) or is_marked
    rng = np.random.default_rng([seed, 0])
    chosen: set[str] = set()
    for with_labels in (True, False):
        group = sorted(name for name, is_marked in patients.items() if is_marked == with_labels)
        if with_labels and len(group) < 2:
            reason = f"has labels in {len(group)} patient only"
            raise InputError(cohort.source, reason, "Give at least 2 patients with labels, or a validation cohort")
        count = max(1, round(len(group) / 5)) if with_labels else len(group) // 5
        chosen |= {group[i] for i in rng.permutation(len(group))[:count]}
    held_out = [case for case, _ in marked if (case.patient or f"case {case.id}") in chosen]
    return [case for case, _ in marked if case not in held_out], held_out
