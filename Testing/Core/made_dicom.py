"""DICOM files made with pydicom, for tests."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    MPEG2MPML,
    UID,
    CTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    UID_dictionary,
    generate_uid,
)


def save_dicom(dataset: FileDataset, target: Any, *, bare: bool = False) -> None:
    """Writes a DICOM file with whichever pydicom is installed; `bare`: implicit, without preamble and file header.

    A compressed transfer syntax that this pydicom does not know is written under the name of another one first.
    """
    syntax = None if bare else dataset.file_meta.TransferSyntaxUID
    if syntax is not None and syntax not in UID_dictionary:
        assert len(syntax) == len(MPEG2MPML)
        dataset.file_meta.TransferSyntaxUID = MPEG2MPML
        save_dicom(dataset, target)
        dataset.file_meta.TransferSyntaxUID = syntax
        target.write_bytes(target.read_bytes().replace(MPEG2MPML.encode(), syntax.encode(), 1))
        return
    if int(pydicom.__version__.split(".")[0]) < 3:
        dataset.is_little_endian = syntax != ExplicitVRBigEndian
        dataset.is_implicit_VR = bare or syntax == ImplicitVRLittleEndian
        dataset.save_as(target, write_like_original=bare)
    elif bare:
        dataset.save_as(target, implicit_vr=True, little_endian=True)
    elif syntax == ExplicitVRBigEndian:
        pydicom.dcmwrite(target, dataset, implicit_vr=False, little_endian=False, enforce_file_format=True)
    else:
        dataset.save_as(target, enforce_file_format=True)


def dicom_dataset(pixels: np.ndarray | None, **elements: Any) -> FileDataset:
    """A CT slice of int16 stored values (rows, columns), or (rows, columns, 3) uint8 for colour.

    `elements` set or, with None, delete attributes by keyword.
    """
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = elements.get("SOPClassUID", CTImageStorage)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Modality, dataset.PatientID, dataset.SeriesInstanceUID = "CT", "P1", "1.2.3.4"
    dataset.SeriesNumber, dataset.InstanceNumber = 1, 1
    dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0]
    dataset.PixelSpacing, dataset.SliceThickness = [0.5, 0.5], 2
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    if pixels is not None:
        set_pixels(dataset, pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # faulty values are what some tests want
        for name, value in elements.items():
            if value is None:
                delattr(dataset, name)
            else:
                setattr(dataset, name, value)
    return dataset


def set_frames(dataset: FileDataset, frames: Sequence[bytes], syntax: str) -> None:
    """Compressed frames instead of the pixels."""
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.PixelData = encapsulate(list(frames))
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True


def set_pixels(dataset: Dataset, pixels: np.ndarray) -> None:
    colour = pixels.dtype == np.uint8 and pixels.ndim == 3
    dataset.Rows, dataset.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    bits = 8 * pixels.dtype.itemsize
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit, dataset.PixelRepresentation = bits - 1, int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()


def write_series(
    folder: Path,
    stack: np.ndarray,
    positions: Sequence[Sequence[float]],
    *,
    names: Sequence[str] | None = None,
    each: Sequence[dict[str, Any]] | None = None,
    **elements: Any,
) -> list[Path]:
    """Writes slices (slices, rows, columns) at `positions` (mm, LPS); `each` holds the elements of one slice."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for i, (pixels, position) in enumerate(zip(stack, positions, strict=True)):
        own = {"ImagePositionPatient": list(position), "InstanceNumber": i + 1, **elements, **(each[i] if each else {})}
        file = folder / (names[i] if names else f"{i:03d}.dcm")
        save_dicom(dicom_dataset(pixels, **own), file)
        files.append(file)
    return files
