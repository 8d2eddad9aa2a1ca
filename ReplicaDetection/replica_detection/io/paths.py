"""Image files in folders: names of images, their stems, and the search of a folder."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from replica_detection.errors import InputError

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".jpg", ".jpeg")
# Read from files alone: the server and its clients neither send nor take them.
ARRAY_SUFFIXES = (".mgz", ".mgh", ".hdr", ".npy", ".npz", ".tif", ".tiff")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
# The voxels of a `.hdr`, which stands for both files.
PAIRED = ".img"
# MONAI Label keeps this file beside its images, and masks with the images' names in the folder `labels`.
_MONAI_LABEL = "datastore_v2.json"


def is_image_name(path: Path) -> bool:
    """True for the extension of an image format other than DICOM, in upper or lower case."""
    return path.name.lower().endswith((*IMAGE_SUFFIXES, *ARRAY_SUFFIXES))


def is_dicom_name(path: Path) -> bool:
    """True where the extension says DICOM or, without that of another image, the letters DICM follow the preamble.

    Scanners name files by number, UID or modality (`.CT`, `.dcm.v2`), so that the bytes decide.
    """
    if path.suffix.lower() in DICOM_SUFFIXES:
        return True
    if is_image_name(path):
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def file_stem(path: Path) -> str:
    """File name without the extension of an image format (`.nii.gz` counts as one), in Unicode's composed form."""
    name, suffixes = path.name, (*IMAGE_SUFFIXES, *ARRAY_SUFFIXES, *DICOM_SUFFIXES, PAIRED)
    suffix = next((s for s in suffixes if name.lower().endswith(s)), "")
    return composed(name[: len(name) - len(suffix)])


def paired(path: Path) -> Path | None:
    """The other file of a `.hdr` or `.img`, extensions in upper or lower case; None where it is missing."""
    other = {".hdr": PAIRED, PAIRED: ".hdr"}[path.suffix.lower()]
    return next((p for p in map(path.with_suffix, (other, other.upper())) if is_regular(p)), None)


def companion(path: Path) -> Path | None:
    """The file beside an image file that belongs to it: voxels of a `.hdr`, geometry of an array; None without."""
    suffix = path.suffix.lower()
    if suffix == ".hdr":
        return paired(path)
    sidecar = path.with_suffix(".json")
    return sidecar if suffix in (".npy", ".npz") and is_regular(sidecar) else None


def composed(name: str) -> str:
    """The name in Unicode's form NFC: macOS stores an accent as a separate letter, a CSV from elsewhere does not."""
    return unicodedata.normalize("NFC", name)


def is_regular(path: Path) -> bool:
    """True for a regular file, links followed; False for a named pipe, a device, or a missing file."""
    status = _status(path)
    return isinstance(status, os.stat_result) and stat.S_ISREG(status.st_mode)


def is_folder(path: Path) -> bool:
    """True for a folder, links followed; False for a name that no file system takes."""
    status = _status(path)
    return isinstance(status, os.stat_result) and stat.S_ISDIR(status.st_mode)


def require_file(path: Path) -> None:
    """Raises InputError unless `path` is a regular file with at least one byte."""
    status = require_exists(path)
    if stat.S_ISDIR(status.st_mode):
        raise InputError(path, "is a folder, not an image file", "Give a file, or read the folder as a cohort")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(path, "is not a regular file", "Give an image file")
    if status.st_size == 0:
        raise InputError(path, "is empty (0 bytes)", "Export or copy the file again")


def require_exists(path: Path) -> os.stat_result:
    """Status of a file or folder. Raises InputError where there is none."""
    status = _status(path)
    if isinstance(status, os.stat_result):
        return status
    if os.path.islink(path):  # noqa: PTH114 Path.is_symlink raises on names that are too long
        raise InputError(path, "is a link to nothing", "Restore the file it points to, or take it out of the cohort")
    if isinstance(status, PermissionError):
        raise InputError(path, "cannot be reached (no permission)", "Give yourself the right to read its folder")
    if isinstance(status, FileNotFoundError):
        raise InputError(path, "does not exist", "Check the spelling and that the drive is connected")
    raise InputError(
        path, f"is no usable file name ({getattr(status, 'strerror', None) or status})", "Check the spelling"
    )


def require_readable(path: Path) -> None:
    """Raises InputError for a device, a pipe or a socket, on which opening or reading may never return."""
    status = _status(path)
    if isinstance(status, os.stat_result) and not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise InputError(path, "is not a regular file", "Give a file, not a device or a pipe")


def _status(path: Path) -> os.stat_result | Exception:
    try:
        return path.stat()
    except (OSError, ValueError) as error:
        return error


def walk(folder: Path, report: Callable[[InputError], None], leave_out: Path | None = None) -> Iterator[Path]:
    """Yields the files below `folder`, sorted by name, those of a folder before those of its subfolders.

    Hidden names and `__MACOSX` are skipped, and so is the folder `labels` of a collection that MONAI Label serves.
    Links are followed, but no folder is entered twice, so that loops end. A folder that cannot be listed is passed to
    `report` as an error. The folder `leave_out` is skipped.
    """
    entered = {_identity(leave_out)} if leave_out is not None else set()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        try:
            identity = _identity(current)
            if identity in entered:
                continue
            with os.scandir(current) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            advice = "Give yourself the right to read it, or move it out of the cohort"
            report(InputError(current, f"cannot be listed ({error.strerror or error})", advice))
            continue
        entered.add(identity)
        skipped = {"__MACOSX", "labels"} if any(e.name == _MONAI_LABEL for e in entries) else {"__MACOSX"}
        entries = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in skipped]
        yield from (Path(entry.path) for entry in entries if not _is_folder(entry))
        waiting += [Path(entry.path) for entry in reversed(entries) if _is_folder(entry)]


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
