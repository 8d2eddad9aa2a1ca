"""Surface distances against MONAI, DeepMind's surface-distance and SciPy."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from Core.made_masks import blobs, odd_shapes
from replica_detection.kernels import surface
from replica_detection.kernels.distance_map import WIDTH, distance_map, squared_steps

MEASURES = [surface.asd, surface.asd_surfel, surface.hd95]
SPACINGS = [(1.0, 1.0, 1.0), (0.7, 1.3, 3.1)]


def monai_asd(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> float:
    import torch
    from monai.metrics import compute_average_surface_distance

    a, b = (torch.from_numpy(m)[None, None] for m in (a, b))
    return compute_average_surface_distance(a, b, include_background=True, symmetric=True, spacing=spacing).item()


def monai_hd95(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> float:
    import torch
    from monai.metrics import compute_hausdorff_distance

    a, b = (torch.from_numpy(m)[None, None] for m in (a, b))
    return compute_hausdorff_distance(a, b, include_background=True, percentile=95, spacing=spacing).item()


def deepmind_asd(a: np.ndarray, b: np.ndarray, spacing: tuple[float, ...]) -> float:
    package = pytest.importorskip("surface_distance")
    distances = package.compute_surface_distances(a, b, spacing)
    return float(np.mean(package.compute_average_surface_distance(distances)))


# MONAI interpolates its percentile in float32, where the position alone is off by up to 1e-3 of a gap.
TOLERANCE = {surface.asd: 1e-5, surface.hd95: 5e-5, surface.asd_surfel: 1e-5}
REFERENCES = {surface.asd: monai_asd, surface.hd95: monai_hd95, surface.asd_surfel: deepmind_asd}


def assert_equal_to_reference(measure, queries: np.ndarray, training: np.ndarray, spacing: tuple[float, ...]) -> None:
    found = measure(queries, training, spacing)
    expected = [[REFERENCES[measure](q > 0, n > 0, spacing) for n in training] for q in queries]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=TOLERANCE[measure])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_odd_shapes_agree_with_the_reference(measure, spacing):
    masks = odd_shapes()
    assert_equal_to_reference(measure, masks, masks, spacing)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_blobs_agree_with_the_reference(measure, spacing):
    assert_equal_to_reference(measure, blobs(1, 3, (20, 26, 23)), blobs(2, 5, (20, 26, 23), share=0.3), spacing)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("spacing", [(1.0, 1.0), (0.6, 2.3)])
def test_2d_agrees_with_the_reference(measure, spacing):
    masks = np.concatenate([blobs(3, 4, (40, 31)), odd_shapes((40, 31))])
    assert_equal_to_reference(measure, masks[:5], masks, spacing)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("measure", MEASURES)
def test_a_grid_of_one_slice_agrees_with_the_reference(measure):
    masks = blobs(4, 3, (20, 1, 18))
    assert_equal_to_reference(measure, masks, masks, (1.0, 2.0, 0.5))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("measure", MEASURES)
def test_real_vessels_agree_with_the_reference(measure, real_data):
    files = sorted((real_data / "vessels").glob("*.nii.gz"))[:5]
    masks = np.stack([np.asarray(nib.load(f).dataobj) for f in files])
    assert_equal_to_reference(measure, masks[:2], masks, (0.5, 0.5, 0.8))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("measure", MEASURES)
def test_labels_of_a_real_hippocampus_agree_with_the_reference(measure, real_data):
    files = sorted((real_data / "hippocampus" / "masks").glob("*.nii.gz"))[:2]
    masks = np.zeros((2, 48, 60, 48), np.uint8)
    for mask, file in zip(masks, files, strict=True):
        labels = np.asarray(nib.load(file).dataobj)
        mask[tuple(slice(0, n) for n in labels.shape)] = labels
    for label in (1, 2):
        found = measure(masks, masks[::-1], (1.0, 1.2, 0.9), label)
        expected = REFERENCES[measure](masks[0] == label, masks[1] == label, (1.0, 1.2, 0.9))
        np.testing.assert_allclose(np.diag(found), expected, rtol=1e-6, atol=TOLERANCE[measure])


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.31, 2.7, 1.4), (0.8, 0.5)])
def test_all_surface_elements_have_deepminds_size(spacing):
    tables = pytest.importorskip("surface_distance").lookup_tables
    make = {
        2: tables.create_table_neighbour_code_to_contour_length,
        3: tables.create_table_neighbour_code_to_surface_area,
    }
    expected = np.asarray(make[len(spacing)](spacing))
    found = surface.element_sizes(spacing)[: len(expected)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.all(found[1:-1] > 0)
    assert found[0] == found[-1] == 0


@pytest.mark.parametrize("shape", [(17, 23, 19), (1, 30, 41), (140, 9, 15), (3, 2, 150), (1, 1, 1)])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_distance_maps_are_scipys(shape, spacing):
    rng = np.random.default_rng(5)
    for share in (0.0, 0.002, 0.05, 0.9):
        inside = rng.random(shape) < share
        inside.flat[rng.integers(inside.size)] = True
        out = np.empty(inside.size, np.float32)
        slab = np.empty((2, max(shape[0] * WIDTH, shape[1] * shape[2])), np.float32)
        distance_map(np.flatnonzero(inside).astype(np.int32), shape, squared_steps(shape, spacing), out, slab)
        expected = ndimage.distance_transform_edt(~inside, sampling=spacing)
        np.testing.assert_allclose(out.reshape(shape), expected, rtol=3e-7)
        assert np.all(out.reshape(shape)[inside] == 0)


@pytest.mark.parametrize("measure", MEASURES)
def test_copies_are_at_zero_and_pairs_are_symmetric_and_in_order(measure):
    masks = np.concatenate([odd_shapes(), blobs(6, 25, (14, 17, 12))])
    values = measure(masks, masks.copy(), (0.7, 1.3, 3.1))
    np.testing.assert_array_equal(np.diag(values), 0)
    assert np.all(values[~np.eye(len(masks), dtype=bool)] > 0)
    np.testing.assert_array_equal(values, values.T)
    # One block against itself takes one direction for both.
    np.testing.assert_array_equal(measure(masks, masks, (0.7, 1.3, 3.1)), values)
    order = np.random.default_rng(0).permutation(len(masks))
    np.testing.assert_array_equal(measure(masks[order], masks, (0.7, 1.3, 3.1)), values[order])


@pytest.mark.parametrize("measure", MEASURES)
def test_distances_grow_with_the_spacing_and_not_with_the_margin(measure):
    masks = blobs(7, 3, (14, 15, 16))
    masks[:, [0, -1]] = masks[:, :, [0, -1]] = masks[..., [0, -1]] = 0
    values = measure(masks, masks, (1.0, 1.5, 2.0))
    np.testing.assert_allclose(measure(masks, masks, (3.0, 4.5, 6.0)), 3 * values, rtol=1e-5)
    wider = np.pad(masks, ((0, 0), (9, 2), (0, 5), (30, 1)))
    np.testing.assert_array_equal(measure(wider, wider, (1.0, 1.5, 2.0)), values)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.int16, np.float32])
def test_any_label_above_zero_is_foreground_in_any_type(measure, dtype):
    labels = blobs(8, 3, (10, 11, 12))
    expected = measure(labels, labels[::-1], (1.0, 1.0, 2.0))
    typed = labels.astype(dtype)
    if dtype is not bool:
        typed[:, ::2] *= 3
    if np.issubdtype(dtype, np.signedinteger):
        typed[labels == 0] = -1
    np.testing.assert_array_equal(measure(typed, typed[::-1], (1.0, 1.0, 2.0)), expected)


@pytest.mark.parametrize("measure", MEASURES)
def test_empty_masks(measure):
    masks = np.stack([np.zeros((6, 6, 6), np.uint8), blobs(1, 1, (6, 6, 6))[0], np.zeros((6, 6, 6), np.uint8)])
    nan, inf = np.nan, np.inf
    expected = [[nan, inf, nan], [inf, 0, inf], [nan, inf, nan]]
    np.testing.assert_array_equal(measure(masks, masks.copy(), (1.0, 1.0, 1.0)), expected)
    np.testing.assert_array_equal(measure(masks[:1], masks[:1], (1.0, 1.0, 1.0)), [[nan]])
    assert measure(masks[:0], masks, (1.0, 1.0, 1.0)).shape == (0, 3)
    assert measure(masks, masks[:0], (1.0, 1.0, 1.0)).shape == (3, 0)


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, np.nan, 1.0)])
def test_a_spacing_that_cannot_be_is_refused(spacing):
    with pytest.raises(ValueError, match="spacing"):
        surface.asd(np.ones((1, 4, 4, 4)), np.ones((1, 4, 4, 4)), spacing)


def test_masks_of_another_grid_are_refused():
    with pytest.raises(ValueError, match="same grid"):
        surface.hd95(np.ones((1, 4, 4, 4)), np.ones((1, 4, 4, 5)), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("percentile", [0.0, 50.0, 95.0, 99.3, 100.0])
@pytest.mark.parametrize("share", [0.003, 0.15, 0.6])
def test_percentiles_are_numpys(percentile, share):
    a, b = blobs(9, 1, (20, 21, 22), share), blobs(10, 1, (20, 21, 22), share)
    edges = [m & ~ndimage.binary_erosion(m) for m in (a[0] > 0, b[0] > 0)]
    maps = [ndimage.distance_transform_edt(~e) for e in edges]
    expected = max(np.percentile(maps[1][edges[0]], percentile), np.percentile(maps[0][edges[1]], percentile))
    found = surface.hd95(a, b, (1.0, 1.0, 1.0), percentile=percentile)
    assert found[0, 0] == pytest.approx(expected, rel=1e-6)
