"""The pictures of a pair: which way round, which plane, which window, how large."""

import io

import numpy as np
import pytest
from PIL import Image

from replica_detection.report import Pair
from replica_detection.report.pictures import (
    DIFFERENCE_RANGE,
    compose,
    grey_window,
    jpeg,
    planes,
    position,
)


def test_planes_follow_the_radiological_convention():
    """A mark in the right-anterior-superior corner: top left in axial and coronal planes, anterior on the left."""
    image = np.zeros((20, 24, 16), np.float32)
    image[8:12, 8:16, 6:10] = 0.5
    image[16:, 20:, 12:] = 1
    axial, coronal, sagittal = planes(Pair(image, image, (1.0, 1.0, 2.0)))
    assert [p.name for p in (axial, coronal, sagittal)] == ["axial", "coronal", "sagittal"]
    assert (axial.left, axial.right, axial.top, axial.bottom) == ("R", "L", "A", "P")
    assert axial.size_mm == (20, 24) and coronal.size_mm == (20, 32) and sagittal.size_mm == (24, 32)
    for name, axis in (("axial", 2), ("coronal", 1), ("sagittal", 0)):
        corner = np.zeros_like(image)
        corner[tuple(slice(None) if a == axis else slice(-3, None) for a in range(3))] = 1
        plane = next(p for p in planes(Pair(corner, corner, (1.0, 1.0, 2.0))) if p.name == name)
        assert plane.synthetic[:3, :3].min() == 1 and plane.synthetic.sum() == 9


def test_position_finds_the_structure():
    image = np.zeros((40, 40, 40), np.float32)
    image[5:15, 18:30, 26:34] = np.random.default_rng(0).random((10, 12, 8))
    at = position(Pair(image, np.zeros_like(image), (1.0,) * 3))
    assert 5 <= at[0] < 15 and 18 <= at[1] < 30 and 26 <= at[2] < 34
    # Rich planes at the rim, as where a cut runs along the skull, do not win over the middle.
    image = np.zeros((40, 40, 40), np.float32)
    image[15:25, 15:27, 3:35] = np.random.default_rng(0).random((10, 12, 32))
    image[10:27, 10:28, 37:] = np.random.default_rng(0).random((17, 18, 3))
    assert 3 <= position(Pair(image, image, (1.0,) * 3))[2] < 35
    flat = np.zeros((6, 8, 1), np.float32)
    assert position(Pair(flat, flat, (1.0,) * 3)) == (3, 4, 0)


def test_equal_images_differ_nowhere_and_unequal_ones_do():
    rng = np.random.default_rng(0)
    image = rng.random((48, 48, 48), np.float32) / 2

    def colours(pair):
        # The third column lies 652 to 970 pixels from the left; the letters of its labels are yellow or white.
        panel = np.asarray(compose(pair, ("", "", "")).convert("RGB"), int)[100:250, 700:900]
        return panel.reshape(-1, 3).mean(0)

    assert colours(Pair(image, image, (1.0,) * 3)).max() == 0
    red, _, blue = colours(Pair(image + DIFFERENCE_RANGE / 2, image, (1.0,) * 3))
    assert red > 150 > 60 > blue
    red, _, blue = colours(Pair(image, image + DIFFERENCE_RANGE / 2, (1.0,) * 3))
    assert blue > 150 > 60 > red


def test_both_images_share_one_window():
    dark, bright = np.full((8, 8, 8), 0.2, np.float32), np.full((8, 8, 8), 0.8, np.float32)
    assert grey_window(Pair(dark, bright, (1.0,) * 3)) == pytest.approx((0, 0.8))
    broken = np.full((8, 8, 8), np.nan, np.float32)
    assert grey_window(Pair(broken, broken, (1.0,) * 3)) == (0, 0.05)
    assert jpeg(Pair(broken, bright, (1.0,) * 3))


def test_spacing_makes_the_aspect():
    def size(spacing):
        rows = planes(Pair(*np.zeros((2, 32, 32, 8), np.float32), spacing))
        return rows[1].size_mm[1] / rows[1].size_mm[0]

    assert size((1.0, 1.0, 4.0)) == 1 and size((1.0, 1.0, 1.0)) == 0.25
    thick = Image.open(io.BytesIO(jpeg(Pair(*np.zeros((2, 32, 32, 8), np.float32), (1.0, 1.0, 4.0)))))
    thin = Image.open(io.BytesIO(jpeg(Pair(*np.zeros((2, 32, 32, 8), np.float32), (1.0, 1.0, 1.0)))))
    assert thick.height > 1.5 * thin.height and thick.width == thin.width


@pytest.mark.parametrize(
    ("a", "b", "spacing"),
    [((4, 4, 4), (4, 4, 5), (1, 1, 1)), ((4,), (4,), (1,)), ((0, 4), (0, 4), (1, 1)), ((4, 4), (4, 4), (1, 0))],
)
def test_pairs_that_cannot_be_shown(a, b, spacing):
    with pytest.raises(ValueError, match="shape"):
        Pair(np.zeros(a), np.zeros(b), spacing)


def test_pictures_of_noise_keep_the_budget():
    rng = np.random.default_rng(0)
    noise = Pair(*rng.random((2, 96, 96, 96), np.float32), (1.0, 1.0, 1.0))
    assert len(jpeg(noise, max_bytes=10**9)) > 400_000
    assert len(jpeg(noise, max_bytes=400_000)) <= 400_000
