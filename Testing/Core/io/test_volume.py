"""Reading and writing volumes: values and geometry against nibabel and ITK, and what is said of odd files."""

import gzip
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.encaps import encapsulate
from scipy.spatial.transform import Rotation

from Core.made_dicom import dicom_dataset, save_dicom
from replica_detection.errors import InputError
from replica_detection.io.cohort import Cohort
from replica_detection.io.nifti import read_header
from replica_detection.io.volume import Volume, read_mask, read_volume, write_volume

FORMATS = (".nii.gz", ".nrrd", ".mha", ".nii")


def image_of(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape or (7, 6, 5)).astype(np.float32)


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Any orientation, oblique or along the axes, left- or right-handed."""
    rotation = Rotation.random(random_state=draw(st.integers(0, 2**31 - 1))).as_matrix()
    if draw(st.booleans()):
        rotation = np.eye(3)[:, draw(st.permutations(range(3)))]
    signs = draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    spacing = draw(st.tuples(*[st.floats(0.05, 9)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = rotation * signs * spacing
    affine[:3, 3] = draw(st.tuples(*[st.floats(-400, 400)] * 3))
    return affine


@settings(max_examples=40, deadline=None)
@given(affine=affines(), seed=st.integers(0, 99), flat=st.booleans())
def test_a_round_through_all_formats_keeps_values_and_geometry(affine: np.ndarray, seed: int, flat: bool):
    array = image_of(7, 6, seed=seed) if flat else image_of(seed=seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        volume = Volume(array, affine, True)
        for step, suffix in enumerate(FORMATS):
            write_volume(folder / f"{step}{suffix}", volume.array, volume.affine)
            volume = read_volume(folder / f"{step}{suffix}")
            assert np.array_equal(volume.array, array) and volume.array.flags.c_contiguous
            np.testing.assert_allclose(volume.affine, affine, atol=1e-4)
            assert volume.trusted and volume.array.dtype == np.float32 and volume.affine.dtype == np.float64
        assert len(list(folder.iterdir())) == len(FORMATS)


@settings(max_examples=20, deadline=None)
@given(affine=affines())
def test_itk_and_nibabel_agree_with_what_was_written(affine: np.ndarray):
    array = image_of()
    with tempfile.TemporaryDirectory() as name:
        for suffix in FORMATS:
            file = Path(name) / f"a{suffix}"
            write_volume(file, array, affine)
            image = SimpleITK.ReadImage(str(file))
            point = image.TransformIndexToPhysicalPoint((3, 2, 4))
            expected = affine @ [3, 2, 4, 1]
            np.testing.assert_allclose(point, expected[:3] * [-1, -1, 1], atol=1e-3)
            assert image[3, 2, 4] == array[3, 2, 4]
            if suffix.startswith(".nii"):
                loaded = nib.load(file)
                np.testing.assert_allclose(loaded.get_qform(), affine, atol=1e-3)
                assert loaded.header.get_xyzt_units()[0] == "mm"
                assert loaded.header["qform_code"] == loaded.header["sform_code"] == 1


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float16, np.float64])
@pytest.mark.parametrize("suffix", FORMATS)
def test_every_dtype_keeps_its_values(tmp_path: Path, dtype: type, suffix: str):
    array = (np.arange(60).reshape(5, 4, 3) % 2 if dtype is bool else np.arange(60).reshape(5, 4, 3)).astype(dtype)
    write_volume(tmp_path / f"a{suffix}", array, np.eye(4))
    assert np.array_equal(read_volume(tmp_path / f"a{suffix}").array, array.astype(np.float32))


@pytest.mark.parametrize("kind", ["hippocampus/images", "mra", "follow_up"])
def test_real_volumes_are_read_as_by_nibabel(real_data: Path, kind: str):
    for case in Cohort.read(real_data / kind, strict=True).cases:
        volume, reference = read_volume(case), nib.load(case.image)
        assert np.array_equal(volume.array, reference.get_fdata(dtype=np.float32))
        np.testing.assert_allclose(volume.affine, reference.affine, atol=1e-5)
        assert (volume.spacing > 0.4).all() and (volume.spacing < 5).all() and volume.trusted


def test_real_masks_lie_on_their_images(real_data: Path):
    folder = real_data / "hippocampus"
    for case in Cohort.read(folder / "images", masks=folder / "masks", strict=True).cases[:20]:
        mask = read_mask(case.mask, read_volume(case))
        assert mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1, 2}


def nifti(folder: Path, array: np.ndarray, sform: int, qform: int, kind: type = nib.Nifti1Image) -> Path:
    image = kind(array, np.diag([-2.0, 3, 4, 1]))
    image.set_sform(image.affine, sform)
    image.set_qform(image.affine, qform)
    nib.save(image, folder / "a.nii")
    return folder / "a.nii"


@pytest.mark.parametrize(("sform", "qform", "geometry"), [(1, 0, "stated"), (0, 1, "stated"), (0, 0, "none")])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_nifti_is_trusted_when_a_form_is_stated(tmp_path: Path, sform: int, qform: int, geometry: str, kind: type):
    volume = read_volume(nifti(tmp_path, image_of(), sform, qform, kind))
    assert (volume.geometry, volume.trusted) == (geometry, geometry != "none")
    np.testing.assert_allclose(volume.spacing, [2, 3, 4])
    assert volume.affine[0, 0] == (2 if geometry == "none" else -2)


@settings(max_examples=40, deadline=None)
@given(affines(), st.sampled_from([nib.Nifti1Image, nib.Nifti2Image]), st.sampled_from("<>"), st.booleans())
def test_headers_are_read_as_by_nibabel(affine: np.ndarray, kind: type, order: str, quaternion: bool):
    header = (nib.Nifti1Header if kind is nib.Nifti1Image else nib.Nifti2Header)(endianness=order)
    image = kind(np.arange(60, dtype=np.int16).reshape(3, 4, 5), affine, header)
    image.set_data_dtype(np.int16)
    image.set_qform(affine, code=2 if quaternion else 0, strip_shears=True)
    image.set_sform(affine, code=0 if quaternion else 1)
    found = read_header(image.to_bytes())
    assert found is not None and found.shape == (3, 4, 5) and found.dtype == np.dtype(order + "i2")
    assert (found.qform_code, found.sform_code) == ((2, 0) if quaternion else (0, 1))
    np.testing.assert_allclose(found.qform, image.header.get_qform(), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found.sform, image.header.get_sform(), rtol=1e-6, atol=1e-5)
    assert found.offset == kind.from_bytes(image.to_bytes()).dataobj.offset


@pytest.mark.parametrize("suffix", FORMATS)
def test_no_library_is_needed_that_a_viewer_lacks(tmp_path: Path, suffix: str):
    write_volume(tmp_path / f"a{suffix}", image_of(), np.eye(4))
    absent = ("nibabel", "nrrd", "torch", "monai", "numba", "zarr", "skimage", "matplotlib")
    code = "; ".join(
        [
            "import sys",
            f"sys.modules.update(dict.fromkeys({absent!r}))",
            "from replica_detection.io.volume import read_mask, read_volume",
            f"read_volume({str(tmp_path / f'a{suffix}')!r})",
        ]
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_identity_of_generators_is_called_default(tmp_path: Path):
    write_volume(tmp_path / "a.nii.gz", image_of(), np.eye(4))
    write_volume(tmp_path / "b.mha", image_of(), np.diag([-1.0, -1, 1, 1]))
    assert read_volume(tmp_path / "a.nii.gz").geometry == read_volume(tmp_path / "b.mha").geometry == "default"


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000), ("micron", 0.001)])
def test_scaled_big_endian_nifti_in_other_units(tmp_path: Path, unit: str, factor: float):
    stored = np.arange(60, dtype=">i2").reshape(5, 4, 3)
    image = nib.Nifti1Image(stored, np.diag([2 / factor] * 3 + [1]), nib.Nifti1Header(endianness=">"))
    image.header.set_xyzt_units(unit)
    image.header.set_slope_inter(0.5, -10)
    content = image.to_bytes()
    (tmp_path / "A.NII.GZ").write_bytes(gzip.compress(content))
    volume = read_volume(tmp_path / "A.NII.GZ")
    np.testing.assert_allclose(volume.spacing, [2, 2, 2], rtol=1e-5)
    assert f"factor of {factor:g}" in volume.warnings[0]
    assert np.array_equal(volume.array, nib.Nifti1Image.from_bytes(content).get_fdata(dtype=np.float32))


def test_odd_headers_that_do_not_matter_are_read_without_a_word(tmp_path: Path, capfd, caplog):
    file = nifti(tmp_path, image_of(9, 8), 0, 0)
    content = bytearray(file.read_bytes())
    content[88:92] = bytes(4)  # pixdim[3], which a 2D image does not have
    file.write_bytes(content)
    np.testing.assert_allclose(read_volume(file).spacing, [2, 3])
    file = nifti(tmp_path, image_of(), 1, 0)
    content = bytearray(file.read_bytes())
    content[80:92] = np.array([-1, 0, 5], "<f4").tobytes()  # the s-form states the voxel size
    file.write_bytes(content)
    np.testing.assert_allclose(read_volume(file).spacing, [2, 3, 4])
    printed = capfd.readouterr()
    assert printed.out + printed.err == "" and caplog.records == []


def test_a_single_slice_and_a_single_time_point_lose_the_axis(tmp_path: Path):
    for name, shape, expected in (
        ("a", (9, 8, 1), (9, 8)),
        ("b", (9, 8, 7, 1), (9, 8, 7)),
        ("c", (9, 8, 1, 1), (9, 8)),
    ):
        nib.save(nib.Nifti1Image(image_of(*shape), np.diag([2.0, 3, 4, 1])), tmp_path / f"{name}.nii")
        volume = read_volume(tmp_path / f"{name}.nii")
        assert volume.array.shape == expected
        np.testing.assert_allclose(volume.spacing, [2, 3, 4][: len(expected)])


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_itk_files_without_geometry_are_not_trusted(tmp_path: Path, suffix: str):
    file, voxels = tmp_path / f"a{suffix}", np.arange(24, dtype=np.int16).tobytes()
    if suffix == ".nrrd":
        header = "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 3 2\nendian: little\nencoding: raw\n\n"
    else:
        header = "ObjectType = Image\nNDims = 3\nDimSize = 4 3 2\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    file.write_bytes(header.encode() + voxels)
    volume = read_volume(file)
    assert not volume.trusted and volume.array[3, 2, 1] == 23 and volume.array[1, 0, 0] == 1


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_header_with_its_voxels_in_another_file(tmp_path: Path, suffix: str, packed: bool):
    image = SimpleITK.GetImageFromArray(image_of())
    image.SetSpacing((1, 2, 3))
    SimpleITK.WriteImage(image, str(tmp_path / f"a{suffix}"), packed)
    volume = read_volume(tmp_path / f"a{suffix}")
    assert np.array_equal(volume.array, image_of().T) and np.allclose(volume.spacing, [1, 2, 3])
    assert volume.trusted


def test_pictures_are_read_along_rows_without_a_geometry(tmp_path: Path):
    eight = np.random.default_rng(0).integers(0, 255, (6, 9)).astype(np.uint8)
    Image.fromarray(eight).save(tmp_path / "a.png")
    Image.fromarray(eight.astype(np.uint16) * 200).save(tmp_path / "b.png")
    Image.fromarray(np.stack([eight] * 3, -1)).save(tmp_path / "c.png")
    Image.fromarray(eight).save(tmp_path / "d.jpg", quality=100)
    Image.fromarray(eight > 99).save(tmp_path / "e.png")
    for name, expected in (("a.png", eight), ("b.png", eight * 200.0), ("c.png", eight), ("e.png", eight > 99)):
        volume = read_volume(tmp_path / name)
        assert np.array_equal(volume.array, expected.T), name
        assert not volume.trusted and np.array_equal(volume.affine, np.diag([-1, -1, 1, 1]))
    assert "identical channels" in read_volume(tmp_path / "c.png").warnings[0]
    assert np.abs(read_volume(tmp_path / "d.jpg").array - eight.T).max() < 8


def test_a_sheared_affine_is_read_with_a_warning_and_not_written_where_it_cannot_be(tmp_path: Path):
    affine = np.eye(4)
    affine[1, 2] = np.tan(np.radians(20))
    write_volume(tmp_path / "a.nii.gz", image_of(), affine)
    volume = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(volume.affine, affine, atol=1e-6)
    assert "20.0 degrees" in volume.warnings[0]
    with pytest.raises(InputError, match="right angles"):
        write_volume(tmp_path / "a.nrrd", image_of(), affine)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, suffix: str, monkeypatch):
    file = tmp_path / f"a{suffix}"
    write_volume(file, image_of(), np.eye(4))
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="cannot be written"):
        write_volume(file, image_of(seed=1), np.eye(4))
    assert list(tmp_path.iterdir()) == [file] and file.read_bytes() == before


def test_what_cannot_be_written_is_explained(tmp_path: Path):
    for name, array, affine, expect in (
        ("a.png", image_of(), np.eye(4), "extension"),
        ("a.nii", image_of(2, 2, 2, 2), np.eye(4), "cannot hold an array"),
        ("a.nii", image_of().astype(complex), np.eye(4), "cannot hold an array"),
        ("a.nii", image_of(), np.zeros((4, 4)), "voxel size"),
        ("nowhere/a.nii", image_of(), np.eye(4), "cannot be written"),
        ("nowhere/a.mha", image_of(), np.eye(4), "cannot be written"),
    ):
        with pytest.raises(InputError, match=expect):
            write_volume(tmp_path / name, array, affine)
    assert list(tmp_path.iterdir()) == []


def test_a_mask_is_compared_by_geometry_only_where_both_state_one(tmp_path: Path):
    labels = (image_of() > 0).astype(np.uint8)
    write_volume(tmp_path / "m.nii", labels, np.diag([2.0, 2, 2, 1]))
    assert np.array_equal(read_mask(tmp_path / "m.nii", Volume(image_of(), np.eye(4), False)), labels)
    with pytest.raises(InputError, match="another grid"):
        read_mask(tmp_path / "m.nii", Volume(image_of(), np.eye(4), True))
    near = np.diag([2.0, 2, 2, 1])
    near[0, 3] = 0.005
    assert read_mask(tmp_path / "m.nii", Volume(image_of(), near, True)).dtype == np.uint8


def test_labels_beyond_a_byte_are_kept(tmp_path: Path):
    labels = np.arange(210).reshape(7, 6, 5) * 10
    write_volume(tmp_path / "m.mha", labels, np.eye(4))
    mask = read_mask(tmp_path / "m.mha", Volume(image_of(), np.eye(4), True))
    assert mask.dtype == np.int16 and np.array_equal(mask, labels)


def test_a_folder_and_a_missing_file_are_explained(tmp_path: Path):
    with pytest.raises(InputError, match="is a folder"):
        read_volume(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_volume(str(tmp_path / "nowhere.nii.gz"))
    with pytest.raises(InputError, match="no format that can be read, it looks like text"):
        (tmp_path / "a.txt").write_text("hello", encoding="utf-8")
        read_volume(tmp_path / "a.txt")


def test_memory_errors_pass(tmp_path: Path, monkeypatch):
    write_volume(tmp_path / "a.nii", image_of(), np.eye(4))

    def exhausted(*_, **__):
        raise MemoryError

    monkeypatch.setattr("replica_detection.io.formats.read_header", exhausted)
    with pytest.raises(MemoryError):
        read_volume(tmp_path / "a.nii")


def label_file(folder: Path, labels: np.ndarray, dtype: type, slope: float = 0) -> Path:
    image = nib.Nifti1Image(labels.astype(dtype), np.eye(4), dtype=dtype)
    if slope:
        image.header.set_slope_inter(slope, 0)
    nib.save(image, folder / "m.nii")
    return folder / "m.nii"


@pytest.mark.parametrize("highest", [1, 255, 256, 14175, 2**24 + 1, 2**31 - 1])
@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.float64])
def test_labels_of_any_size_are_those_of_the_file(tmp_path: Path, highest: int, dtype: type):
    labels = np.random.default_rng(0).integers(-2 if dtype not in (np.uint32,) else 0, 3, (7, 6, 5)).astype(np.int64)
    labels[labels == 2] = highest
    mask = read_mask(label_file(tmp_path, labels, dtype), Volume(image_of(), np.eye(4), True))
    assert np.array_equal(mask, labels)


@pytest.mark.parametrize("noise", [1e-7, -1e-7, 3e-5, -3e-5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_labels_with_noise_of_rounding_are_read(tmp_path: Path, noise: float, dtype: type):
    labels = np.arange(210).reshape(7, 6, 5) % 4
    like = Volume(image_of(), np.eye(4), True)
    assert np.array_equal(read_mask(label_file(tmp_path, labels + noise, dtype), like), labels)
    assert np.array_equal(read_mask(label_file(tmp_path, labels * (1 + noise), dtype), like), labels)


@pytest.mark.parametrize("fraction", [0.5, 0.99, 1.001, 0.002, -0.3])
def test_real_fractions_are_no_labels(tmp_path: Path, fraction: float):
    labels = (np.arange(210).reshape(7, 6, 5) % 2).astype(float)
    labels[3, 3, 3] = fraction
    with pytest.raises(InputError, match=f"no labels, e.g. {fraction:g}"):
        read_mask(label_file(tmp_path, labels, np.float64), Volume(image_of(), np.eye(4), True))


def test_whole_numbers_that_float32_cannot_hold_are_told(tmp_path: Path):
    array = np.arange(210).reshape(7, 6, 5) + 2**24 - 100
    image = nib.Nifti1Image(array.astype(np.int32), np.eye(4), dtype=np.int32)
    nib.save(image, tmp_path / "a.nii")
    assert any("rounded" in note for note in read_volume(tmp_path / "a.nii").warnings)
    nib.save(nib.Nifti1Image((array - 200).astype(np.int32), np.eye(4)), tmp_path / "b.nii")
    assert read_volume(tmp_path / "b.nii").warnings == ()


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", None])
def test_a_dicom_mask_stored_with_loss_is_refused(tmp_path: Path, syntax: str | None):
    labels = np.repeat(np.arange(16) % 2, 16).reshape(16, 16).astype(np.uint8)
    elements = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0, "RescaleIntercept": 0}
    dataset = dicom_dataset(labels, **elements)
    dataset.PixelData = labels.tobytes()
    if syntax is not None:
        stream = io.BytesIO()
        Image.fromarray(labels * 255).save(stream, "JPEG", quality=95)
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = encapsulate([stream.getvalue()])
        dataset["PixelData"].is_undefined_length = True
    save_dicom(dataset, tmp_path / "m.dcm")
    like = Volume(np.zeros((16, 16), np.float32), np.eye(4), False)
    if syntax is None:
        assert np.array_equal(read_mask(tmp_path / "m.dcm", like).T, labels)
    else:
        with pytest.raises(InputError, match="stored with loss"):
            read_mask(tmp_path / "m.dcm", like)


def test_whole_numbers_that_no_format_holds_are_not_rounded(tmp_path: Path):
    with pytest.raises(InputError, match="whole numbers up to"):
        write_volume(tmp_path / "a.nii", np.array([[0, 2**53 + 1]] * 2), np.eye(4))
