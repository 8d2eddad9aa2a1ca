"""Faulty image files, lists, series and masks of more than a hundred kinds, and odd ones that must be read.

Run as a script with a folder as its argument to look at them.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from Core.bad_files import good_array, image_faults, nifti_bytes, with_value
from Core.made_dicom import write_series
from replica_detection.io.cohort import Cohort
from replica_detection.io.volume import read_mask, read_volume, write_volume


@dataclass(frozen=True)
class BadInput:
    """`path` is what is given as a cohort; `expect` a part of the error's message, empty when it must be read."""

    name: str
    path: Path
    expect: str
    masks: Path | None = None
    patients: Path | None = None
    # The file at fault, whose name the message must hold.
    culprit: str = ""


def attempt(bad: BadInput) -> int:
    """Reads all images and masks of the cohort; the number of images. Raises InputError for a bad input."""
    cohort = Cohort.read(bad.path, masks=bad.masks, patients=bad.patients, strict=True)
    for case in cohort.cases:
        volume = read_volume(case)
        if case.mask is not None:
            read_mask(case.mask, volume)
    return len(cohort)


def make_bad_inputs(folder: Path, seed: int = 0) -> list[BadInput]:
    """Writes all bad inputs, each in a folder of its own."""
    made = []
    for name, suffix, expect, content in image_faults(np.random.default_rng(seed)):
        place = folder / name
        place.mkdir(parents=True)
        file = place / f"{name}{suffix}"
        _write(file, content)
        made.append(BadInput(name, place, expect, culprit=file.name))
    for make in (_odd_names, _series, _lists, _masks, _folders):
        made += make(folder, np.random.default_rng(seed))
    return made


def make_bad_folder(folder: Path, seed: int = 0) -> int:
    """Writes all bad image files into one flat folder, with different stems; how many there are."""
    folder.mkdir(parents=True, exist_ok=True)
    faults = list(image_faults(np.random.default_rng(seed)))
    for i, (name, suffix, _, content) in enumerate(faults):
        # Files with DICOM's preamble would be one series otherwise.
        _write(folder / f"{name}{suffix}", content, series=f"1.2.{i}")
    return len(faults)


def _write(file: Path, content: bytes | Callable[[Path], None], series: str = "1.2.3.4") -> None:
    if isinstance(content, bytes):
        # A UID of the same length keeps the lengths in the file true.
        file.write_bytes(content.replace(b"1.2.3.4", series.encode().ljust(7, b"\0")[:7]))
    else:
        content(file)


def _odd_names(folder: Path, rng: np.random.Generator) -> Iterator[BadInput]:
    """Names that must work in every format."""
    array = good_array(rng).astype(np.float32)
    names = {
        "accent": "Übung é ñ",
        "chinese": "患者一",
        "space": " two  spaces",
        "long": "x" * 240,
        "emoji": "🧠",
        "quote": "a'b\"c",
    }
    for kind, name in names.items():
        for suffix in (".nii", ".nii.gz", ".nrrd", ".mha", ".png", ".dcm"):
            place = folder / f"name_{kind}_{suffix[1:]}" / name[:200]
            place.mkdir(parents=True)
            file = place / f"{name}{suffix}"
            if suffix == ".png":
                Image.fromarray(array[:, :, 0].astype(np.uint8)).save(file)
            elif suffix == ".dcm":
                write_series(place, array[None, :, :, 0].astype(np.int16), [(0, 0, 0)], names=[file.name])
            else:
                write_volume(file, array, np.eye(4))
            yield BadInput(f"name_{kind}_{suffix[1:]}", place, "", culprit="works")


def _series(folder: Path, rng: np.random.Generator) -> Iterator[BadInput]:
    stack = rng.integers(0, 2000, (5, 12, 10)).astype(np.int16)
    line = [(0, 0, 3.0 * i) for i in range(5)]
    for name, expect, changes in (
        ("two_time_points", "5 slices at 3 positions", {"positions": [line[i] for i in (0, 0, 1, 1, 2)]}),
        ("one_position", "5 slices at 1 positions", {"positions": [line[0]] * 5}),
        ("sizes", "differ in size", {"each": [{}, {}, {"Rows": 6, "PixelData": bytes(120)}, {}, {}]}),
        ("directions", "differs in direction", {"each": [{}] * 4 + [{"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}]}),
        ("spacings", "differs in voxel size", {"each": [{}] * 4 + [{"PixelSpacing": [2, 2]}]}),
        ("position_missing", "differs in stating a position", {"each": [{"ImagePositionPatient": None}] + [{}] * 4}),
        ("nothing_placed", "5 of 5 slices without", {"ImagePositionPatient": None, "InstanceNumber": None}),
        ("no_pixels", "no pixel data", {"each": [{}] * 4 + [{"PixelData": None}]}),
        ("far_apart", "voxel size", {"positions": [(0, 0, 500.0 * i) for i in range(5)]}),
        ("position_word", "", {"each": [{}] * 4 + [{"ImagePositionPatient": [0, 0, "nan"]}]}),
    ):
        place = folder / f"series_{name}"
        settings = {"positions": line, **changes}
        none = {key: None for key in ("ImagePositionPatient", "InstanceNumber") if settings.get(key, 0) is None}
        each = settings.pop("each", [{}] * 5)
        settings = {key: value for key, value in settings.items() if key not in none}
        write_series(place, stack, each=[{**none, **own} for own in each], **settings)
        yield BadInput(f"series_{name}", place, expect, culprit=place.name)
    scouts = folder / "series_scouts"
    write_series(scouts, stack, line, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    yield BadInput("series_scouts", scouts, "5 DICOM files are not volumes", culprit=scouts.name)


def _lists(folder: Path, rng: np.random.Generator) -> Iterator[BadInput]:
    place = folder / "lists"
    place.mkdir(parents=True)
    write_volume(place / "good.nii.gz", good_array(rng), np.eye(4))
    (place / "notes.pdf").write_bytes(b"%PDF-1.4")
    (place / "empty").mkdir()
    good = "id,image\na,good.nii.gz\n"
    for name, expect, text in (
        ("empty.csv", "no column id", b""),
        ("no_rows.csv", "no usable image", b"id,image\n"),
        ("no_image_column.csv", "no column image", b"id,picture\na,good.nii.gz\n"),
        ("no_id_column.csv", "no column id", b"name,image\na,good.nii.gz\n"),
        ("two_columns.csv", "a column twice", b"id,image,image\na,good.nii.gz,good.nii.gz\n"),
        ("id_empty.csv", "line 2 has no id", b"id,image\n,good.nii.gz\n"),
        ("image_empty.csv", "line 2 has no image", b"id,image\na,\n"),
        ("id_path.csv", "path separator", b"id,image\n../../etc/x,good.nii.gz\n"),
        ("id_dots.csv", "is empty", b"id,image\n..,good.nii.gz\n"),
        ("id_control.csv", "control character", b"id,image\na\x07b,good.nii.gz\n"),
        ("id_twice.csv", "two files give the case id", f"{good}a,good.nii.gz\n".encode()),
        ("image_missing.csv", "does not exist", b"id,image\na,nowhere.nii.gz\n"),
        ("image_pdf.csv", "no format that can be read", b"id,image\na,notes.pdf\n"),
        ("image_empty_folder.csv", "0 DICOM series", b"id,image\na,empty\n"),
        ("mask_missing.csv", "the mask of case 'a'", b"id,image,mask\na,good.nii.gz,nowhere.nii.gz\n"),
        ("latin1.csv", "not UTF-8", "id,image\nü,good.nii.gz\n".encode("latin-1")),
        ("utf16.csv", "not UTF-8", good.encode("utf-16")),
        ("nul.csv", "", b"id,image\na\0,good.nii.gz\n"),
        ("nul_path.csv", "", b"id,image\na,good\0.nii.gz\n"),
        ("quote.csv", "as CSV", b'id,image\n"a,good.nii.gz\n'),
        ("long_cell.csv", "as CSV", b"id,image\n" + b"a" * 200000 + b",good.nii.gz\n"),
        ("long_path.csv", "", b"id,image\na," + b"b" * 5000 + b"\n"),
        ("binary.csv", "", rng.bytes(300)),
        ("empty.json", "not JSON", b""),
        ("broken.json", "not JSON", b'{"training": ['),
        ("deep.json", "not JSON", b"[" * 200000),
        ("list.json", 'no list "training"', b"[1, 2]"),
        ("no_training.json", 'no list "training"', b'{"name": "x"}'),
        ("training_text.json", 'no list "training"', b'{"training": "abc"}'),
        ("training_numbers.json", "names no single image", b'{"training": [1, 2]}'),
        ("image_list.json", "names no single image", b'{"training": [{"image": ["a", "b"]}]}'),
        ("image_missing.json", "does not exist", b'{"training": [{"image": "./nowhere.nii.gz"}]}'),
        ("bad_label.json", "names no single image", b'{"training": [{"image": "good.nii.gz", "label": 3}]}'),
        ("notes.txt", "no usable image", b"hello"),
        ("semicolon.csv", "", b"\xef\xbb\xbfID;Image\r\na;good.nii.gz\r\n"),
        ("tab.tsv", "", b"id\timage\na\tgood.nii.gz\n"),
        ("strings.json", "", json.dumps({"training": ["./good.nii.gz"]}).encode()),
    ):
        (place / name).write_bytes(text)
        works = name in ("semicolon.csv", "tab.tsv", "strings.json")
        # A repeated id is told of the image; the message names the id of both rows.
        culprit = "works" if works else "good.nii.gz" if name == "id_twice.csv" else ""
        yield BadInput(f"list_{name}", place / name, expect, culprit=culprit)
    for name, expect, text in (
        ("no_column.csv", "no column patient", "id\ngood\n"),
        ("conflict.csv", "second patient", "id,patient\ngood,p1\ngood,p2\n"),
        ("strangers.csv", "no case of this cohort", "id,patient\nother,p1\n"),
    ):
        (place / f"patients_{name}").write_text(text, encoding="utf-8")
        yield BadInput(
            f"patients_{name}", place, expect, patients=place / f"patients_{name}", culprit=f"patients_{name}"
        )
    yield BadInput("patients_missing", place, "cannot be read", patients=place / "nobody.csv", culprit="nobody.csv")


def _masks(folder: Path, rng: np.random.Generator) -> Iterator[BadInput]:
    good = good_array(rng)
    labels = (good > 500).astype(np.uint8)
    moved = np.eye(4)
    moved[0, 3] = 0.5
    for name, expect, array, affine in (
        ("shape", "has 8 × 8 × 7 voxels, its image 9 × 8 × 7", labels[1:], np.eye(4)),
        ("moved", "another grid", labels, moved),
        ("spacing", "another grid", labels, np.diag([1, 1, 2.0, 1])),
        ("flipped", "another grid", labels, np.diag([-1.0, 1, 1, 1])),
        ("half", "no labels, e.g. 0.5", labels * 0.5, np.eye(4)),
        ("nan", "3 of 504 voxels", with_value(labels, np.nan), np.eye(4)),
        ("large", "has labels from 0 to 1e+10", labels.astype(np.float64) * 10**10, np.eye(4)),
        ("2d", "has 9 × 8 voxels", labels[:, :, 0], np.eye(4)),
        ("empty", "", labels * 0, np.eye(4)),
        ("negative", "", labels.astype(np.int16) - 1, np.eye(4)),
    ):
        images, masks = folder / f"mask_{name}" / "images", folder / f"mask_{name}" / "masks"
        images.mkdir(parents=True)
        masks.mkdir()
        write_volume(images / "case.nii.gz", good, np.eye(4))
        write_volume(masks / "case.nii.gz", array, affine)
        culprit = "works" if name in ("empty", "negative") else str(Path("masks") / "case.nii.gz")
        yield BadInput(f"mask_{name}", images, expect, masks=masks, culprit=culprit)
    images = folder / "mask_empty" / "images"
    for name, expect, files in (
        ("other_names", "no mask has the name of a case", {"other.nii.gz": nifti_bytes(labels)}),
        ("none", "holds no mask", {"readme.txt": b"hello"}),
        ("zero_bytes", "empty (0 bytes)", {"case.nii.gz": b""}),
        ("text", "not gzip", {"case.nii.gz": b"hello" * 100}),
        ("two_fit", "several masks fit", {"case.nrrd": b"NRRD0004\n", "case.mha": b"x"}),
    ):
        masks = folder / f"mask_{name}"
        masks.mkdir()
        for file, data in files.items():
            (masks / file).write_bytes(data)
        yield BadInput(f"mask_{name}", images, expect, masks=masks, culprit=masks.name)
    yield BadInput("mask_folder_missing", images, "does not exist", masks=folder / "no_masks", culprit="no_masks")
    yield BadInput("mask_folder_is_images", images, "", masks=images, culprit="works")
    file = images / "case.nii.gz"
    yield BadInput("mask_folder_is_file", images, "is not a folder", masks=file, culprit=file.name)


def _folders(folder: Path, rng: np.random.Generator) -> Iterator[BadInput]:
    data = gzip.compress(nifti_bytes(good_array(rng)))
    for name, expect, files in (
        ("empty", "no usable image", ()),
        ("text", "no usable image", ("a.txt", "b.csv", "c.json", "d.raw")),
        ("hidden", "no usable image", (".a.nii.gz", "._b.nii.gz", "__MACOSX/c.nii.gz", ".git/d.nii.gz", ".DS_Store")),
        ("same_id", "two files give the case id 'a'", ("1/a.nii.gz", "2/a.nii.gz")),
        ("no_stem", "no usable image", (".nii.gz",)),
    ):
        place = folder / f"folder_{name}"
        place.mkdir(parents=True)
        for file in files:
            (place / file).parent.mkdir(exist_ok=True)
            (place / file).write_bytes(data)
        yield BadInput(f"folder_{name}", place, expect, culprit=place.name)
    yield BadInput("folder_missing", folder / "folder_nowhere", "does not exist", culprit="folder_nowhere")
    place = folder / "folder_odd"
    (place / "image_folder.nii.gz").mkdir(parents=True)
    (place / "image_folder.nii.gz" / "a.nii.gz").write_bytes(data)
    yield BadInput("folder_named_like_image", place, "", culprit="works")
    if hasattr(os, "symlink") and os.name != "nt":
        yield from _links(folder, data)


def _links(folder: Path, data: bytes) -> Iterator[BadInput]:
    loop, dangling, itself, pipe = (folder / f"folder_{name}" for name in ("loop", "dangling", "itself", "pipe"))
    for place in (loop, dangling, itself, pipe):
        place.mkdir(parents=True)
    (loop / "a.nii.gz").write_bytes(data)
    (loop / "again").symlink_to(loop, target_is_directory=True)
    yield BadInput("folder_loop", loop, "", culprit="works")
    (dangling / "a.nii.gz").symlink_to(dangling / "nowhere.nii.gz")
    yield BadInput("folder_dangling", dangling, "link to nothing", culprit="a.nii.gz")
    (itself / "a.nii.gz").symlink_to(itself / "a.nii.gz")
    yield BadInput("folder_itself", itself, "link to nothing", culprit="a.nii.gz")
    os.mkfifo(pipe / "a.nii.gz")
    yield BadInput("folder_pipe", pipe, "not a regular file", culprit="a.nii.gz")


if __name__ == "__main__":
    for made in make_bad_inputs(Path(sys.argv[1])):
        print(made.name, made.path, made.expect)
