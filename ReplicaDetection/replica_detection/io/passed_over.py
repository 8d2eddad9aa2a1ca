"""Files of a cohort's folder that no reader takes: those that may be images are told, what is plainly none is not."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from replica_detection.errors import InputError
from replica_detection.io.formats import looks_like
from replica_detection.io.paths import PAIRED, is_regular, paired
from replica_detection.io.volume import voxel_files

# Documents, programs, meshes and what systems leave behind. Text of any name is no image either.
_NO_IMAGE = frozenset({
    ".txt", ".md", ".rst", ".rtf", ".log", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml",
    ".ini", ".cfg", ".html", ".htm", ".css", ".js", ".pdf", ".doc", ".docx", ".odt", ".xls", ".xlsx", ".ods",
    ".ppt", ".pptx", ".bib", ".tex", ".py", ".pyc", ".ipynb", ".sh", ".bat", ".m", ".r", ".exe", ".dll", ".so",
    ".jar", ".db", ".sqlite", ".lnk", ".url", ".stl", ".obj", ".ply", ".vtp", ".vtk", ".tfm", ".bval", ".bvec",
    ".md5", ".sha1", ".sha256", ".sig", ".tmp", ".part", ".partial", ".crdownload", ".lock",
})  # fmt: skip
# Images by their names, whatever they hold; also where the word stands before another extension (scan.nii.bz2).
_IMAGE = frozenset({
    "nii", "nrrd", "nhdr", "mha", "mhd", "mgz", "mgh", "img", "hdr", "npy", "npz", "tif", "tiff", "png", "jpg",
    "jpeg", "dcm", "dicom", "ima", "ct", "mr", "pt", "bmp", "gif", "webp", "jp2", "j2k", "jls", "jxl", "heic",
    "mnc", "par", "rec", "vti", "gipl", "svs", "zip", "tar", "tgz", "7z", "rar", "h5", "hdf5", "mat",
})  # fmt: skip
_PACKED = frozenset({
    ".zip", ".gz", ".bz2", ".xz", ".zst", ".tar", ".tgz", ".7z", ".rar",
})  # fmt: skip
_CONVERT = "Convert it to .nii.gz or .nrrd, or move it out of the folder"
# First tags of a data set that has lost the 132 bytes before it, in either byte order.
_DATA_SET = (b"\x08\x00", b"\x02\x00\x00\x00", b"\x02\x00\x01\x00", b"\x00\x08")


def tell_passed_over(
    paths: Iterable[Path], headers: Sequence[Path], report: Callable[[InputError], None], what: str = "image"
) -> None:
    """Reports files that may be images and that no reader takes, one error for each extension with their number.

    Args:
        paths: the files that are left when those of known formats are taken away.
        headers: image files of known formats; what a header among them keeps in another file is none by itself.
        report: takes the errors.
        what: the word for what the folder holds.
    """
    paths = list(paths)
    folders = {path.parent for path in paths}
    belonging: set[Path] = set()
    stems: set[Path] = set()
    for header in headers:
        if header.parent in folders and header.suffix.lower() in (".hdr", ".nii"):
            belonging.add(header.with_suffix(".mat"))  # its orientation, by SPM
        elif header.parent in folders and header.suffix.lower() in (".nhdr", ".mhd"):
            stems.add(header.with_suffix(""))
            # A faulty header is told where the image is read.
            with suppress(InputError, OSError, ValueError):
                belonging.update(voxel_files(header))
    kinds: dict[str, list[Path]] = {}
    for path in paths:
        detached = path in belonging or path.with_suffix("") in stems or _is_voxels_of_pair(path)
        if not detached and may_be_image(path):
            kinds.setdefault(_extension(path), []).append(path)
    for extension, files in sorted(kinds.items()):
        report(_error(files, extension, what))


def may_be_image(path: Path) -> bool:
    """False for what is plainly none: by its extension, empty, or text (without the name of an image).

    True for all else, among it a regular file that cannot be opened.
    """
    if path.suffix.lower() in _NO_IMAGE or not is_regular(path):
        return False
    if not _IMAGE.isdisjoint(path.name.lower().split(".")[1:]):
        return True
    return not _is_text(_head(path))


def plainly_no_image(path: Path) -> bool:
    """True where the extension alone says that it is no image, so that it is not opened."""
    return path.suffix.lower() in _NO_IMAGE


def _is_voxels_of_pair(path: Path) -> bool:
    return path.suffix.lower() == PAIRED and paired(path) is not None


def _extension(path: Path) -> str:
    """The last extension, "" for none; numbers and UIDs behind a dot are none."""
    suffix = path.suffix.lower()
    return "" if suffix[1:].isdigit() or len(suffix) > 9 else suffix


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1024)
    except OSError:
        return b"\0"


def _is_text(head: bytes) -> bool:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return True
    return not any(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head)


def _error(files: list[Path], extension: str, what: str) -> InputError:
    first, more = files[0], len(files) - 1
    head = _head(first)
    looks = looks_like(head[:540])
    others = f"; {more} other file{'s' if more > 1 else ''} {extension or 'without an extension'}, too" if more else ""
    if extension in _PACKED:
        advice = f"Unpack it, if it holds {what}s, or move it out of the folder"
    elif extension == PAIRED:
        return InputError(first, f"has no header {first.stem}.hdr beside it{others}", "Put both files into one folder")
    elif not looks and head.startswith(_DATA_SET):
        looks = ", it looks like DICOM without the mark DICM"
        advice = "If it is DICOM, give it the extension .dcm"
    else:
        advice = _CONVERT
    return InputError(first, f"was passed over, it is in no format that can be read{looks}{others}", advice)
