"""DICOM: headers for grouping files, and series or multi-frame files as images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.errors import InputError
from replica_detection.io.dicom_pixels import EXPORT_AGAIN, NO_SIZE, Scale, colour_of, read_frames, require_grey
from replica_detection.io.dicom_stack import EXPORT, Slice, volume_of
from replica_detection.io.formats import DAMAGED, Decoded, input_errors, looks_like, squeezed_shape

# Classes of images that show a projection, and the modalities of those that other classes hold: never a stack.
_PROJECTIONS = "1.2.840.10008.5.1.4.1.1."
_PROJECTION_CLASSES = ("1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "1.3.1", "12.1", "12.2")
_PROJECTION_MODALITIES = ("CR", "DX", "IO", "MG", "PX", "RF", "RG", "XA")


@dataclass(frozen=True)
class Header:
    """Fields of one file that grouping needs.

    Attributes:
        series, study, instance: UIDs, "" where not stated.
        number, place: SeriesNumber and InstanceNumber as text, "" where not stated.
        patient: the start (12 hexadecimal digits) of the SHA-256 of PatientID, None without one.
        left_out: the reason why the file is not a slice of a volume; empty where it is one.
        colour: photometric interpretation of a colour image, "" for grey values.
        projection: a radiograph or the like, which is an image by itself.
        kind: SOP class, "" where not stated.
        size: rows and columns.
        directions: along the rows and the columns (6 numbers, LPS), None where not stated.
        spacing: between rows and between columns (mm), None where not stated.
        position: of the first voxel (mm, LPS), None where not stated.
    """

    series: str
    number: str
    patient: str | None
    left_out: str
    study: str = ""
    instance: str = ""
    place: str = ""
    colour: str = ""
    projection: bool = False
    kind: str = ""
    size: tuple[int, ...] = ()
    directions: tuple[float, ...] | None = None
    spacing: tuple[float, ...] | None = None
    position: tuple[float, ...] | None = None


_HEADER_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "InstanceNumber",
    "PatientID", "Modality", "ImageType", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
]  # fmt: skip


def read_header(path: Path) -> Header:
    """Read the header of a DICOM file, not its pixels.

    Raises:
        InputError: it is not DICOM, or it is an image without a size.
    """
    with input_errors(path, "DICOM"):
        dataset = _dataset(path, stop_before_pixels=True, specific_tags=_HEADER_TAGS)
        patient = str(dataset.get("PatientID") or "").strip()
        position = _vector(dataset.get("ImagePositionPatient"), 3)
        left_out = _left_out(path, dataset)
        return Header(
            series=str(dataset.get("SeriesInstanceUID") or ""),
            number=_text(dataset.get("SeriesNumber")),
            patient=hashlib.sha256(patient.encode()).hexdigest()[:12] if patient else None,
            left_out=left_out,
            study=str(dataset.get("StudyInstanceUID") or ""),
            instance=str(dataset.get("SOPInstanceUID") or ""),
            place=_text(dataset.get("InstanceNumber")),
            colour=colour_of(dataset),
            projection=not left_out and _is_projection(dataset, position),
            kind=_kind(dataset),
            size=(int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0)),
            directions=_numbers(_vector(dataset.get("ImageOrientationPatient"), 6)),
            spacing=_numbers(_vector(dataset.get("PixelSpacing"), 2)),
            position=_numbers(position),
        )


def read_dicom(files: Sequence[Path], case_id: str = "") -> Decoded:
    """Read one image (X, Y), or a volume (X, Y, Z) from a series or a multi-frame file. CT in HU.

    X runs along the rows and Y along the columns; slices are sorted along their normal. Rescale slope and intercept,
    or the modality table, are applied per slice, MONOCHROME1 is inverted within its stored range; padding of CT is air,
    -1024 HU. Slices at uneven gaps are interpolated linearly along the normal to even ones near the median gap (the
    first and last slice stay); slices that do not follow the normal (gantry tilt) are resampled linearly at their true
    position on a wider grid, filled with the minimum. Warnings report both. Without any position the slices keep the
    order of InstanceNumber. `case_id` is for messages.

    Raises:
        InputError: colour, no pixels, an encoding that cannot be decoded, slices that differ in size, direction or
            voxel size, several slices at one position (time points, echoes), or a damaged file.
    """
    slices: list[Slice] = []
    series: list[str] = []
    notes: dict[str, None] = {}
    for file in files:
        try:
            read = _File.read(file)
        except InputError as error:
            if len(files) == 1:
                raise
            scan = f"scan {case_id!r}" if case_id else "a scan"
            found = f"{error.found} (one of the {len(files)} files of {scan}, which is not read)"
            raise InputError(error.path, found, error.advice) from error
        slices += read.slices
        series.append(read.series)
        notes |= dict.fromkeys(read.notes)
    if len(files) > 2 and len(set(series)) == len(files):
        note = f"each of its {len(files)} files states a series of its own (SeriesInstanceUID): stacked by position"
        notes[note] = None
    path = files[0] if len(files) == 1 else files[0].parent
    volume = volume_of(path, slices)
    return Decoded(volume.array, volume.affine, volume.trusted, (*volume.warnings, *notes))


def _dataset(path: Path, **options: Any) -> Any:
    import pydicom

    dataset = pydicom.dcmread(path, force=True, **options)
    if "SOPClassUID" not in dataset and "Rows" not in dataset and "MediaStorageSOPClassUID" not in dataset.file_meta:
        with path.open("rb") as file:
            reason = f"has no DICOM header that can be read{looks_like(file.read(540))}"
        raise InputError(path, reason, "Give it its true extension, or export it again")
    return dataset


def _kind(dataset: Any) -> str:
    return str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")


def _left_out(path: Path, dataset: Any) -> str:
    from pydicom.uid import UID

    uid = _kind(dataset)
    kind = UID(uid).name
    if "LOCALIZER" in [str(value).upper() for value in _sequence(dataset.get("ImageType"))]:
        return "is a scout image (localizer)"
    if "Storage" in kind and "Image" not in kind:
        return f"holds no image but {kind.removesuffix(' Storage')}"
    if not (dataset.get("Rows") and dataset.get("Columns")):
        # The classes of a maker's own objects have no name.
        if uid and "Rows" not in dataset and "Columns" not in dataset and "Storage" not in kind:
            return f"holds no image but an object of class {uid}"
        raise InputError(path, NO_SIZE, EXPORT_AGAIN)
    return ""


def _is_projection(dataset: Any, position: np.ndarray | None) -> bool:
    kind, modality = _kind(dataset), str(dataset.get("Modality") or "")
    named = kind.startswith(_PROJECTIONS) and kind.removeprefix(_PROJECTIONS) in _PROJECTION_CLASSES
    return named or (modality in _PROJECTION_MODALITIES and position is None)


def _sequence(value: Any) -> list[Any]:
    return [] if value is None else [value] if isinstance(value, (str, int, float)) else list(value)


@dataclass(frozen=True)
class _File:
    """Content of one file: one slice, or one for each frame."""

    slices: tuple[Slice, ...]
    series: str
    notes: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> _File:
        with input_errors(path, "DICOM"):
            dataset = _dataset(path)
            require_grey(path, dataset)
            frames = int(dataset.get("NumberOfFrames") or 1)
            shared = dataset.get("SharedFunctionalGroupsSequence") or [None]
            groups = dataset.get("PerFrameFunctionalGroupsSequence")
            if frames > 1 and groups is None:
                reason = f"has {frames} frames without positions (a film or time series)"
                raise InputError(path, reason, EXPORT)
            if groups is not None and len(groups) != frames:
                raise InputError(path, f"has {frames} frames but the positions of {len(groups)}", DAMAGED)
            squeezed_shape(path, (int(dataset.Columns), int(dataset.Rows), frames))
            sources = [(group, shared[0], dataset) for group in groups] if groups is not None else [(dataset,)]
            pixels, notes = read_frames(path, dataset, [_scale(source) for source in sources])
            slices = tuple(_slice(*item, dataset) for item in zip(pixels, sources, strict=True))
            return cls(slices, str(dataset.get("SeriesInstanceUID") or ""), notes)


def _scale(source: tuple[Any, ...]) -> Scale:
    """Slope and intercept; 0 counts as 1, since some writers store a slope of 0 for none."""
    slope = _first(source, "PixelValueTransformationSequence", "RescaleSlope")
    intercept = _first(source, "PixelValueTransformationSequence", "RescaleIntercept")
    return Scale(float(slope or 1), float(intercept or 0), intercept is not None)


def _slice(pixels: np.ndarray, source: tuple[Any, ...], dataset: Any) -> Slice:
    directions = _vector(_first(source, "PlaneOrientationSequence", "ImageOrientationPatient"), 6)
    spacing = _vector(_first(source, "PixelMeasuresSequence", "PixelSpacing"), 2)
    if spacing is None:
        spacing = _vector(dataset.get("ImagerPixelSpacing"), 2)
    gap = _first(source, "PixelMeasuresSequence", "SpacingBetweenSlices")
    thickness = gap or _first(source, "PixelMeasuresSequence", "SliceThickness")
    return Slice(
        pixels,
        _vector(_first(source, "PlanePositionSequence", "ImagePositionPatient"), 3),
        None if directions is None else directions.reshape(2, 3),
        spacing,
        float(thickness) if thickness else None,
        None if dataset.get("InstanceNumber") is None else int(dataset.InstanceNumber),
    )


def _first(source: tuple[Any, ...], sequence: str, name: str) -> Any:
    """The value of `name`: from the frame's own group, the shared group, or the file itself."""
    for holder in source:
        if holder is None:
            continue
        inside = holder.get(sequence)
        for dataset in (inside[0] if inside else None, holder):
            if dataset is not None and dataset.get(name) is not None:
                return dataset.get(name)
    return None


def _vector(value: Any, length: int) -> np.ndarray | None:
    """The numbers, None unless there are `length` finite ones."""
    numbers = np.array([float(number) for number in _sequence(value)])
    return numbers if len(numbers) == length and np.isfinite(numbers).all() else None


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _numbers(vector: np.ndarray | None) -> tuple[float, ...] | None:
    return None if vector is None else tuple(vector.tolist())
