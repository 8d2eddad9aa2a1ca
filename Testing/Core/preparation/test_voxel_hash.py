"""The hash of an image: equal for every way to store and to turn it, and for nothing else."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replica_detection.preparation import voxel_hash
from replica_detection.preparation.voxel_hash import hash_of_voxels


def turned(array):
    """Every mirrored and right-angled turn of an array: 8 in 2D, 48 in 3D."""
    for axes in itertools.permutations(range(array.ndim)):
        for flips in itertools.product((False, True), repeat=array.ndim):
            yield np.flip(array.transpose(axes), [i for i, flip in enumerate(flips) if flip])


@pytest.mark.parametrize("shape", [(7, 9), (6, 5, 8), (4, 4, 4), (1, 5, 5)])
def test_equal_for_all_turns_and_number_types(shape):
    array = np.random.default_rng(0).integers(0, 200, shape)
    hashes = {hash_of_voxels(t) for t in turned(array)}
    hashes |= {hash_of_voxels(array.astype(kind)) for kind in (np.uint8, np.int16, ">i4", np.float32, np.float64)}
    hashes |= {hash_of_voxels(np.asfortranarray(array)), hash_of_voxels(np.repeat(array, 2, 0)[::2])}
    assert len(hashes) == 1


def test_the_size_of_a_block_does_not_matter(monkeypatch):
    array = np.random.default_rng(1).normal(size=(9, 7, 5)).astype(np.float32)
    whole = hash_of_voxels(array)
    for voxels in (1, 36, 70, 10**6):
        monkeypatch.setattr(voxel_hash, "_AT_ONCE", voxels)
        assert hash_of_voxels(array) == whole


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 3, 250]))
@settings(max_examples=60, deadline=None)
def test_another_for_any_change_of_values_or_of_their_order(seed, values):
    rng = np.random.default_rng(seed)
    array = rng.integers(0, values, (5, 6, 7)).astype(np.float32)
    changed = array.copy()
    changed[tuple(rng.integers(0, array.shape))] += 1
    shuffled = rng.permutation(array.ravel()).reshape(array.shape)
    others = [changed, shuffled, array[1:], array + 1]
    if values > 3:  # few values have planes that are alike, so that a shifted array may be one in reverse
        others.append(np.roll(array, 1, 0))
    assert len({hash_of_voxels(a) for a in (array, *others)}) == 1 + len(others)


def test_images_of_the_same_histogram_differ():
    """Ranks, as histogram equalization makes them, are the same set of values in every image."""
    ranks = [np.random.default_rng(n).permutation(8 * 9 * 10).reshape(8, 9, 10) for n in range(20)]
    assert len({hash_of_voxels(r) for r in ranks}) == 20


def test_zero_has_no_sign():
    zeros = np.zeros((3, 4), np.float32)
    assert hash_of_voxels(zeros) == hash_of_voxels(-zeros)
    assert hash_of_voxels(zeros) != hash_of_voxels(np.zeros((3, 5)))
