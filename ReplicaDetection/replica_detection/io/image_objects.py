"""Image objects of other libraries, known by their interfaces: numpy, torch, MONAI, TorchIO, SimpleITK, nibabel.

No such library is imported here: an object is recognised by the attributes that its documentation promises.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from replica_detection.errors import InputError
from replica_detection.io.formats import LPS_TO_RAS, itk_affine

KINDS = (
    "Give a numpy array, a torch tensor, a MONAI MetaTensor, a TorchIO image or Subject, or a SimpleITK or nibabel "
    "image"
)
_MM_PER_UNIT = {"meter": 1000.0, "micron": 0.001}
# (4, H, W) with H and W much larger than 4 is an image with channels rather than a volume of 4 thick slices.
_MOST_CHANNELS, _MUCH_LARGER = 4, 8


@dataclass(frozen=True)
class DecodedArray:
    """Voxels of an image in memory, (X, Y[, Z]) of any real dtype, with what the object states about them.

    `affine` (4, 4) to RAS+ mm, None where it states none; `trusted` as in `Volume`; `masks`: label maps of a Subject.
    """

    array: np.ndarray
    affine: np.ndarray | None = None
    trusted: bool = True
    warnings: tuple[str, ...] = ()
    masks: tuple[Any, ...] = ()


def decode(name: str, item: Any) -> DecodedArray:
    """Voxels and geometry of an image object. Raises InputError, which begins with `name`, for what is no image."""
    if has(item, "GetDirection", "GetSpacing", "GetOrigin", "GetNumberOfComponentsPerPixel"):
        return _simpleitk(name, item)
    if has(item, "dataobj", "affine"):
        return _nibabel(name, item)
    if has(item, "get_images_dict"):
        return _subject(name, item)
    if has(item, "detach", "cpu"):
        array = _channel_first(name, to_numpy(name, item))
        return DecodedArray(array, _tensor_affine(item))
    if has(item, "data", "affine"):  # a TorchIO image: (C, X, Y, Z) and RAS+
        return DecodedArray(_channel_first(name, to_numpy(name, item.data)), to_numpy(name, item.affine))
    if not hasattr(item, "__array__"):
        raise InputError(name, f"is of type {type(item).__name__}, which is no image", KINDS)
    return DecodedArray(_channel_first(name, to_numpy(name, item)))


def _simpleitk(name: str, image: Any) -> DecodedArray:
    if not has(image, "GetPixelIDTypeAsString"):  # of ITK itself, whose geometry has other types
        raise InputError(name, f"is of type {type(image).__name__}, which is no SimpleITK image", KINDS)
    if image.GetNumberOfComponentsPerPixel() > 1:
        found = f"has {image.GetNumberOfComponentsPerPixel()} values in each voxel"
        raise InputError(name, found, "Give one grey value per voxel")
    # The module that made the image holds the function that gives its voxels, (z, y, x).
    library = sys.modules[type(image).__module__.partition(".")[0]]
    array = library.GetArrayFromImage(image).T
    affine = itk_affine(image.GetDirection(), image.GetSpacing(), image.GetOrigin())
    return DecodedArray(_trailing(name, _real(name, array)), affine)


def _nibabel(name: str, image: Any) -> DecodedArray:
    array = _trailing(name, _real(name, np.asanyarray(image.dataobj)))
    header: Any = getattr(image, "header", None)
    zooms = np.ones(3)
    if has(header, "get_zooms"):
        sizes = header.get_zooms()[:3]
        zooms[: len(sizes)] = sizes
    factor = _MM_PER_UNIT.get(header.get_xyzt_units()[0], 1.0) if has(header, "get_xyzt_units") else 1.0
    notes = () if factor == 1 else (f"its lengths were converted to mm by a factor of {factor:g}",)
    scale = np.diag([factor, factor, factor, 1.0])
    codes = [int(header[key]) for key in ("sform_code", "qform_code")] if has(header, "get_xyzt_units") else [1]
    if image.affine is None or not any(codes):
        return DecodedArray(array, scale @ np.diag([*zooms, 1.0]), trusted=False, warnings=notes)
    return DecodedArray(array, scale @ np.asarray(image.affine, np.float64), warnings=notes)


def _subject(name: str, subject: Any) -> DecodedArray:
    images = subject.get_images_dict(intensity_only=True)
    everything = subject.get_images_dict(intensity_only=False)
    label_maps = {key: image for key, image in everything.items() if key not in images}
    if len(images) != 1:
        found = f"is a Subject with {len(images)} images" + (f" ({', '.join(images)})" if images else "")
        raise InputError(name, found, "Give the one that is meant, such as subject['t1']")
    decoded = decode(name, next(iter(images.values())))
    return DecodedArray(decoded.array, decoded.affine, masks=tuple(label_maps.values()))


def _tensor_affine(tensor: Any) -> np.ndarray | None:
    """The affine of a MONAI MetaTensor to RAS+; None for a plain tensor."""
    affine = getattr(tensor, "affine", None)
    if affine is None:
        return None
    matrix = np.asarray(affine.detach().cpu().numpy(), np.float64)
    if matrix.shape == (3, 3):  # of a 2D image
        matrix = with_third_axis(matrix)
    space = str(getattr(tensor, "meta", {}).get("space", "RAS"))
    return LPS_TO_RAS @ matrix if space.rpartition(".")[2].upper() == "LPS" else matrix


def with_third_axis(matrix: np.ndarray) -> np.ndarray:
    """The (4, 4) affine of a 2D image from its (3, 3) one; its slice is 1 mm thick."""
    affine = np.eye(4)
    affine[:2, :2], affine[:2, 3] = matrix[:2, :2], matrix[:2, 2]
    return affine


def to_numpy(name: str, value: Any) -> np.ndarray:
    """The values of an array or tensor of any library, wherever they lie."""
    try:
        if has(value, "detach", "cpu"):
            value = value.detach().cpu()
            try:
                return _real(name, np.asarray(value.numpy()))
            except TypeError:  # a type that numpy lacks, such as bfloat16
                return _real(name, np.asarray(value.float().numpy()))
        return _real(name, np.asarray(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(name, f"cannot be read as an array ({error})", KINDS) from error


def _real(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "buif":
        raise InputError(
            name, f"holds values of type {array.dtype}", "Give real numbers; of complex ones the magnitude"
        )
    return array


def _channel_first(name: str, array: np.ndarray) -> np.ndarray:
    """(X, Y[, Z]) of an array that may have one channel in front."""
    shape = times(array.shape)
    if array.ndim == 4 and array.shape[0] == 1:
        return _trailing(name, array[0])
    while array.ndim > 2 and array.shape[0] != 1 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 4:
        found = f"has {array.shape[0]} channels ({shape})"
        raise InputError(name, found, "Give one channel: compare the channels one by one, as image[:1]")
    if array.ndim == 3 and array.shape[0] == 1:
        return _trailing(name, array[0])
    few, others = array.shape[0] if array.ndim == 3 else 0, array.shape[1:]
    if 1 < few <= _MOST_CHANNELS and min(others) >= _MUCH_LARGER * few:
        advice = "Give one channel (1, X, Y), or a volume as (1, X, Y, Z)"
        raise InputError(name, f"looks like a 2D image of {few} channels ({shape})", advice)
    last = array.shape[-1] if array.ndim == 3 and array.dtype == np.uint8 else 0
    if last in (3, 4) and min(array.shape[:2]) >= _MUCH_LARGER * last:
        advice = "Give grey values (X, Y), or a volume as (1, X, Y, Z)"
        raise InputError(name, f"looks like a color picture ({shape})", advice)
    return _trailing(name, array)


def _trailing(name: str, array: np.ndarray) -> np.ndarray:
    """The array without trailing axes of size 1, as the readers of files give a single slice."""
    shape = times(array.shape)
    if array.size == 0:
        raise InputError(name, f"is empty ({shape})", "Leave it out")
    while array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim > 3:
        found = f"is {array.ndim}D ({shape}): time points, channels or a batch"
        raise InputError(name, found, "Give one image (X, Y, Z) or (1, X, Y, Z) for each case")
    if array.ndim < 2 or (array.ndim == 2 and min(array.shape) == 1):
        raise InputError(name, f"is no image but a line of values ({shape})", "Give a 2D or 3D image")
    return array


def is_image_object(value: Any) -> bool:
    """True for an object that is one image by itself: SimpleITK, nibabel, TorchIO."""
    tensor = has(value, "detach", "cpu")
    return (
        has(value, "GetDirection", "GetSpacing")
        or has(value, "dataobj", "affine")
        or has(value, "get_images_dict")
        or (has(value, "data", "affine") and not tensor)
    )


def has(value: Any, *names: str) -> bool:
    """True where the object has all attributes of these names."""
    return all(hasattr(value, name) for name in names)


def times(shape: Iterable[int]) -> str:
    """A shape for people: `24 × 28 × 20`."""
    return " × ".join(map(str, shape))
