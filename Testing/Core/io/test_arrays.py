"""Images in memory: each kind of object gives the volume that its file gives, and what cannot be used is refused."""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
import torch
from monai.data import MetaTensor, list_data_collate
from monai.transforms import LoadImage

from Core.made_up import SHAPE, cohort, volume, write
from replica_detection.errors import ConfigurationError, InputError
from replica_detection.io.cohort import Cohort
from replica_detection.io.volume import read_mask, read_volume

# Oblique, with flipped axes: a sign or an axis that is mixed up cannot pass.
TURN = np.deg2rad(20)
AFFINE = np.array(
    [
        [-1.5 * np.cos(TURN), 0.75 * np.sin(TURN), 0.0, 30.0],
        [1.5 * np.sin(TURN), 0.75 * np.cos(TURN), 0.0, -12.0],
        [0.0, 0.0, 2.0, 7.5],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


class ScalarImage:
    """The documented interface of a TorchIO image: `data` (C, X, Y, Z), `affine`. TorchIO is not installed."""

    def __init__(self, array: np.ndarray, affine: np.ndarray):
        self.data, self.affine = torch.from_numpy(array)[None], affine


class LabelMap(ScalarImage):
    pass


class Subject(dict):
    """The documented interface of a TorchIO subject: a dictionary whose images `get_images_dict` names."""

    def get_images_dict(self, intensity_only: bool = True) -> dict[str, ScalarImage]:
        images = {key: value for key, value in self.items() if isinstance(value, ScalarImage)}
        return {k: v for k, v in images.items() if not (intensity_only and isinstance(v, LabelMap))}


@pytest.fixture
def file(tmp_path) -> Path:
    return write(tmp_path / "a.nii.gz", volume(1), AFFINE)


def only(*args, **options):
    (case,) = Cohort.from_arrays(*args, **options).cases
    return case


def same(found, expected):
    np.testing.assert_array_equal(found.array, expected.array)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-5)
    assert found.array.dtype == np.float32 and found.array.flags.c_contiguous
    assert found.trusted == expected.trusted


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_simpleitk_image_is_the_file_it_was_read_from(file, tmp_path, suffix):
    image = SimpleITK.ReadImage(str(file))
    SimpleITK.WriteImage(image, str(tmp_path / f"b{suffix}"))
    same(read_volume(only([image])), read_volume(tmp_path / f"b{suffix}"))
    same(read_volume(only(image)), read_volume(file))  # a single image need not stand in a list


def test_nibabel_image_is_the_file_it_was_read_from(file):
    same(read_volume(only([nib.load(file)])), read_volume(file))


def test_nibabel_image_in_metres_and_without_a_geometry_are_read_as_their_files(tmp_path):
    metres = nib.Nifti1Image(volume(2), np.diag([0.001, 0.001, 0.002, 1]))
    metres.header.set_xyzt_units("meter")
    scaled = nib.Nifti1Image((volume(3)).astype(np.int16), AFFINE)
    scaled.header.set_slope_inter(0.5, 3)
    bare = nib.Nifti1Image(volume(4), None)
    bare.header.set_zooms((1.5, 1.5, 3.0))
    slice_ = nib.Nifti1Image(volume(5)[..., :1], np.eye(4))
    for name, image in {"metres": metres, "scaled": scaled, "bare": bare, "slice": slice_}.items():
        nib.save(image, tmp_path / f"{name}.nii.gz")
        loaded = nib.load(tmp_path / f"{name}.nii.gz")
        found, expected = read_volume(only([loaded])), read_volume(tmp_path / f"{name}.nii.gz")
        same(found, expected)
        assert found.warnings == expected.warnings
    assert not read_volume(only([bare])).trusted
    assert read_volume(only([slice_])).array.ndim == 2


def test_metatensor_keeps_its_affine_alone_and_in_a_batch(file):
    loaded = LoadImage(image_only=True, ensure_channel_first=True)(file)
    assert isinstance(loaded, MetaTensor)
    same(read_volume(only([loaded])), read_volume(file))
    for case in Cohort.from_arrays(list_data_collate([loaded, loaded])).cases:
        same(read_volume(case), read_volume(file))
    lps = MetaTensor(loaded.as_tensor(), affine=np.diag([-1.0, -1, 1, 1]) @ AFFINE, meta={"space": "LPS"})
    same(read_volume(only([lps])), read_volume(file))


def test_torchio_image_and_subject_by_their_interface(file):
    image, mask = ScalarImage(volume(1), AFFINE), LabelMap((volume(1) > 500).astype(np.uint8), AFFINE)
    same(read_volume(only([image])), read_volume(file))
    case = only([Subject(t1=image, lesion=mask, age=63)])
    same(read_volume(case), read_volume(file))
    assert case.has_mask
    np.testing.assert_array_equal(read_mask(case, read_volume(case)), volume(1) > 500)
    with pytest.raises(InputError, match=r"2 images \(t1, t2\)"):
        Cohort.from_arrays([Subject(t1=image, t2=image)])
    both = Subject(t1=image, lesion=mask, brain=mask)
    with pytest.raises(InputError, match="2 label maps"):
        Cohort.from_arrays([both])
    assert only([both], masks=[mask]).has_mask


@pytest.mark.parametrize("lead", [(), (1,)])
def test_arrays_and_tensors_with_and_without_a_channel(file, lead):
    array = volume(1).reshape(*lead, *SHAPE)
    expected = read_volume(file)
    for item in (
        array,
        array.astype(np.float64),
        np.asfortranarray(array),
        torch.from_numpy(array),
        torch.from_numpy(array).double().requires_grad_(),
    ):
        same(read_volume(only([item], affines=AFFINE)), expected)
    rough = read_volume(only([torch.from_numpy(array).bfloat16()], affines=[AFFINE])).array
    np.testing.assert_allclose(rough, expected.array, rtol=1e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tensor_on_a_gpu(file):
    same(read_volume(only([torch.from_numpy(volume(1)).cuda()], affines=AFFINE)), read_volume(file))


def test_batches_lists_and_images_by_id_are_the_same_cases():
    arrays = [volume(n) for n in range(3)]
    stacked = np.stack(arrays)
    expected = [c.checksum() for c in Cohort.from_arrays(arrays, spacing=(1, 1, 1.2)).cases]
    assert len(set(expected)) == 3
    for images in (
        stacked,
        stacked[:, None],
        torch.from_numpy(stacked),
        iter(arrays),
        dict(zip("abc", arrays, strict=True)),
    ):
        found = Cohort.from_arrays(images, spacing=[(1, 1, 1.2)] * 3)
        assert [c.checksum() for c in found.cases] == expected
    assert found.ids == ("a", "b", "c")


def test_flat_images_as_one_slice(tmp_path):
    flat = volume(7)[..., 4]
    expected = read_volume(write(tmp_path / "f.nii.gz", flat[..., None], np.diag([0.5, 0.75, 1, 1])))
    for item in (flat, flat[None], flat[..., None], torch.from_numpy(flat)[None]):
        for spacing in ((0.5, 0.75), (0.5, 0.75, 1.0)):
            same(read_volume(only([item], spacing=spacing)), expected)


def test_geometry_for_all_and_for_each():
    arrays = [volume(n) for n in range(4)]
    steps = [(1, 1, 1), (1, 1, 2), None, (2, 2, 2)]
    tensor = MetaTensor(torch.from_numpy(arrays[2]), affine=torch.from_numpy(AFFINE))
    found = Cohort.from_arrays([*arrays[:2], tensor, arrays[3]], spacing=steps).cases
    assert [tuple(c.volume.spacing) for c in (found[0], found[1], found[3])] == [(1, 1, 1), (1, 1, 2), (2, 2, 2)]
    np.testing.assert_allclose(found[2].volume.affine, AFFINE)
    # What the caller states takes precedence over the identity that a MetaTensor has by default.
    assert tuple(only([MetaTensor(torch.from_numpy(arrays[0]))], spacing=2.0).volume.spacing) == (2, 2, 2)
    for affines in (AFFINE, AFFINE.tolist(), [AFFINE] * 4, np.stack([AFFINE] * 4), torch.from_numpy(AFFINE)):
        for case in Cohort.from_arrays(arrays, affines=affines).cases:
            np.testing.assert_allclose(case.volume.affine, AFFINE)


def test_ids_patients_and_masks_go_with_their_images(tmp_path):
    arrays, marked = [volume(n) for n in range(3)], (volume(1) > 600)
    (tmp_path / "p.csv").write_text("id,patient\na,p6\nb,p7\nc,p8\n", encoding="utf-8")
    for patients in (["x", None, 5], {"a": "x", "c": "5"}):
        found = Cohort.from_arrays(arrays, spacing=(1, 1, 1), ids=["a", "b", "c"], patients=patients)
        assert [c.patient for c in found.cases] == ["x", None, "5"]
    found = Cohort.from_arrays(
        arrays,
        spacing=(1, 1, 1),
        ids=["a", "b", "c"],
        patients=tmp_path / "p.csv",
        masks=[None, marked[None], None],
    )
    assert [c.patient for c in found.cases] == ["p6", "p7", "p8"]
    assert [c.has_mask for c in found.cases] == [False, True, False]
    labels = read_mask(found.cases[1], read_volume(found.cases[1]))
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, marked)


def test_work_on_a_case_does_not_change_the_callers_array():
    array = volume(1)
    case = only([array], spacing=(1, 1, 1), masks=[np.ones(SHAPE, np.uint8)])
    read_volume(case).array[:] = 0
    read_mask(case, read_volume(case))[:] = 0
    np.testing.assert_array_equal(array, volume(1))
    np.testing.assert_array_equal(read_volume(case).array, volume(1))
    assert read_mask(case, read_volume(case)).all()


NAN = volume(1).copy()
NAN[0, 0, :2] = np.nan
MM = {"spacing": (1, 1, 1)}


@pytest.mark.parametrize(
    ("images", "options", "said"),
    [
        ([volume(0), volume(1)], {}, r"images\[0\] \(case_0001\): is an array that states no geometry"),
        ([volume(0), NAN], MM, r"images\[1\] \(case_0002\): has 2 of 13440 voxels that are NaN"),
        ([np.ones(SHAPE)], MM, "has the value 1 in all voxels"),
        ([np.zeros((0, 4, 4))], MM, "is empty"),
        ([np.stack([volume(0)] * 3)], MM, r"has 3 channels \(3 × 24 × 28 × 20\)"),
        ([volume(0)[None, None]], MM, "is 5D"),
        ([np.zeros((3, 64, 48))], MM, "looks like a 2D image of 3 channels"),
        ([np.zeros((3, 64, 48, 1))], MM, "looks like a 2D image of 3 channels"),
        ([np.zeros((64, 48, 3), np.uint8)], MM, "looks like a color picture"),
        ([np.zeros(9)], MM, "a line of values"),
        ([volume(0) * 1j], MM, "values of type complex"),
        ([None], MM, "is of type NoneType"),
        ([object()], MM, "is of type object"),
        (["a.nii.gz"], {}, "holds paths of files"),
        (volume(0), MM, "is one array of shape 24 × 28 × 20"),
        (5, MM, "is of type int"),
        ([], MM, "holds no usable image"),
        ([volume(0)], {"spacing": (1, 1)}, "has 3 axes and 2 voxel sizes"),
        ([volume(0)], {"spacing": (1, 0, 1)}, "impossible voxel size"),
        ([volume(0)], {"affines": np.zeros((4, 4))}, "has an affine that is none"),
        ([volume(0)], {"affines": [np.eye(3)[:2]]}, "has an affine that is none"),
        ([volume(0)], {**MM, "masks": [np.ones((3, 4, 5))]}, r"masks\[0\] \(case_0001\): has 3 × 4 × 5 voxels"),
        ([volume(0)], {**MM, "masks": [volume(1)]}, "values that are no labels"),
        ([volume(0)], {**MM, "masks": "masks/"}, "^masks: is of type str"),
        ([SimpleITK.GetImageFromArray(np.zeros((4, 5, 6, 3)), isVector=True)], {}, "has 3 values in each voxel"),
    ],
)
def test_an_image_that_cannot_be_used_is_named(images, options, said):
    with pytest.raises(InputError, match=said):
        Cohort.from_arrays(images, **options)


def test_a_mask_that_states_another_grid_is_refused(file):
    image = nib.load(file)
    mask = nib.Nifti1Image((volume(1) > 500).astype(np.uint8), AFFINE)
    moved = nib.Nifti1Image((volume(1) > 500).astype(np.uint8), AFFINE + np.eye(4, k=3) * 3)
    assert only([image], masks=[mask]).has_mask
    with pytest.raises(InputError, match=r"masks\[0\] .*lies on another grid.*3 mm"):
        Cohort.from_arrays([image], masks=[moved])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ids": ["a"]}, "ids has 1 entries for 2 images"),
        ({"ids": ["a", "a"]}, "is there twice"),
        ({"ids": ["a", "b/c"]}, "holds a path separator"),
        ({"ids": "ab"}, "found the text 'ab'"),
        ({"patients": ["p"]}, "patients has 1 entries for 2 images"),
        ({"masks": [None] * 3}, "masks has 3 entries for 2 images"),
        ({"spacing": [(1, 1, 1)] * 3}, "spacing has 3 entries for 2 images"),
        ({"affines": np.eye(4)}, "either spacing or affines"),
        ({"spacing": {"case_0001": (1, 1, 1)}}, "spacing is by id"),
        ({"patients": {"other": "p"}}, "patients names no image of this cohort, e.g. 'other'"),
        ({"masks": {"other": volume(0) > 500}}, "masks names no image of this cohort, e.g. 'other'"),
    ],
)
def test_arguments_that_do_not_go_together(options, said):
    with pytest.raises(ConfigurationError, match=said):
        Cohort.from_arrays([volume(0), volume(1)], **{"spacing": (1, 1, 1), **options})


def test_ids_are_given_once():
    with pytest.raises(ConfigurationError, match="by id have their ids already"):
        Cohort.from_arrays({"a": volume(0)}, ids=["b"], **MM)


def test_patients_as_the_columns_of_a_table_hold_them():
    """A column of numbers with a gap is of floats; the gap is no patient that its cases share."""
    images = [volume(n) for n in range(6)]
    given = [12.0, np.int64(12), " 12 ", np.nan, float("nan"), " "]
    found = Cohort.from_arrays(images, patients=given, **MM)
    assert [c.patient for c in found.cases] == ["12", "12", "12", None, None, None]
    found = Cohort.from_arrays(images[:2], ids=[1, 2], patients={1: "p", 2: None}, masks={2: images[1] > 500}, **MM)
    assert [c.patient for c in found.cases] == ["p", None] and [c.has_mask for c in found.cases] == [False, True]


@pytest.mark.parametrize("spacing", [2, np.float32(2), np.int64(2), np.array(2.0), torch.tensor(2.0)])
def test_one_number_is_the_voxel_size_along_every_axis(spacing):
    np.testing.assert_array_equal(only([volume(0)], spacing=spacing).volume.affine, np.diag([2.0, 2.0, 2.0, 1.0]))


def test_an_itk_image_is_no_array_with_its_axes_reversed():
    class Image:  # what ITK's own images offer, as its documentation has it
        def __array__(self, dtype=None, copy=None):
            return volume(0).T

        def GetNumberOfComponentsPerPixel(self):
            return 1

        GetDirection = GetSpacing = GetOrigin = GetNumberOfComponentsPerPixel

    with pytest.raises(InputError, match="is of type Image, which is no SimpleITK image"):
        Cohort.from_arrays([Image()], **MM)


def test_without_strict_a_bad_image_is_listed_and_left_out():
    found = Cohort.from_arrays([NAN, volume(1)], spacing=(1, 1, 1), strict=False)
    assert found.ids == ("case_0002",)
    assert found.problems[0].path == "images[0] (case_0001)" and "NaN" in found.problems[0].message
    found = Cohort.from_arrays([volume(0), volume(1)], masks=[volume(2), None], spacing=(1, 1, 1), strict=False)
    assert found.ids == ("case_0002",)
    assert found.problems[0].path == "masks[0] (case_0001)" and "no labels" in found.problems[0].message
    with pytest.raises(InputError, match=r"no usable image \(1 left out"):
        Cohort.from_arrays([NAN], spacing=(1, 1, 1), strict=False)


def test_arrays_become_cohorts_where_only_numpy_can_be_imported():
    code = """
import sys
for name in ("numba", "torch", "monai", "zarr", "nibabel", "skimage", "matplotlib", "scipy", "SimpleITK", "pydicom"):
    sys.modules[name] = None
import numpy as np
from replica_detection.io.cohort import Cohort
print(Cohort.from_arrays(np.random.default_rng(0).random((2, 1, 5, 6, 7)), spacing=(1, 1, 2)).ids)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert said.stdout.strip() == "('case_0001', 'case_0002')"


def test_cohort_of_whatever_names_one(tmp_path):
    folder = cohort(tmp_path / "images", 3)
    read = Cohort.read(folder)
    assert Cohort.of(read) is read
    assert Cohort.of(folder) == Cohort.of(str(folder)) == read
    assert Cohort.of([volume(0)], spacing=(1, 1, 1)).ids == ("case_0001",)
    with pytest.raises(ConfigurationError, match="has its own masks"):
        Cohort.of(read, patients="p.csv")
    with pytest.raises(ConfigurationError, match="files state their own"):
        Cohort.of(folder, spacing=(1, 1, 1))
    with pytest.raises(InputError, match="images in memory"):
        Cohort.read(str(Cohort.of([volume(0)], spacing=(1, 1, 1)).source))
