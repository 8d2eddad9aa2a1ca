"""What looks like an image and is in no format that is read, is told; what is plainly none is not."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from Core.made_dicom import dicom_dataset, save_dicom, write_series
from replica_detection.errors import InputError
from replica_detection.io.cohort import Cohort
from replica_detection.io.volume import read_volume

PIXELS = np.arange(3 * 8 * 7, dtype=np.int16).reshape(3, 8, 7)
LINE = [(0, 0, 2.0 * n) for n in range(3)]
BINARY = bytes(range(256)) * 4


def put(path: Path, content: bytes = BINARY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def good(folder: Path) -> Path:
    """A folder with one image."""
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(PIXELS, np.eye(4)), folder / "good.nii.gz")
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "a.bmp", "a.gif", "a.jp2", "a.nii.bz2", "a.nii.gz.zip", "a.nii.zst", "scans.zip", "a.h5", "a.mat", "a.mnc",
        "a.par", "a.img", "a.raw", "a.bin", "a.CT", "a.dcm.gz", "IM0001", "1.2.840.113619.2", "a.unheard", "a.pt",
        "a.avi", "a.nii.old",
    ],
)  # fmt: skip
def test_what_may_be_an_image_is_told(tmp_path, name):
    put(good(tmp_path / "c") / name)
    (problem,) = Cohort.read(tmp_path / "c").problems
    assert problem.path == str(tmp_path / "c" / name)
    assert "passed over" in problem.message or "has no header" in problem.message
    with pytest.raises(InputError) as raised:
        Cohort.read(tmp_path / "c", strict=True)
    assert raised.value.path == problem.path


@pytest.mark.parametrize("name", ["a.bmp", "a.nii.bz2", "a.CT", "a.jp2", "scans.zip"])
def test_the_name_of_an_image_is_told_whatever_the_file_holds(tmp_path, name):
    put(good(tmp_path / "c") / name, b"text")
    assert len(Cohort.read(tmp_path / "c").problems) == 1


@pytest.mark.parametrize(
    "name",
    [
        "README", "README.txt", "LICENSE", "t.csv", "a.json", "a.nii.json", "notes.md", "report.pdf", "mesh.stl",
        "a.vtp", ".DS_Store", ".hidden.dcm", "Thumbs.db", "a.nii.gz.tmp", "run.py", "sub/table.xlsx", "__MACOSX/a.bmp",
    ],
)  # fmt: skip
@pytest.mark.parametrize("content", [b"text, umlaut \xc3\xbc\n", BINARY])
def test_what_is_plainly_none_is_not(tmp_path, name, content):
    if name in ("README", "LICENSE") and content is BINARY:
        pytest.skip("without an extension the content decides")
    put(good(tmp_path / "c") / name, content)
    assert Cohort.read(tmp_path / "c", strict=True).problems == ()


@pytest.mark.parametrize("content", [b"", "Grüße\n".encode(), "Grüße\n".encode("cp1252"), "Grüße\n".encode("utf-16")])
def test_text_of_any_name_is_no_image(tmp_path, content):
    put(good(tmp_path / "c") / "readme.1st", content)
    assert Cohort.read(tmp_path / "c", strict=True).problems == ()


def test_one_problem_for_each_extension_with_their_number(tmp_path):
    folder = good(tmp_path / "c")
    for n in range(5):
        put(folder / f"{n}.bmp")
        put(folder / "below" / f"{n}.BMP")
    for n in range(3):
        put(folder / f"IM{n}")
        put(folder / f"1.2.{n}")
    put(folder / "one.gif")
    messages = {Path(p.path).name: p.message for p in Cohort.read(folder).problems}
    assert set(messages) == {"0.bmp", "one.gif", "1.2.0"}
    assert "9 other files .bmp, too" in messages["0.bmp"]
    assert "5 other files without an extension, too" in messages["1.2.0"]
    assert "too" not in messages["one.gif"]


@pytest.mark.parametrize("strict", [False, True])
def test_a_folder_of_them_alone_is_an_error_that_names_the_first(tmp_path, strict):
    for n in range(4):
        put(tmp_path / f"{n}.bmp")
    with pytest.raises(InputError, match=r"no usable image .*0\.bmp: was passed over.*3 other files \.bmp"):
        Cohort.read(tmp_path, strict=strict)


@pytest.mark.parametrize(
    "name", ["x{}.dicom", "X{}.DICOM", "IM-{}.dcm.v2", "CT{}.CT", "{}.img", "{}.001", "x{}", "a.b{}.MR", "x{}.bak"]
)
def test_the_mark_of_dicom_decides_where_the_name_says_nothing(tmp_path, name):
    names = [name.format(n) for n in range(3)]
    write_series(tmp_path / "c", PIXELS, LINE, names=names, SeriesInstanceUID="1.5")
    (case,) = Cohort.read(tmp_path / "c", strict=True).cases
    assert [file.name for file in case.files] == sorted(names)
    read = SimpleITK.ReadImage([str(tmp_path / "c" / n) for n in names])
    np.testing.assert_array_equal(read_volume(case).array.T, SimpleITK.GetArrayFromImage(read))


def test_dicom_without_its_mark_is_told_with_what_to_do(tmp_path):
    path = good(tmp_path / "c") / "IM1"
    save_dicom(dicom_dataset(PIXELS[0]), path)
    path.write_bytes(path.read_bytes()[132:])  # without the preamble and the mark
    (problem,) = Cohort.read(tmp_path / "c").problems
    assert "DICOM without the mark" in problem.message and "extension .dcm" in problem.message
    (tmp_path / "c" / "IM1").rename(tmp_path / "c" / "IM1.dicom")
    assert Cohort.read(tmp_path / "c", strict=True).ids == ("IM1", "good")


@pytest.mark.parametrize("header", [".mhd", ".nhdr"])
@pytest.mark.parametrize("compressed", [False, True])
def test_voxels_of_a_detached_header_are_no_file_of_their_own(tmp_path, header, compressed):
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(PIXELS), str(tmp_path / f"a{header}"), useCompression=compressed)
    assert len(list(tmp_path.iterdir())) == 2
    assert Cohort.read(tmp_path, strict=True).ids == ("a",)
    put(tmp_path / "b.raw")
    assert len(Cohort.read(tmp_path).problems) == 1


def test_half_of_a_pair_is_told(tmp_path):
    folder = good(tmp_path / "c")
    nib.save(nib.Nifti1Pair(PIXELS, np.eye(4)), folder / "a.img")
    assert Cohort.read(folder, strict=True).ids == ("a", "good")
    (folder / "a.hdr").rename(folder / "b.hdr")
    messages = {Path(p.path).name: p.message for p in Cohort.read(folder).problems}
    assert "no header a.hdr" in messages["a.img"] and "no voxels b.img" in messages["b.hdr"]


@pytest.mark.parametrize("name", ["a.bmp", "a.dcm", "IM1"])
def test_masks_that_cannot_be_read_are_told_too(tmp_path, name):
    folder = good(tmp_path / "c")
    put(good(tmp_path / "m") / name)
    (problem,) = Cohort.read(folder, masks=tmp_path / "m").problems
    assert problem.path == str(tmp_path / "m" / name)
