"""The segmentation level: what is stored, what is left out, and what the ranked numbers mean."""

import numpy as np
import pytest

from Core.made_masks import blobs
from replica_detection.errors import ConfigurationError
from replica_detection.kernels import overlap, surface
from replica_detection.measures.base import MEASURES
from replica_detection.measures.segmentation import NO_MASK, has_mask, label_values
from replica_detection.preparation.prepare import PreparedImage
from replica_detection.preparation.profiles import Intensity, Native, Preparation

NAMES = ("dice", "asd", "asd_surfel", "hd95", "cldice")
SPACING = (0.8, 1.0, 2.5)


def preparation(grid: tuple[int, ...] = (12, 13, 14)) -> Preparation:
    spacing = SPACING[: len(grid)]
    extent = tuple(n * s for n, s in zip(grid, spacing, strict=True))
    native = Native(grid, spacing, extent, "RAS"[: len(grid)])
    return Preparation("generic", len(grid), spacing, grid, Intensity(window=(0, 1)), native)


def block(measure, masks) -> dict[str, np.ndarray]:
    image = np.zeros(measure.preparation.grid, np.float32)
    rows = [measure.features(PreparedImage(image, mask)) for mask in masks]
    assert all(tuple(row) == measure.needs for row in rows)
    return {name: np.stack([row[name] for row in rows]) for name in measure.needs}


@pytest.fixture(params=NAMES)
def measure(request):
    return MEASURES[request.param](preparation())


def test_all_five_are_registered_at_their_level():
    assert {n for n, m in MEASURES.items() if m.level == "segmentation" and m.stage == "in place"} == set(NAMES)
    assert {name for name in NAMES if MEASURES[name].sense == "similarity"} == {"dice", "cldice"}


def test_distances_are_those_of_the_kernels():
    masks = blobs(1, 6, (12, 13, 14), share=0.3) * blobs(2, 1, (12, 13, 14), share=0.9) * 3
    queries, training = masks[:2], masks[2:]
    expected = {
        "dice": 1 - overlap.dice(queries, training),
        "asd": surface.asd(queries, training, SPACING),
        "asd_surfel": surface.asd_surfel(queries, training, SPACING),
        "hd95": surface.hd95(queries, training, SPACING),
    }
    for name, distances in expected.items():
        one = MEASURES[name](preparation())
        np.testing.assert_array_equal(one.distances(block(one, queries), block(one, training)), distances)


def test_a_stored_skeleton_gives_the_same_as_one_made_on_the_way():
    masks = blobs(3, 5, (12, 13, 14), share=0.3)
    one = MEASURES["cldice"](preparation())
    expected = 1 - one.of_masks(masks[:2], masks, SPACING, None)
    np.testing.assert_array_equal(one.distances(block(one, masks[:2]), block(one, masks)), expected)


def test_copies_are_at_zero_and_others_above(measure):
    masks = blobs(4, 6, measure.preparation.grid)
    distances = measure.distances(block(measure, masks), block(measure, masks.copy()))
    np.testing.assert_array_equal(np.diag(distances), 0)
    assert distances.dtype == np.float64
    assert np.all(distances[~np.eye(6, dtype=bool)] > 0)
    np.testing.assert_array_equal(distances, distances.T)


def test_labels_do_not_matter_for_the_ranking(measure):
    masks = blobs(5, 4, measure.preparation.grid)
    labelled = masks * (1 + blobs(6, 4, measure.preparation.grid, share=0.5))
    expected = measure.distances(block(measure, masks), block(measure, masks))
    np.testing.assert_array_equal(measure.distances(block(measure, labelled), block(measure, masks)), expected)


def test_empty_masks(measure):
    masks = blobs(7, 2, measure.preparation.grid)
    masks[0] = 0
    one_empty = 1.0 if measure.sense == "similarity" else np.inf
    found = measure.distances(block(measure, masks), block(measure, masks))
    np.testing.assert_array_equal(found, [[np.inf, one_empty], [one_empty, 0]])


def test_every_pair_with_a_case_without_a_mask_is_left_out(measure):
    masks = blobs(8, 4, measure.preparation.grid)
    without = [None, masks[1], None, masks[3]]
    found = measure.distances(block(measure, without), block(measure, [*masks[:3], None]))
    expected = np.full((4, 4), np.inf)
    expected[1::2, :3] = measure.distances(block(measure, masks[1::2]), block(measure, masks[:3]))
    np.testing.assert_array_equal(found, expected)
    assert np.isfinite(found[1::2, :3]).all()
    nobody = block(measure, [None, None])
    assert np.isinf(measure.distances(nobody, block(measure, masks))).all()


def test_a_case_without_a_mask_is_stored_as_such_and_a_full_mask_is_not_taken_for_one(measure):
    grid = measure.preparation.grid
    stored = block(measure, [None, np.full(grid, NO_MASK, np.uint8), np.zeros(grid, np.uint8)])["mask"]
    assert stored.dtype == np.uint8
    assert np.all(stored[0] == NO_MASK)
    np.testing.assert_array_equal(has_mask(stored), [False, True, True])
    corner = np.zeros((1, *grid), np.uint8)
    corner[0, 0, 0, 0] = NO_MASK
    assert has_mask(corner)[0]


@pytest.mark.parametrize("name", NAMES)
def test_2d_grids_are_served(name):
    one = MEASURES[name](preparation((30, 24)))
    assert one.problem() is None
    masks = blobs(9, 3, (30, 24))
    distances = one.distances(block(one, masks), block(one, masks))
    np.testing.assert_array_equal(np.diag(distances), 0)
    assert np.all(np.isfinite(distances))


@pytest.mark.parametrize("name", NAMES)
def test_label_values_are_those_of_each_label_by_itself(name):
    grid = (12, 13, 14)
    a, b = blobs(10, 2, grid, share=0.4) * (1 + blobs(11, 2, grid, share=0.5))
    b[b == 2] = 5
    a[0, 0, 0] = b[0, 0, 0] = 7
    one = MEASURES[name](preparation())
    found = label_values(name, a, b, [1, 2, 7, 9], SPACING)
    for label in (1, 7):
        sides = [block(one, [(side == label).astype(np.uint8)]) for side in (a, b)]
        assert found[label] == one.value(one.distances(*sides)[0, 0])
    assert found[7] == (1.0 if one.sense == "similarity" else 0.0)
    assert found[2] == (0.0 if one.sense == "similarity" else np.inf)
    assert np.isnan(found[9])
    assert np.isnan(label_values(name, a, np.full(grid, NO_MASK, np.uint8), [1], SPACING)[1])


def test_label_values_of_a_measure_that_compares_no_masks_are_refused():
    mask = np.ones((3, 3, 3), np.uint8)
    with pytest.raises(ConfigurationError, match="does not compare masks"):
        label_values("mae", mask, mask, [1], SPACING)


def test_half_overlapping_cubes_by_hand():
    a, b = np.zeros((2, 12, 13, 14), np.uint8)
    a[2:6, 4:8, 4:8], b[4:8, 4:8, 4:8] = 1, 1
    values = {name: label_values(name, a, b, [1], (1, 1, 1))[1] for name in NAMES}
    assert values["dice"] == 0.5
    assert values["hd95"] == 2.0
    assert 0 < values["asd"] < 2
