"""One message for each cause: it names the file, what was found and what to do, and only damage is called damage."""

from __future__ import annotations

import gzip
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image

from Core.bad_files import nifti_bytes
from Core.made_dicom import dicom_dataset, save_dicom
from replica_detection.errors import InputError
from replica_detection.io.volume import read_volume

ARRAY = np.random.default_rng(0).integers(0, 1000, (6, 5, 4)).astype(np.int16)
PLANE = ARRAY[:, :, 0]


@dataclass(frozen=True)
class Cause:
    """A file with one fault. `found` and `advice` are patterns of its message; only if `damaged`, it says so."""

    name: str
    make: Callable[[Path], object]
    found: str
    advice: str
    damaged: bool = False


def holding(data: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(data)


def cut(make: Callable[[Path], object], keep: float) -> Callable[[Path], object]:
    """The first part of what `make` writes."""

    def made(path: Path) -> None:
        make(path)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])

    return made


def itk(array: np.ndarray, **options: bool) -> Callable[[Path], object]:
    return lambda path: SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array, **options), str(path))


def mgh(array: np.ndarray) -> Callable[[Path], object]:
    return lambda path: nib.save(nib.MGHImage(array, np.eye(4)), path)


def dicom(pixels: np.ndarray | None = PLANE, **elements: object) -> Callable[[Path], object]:
    return lambda path: save_dicom(dicom_dataset(pixels, **elements), path)


def encoded_as(uid: str) -> Callable[[Path], object]:
    """A DICOM file whose pixels are said to be encoded by this transfer syntax."""

    def make(path: Path) -> None:
        dataset = dicom_dataset(PLANE.astype(np.uint16))
        dataset.PixelData = pydicom.encaps.encapsulate([b"\x00\x00\x01\xb3" + bytes(60)])
        dataset["PixelData"].VR = "OB"
        dataset.file_meta.TransferSyntaxUID = uid
        dataset["PixelData"].is_undefined_length = True
        save_dicom(dataset, path)

    return make


def may_read_everything() -> bool:
    """True for root, who has the right to read files that nobody has a right to."""
    with tempfile.NamedTemporaryFile() as file:
        os.chmod(file.name, 0)  # noqa: PTH101
        return os.access(file.name, os.R_OK)


def everywhere(whole: Callable[[Path], object], blank: Callable[[Path], object], keep: float = 0.6) -> Iterator[Cause]:
    """The causes of every format: `whole` writes a good file, `blank` one of a single value."""
    yield Cause("missing", lambda path: None, "does not exist", "Check the spelling and that the drive is connected")
    yield Cause("folder", Path.mkdir, "is a folder, not an image file", "Give a file, or read the folder")
    yield Cause("no bytes", holding(b""), r"is empty \(0 bytes\)", "Export or copy the file again")
    yield Cause("a PDF", holding(b"%PDF-1.7\n" + bytes(600)), "looks like a PDF", "extension")
    yield Cause("cut short", cut(whole, keep), "truncated|ended before|cannot be read|is cut", "damaged", damaged=True)
    yield Cause("one value", blank, r"has the value (0|-1024) in all", "Give an image; this one holds none")
    if os.name != "nt":
        yield Cause(
            "link", lambda path: path.symlink_to("gone"), "is a link to nothing", "Restore the file it points to"
        )
        if not may_read_everything():

            def locked(path: Path) -> None:
                whole(path)
                path.chmod(0)

            yield Cause("no right", locked, r"cannot be opened \(no permission\)", "Give yourself the right to read it")


def of_values(write: Callable[[np.ndarray], Callable[[Path], object]]) -> Iterator[Cause]:
    """The causes of formats of volumes; `write` gives what writes an array."""
    nan = ARRAY.astype(np.float32)
    nan[0, 0, 0] = np.nan
    yield Cause("NaN", write(nan), "1 of 120 voxels", "Replace them")
    yield Cause(
        "4D", write(np.stack([ARRAY] * 3, -1)), "is 4D, 3 time points or channels", "Give one 3D volume per file"
    )
    yield Cause("complex", write(ARRAY.astype(np.complex64)), "complex", "magnitude|real|one grey value")


def causes(suffix: str) -> list[Cause]:
    zeros = np.zeros_like(ARRAY)
    if suffix in (".nii", ".nii.gz"):
        pack = gzip.compress if suffix.endswith(".gz") else bytes
        found = list(everywhere(holding(pack(nifti_bytes(ARRAY))), holding(pack(nifti_bytes(zeros)))))
        found += of_values(lambda array: holding(pack(nifti_bytes(array))))
        rgb = np.zeros((5, 5, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
        found.append(Cause("colour", holding(pack(nifti_bytes(rgb))), "colour voxels", "Give one grey value per voxel"))
        unknown = nifti_bytes(ARRAY, datatype=1536)
        found.append(Cause("float128", holding(pack(unknown)), r"not read \(datatype 1536\)", "Write it again with"))
        other = Cause("gzip", holding(gzip.compress(nifti_bytes(ARRAY))), "looks like a gzip file", "extension")
        if suffix.endswith(".gz"):
            other = Cause(
                "no gzip", holding(nifti_bytes(ARRAY)), "is not gzip-compressed, it looks like", "compress it"
            )
            wrong = bytearray(pack(nifti_bytes(ARRAY)))
            wrong[-8:-4] = bytes(4)
            found.append(Cause("checksum", holding(bytes(wrong)), "CRC check failed", "damaged", damaged=True))
        return [*found, other]
    if suffix in (".nrrd", ".mha"):
        found = list(everywhere(itk(ARRAY), itk(zeros)))
        nan = ARRAY.astype(np.float32)
        nan[0, 0, 0] = np.nan
        found.append(Cause("NaN", itk(nan), "1 of 120 voxels", "Replace them"))
        found.append(Cause("complex", itk(ARRAY.astype(np.complex64)), "complex", "magnitude|real|one grey value"))
        return found
    if suffix == ".mgz":
        found = list(everywhere(mgh(ARRAY), mgh(zeros)))
        return [
            *found,
            Cause("4D", mgh(np.stack([ARRAY] * 3, -1)), "is 4D, 3 time points", "one 3D volume per file"),
        ]
    if suffix == ".npy":
        save = lambda array: lambda path: np.save(path, array)  # noqa: E731
        return [*everywhere(save(ARRAY), save(zeros)), *of_values(save)]
    if suffix == ".npz":
        pack = lambda **arrays: lambda path: np.savez(path, **arrays)  # noqa: E731
        found = list(everywhere(pack(a=ARRAY), pack(a=np.zeros_like(ARRAY))))
        found += of_values(lambda array: pack(image=array))
        found.append(Cause("two", pack(a=ARRAY, b=ARRAY), "holds 2 arrays", "Name the image's array `image`"))
        return found
    if suffix == ".tif":
        pages = [Image.fromarray(ARRAY[:, :, n].astype(np.uint16)) for n in range(3)]
        colour = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8))
        found = list(everywhere(pages[0].save, Image.fromarray(np.zeros((6, 5), np.uint8)).save))
        many = Cause(
            "pages", lambda path: pages[0].save(path, save_all=True, append_images=pages[1:]), "3 pages", "one"
        )
        return [*found, many, Cause("colour", colour.save, "colour", "[Cc]onvert")]
    if suffix == ".jpg":
        colour = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8))
        found = list(everywhere(Image.fromarray(PLANE.astype(np.uint8)).save, Image.new("L", (6, 5)).save))
        return [*found, Cause("colour", colour.save, "colour picture", "Convert it to grey values")]
    if suffix == ".png":
        picture = lambda array: lambda path: Image.fromarray(array).save(path)  # noqa: E731
        colour = np.random.default_rng(0).integers(0, 255, (40, 40, 3)).astype(np.uint8)
        found = list(everywhere(picture(PLANE.astype(np.uint8)), picture(np.zeros((6, 5), np.uint8))))
        return [*found, Cause("colour", picture(colour), "colour picture", "Convert it to grey values")]
    found = list(everywhere(dicom(), dicom(np.zeros_like(PLANE)), keep=0.97))
    colour = np.random.default_rng(0).integers(0, 255, (6, 5, 3)).astype(np.uint8)
    found.append(Cause("colour", dicom(colour), "is a colour image", "Export it as grey values"))
    found.append(Cause("no pixels", dicom(None, Rows=6, Columns=5), "holds no pixel data", "[Ee]xport"))
    found.append(Cause("no size", dicom(Rows=None), r"states no image size \(Rows, Columns\)", "[Ee]xport"))
    found.append(Cause("film", dicom(NumberOfFrames=3), "3 frames", "[Ee]xport"))
    broken = encoded_as("1.2.840.10008.1.2.4.90")
    found.append(Cause("junk", broken, "JPEG 2000", "damaged", damaged=True))
    video = encoded_as("1.2.840.10008.1.2.4.100")
    found.append(Cause("video", video, "is encoded as MPEG2.*cannot be decoded", "uncompressed|convert"))
    return found


SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mgz", ".npy", ".npz", ".png", ".jpg", ".tif", ".dcm")
TABLE = [
    pytest.param(suffix, cause, id=f"{suffix[1:]} {cause.name}") for suffix in SUFFIXES for cause in causes(suffix)
]


def message(cause: Cause, path: Path) -> InputError:
    cause.make(path)
    with pytest.raises(InputError) as found:
        read_volume(path)
    return found.value


@pytest.mark.parametrize(("suffix", "cause"), TABLE)
def test_a_message_names_the_file_what_was_found_and_what_to_do(tmp_path, suffix, cause):
    error = message(cause, tmp_path / f"scan{suffix}")
    assert Path(error.path) == tmp_path / f"scan{suffix}"
    assert re.search(cause.found, error.found), error
    assert re.search(cause.advice, error.advice) and len(error.advice) > 10, error
    assert cause.damaged == ("damaged" in str(error).replace(str(tmp_path), "")), error


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_no_two_causes_share_a_message(tmp_path, suffix):
    said: dict[str, str] = {}
    for n, cause in enumerate(causes(suffix)):
        error = message(cause, tmp_path / f"scan{n}{suffix}")
        words = f"{error.found}. {error.advice}"
        assert words not in said, (cause.name, said[words])
        said[words] = cause.name
