"""Voxels in a file of their own: only a regular file in the header's own folder, and never a list of files."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import numpy as np
import pytest

from replica_detection.errors import InputError
from replica_detection.io.volume import read_volume, voxel_files

VOXELS = (np.arange(60) % 7).astype(np.uint8).tobytes()
META = "ObjectType = Image\nNDims = 3\nDimSize = 5 4 3\nElementSpacing = 1 1 1\nElementType = MET_UCHAR\n"
NRRD = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 5 4 3\nspacings: 1 1 1\nencoding: raw\n"
WORDS = "keeps its voxels in another file, which is missing in its own folder"


def header(folder: Path, suffix: str, name: str) -> Path:
    path = folder / f"image{suffix}"
    meta = suffix in (".mhd", ".mha")
    path.write_text(f"{META}ElementDataFile = {name}\n" if meta else f"{NRRD}data file: {name}\n\n", encoding="utf-8")
    return path


def refusal(path: Path) -> str:
    """The outcome of reading; `voxel_files` must agree where it opens the file."""
    with pytest.raises(InputError) as refused:
        read_volume(path)
    if path.suffix in (".mhd", ".nhdr"):
        with pytest.raises(InputError) as listed:
            voxel_files(path)
        assert str(listed.value) == str(refused.value)
    return refused.value.found


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "elsewhere" / "keys"
    path.parent.mkdir()
    path.write_bytes(VOXELS)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


SUFFIXES = pytest.mark.parametrize("suffix", [".mhd", ".mha", ".nhdr", ".nrrd"])


@SUFFIXES
def test_a_file_beside_the_header_is_read(folder: Path, suffix: str):
    (folder / "image.raw").write_bytes(VOXELS)
    path = header(folder, suffix, "image.raw")
    assert np.array_equal(read_volume(path).array.ravel(order="F"), np.frombuffer(VOXELS, np.uint8))


@SUFFIXES
def test_a_file_below_the_header_is_read(folder: Path, suffix: str):
    (folder / "raw").mkdir()
    (folder / "raw" / "image.raw").write_bytes(VOXELS)
    assert read_volume(header(folder, suffix, "raw/image.raw")).array.shape == (5, 4, 3)


@SUFFIXES
@pytest.mark.parametrize("kind", ["absolute", "climbing", "absent", "linked", "folder_linked", "device", "folder"])
def test_every_other_place_is_refused_with_the_same_words(folder: Path, secret: Path, suffix: str, kind: str):
    (folder / "linked").symlink_to(secret)
    (folder / "folder_linked").symlink_to(secret.parent)
    name = {
        "absolute": str(secret), "climbing": "../elsewhere/keys", "absent": "../elsewhere/none", "linked": "linked",
        "folder_linked": "folder_linked/keys", "device": "/dev/zero", "folder": ".",
    }[kind]  # fmt: skip
    assert refusal(header(folder, suffix, name)) == WORDS


@SUFFIXES
def test_what_is_no_regular_file_is_never_opened(folder: Path, suffix: str, monkeypatch: pytest.MonkeyPatch):
    os.mkfifo(folder / "pipe")
    assert refusal(header(folder, suffix, "pipe")) == WORDS  # opening it would wait for ever
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(folder)  # a socket's path is short
        listener.bind("socket")
        assert refusal(header(folder, suffix, "socket")) == WORDS


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_a_linked_header_beside_its_linked_voxels_is_read(folder: Path, tmp_path: Path, suffix: str):
    (folder / "image.raw").write_bytes(VOXELS)
    header(folder, suffix, "image.raw")
    view = tmp_path / "view"
    view.mkdir()
    for name in ("image.raw", f"image{suffix}"):
        (view / name).symlink_to(folder / name)
    assert read_volume(view / f"image{suffix}").array.shape == (5, 4, 3)


@pytest.mark.parametrize(
    ("suffix", "name"),
    [
        (".mha", "LIST\nslice1\nslice2\nslice3"), (".mha", "LIST 2\nslice1"), (".mhd", "slice%d 1 3 1"),
        (".nrrd", "LIST\nslice1\nslice2\nslice3"), (".nhdr", "LIST 2\nslice1"), (".nhdr", "slice%d 1 3 1"),
    ],
)  # fmt: skip
def test_lists_of_files_are_refused(folder: Path, suffix: str, name: str):
    for number in (1, 2, 3):
        (folder / f"slice{number}").write_bytes(VOXELS[:20])
    assert refusal(header(folder, suffix, name)) == "keeps its voxels in a list of files"


@pytest.mark.parametrize(
    "lines",
    [
        "ElementDataFile : {0}\n",  # ITK takes a colon for an equals sign
        "  ElementDataFile = {0}\n",
        "Comment = x\rElementDataFile = {0}\n",  # and a carriage return for the end of a name
        "Comment =\nElementDataFile = {0}\n",  # and the next line where there is no value
        "elementDataFile = LOCAL\nElementDataFile = {0}\n",
        "Comment = " + "x" * 500 + "\nElementDataFile = {0}\n",
        "HeaderSize = \nElementDataFile = {0}\n",
        "Name = a\0b\nElementDataFile = {0}\n",
    ],
)
def test_metaimage_headers_that_itk_reads_differently_are_refused(folder: Path, secret: Path, lines: str):
    path = folder / "image.mha"
    path.write_text(f"{META}{lines.format(secret)}ElementDataFile = LOCAL\n{'x' * 60}", encoding="latin-1", newline="")
    assert "header" in refusal(path)


@pytest.mark.parametrize(
    "lines",
    [
        "Data File: {0}\n", "DATAFILE: {0}\n", "datafile: {0}\n", "data file: x\rdata file: {0}\n", "data file:={0}\n",
        "data file: a.raw\ndata file: {0}\n", "x: y\n", "sizes: 5 4 3\n", "# c\rdata file: {0}\n", "data file: {0} \n",
    ],
)  # fmt: skip
def test_nrrd_headers_that_itk_reads_differently_are_refused(folder: Path, secret: Path, lines: str):
    (folder / "a.raw").write_bytes(VOXELS)
    path = folder / "image.nrrd"
    path.write_text(f"{NRRD}{lines.format(secret)}\n{'x' * 60}", encoding="latin-1", newline="")
    found = refusal(path)
    assert "header" in found or found == WORDS


def test_a_header_without_an_end_is_refused(folder: Path):
    for name, start in (("a.mha", META), ("a.nrrd", NRRD)):
        further = "".join(f"Key{n} = {'v' * 90}\n" if name == "a.mha" else f"key{n}:={'v' * 90}\n" for n in range(4000))
        (folder / name).write_text(start + further + "ElementDataFile = LOCAL\n", encoding="utf-8")
        assert "no end within" in refusal(folder / name)
