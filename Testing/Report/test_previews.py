"""Previews of masks: each label in a colour of its own."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from replica_detection.report.pictures import SYNTHETIC_OUTLINE
from replica_detection.report.preview import CAPTION, label_colour, preview

SHAPE = (60, 60, 12)
NEAR = 70  # of a colour, after JPEG


def drawn(labels: tuple[int, ...], dtype: type = np.int32) -> np.ndarray:
    """The preview's pixels (rows, columns, 3) of a grey image with one cuboid for each label."""
    mask = np.zeros(SHAPE, dtype)
    for number, label in enumerate(labels):
        left, top = 4 + 18 * (number % 3), 4 + 18 * (number // 3)
        mask[left : left + 14, top : top + 14, 2:10] = label
    image = np.random.default_rng(0).normal(500, 1, SHAPE)
    data = preview(image, mask, np.eye(4), (0, 5000), max_bytes=10**6)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def shown(pixels: np.ndarray, colours: list[tuple[int, int, int]]) -> list[int]:
    """Number of bright pixels below the caption that are nearest to each colour."""
    below = pixels[CAPTION:].reshape(-1, 3)
    below = below[np.ptp(below, axis=1) > 40]  # what is not grey
    apart = np.linalg.norm(below[:, None] - np.array(colours)[None], axis=-1)
    return [int(((apart.argmin(1) == n) & (apart.min(1) < NEAR)).sum()) for n in range(len(colours))]


@pytest.mark.parametrize("labels", [(1, 2), (1, 2, 3, 4, 5, 6), (1, 255, 256), (17, 53), (1024, 2024), (14175, 3)])
def test_each_label_has_an_outline_in_its_own_colour(labels: tuple[int, ...]):
    pixels = drawn(labels)
    counts = shown(pixels, [label_colour(n) for n in labels])
    # A cuboid of 14 x 14 voxels has an outline of some 240 pixels in each of eight slices.
    assert all(count > 600 for count in counts), counts
    assert np.ptp(pixels[:CAPTION], axis=-1).max() > 100, "the caption names the labels in their colours"


def test_labels_that_are_near_each_other_are_told_apart():
    colours = np.array([label_colour(n) for n in range(1, 13)], float)
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(colours, 2)) > 80
    assert len({label_colour(n) for n in range(1, 61)}) == 60


@pytest.mark.parametrize("dtype", [np.uint8, bool])
def test_a_mask_of_one_label_is_drawn_as_in_reports(dtype: type):
    pixels = drawn((1,), dtype)
    assert label_colour(1) == SYNTHETIC_OUTLINE and shown(pixels, [SYNTHETIC_OUTLINE])[0] > 600
    assert np.ptp(pixels[:CAPTION], axis=-1).max() < 40, "one label needs no list"


def test_an_empty_mask_and_negative_labels_have_no_outline():
    assert shown(drawn(()), [SYNTHETIC_OUTLINE]) == [0]
    assert shown(drawn((-1,)), [SYNTHETIC_OUTLINE]) == [0]
