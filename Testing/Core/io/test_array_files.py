"""MGH, pairs of header and voxels, numpy arrays and TIFF, against nibabel, tifffile and numpy."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import tifffile
from PIL import Image

from replica_detection.errors import InputError
from replica_detection.io.cohort import Cohort
from replica_detection.io.volume import read_mask, read_volume, voxel_files

SHAPE = (5, 6, 7)
TURNED = np.array([[0, 2.0, 0, 5], [-1.5, 0, 0, 6], [0, 0, 3, -7], [0, 0, 0, 1]])


def values(dtype, shape=SHAPE, top=200) -> np.ndarray:
    return np.random.default_rng(0).integers(0, top, shape).astype(dtype)


@pytest.mark.parametrize("suffix", [".mgz", ".mgh", ".MGZ"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4"])
def test_mgh_is_what_nibabel_reads(tmp_path, suffix, dtype):
    nib.save(nib.MGHImage(values(dtype), TURNED), tmp_path / f"a{suffix.lower()}")
    path = (tmp_path / f"a{suffix.lower()}").rename(tmp_path / f"a{suffix}")
    read, other = read_volume(path), nib.MGHImage.from_filename(path)
    np.testing.assert_array_equal(read.array, other.get_fdata())
    np.testing.assert_allclose(read.affine, TURNED, atol=1e-5)
    assert read.trusted and Cohort.read(tmp_path, strict=True).ids == ("a",)


def test_mgh_without_a_valid_geometry_is_not_trusted(tmp_path):
    nib.save(nib.MGHImage(values("i2"), TURNED), tmp_path / "a.mgh")
    content = bytearray((tmp_path / "a.mgh").read_bytes())
    content[28:30] = bytes(2)  # goodRASFlag
    (tmp_path / "a.mgh").write_bytes(content)
    read = read_volume(tmp_path / "a.mgh")
    assert not read.trusted
    np.testing.assert_array_equal(read.affine, nib.load(tmp_path / "a.mgh").affine)


PAIRS = [nib.Nifti1Pair, nib.Nifti2Pair, nib.AnalyzeImage, nib.Spm99AnalyzeImage, nib.Spm2AnalyzeImage]


@pytest.mark.parametrize("kind", PAIRS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
@pytest.mark.parametrize("named", [".hdr", ".img"])
def test_pairs_are_what_nibabel_reads(tmp_path, kind, dtype, named):
    affine = np.diag([-2.0, 1.5, 3, 1])
    nib.save(kind(values(dtype), affine), tmp_path / "a.img")
    read, other = read_volume(tmp_path / f"a{named}"), nib.load(tmp_path / "a.hdr")
    np.testing.assert_array_equal(read.array, other.get_fdata())
    np.testing.assert_allclose(read.affine[:3, :3], other.affine[:3, :3], atol=1e-6)
    assert read.trusted == (kind is not nib.AnalyzeImage)
    assert any("which side is left" in note for note in read.warnings) == (kind is nib.AnalyzeImage)
    (case,) = Cohort.read(tmp_path, strict=True).cases
    assert case.files == (tmp_path / "a.hdr",) and set(voxel_files(case.files[0])) == {
        tmp_path / "a.hdr",
        tmp_path / "a.img",
    }


def test_a_pair_in_a_list_and_in_capitals(tmp_path):
    nib.save(nib.Nifti1Pair(values("i2"), TURNED), tmp_path / "a.img")
    for path in (tmp_path / "a.hdr", tmp_path / "a.img"):
        path.rename(path.with_suffix(path.suffix.upper()))
    (tmp_path / "list.csv").write_text("id,image\none,a.IMG\n", encoding="utf-8")
    (case,) = Cohort.read(tmp_path / "list.csv", strict=True).cases
    np.testing.assert_array_equal(read_volume(case).array, values("i2"))
    assert Cohort.read(tmp_path, strict=True).ids == ("a",)


def test_the_checksum_of_a_case_is_that_of_all_its_files(tmp_path):
    """Headers of two scans may be equal byte by byte."""
    for name in ("a", "b"):
        array = values("i2") + (name == "b")
        nib.save(nib.AnalyzeImage(array.astype(np.int16), np.diag([-2.0, 1.5, 3, 1])), tmp_path / f"{name}.img")
        np.save(tmp_path / f"{name}_.npy", values("i2"))
        (tmp_path / f"{name}_.json").write_text(f'{{"spacing": [1, 1, {ord(name)}.5]}}', encoding="utf-8")
    assert (tmp_path / "a.hdr").read_bytes() == (tmp_path / "b.hdr").read_bytes()
    cases = Cohort.read(tmp_path, strict=True).cases
    assert len(cases) == len({case.checksum() for case in cases}) == 4
    mask = tmp_path / "a_.npy"
    (first, *_) = cases
    assert replace(first, mask=mask).input_files == (
        tmp_path / "a.hdr",
        tmp_path / "a.img",
        mask.with_suffix(".json"),
        mask,
    )


def test_scaled_values_of_a_pair(tmp_path):
    image = nib.Nifti1Pair(values("f4") / 7 + 0.3, TURNED)
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "a.img")
    read = read_volume(tmp_path / "a.hdr").array
    np.testing.assert_allclose(read, nib.load(tmp_path / "a.hdr").get_fdata(), rtol=1e-6)
    assert np.ptp(read) > 20


@pytest.mark.parametrize("dtype", ["u1", ">i2", "<u2", "i4", "f2", "<f8", "?"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_numpy_arrays(tmp_path, dtype, order, suffix):
    array = np.asarray(values(dtype, top=2 if dtype == "?" else 200), order=order)
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, array)
    else:
        np.savez_compressed(path, image=array, other=array + array)
    read = read_volume(path)
    np.testing.assert_array_equal(read.array, array.astype(np.float32))
    np.testing.assert_array_equal(read.affine, np.eye(4))
    assert not read.trusted and "1 mm was taken" in read.warnings[0]


def test_a_sidecar_gives_spacing_or_affine(tmp_path):
    np.save(tmp_path / "a.npy", values("i2"))
    sidecar = tmp_path / "a.json"
    for stated, affine in (
        ({"spacing": [1, 2, 3.5]}, np.diag([1, 2, 3.5, 1])),
        ({"affine": TURNED.tolist()}, TURNED),
        ({"spacing": [9, 9, 9], "affine": TURNED.tolist()}, TURNED),
    ):
        sidecar.write_text(json.dumps(stated), encoding="utf-8")
        read = read_volume(tmp_path / "a.npy")
        np.testing.assert_array_equal(read.affine, affine)
        assert read.trusted and read.warnings == ()
    for text in ('{"spacing": [1, 2]}', '{"spacing": "x"}', '{"affine": [[1]]}', "[]", "{", '{"spacing": [0, 1, 1]}'):
        sidecar.write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"a\.json"):
            read_volume(tmp_path / "a.npy")
    assert Cohort.read(tmp_path, strict=True).ids == ("a",)
    assert voxel_files(tmp_path / "a.npy") == (tmp_path / "a.npy", sidecar)


def test_2d_arrays_and_a_channel_in_front(tmp_path):
    np.save(tmp_path / "flat.npy", values("u1", (8, 9)))
    np.save(tmp_path / "channel.npy", values("u1")[None])
    assert read_volume(tmp_path / "flat.npy").array.shape == (8, 9)
    np.testing.assert_array_equal(read_volume(tmp_path / "channel.npy").array, values("u1"))


def test_arrays_that_are_no_image(tmp_path):
    path = tmp_path / "a.npy"
    for array, found in (
        (np.array([{}, {}], dtype=object), "Python objects"),
        (values("u1").astype("c8"), "of the type complex64"),
        (values("u1", (2, 3, 4, 5)), "is 4D"),
        (np.arange(5), "line of values"),
    ):
        np.save(path, array)
        with pytest.raises(InputError, match=found):
            read_volume(path)
    np.savez(tmp_path / "two.npz", one=values("u1"), two=values("u1"))
    with pytest.raises(InputError, match="holds 2 arrays"):
        read_volume(tmp_path / "two.npz")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".mgz", ".hdr", ".tif"])
def test_damaged_files_are_errors_that_name_the_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, values("i2"))
    elif suffix == ".npz":
        np.savez(path, values("i2"))
    elif suffix == ".tif":
        tifffile.imwrite(path, values("u1", (40, 50)))
    else:
        nib.save((nib.MGHImage if suffix == ".mgz" else nib.Nifti1Pair)(values("i2"), TURNED), path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:60], b"x" * 400, b"\x93NUMPY\x01\x00"):
        path.write_bytes(content)
        with pytest.raises(InputError) as raised:
            read_volume(path)
        assert raised.value.path.startswith(str(tmp_path))


def test_a_header_that_states_an_absurd_size_allocates_nothing(tmp_path):
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (4000, 4000, 100)})
    with pytest.raises(InputError, match="truncated"):
        read_volume(tmp_path / "a.npy")


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "i2", "i4", "u4", "f4"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_is_what_tifffile_reads(tmp_path, dtype, compression):
    array = values(dtype, (9, 12))
    if dtype in ("<u2", ">u2"):
        array = array * 300
    if dtype == "u4":
        array = array * np.uint32(2**24)
    if dtype == "i2":
        array = array - 100
    order = ">" if dtype.startswith(">") else "<"
    tifffile.imwrite(
        tmp_path / "a.tiff", array, byteorder=order, compression=compression, resolution=(40, 20), resolutionunit=3
    )
    read = read_volume(tmp_path / "a.tiff")
    np.testing.assert_array_equal(read.array.T, tifffile.imread(tmp_path / "a.tiff").astype(np.float32))
    np.testing.assert_allclose(read.spacing, (0.25, 0.5))
    assert not read.trusted and "resolution tags" in read.warnings[0]
    if dtype in ("u1", "<u2"):
        itk = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "a.tiff")))
        np.testing.assert_array_equal(read.array.T, itk)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_white_as_zero_is_inverted(tmp_path, dtype):
    array = values(dtype, (9, 12))
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="miniswhite")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").array.T, np.iinfo(dtype).max - array)


def test_tiff_units_pages_and_colours(tmp_path):
    path, array = tmp_path / "a.tif", values("u1", (9, 12))
    for unit, spacing in ((2, 25.4 / 50), (1, 1.0)):
        tifffile.imwrite(path, array, resolution=(50, 50), resolutionunit=unit)
        np.testing.assert_allclose(read_volume(path).spacing, spacing)
    tifffile.imwrite(path, np.stack([array, array, array, array]), photometric="minisblack")
    with pytest.raises(InputError, match="holds 4 pages"):
        read_volume(path)
    Image.fromarray(np.stack([array] * 3, -1)).save(path)
    np.testing.assert_array_equal(read_volume(path).array.T, array)
    Image.fromarray(np.stack([array, array.T.reshape(9, 12), array[::-1]], -1)).save(path)
    with pytest.raises(InputError, match="colour"):
        read_volume(path)
    tifffile.imwrite(path, np.stack([array.astype(np.uint16)] * 3, -1), photometric="rgb")
    with pytest.raises(InputError, match="16 bits per channel"):
        read_volume(path)


def test_they_serve_as_masks(tmp_path):
    image, labels = values("i2"), (values("u1", top=3)).astype(np.uint8)
    nib.save(nib.Nifti1Image(image, TURNED), tmp_path / "a.nii.gz")
    like = read_volume(tmp_path / "a.nii.gz")
    nib.save(nib.MGHImage(labels, TURNED), tmp_path / "m.mgz")
    nib.save(nib.Nifti1Pair(labels, TURNED), tmp_path / "m.img")
    np.save(tmp_path / "m.npy", labels)
    for name in ("m.mgz", "m.hdr", "m.npy"):
        np.testing.assert_array_equal(read_mask(tmp_path / name, like), labels)
    flat = values("u1", (9, 12), top=3)
    Image.fromarray(flat.T * 80).save(tmp_path / "f.png")
    tifffile.imwrite(tmp_path / "f.tif", flat.T)
    np.testing.assert_array_equal(read_mask(Path(tmp_path / "f.tif"), read_volume(tmp_path / "f.png")), flat)


@pytest.mark.parametrize(("name", "package"), [("a.mgz", "nibabel"), ("a.hdr", "nibabel"), ("a.tif", "PIL")])
def test_without_its_package_a_format_is_not_called_damaged(tmp_path, monkeypatch, name, package):
    path = tmp_path / name
    if package == "PIL":
        tifffile.imwrite(path, values("u1", (9, 12)))
    else:
        nib.save((nib.MGHImage if name == "a.mgz" else nib.Nifti1Pair)(values("i2"), TURNED), path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"{package}.*Install that package, or convert"):
        read_volume(path)
