"""Orientation, spacing, grid and intensity of prepared images."""

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from Core.made_up import volume
from replica_detection.errors import ConfigurationError
from replica_detection.io.volume import Volume
from replica_detection.preparation.grids import grid_affine, orientation_of
from replica_detection.preparation.prepare import WIDE, intensity_limits, plan, prepare
from replica_detection.preparation.profiles import PROFILES, Intensity, Native, Preparation
from replica_detection.results.schema import from_json, to_json

AFFINE = np.diag([1.0, 1.0, 1.2, 1.0])


def of(array, affine=AFFINE, trusted=True):
    return Volume(np.asarray(array, np.float32), np.asarray(affine, float), trusted)


@pytest.fixture
def generic():
    return plan(PROFILES["generic"], [of(volume(i)) for i in range(4)])


def test_generic_takes_grid_and_spacing_of_the_cohort(generic):
    assert generic.grid == (24, 28, 20)
    assert generic.spacing == (1.0, 1.0, 1.2)
    assert generic.intensity.percentiles == (1.0, 99.0)
    assert Preparation.from_json(generic.to_json()) == generic


@given(st.permutations(range(3)), st.lists(st.booleans(), min_size=3, max_size=3))
@settings(max_examples=24, deadline=None)
def test_storage_order_does_not_matter(order, flips):
    """The same scan, stored with any axis order and direction, is prepared to identical voxels."""
    base = of(volume(1))
    preparation = plan(PROFILES["generic"], [base])
    image = nib.Nifti1Image(base.array, base.affine)
    codes = nib.orientations.ornt2axcodes(
        np.array([[axis, -1 if flip else 1] for axis, flip in zip(order, flips, strict=True)])
    )
    turned = image.as_reoriented(
        nib.orientations.ornt_transform(
            nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes)
        )
    )
    again = prepare(of(turned.get_fdata(), turned.affine), preparation)
    np.testing.assert_allclose(again.image, prepare(base, preparation).image, atol=1e-6)


def test_rescaled_copy_is_prepared_alike_under_percentiles(generic):
    array = volume(2)
    a = prepare(of(array), generic).image
    b = prepare(of(array * 0.37 + 55), generic).image
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_same_file_twice_is_bit_identical(generic):
    np.testing.assert_array_equal(prepare(of(volume(3)), generic).image, prepare(of(volume(3)), generic).image)


def test_smaller_and_larger_arrays_are_padded_with_their_edge_and_cropped_about_the_centre(generic):
    array = volume(4)
    whole = prepare(of(array), generic).image
    low, high = intensity_limits(array[2:-2, :, 1:-1], generic.intensity)
    small = prepare(of(array[2:-2, :, 1:-1]), generic).image
    expected = np.clip((array[2:-2, :, 1:-1] - low) / (high - low), 0, 1)
    np.testing.assert_allclose(small[2:-2, :, 1:-1], expected, atol=1e-6)
    np.testing.assert_allclose(small[0], small[2])
    large = prepare(of(np.pad(array, ((4, 4), (0, 0), (2, 2)), mode="edge")), generic).image
    assert large.shape == whole.shape
    assert np.corrcoef(large.ravel(), whole.ravel())[0, 1] > 0.999


def test_resampling_keeps_the_centre_and_the_content(generic):
    """A scan at twice the resolution is prepared to nearly the same image: same place, same size."""
    fine = volume(5, (48, 56, 40))
    coarse = fine.reshape(24, 2, 28, 2, 20, 2).mean((1, 3, 5))
    a = prepare(of(coarse), generic).image
    b = prepare(of(fine, np.diag([0.5, 0.5, 0.6, 1])), generic).image
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.97
    for axis in range(3):
        for offset in (-0.5, 0.5):
            moved = ndimage.shift(b, [offset * (i == axis) for i in range(3)], order=1, mode="nearest")
            assert np.corrcoef(a.ravel(), moved.ravel())[0, 1] < 0.96


@pytest.mark.parametrize("shape", [(32767, 16, 2), (2, 30000, 5), (90, 90, 90)])
def test_voxels_far_finer_than_the_grid_take_no_longer_than_others(generic, shape, monkeypatch):
    """A Gaussian of hundreds of voxels held a computation until its time was over."""
    from monai.transforms import GaussianSmooth

    widths = []
    original = GaussianSmooth.__init__

    def noted(self, sigma, *more, **named):
        widths.extend(sigma)
        original(self, sigma, *more, **named)

    monkeypatch.setattr(GaussianSmooth, "__init__", noted)
    fine = np.random.default_rng(0).standard_normal(shape, np.float32)
    for affine in (np.diag([0.001, 0.001, 0.001, 1.0]), None):
        found = prepare(of(fine, np.eye(4) if affine is None else affine, trusted=affine is not None), generic)
        assert found.image.shape == generic.grid and max(widths) <= WIDE


def test_means_over_blocks_keep_place_and_content(generic):
    """The same field at 1, and at 1/40 mm along one axis."""
    along = np.sin(np.arange(24 * 40) / 200).astype(np.float32)
    fine = np.ascontiguousarray(np.broadcast_to(along[:, None, None], (960, 28, 20)))
    coarse = np.ascontiguousarray(fine.reshape(24, 40, 28, 20).mean(1))
    step = AFFINE[0, 0] / 40
    affine = AFFINE.copy()
    affine[0, 0], affine[0, 3] = step, AFFINE[0, 3] - step * 19.5
    window = replace(generic, intensity=Intensity(window=(-1, 1)))
    one, other = prepare(of(fine, affine), window), prepare(of(coarse), window)
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-6)
    np.testing.assert_allclose(one.image[2:-2], other.image[2:-2], atol=0.01)


def test_untrusted_geometry_takes_the_training_field_of_view(generic):
    """A generator that wrote no geometry, on half the grid: stretched over the same field of view, and said so."""
    array = volume(6)
    small = array.reshape(12, 2, 14, 2, 10, 2).mean((1, 3, 5))
    prepared = prepare(of(small, np.eye(4), trusted=False), generic)
    reference = prepare(of(array), generic).image
    assert np.corrcoef(prepared.image.ravel(), reference.ravel())[0, 1] > 0.95
    assert any("field of view" in w for w in prepared.warnings)


def test_default_affine_with_an_impossible_extent_is_not_believed():
    training = [of(volume(i), np.diag([0.4, 0.4, 0.4, 1])) for i in range(3)]
    preparation = plan(PROFILES["generic"], training)
    reference = prepare(training[0], preparation).image
    prepared = prepare(of(volume(0), np.eye(4)), preparation)
    np.testing.assert_allclose(prepared.image, reference, atol=1e-6)
    assert prepared.warnings


def test_untrusted_arrays_are_read_in_the_training_cohorts_storage_order():
    lps = np.diag([-1.0, -1.0, 1.2, 1.0])
    training = [of(volume(i), lps) for i in range(3)]
    preparation = plan(PROFILES["generic"], training)
    np.testing.assert_allclose(
        prepare(of(volume(1), np.eye(4), trusted=False), preparation).image,
        prepare(training[1], preparation).image,
        atol=1e-6,
    )


def test_ct_gets_one_fixed_window_and_head_ct_its_own():
    ct = [of(volume(i) * 2.2 - 1024) for i in range(3)]
    generic = plan(PROFILES["generic"], ct)
    assert generic.intensity.window is not None
    assert plan(PROFILES["head-ct"], ct).intensity.window == (0, 100)
    brighter = prepare(of(ct[0].array + 100), generic).image
    assert brighter.mean() > prepare(ct[0], generic).image.mean()


def test_sparse_images_keep_their_content():
    """Vessel masks of half a percent of the voxels: percentiles 1 and 99 would make every image black."""
    sparse = np.zeros((32, 32, 32), np.float32)
    sparse[10:14, 10:14, 8:18] = 1
    preparation = plan(PROFILES["generic"], [of(sparse)] * 3)
    assert prepare(of(sparse), preparation).image.sum() == sparse.sum()


def test_grid_is_bounded():
    big = of(np.random.default_rng(0).random((200, 220, 180), np.float32), np.eye(4))
    preparation = plan(PROFILES["generic"], [big])
    assert np.prod(preparation.grid) <= PROFILES["generic"].max_voxels
    assert prepare(big, preparation).image.shape == preparation.grid


def test_masks_follow_the_image(generic):
    array = volume(7)
    mask = (array > 600).astype(np.uint8)
    turned = nib.Nifti1Image(array, AFFINE).as_reoriented(np.array([[0, -1], [1, 1], [2, 1]]))
    turned_mask = nib.Nifti1Image(mask, AFFINE).as_reoriented(np.array([[0, -1], [1, 1], [2, 1]]))
    prepared = prepare(of(turned.get_fdata(), turned.affine), generic, np.asarray(turned_mask.dataobj))
    np.testing.assert_array_equal(prepared.mask, mask)


def test_two_and_three_dimensions_do_not_mix(generic):
    with pytest.raises(ConfigurationError, match="2D image"):
        prepare(of(np.random.default_rng(0).random((20, 20))), generic)
    with pytest.raises(ConfigurationError, match="chest-xray"):
        plan(PROFILES["chest-xray"], [of(volume(0))])
    with pytest.raises(ConfigurationError, match="no readable image"):
        plan(PROFILES["generic"], [])


def test_2d_images_of_other_sizes_are_stretched_to_the_grid():
    rng = np.random.default_rng(1)
    images = [of(rng.random((64, 48)), np.eye(4), trusted=False) for _ in range(3)]
    preparation = plan(PROFILES["chest-xray"], images)
    assert preparation.grid == (64, 48)
    other = prepare(of(rng.random((128, 96)), np.eye(4), trusted=False), preparation)
    assert other.image.shape == (64, 48)
    assert any("field of view" in w for w in other.warnings)
    # PNG files have no geometry, and need none where all are alike.
    alike = of(rng.random((64, 48)), np.diag([-1.0, -1.0, 1.0, 1.0]), trusted=False)
    assert prepare(alike, preparation).warnings == ()


def test_constant_percentiles_fall_back_to_the_whole_range():
    array = np.zeros((10, 10, 10), np.float32)
    array[0, 0, 0] = 5
    assert intensity_limits(array, Intensity(percentiles=(1, 99))) == (0.0, 5.0)
    assert intensity_limits(np.ones((3, 3)), Intensity(percentiles=(1, 99))) == (1.0, 2.0)


@pytest.mark.parametrize("case", ["same grid", "turned", "other spacing", "larger field", "made-up spacing"])
def test_affine_leads_from_the_grid_back_to_the_file(generic, case):
    """The image file, sampled where the affine says that a voxel lies, holds that voxel's intensity."""
    array = ndimage.gaussian_filter(volume(7), 1.5)
    affine = AFFINE.copy()
    affine[:3, 3] = 5, -7, 11
    if case == "turned":
        array, affine = np.transpose(array, (2, 0, 1))[:, ::-1].copy(), np.eye(4)
        affine[:3, :3] = [[0, -1, 0], [0, 0, 1], [1.2, 0, 0]]
        affine[:3, 3] = 30, 4, -9
    elif case == "other spacing":
        array, affine[:3, :3] = ndimage.zoom(array, 1.25, order=1), affine[:3, :3] / 1.25
    elif case == "larger field":
        array = np.pad(array, ((3, 6), (0, 2), (4, 0)), mode="edge")
    elif case == "made-up spacing":
        array, affine = ndimage.zoom(array, 3, order=1), np.eye(4)
    file = of(array, affine)
    prepared = prepare(file, generic)
    low, high = intensity_limits(file.array, generic.intensity)
    voxels = np.indices(generic.grid).reshape(3, -1)
    world = prepared.affine @ np.vstack([voxels, np.ones(voxels.shape[1])])
    there = (np.linalg.inv(file.affine) @ world)[:3]
    # Where three voxels become one, a Gaussian of one voxel stands before the resampling.
    read = ndimage.gaussian_filter(file.array, 1, mode="nearest") if case == "made-up spacing" else file.array
    expected = ndimage.map_coordinates(read, there, order=1, mode="nearest")
    error = np.abs(np.clip((expected - low) / (high - low), 0, 1).reshape(generic.grid) - prepared.image)
    assert error[1:-1, 1:-1, 1:-1].max() < 0.02


@pytest.mark.parametrize("profile", list(PROFILES))
def test_a_preparation_travels_to_a_client(profile: str):
    shape = (20, 24) if PROFILES[profile].dimensions == 2 else (20, 24, 16)
    made = plan(PROFILES[profile], [of(volume(i, shape)) for i in range(3)])
    assert from_json(Preparation, json.loads(json.dumps(to_json(made), allow_nan=False))) == made


@st.composite
def geometries(draw: st.DrawFn) -> tuple[tuple[int, ...], np.ndarray]:
    """Shapes and affines of any orientation and spacing, oblique ones too."""
    turn = Rotation.from_euler("xyz", [draw(st.floats(-0.6, 0.6)) for _ in range(3)]).as_matrix()
    turn = turn[:, draw(st.permutations(range(3)))] * draw(st.tuples(*[st.sampled_from([-1, 1])] * 3))
    affine = np.eye(4)
    affine[:3, :3] = turn * draw(st.tuples(*[st.floats(0.7, 3)] * 3))
    affine[:3, 3] = draw(st.tuples(*[st.floats(-90, 90)] * 3))
    return draw(st.tuples(*[st.integers(5, 16)] * 3)), affine


@settings(max_examples=60, deadline=None)
@given(geometries(), st.tuples(*[st.integers(5, 16)] * 3), st.tuples(*[st.floats(0.8, 3)] * 3), st.booleans())
def test_the_affine_of_the_grid_is_known_without_preparing(geometry, grid, spacing, same_spacing: bool):
    shape, affine = geometry
    if same_spacing:
        order = np.argsort(orientation_of(affine)[:, 0])
        spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0)[order])
    native = Native((10, 10, 10), (1.0, 1.0, 1.0), (10.0, 10.0, 10.0), "RAS")
    preparation = Preparation("generic", 3, spacing, grid, Intensity(percentiles=(0, 100)), native)
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    prepared = prepare(Volume(array, affine, True), preparation)
    np.testing.assert_allclose(grid_affine(shape, affine, grid, spacing), prepared.affine, atol=1e-4)
    np.testing.assert_array_equal(orientation_of(affine), nib.orientations.io_orientation(affine))
