"""A DICOM series as the one file that can be sent."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from replica_detection.client.cancelling import Cancel, check
from replica_detection.errors import InputError
from replica_detection.io.paths import is_dicom_name, is_image_name, is_regular, walk

ARCHIVE = ".zip"


@contextmanager
def in_one_file(image: Path, cancel: Cancel) -> Iterator[Path]:
    """The image itself or, for a folder, a ZIP file of the DICOM files in it, which is deleted afterwards.

    The names in it are numbers: file names may hold the name of a patient.

    Raises:
        InputError: the folder holds no DICOM file, or other images too, or cannot be read.
        CancelledError: the caller cancelled.
    """
    if not image.is_dir():
        yield image
        return
    handle, name = tempfile.mkstemp(suffix=ARCHIVE)
    packed = Path(name)
    try:
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w", strict_timestamps=False) as archive:
            _pack(image, archive, cancel)
        yield packed
    finally:
        packed.unlink(missing_ok=True)


def _pack(folder: Path, archive: zipfile.ZipFile, cancel: Cancel) -> None:
    count, path = 0, folder
    try:
        for path in walk(folder, _raise):
            check(cancel)
            if is_image_name(path):
                raise InputError(folder, "holds other images too", "Give one image, or the folder of one series")
            if is_regular(path) and is_dicom_name(path):
                archive.write(path, f"{count:05d}.dcm")
                count += 1
    except OSError as error:
        raise InputError(path, f"cannot be read ({error.strerror or error})", "Check the file") from error
    if not count:
        raise InputError(folder, "is a folder without a DICOM file", "Give one image file, or the folder of one series")


def _raise(error: InputError) -> None:
    raise error
