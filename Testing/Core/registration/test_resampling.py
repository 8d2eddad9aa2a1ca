"""Aligned pairs that differ by resampling alone, and those that differ by more."""

import numpy as np
import pytest
from scipy import ndimage

from replica_detection.detection.detector import detect
from replica_detection.io.cohort import Cohort

SHAPE = (36, 40, 32)


def scan(seed, smooth=2.0):
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal(SHAPE), smooth)
    grid = (np.indices(SHAPE).T - (np.array(SHAPE) - 1) / 2).T
    body = (grid**2).sum(0) < 14**2
    return np.where(body, 500 + 200 * field / field.std(), 0).astype(np.float32)


def rotated(image, degrees, order=1):
    return ndimage.rotate(image, degrees, (0, 1), reshape=False, order=order, mode="nearest")


def zoomed(image, factor):
    centre = (np.array(SHAPE) - 1) / 2
    return ndimage.affine_transform(image, [1 / factor] * 3, centre - centre / factor, order=1, mode="nearest")


COPIES = {
    "turned": lambda i: rotated(i, 7),
    "turned, cubic": lambda i: rotated(i, -5, order=3),
    "turned and mirrored": lambda i: rotated(np.flip(i, 0), 4),
    "zoomed": lambda i: zoomed(i, 1.06),
}
OTHERS = {
    "another person": lambda i: scan(99),
    "turned, with noise": lambda i: rotated(i, 7) + np.random.default_rng(0).normal(0, 150, SHAPE),
    "half another person": lambda i: 0.6 * i + 0.4 * scan(99),
    "noise in place": lambda i: i + np.random.default_rng(0).normal(0, 20, SHAPE),
}


@pytest.fixture(scope="module")
def reasons():
    training = [scan(n) for n in range(5)]
    made = {name: change(training[2]) for name, change in (COPIES | OTHERS).items()}
    arrays = [np.asarray(a, np.float32) for a in made.values()]
    result = detect(
        Cohort.from_arrays(arrays, spacing=1.0, ids=[f"{n}" for n in range(len(arrays))]),
        Cohort.from_arrays(training, spacing=1.0),
        measures=["ncc_aligned"],
    )
    return dict(zip(made, result.summary, strict=True))


@pytest.mark.parametrize("name", COPIES)
def test_a_resampled_copy_needs_no_null(reasons, name):
    """Five training scans and no unseen one: statistics could say nothing."""
    assert (reasons[name].verdict, reasons[name].reason) == ("replica", "identical")
    assert reasons[name].nearest_training_id.endswith("3")


@pytest.mark.parametrize("name", OTHERS)
def test_what_differs_by_more_is_left_to_the_null(reasons, name):
    assert reasons[name].reason != "identical"
