"""Images in memory as the cases of a cohort."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from replica_detection.errors import ConfigurationError, InputError
from replica_detection.io.case import Case, Problem, id_fault
from replica_detection.io.formats import require_spacing
from replica_detection.io.image import Volume, checked_labels, checked_volume
from replica_detection.io.image_objects import (
    KINDS,
    DecodedArray,
    decode,
    has,
    is_image_object,
    times,
    to_numpy,
    with_third_axis,
)
from replica_detection.io.paths import composed

# Where a cohort of images in memory comes from, for tables and messages; no file system takes it for a name.
SOURCE = "<arrays>"
_GEOMETRY = "Give its voxel size in mm as spacing=, or affines= (4 x 4, to mm RAS+), with Cohort.from_arrays"


def cases_of_arrays(
    images: Any,
    *,
    spacing: Any = None,
    affines: Any = None,
    ids: Iterable[str] | None = None,
    patients: Iterable[str | None] | Mapping[str, str | None] | None = None,
    masks: Any = None,
    strict: bool = True,
) -> tuple[list[Case], list[Problem]]:
    """The cases of images in memory, and the images that were left out; see `Cohort.from_arrays` for the arguments.

    Raises:
        InputError: an image of no known kind, of several channels, 4D, or without a geometry; and with `strict` one
            with NaN, with one value everywhere, or with a mask that cannot be used.
        ConfigurationError: arguments that do not go together, as lists of different lengths.
    """
    if isinstance(images, Mapping) and not has(images, "get_images_dict"):
        if ids is not None:
            raise ConfigurationError("images by id have their ids already; give a list of images, or no ids")
        ids, images = images.keys(), images.values()
    items = _items(images)
    names = _ids(ids, len(items))
    people = _patients(patients, names)
    geometry = _Geometry.of(spacing, affines, len(items))
    given = _masks(masks, names)
    cases: list[Case] = []
    problems: list[Problem] = []
    for number, (item, id, mask) in enumerate(zip(items, names, given, strict=True)):
        name = f"images[{number}] ({id})"
        decoded = decode(name, item)
        stated = geometry.affine(name, number, decoded.array.ndim)
        if stated is None and decoded.affine is None:
            raise InputError(name, "is an array that states no geometry", _GEOMETRY)
        if mask is None and decoded.masks:
            mask = _only_one(name, decoded.masks)
        try:
            volume = _volume(name, decoded, stated)
            labels = None if mask is None else _labels(f"masks[{number}] ({id})", mask, volume, stated is not None)
        except InputError as error:
            if strict:
                raise
            problems.append(Problem.of(error))
            continue
        cases.append(Case(id, (), None, people[number], volume, labels))
    return cases, problems


def _volume(name: str, decoded: DecodedArray, stated: np.ndarray | None) -> Volume:
    """The volume of decoded voxels; `stated` is the affine that the caller gives, which takes precedence."""
    affine = decoded.affine if stated is None else stated
    assert affine is not None
    return checked_volume(name, decoded.array, affine, decoded.trusted or stated is not None, decoded.warnings)


def _only_one(name: str, label_maps: Sequence[Any]) -> Any:
    if len(label_maps) > 1:
        raise InputError(name, f"is a Subject with {len(label_maps)} label maps", "Give the one meant as masks=")
    return label_maps[0]


def _labels(name: str, mask: Any, volume: Volume, explicit: bool) -> np.ndarray:
    """The labels of a mask; its own geometry counts only beside one that the image itself states."""
    decoded = decode(name, mask)
    stated = decoded.affine if decoded.trusted and not explicit else None
    return checked_labels(name, decoded.array, stated, volume)


def _items(images: Any, what: str = "") -> list[Any]:
    """The images one by one: of a list or another iterable, of a batch along its first axis, or a single object.

    `what` names them in errors: "" for the images themselves.
    """
    name = what or SOURCE
    if is_image_object(images):
        return [images]
    if has(images, "shape", "ndim"):
        if images.ndim not in (4, 5):
            found = f"is one array of shape {times(images.shape)}"
            raise InputError(name, found, "Give a list of images, or a batch (N, 1, X, Y, Z) or (N, X, Y, Z)")
        return [images[n] for n in range(images.shape[0])]
    if isinstance(images, (str, bytes)) or not isinstance(images, Iterable):
        raise InputError(name, f"is of type {type(images).__name__}, not a list of images", KINDS)
    items = list(images)
    if any(isinstance(item, str) or hasattr(item, "__fspath__") for item in items):
        raise InputError(name, "holds paths of files", "Give their folder, or a CSV with the columns id,image")
    return items


def _ids(ids: Iterable[str] | None, count: int) -> list[str]:
    if ids is None:
        return [f"case_{number:04d}" for number in range(1, count + 1)]
    if isinstance(ids, str):
        raise ConfigurationError(f"ids must be a list with one id for each image, found the text {ids!r}")
    names = [composed(str(id)) for id in ids]
    _require_length("ids", names, count)
    taken: set[str] = set()
    for number, name in enumerate(names):
        if fault := id_fault(name):
            raise ConfigurationError(f"ids[{number}] {name!r} {fault}; give ids that can be file names")
        if name in taken:
            raise ConfigurationError(f"ids[{number}] {name!r} is there twice; give each image an id of its own")
        taken.add(name)
    return names


def _patients(patients: Any, ids: Sequence[str]) -> list[str | None]:
    if patients is None:
        return [None] * len(ids)
    if isinstance(patients, str):
        raise ConfigurationError(
            f"patients must be a list with one patient for each image, found the text {patients!r}"
        )
    found = _by_id("patients", patients, ids) if isinstance(patients, Mapping) else list(patients)
    _require_length("patients", found, len(ids))
    return [_patient(patient) for patient in found]


def _patient(value: Any) -> str | None:
    """The name of a patient as a table would give it; None for what tables of numbers hold where there is none."""
    if value is None or (not isinstance(value, str) and str(value) == "<NA>"):  # pandas' own word for nothing
        return None
    if isinstance(value, (float, np.floating)):
        if np.isnan(value):
            return None
        # A column of whole numbers with a gap holds floats: 12.0 is the patient 12.
        value = int(value) if float(value).is_integer() else value
    return str(value).strip() or None


def _by_id(what: str, values: Mapping[Any, Any], ids: Sequence[str]) -> list[Any]:
    """The value of each id, None where there is none. Raises ConfigurationError where no id has one."""
    known = {composed(str(key)): value for key, value in values.items()}
    if known and ids and not known.keys() & set(ids):
        raise ConfigurationError(
            f"{what} names no image of this cohort, e.g. {next(iter(known))!r}; its images are {ids[0]!r} ..."
        )
    return [known.get(id) for id in ids]


def _masks(masks: Any, ids: Sequence[str]) -> list[Any]:
    if masks is None:
        return [None] * len(ids)
    if isinstance(masks, Mapping) and not is_image_object(masks):
        return _by_id("masks", masks, ids)
    found = _items(masks, "masks")
    _require_length("masks", found, len(ids))
    return found


@dataclass(frozen=True)
class _Geometry:
    """The geometry that the caller states, for all images or for each; it takes precedence over that of the objects."""

    spacings: list[Any] | None = None
    affines: list[Any] | None = None

    @classmethod
    def of(cls, spacing: Any, affines: Any, count: int) -> _Geometry:
        if spacing is not None and affines is not None:
            raise ConfigurationError("give either spacing or affines; an affine holds the spacing too")
        if isinstance(spacing, (int, float)) or getattr(spacing, "ndim", None) == 0:
            spacing = (float(spacing),) * 3
        if affines is not None:
            return cls(None, _for_each("affines", affines, count, dimensions=2))
        return cls(None if spacing is None else _for_each("spacing", spacing, count, dimensions=1))

    def affine(self, name: str, number: int, dimensions: int) -> np.ndarray | None:
        """The (4, 4) affine that the caller states for this image, None where they state none."""
        spacing = None if self.spacings is None else self.spacings[number]
        if spacing is not None:
            sizes = to_numpy(name, spacing).astype(np.float64).ravel()
            if len(sizes) not in {3, dimensions}:
                found = f"has {dimensions} axes and {len(sizes)} voxel sizes"
                raise InputError(name, found, "Give the spacing of each axis in mm, such as (1.0, 1.0, 3.0)")
            require_spacing(name, sizes)
            return np.diag([*sizes[:2], sizes[2] if len(sizes) == 3 else 1.0, 1.0])
        affine = None if self.affines is None else self.affines[number]
        return None if affine is None else _checked_affine(name, to_numpy(name, affine).astype(np.float64))


def _checked_affine(name: str, affine: np.ndarray) -> np.ndarray:
    affine = with_third_axis(affine) if affine.shape == (3, 3) else affine
    if affine.shape != (4, 4) or not np.allclose(affine[3], [0, 0, 0, 1]) or not np.isfinite(affine).all():
        advice = "Give the 4 x 4 matrix from voxel indices to mm RAS+, its last row 0 0 0 1"
        raise InputError(name, f"has an affine that is none ({times(affine.shape)})", advice)
    return affine


def _for_each(what: str, values: Any, count: int, *, dimensions: int) -> list[Any]:
    """One value for each image, from one for all (an array of `dimensions` axes) or a list of them."""
    if isinstance(values, Mapping):
        raise ConfigurationError(f"{what} is by id; give one for all images, or a list with one for each")
    plain = values if hasattr(values, "ndim") else None
    if plain is None:
        values = list(values)
        first = next((v for v in values if v is not None), None)
        depth = 0 if first is None else np.ndim(to_numpy(what, first) if hasattr(first, "detach") else first)
        one_for_all = first is not None and depth == dimensions - 1
    else:
        one_for_all = plain.ndim == dimensions
    if one_for_all:
        return [values] * count
    each = list(values)
    _require_length(what, each, count)
    return each


def _require_length(what: str, values: Sequence[Any], count: int) -> None:
    if len(values) != count:
        raise ConfigurationError(f"{what} has {len(values)} entries for {count} images; give one for each image")
