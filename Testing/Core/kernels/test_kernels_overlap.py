"""Dice and centreline Dice against NumPy, MONAI and scikit-image."""

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from skimage.morphology import skeletonize

from Core.made_masks import blobs, odd_shapes
from replica_detection.kernels import overlap


def numpy_dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.logical_and(a, b).sum() / (a.sum() + b.sum())


# Grids with a partial last word, and with more words than one chunk.
@pytest.mark.parametrize("grid", [(5, 3, 7), (16, 16, 16), (38, 35, 40), (23, 31), (300, 200)])
def test_dice_is_that_of_numpy(grid):
    queries, training = blobs(1, 3, grid), blobs(2, 7, grid, share=0.4)
    found = overlap.dice(queries, training)
    expected = [[numpy_dice(q > 0, n > 0) for n in training] for q in queries]
    np.testing.assert_array_equal(found, expected)


def test_every_place_in_a_group_of_cases_is_right():
    queries, training = blobs(3, 35, (9, 8, 7)), blobs(4, 67, (9, 8, 7), share=0.4)
    flat_q, flat_n = queries.reshape(35, -1).astype(float), training.reshape(67, -1).astype(float)
    sizes = flat_q.sum(1)[:, None] + flat_n.sum(1)
    np.testing.assert_allclose(overlap.dice(queries, training), 2 * flat_q @ flat_n.T / sizes, rtol=1e-14)


def test_dice_is_that_of_monai():
    import torch
    from monai.metrics import compute_dice

    masks = np.concatenate([odd_shapes(), blobs(5, 4, (14, 17, 12))])
    found = overlap.dice(masks, masks)
    as_torch = torch.from_numpy(masks).float()[:, None]
    for q in range(len(masks)):
        expected = compute_dice(as_torch[q : q + 1].expand_as(as_torch), as_torch)[:, 0]
        np.testing.assert_allclose(found[q], expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.int16, np.int64, np.float32])
def test_any_label_above_zero_is_foreground_in_any_type(dtype):
    labels = blobs(6, 4, (10, 11, 12)).astype(dtype)
    if dtype is not bool:
        labels[:, ::2] *= 3
    if np.issubdtype(dtype, np.signedinteger):
        labels[0, :3] = -1
    found = overlap.dice(labels, labels[::-1])
    np.testing.assert_array_equal(found, overlap.dice(labels > 0, labels[::-1] > 0))


def test_a_label_is_compared_by_itself():
    labels = blobs(7, 4, (10, 11, 12)) * (1 + blobs(8, 4, (10, 11, 12), share=0.5))
    for label in (1, 2):
        np.testing.assert_array_equal(
            overlap.dice(labels, labels, label), overlap.dice(labels == label, labels == label)
        )
    assert np.isnan(overlap.dice(labels, labels, 3)).all()


def test_dice_of_copies_is_one_and_pairs_are_symmetric_and_in_order():
    masks = np.concatenate([odd_shapes(), blobs(9, 20, (14, 17, 12))])
    values = overlap.dice(masks, masks.copy())
    np.testing.assert_array_equal(np.diag(values), 1)
    np.testing.assert_array_equal(values, values.T)
    order = np.random.default_rng(0).permutation(len(masks))
    np.testing.assert_array_equal(overlap.dice(masks[order], masks), values[order])


def test_dice_of_empty_masks():
    masks = np.stack([np.zeros((6, 6, 6), np.uint8), blobs(1, 1, (6, 6, 6))[0]])
    np.testing.assert_array_equal(overlap.dice(masks, masks), [[np.nan, 0], [0, 1]])
    assert overlap.dice(masks[:0], masks).shape == (0, 2)


def test_masks_of_another_grid_are_refused():
    with pytest.raises(ValueError, match="same grid"):
        overlap.dice(np.ones((1, 4, 4, 4)), np.ones((1, 4, 4, 5)))


def cldice(queries: np.ndarray, training: np.ndarray) -> np.ndarray:
    sides = [(overlap.pack(s), overlap.pack(np.stack([overlap.skeleton(m) for m in s]))) for s in (queries, training)]
    return overlap.cldice(*sides[0], *sides[1])


def published_cldice(a: np.ndarray, b: np.ndarray) -> float:
    """As the authors' repository computes it, with scikit-image's skeletons."""
    precision = np.sum(skeletonize(a) * b) / np.sum(skeletonize(a))
    sensitivity = np.sum(skeletonize(b) * a) / np.sum(skeletonize(b))
    return 2 * precision * sensitivity / (precision + sensitivity)


@pytest.mark.parametrize("grid", [(24, 22, 26), (60, 50)])
def test_cldice_is_the_published_one(grid):
    # Shapes of which scikit-image thins no part to nothing.
    a = blobs(14, 3, grid, share=0.3)
    b = np.stack([ndimage.binary_dilation(m, iterations=k) for k, m in enumerate(a, 1)]).astype(np.uint8)
    found = cldice(a, b)
    for q in range(3):
        for n in range(3):
            assert found[q, n] == pytest.approx(published_cldice(a[q] > 0, b[n] > 0), abs=1e-12)
    assert 0.2 < found.min() < found.max() < 1


def test_cldice_of_real_vessels_is_the_published_one(real_data):
    files = sorted((real_data / "vessels").glob("*.nii.gz"))[:4]
    masks = np.stack([np.asarray(nib.load(f).dataobj) for f in files])
    moved = np.roll(masks, 1, axis=2)
    found = cldice(masks, moved)
    for i in range(len(masks)):
        assert found[i, i] == pytest.approx(published_cldice(masks[i] > 0, moved[i] > 0), abs=1e-12)


def test_cldice_of_copies_is_one_and_pairs_are_symmetric():
    masks = np.concatenate([odd_shapes(), blobs(12, 5, (14, 17, 12))])
    values = cldice(masks, masks.copy())
    np.testing.assert_array_equal(np.diag(values), 1)
    np.testing.assert_array_equal(values, values.T)


def test_cldice_of_empty_and_of_disjoint_masks():
    masks = np.zeros((3, 8, 8, 8), np.uint8)
    masks[1, :4, 2, 2] = masks[2, :, 6, 6] = 1
    np.testing.assert_array_equal(cldice(masks, masks), [[np.nan, 0, 0], [0, 1, 0], [0, 0, 1]])


@pytest.mark.parametrize("dimensions", [2, 3])
def test_skeletons_are_scikit_images_where_those_are_whole(dimensions):
    rng = np.random.default_rng(13)
    everywhere = np.ones((3,) * dimensions)
    whole = 0
    for _ in range(300):
        mask = rng.random(tuple(rng.integers(1, 12, dimensions))) < rng.choice([0.1, 0.3, 0.5, 0.8, 1.0])
        found = overlap.skeleton(mask)
        reference = skeletonize(np.pad(mask, 1))[(slice(1, -1),) * dimensions] > 0
        components, count = ndimage.label(mask, everywhere)
        assert not np.any(found & ~mask)
        assert set(components[found]) == set(range(1, count + 1))
        np.testing.assert_array_equal(found & reference, reference)
        if set(components[reference]) == set(range(1, count + 1)):
            whole += 1
            np.testing.assert_array_equal(found, reference)
    assert whole > 200


@pytest.mark.parametrize("size", [(2, 2, 2), (2, 2, 8), (6, 6, 6)])
def test_a_shape_that_scikit_image_thins_to_nothing_keeps_its_innermost_voxels(size):
    mask = np.zeros((12, 12, 12), bool)
    mask[tuple(slice(2, 2 + s) for s in size)] = True
    core = np.zeros_like(mask)
    core[tuple(slice(2 + (min(size) - 1) // 2, 2 + s - (min(size) - 1) // 2) for s in size)] = True
    np.testing.assert_array_equal(overlap.skeleton(mask), core)
