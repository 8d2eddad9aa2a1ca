"""Values that are no tissue: padding of CT below -1024 HU, and backgrounds of generators and scanners."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from replica_detection.io.volume import Volume
from replica_detection.preparation.prepare import plan, prepare
from replica_detection.preparation.profiles import PROFILES, Intensity, Preparation

PADS = (-1024, -2000, -3024, -32768)
AFFINE = np.diag([1.0, 1.0, 1.2, 1.0])


def ct(seed: int, outside: float, *, shape=(24, 24, 10), air: float = -1000) -> Volume:
    """Smooth tissue in air, and beyond the scanner's circle a constant."""
    tissue = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    values = np.clip(tissue / tissue.std() * 200, -900, 1500)
    x, y, _ = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    values[np.hypot(x, y) > 0.8] = air
    values[np.hypot(x, y) > 0.97] = outside
    return Volume(np.rint(values).astype(np.float32), AFFINE, True)


def mr(seed: int, background: float) -> Volume:
    """Values from 0 to 1000 in an ellipsoid, a constant around it."""
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(24, 24, 10)), 2)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in field.shape], indexing="ij"))
    inside = np.sqrt((grid**2).sum(0)) < 0.9
    values = np.where(inside, (field - field.min()) / np.ptp(field) * 1000, background)
    return Volume(values.astype(np.float32), AFFINE, True)


def with_noise(volume: Volume, sigma: float, seed: int = 0) -> Volume:
    """A copy with noise in its tissue; constants stay."""
    values, counts = np.unique(volume.array, return_counts=True)
    constant = np.isin(volume.array, values[counts > 100])
    noise = np.random.default_rng(seed).normal(0, sigma, volume.array.shape)
    return replace(volume, array=np.where(constant, volume.array, volume.array + noise).astype(np.float32))


def notes_on_padding(volume: Volume, preparation: Preparation) -> list[str]:
    return [note for note in prepare(volume, preparation).warnings if "padding" in note]


@pytest.mark.parametrize("training", PADS)
@pytest.mark.parametrize("profile", ["generic", "head-ct"])
def test_padding_does_not_change_the_plan(training: int, profile: str):
    padded = plan(PROFILES[profile], [ct(n, training) for n in range(4)])
    assert padded == plan(PROFILES[profile], [ct(n, -1024) for n in range(4)])
    assert padded.intensity.window is not None and padded.intensity.window[0] >= -1024


@pytest.mark.parametrize("training", PADS)
def test_ct_without_bone_is_ct_too(training: int):
    """Its largest value is below that of bone; most of it is tissue, and air lies around."""
    cohort = [replace(v, array=np.minimum(v.array, 120)) for v in (ct(n, training) for n in range(4))]
    preparation = plan(PROFILES["generic"], cohort)
    assert preparation.intensity.window == (-1024 if training <= -1024 else -1000, 120)
    same = replace(cohort[2], array=np.maximum(cohort[2].array, -1024))
    np.testing.assert_array_equal(prepare(cohort[2], preparation).image, prepare(same, preparation).image)


@pytest.mark.parametrize("training", PADS)
@pytest.mark.parametrize("synthetic", PADS)
def test_padding_that_differs_between_cohorts_does_not_hide_a_copy(training: int, synthetic: int):
    """A copy with noise is nearer to its source than any of the unseen scans is to a training scan."""
    cohort = [ct(n, training) for n in range(6)]
    preparation = plan(PROFILES["generic"], cohort)
    rows = [prepare(v, preparation).image for v in cohort]

    def distances(volume: Volume) -> list[float]:
        image = prepare(volume, preparation).image
        return [float(np.abs(image - row).mean()) for row in rows]

    null = min(min(distances(ct(100 + n, training))) for n in range(6))
    copy = distances(with_noise(ct(3, synthetic), 60))
    assert np.argmin(copy) == 3 and min(copy) < null / 2
    assert distances(ct(3, synthetic))[3] == 0


@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize("profile", ["generic", "head-ct"])
@pytest.mark.parametrize("spacing", [1.0, 0.5])
def test_padding_is_taken_for_air_and_told(pad: int, profile: str, spacing: float):
    """Before resampling: beside padding of -32768 no voxel is darker than beside -1024."""
    preparation = plan(PROFILES[profile], [ct(n, -1024) for n in range(3)])
    one, other = (
        replace(ct(7, outside, shape=(48, 48, 20)), affine=np.diag([spacing, spacing, 0.6, 1]))
        for outside in (-1024, pad)
    )
    assert np.array_equal(prepare(one, preparation).image, prepare(other, preparation).image)
    assert notes_on_padding(one, preparation) == []
    assert len(notes_on_padding(other, preparation)) == (pad < -1024)


@pytest.mark.parametrize("outside", [-1023, -1019, -1000, -600])
@pytest.mark.parametrize("ringing", [False, True])
def test_the_constant_background_of_a_generator_counts_as_the_scanners(outside: int, ringing: bool):
    preparation = plan(PROFILES["generic"], [ct(n, -1024) for n in range(3)])
    expected = prepare(ct(5, -1024), preparation).image
    clipped = replace(ct(5, outside), array=np.maximum(ct(5, outside).array, outside))
    if ringing:
        clipped.array[12, 10:14, 3:6] = outside - 10
    found = prepare(clipped, preparation)
    corners = ct(5, -1024).array == -1024
    assert (found.image[corners] == 0).all() and (expected[corners] == 0).all()
    assert sum("constant background" in note for note in found.warnings) == 1


@pytest.mark.parametrize("background", [-1, 5])
def test_a_skull_stripped_head_with_another_background_is_hardly_another(background: int):
    preparation = plan(PROFILES["head-ct"], [mr(n, 0) for n in range(3)])
    array = np.clip(mr(1, 0).array / 10, 0, 100)
    inside = mr(1, 0).array > 0
    one, other = (Volume(np.where(inside, array + 10, b).astype(np.float32), AFFINE, True) for b in (0, background))
    assert np.abs(prepare(one, preparation).image - prepare(other, preparation).image).max() < 0.0101


@pytest.mark.parametrize("training", [0, -1, 5])
@pytest.mark.parametrize("synthetic", [0, -1, 5])
def test_backgrounds_that_differ_do_not_hide_a_copy_of_mr(training: int, synthetic: int):
    cohort = [mr(n, training) for n in range(6)]
    preparation = plan(PROFILES["generic"], cohort)
    rows = [prepare(v, preparation).image for v in cohort]
    null = min(np.abs(prepare(mr(100 + n, training), preparation).image - r).mean() for n in range(6) for r in rows)
    copy = [np.abs(prepare(with_noise(mr(2, synthetic), 40), preparation).image - r).mean() for r in rows]
    assert np.argmin(copy) == 2 and min(copy) < null / 2


def test_values_that_are_no_hu_stay_as_they_are():
    """Phase images of MR spread from -4096 to 4095; percentiles of each image scale the rest."""
    rng = np.random.default_rng(0)
    phases = [Volume(rng.uniform(-4096, 4095, (12, 12, 12)).astype(np.float32), AFFINE, True) for _ in range(3)]
    preparation = plan(PROFILES["generic"], phases)
    assert preparation.intensity.window is not None and preparation.intensity.window[0] < -3000
    assert prepare(phases[0], preparation).warnings == ()
    scaled = replace(preparation, intensity=Intensity(percentiles=(1, 99)))
    low, high = np.percentile(phases[0].array, (1, 99))
    expected = np.clip((phases[0].array - low) / (high - low), 0, 1)
    np.testing.assert_allclose(prepare(phases[0], scaled).image, expected, atol=1e-5)


@pytest.mark.parametrize("factor", [1, 255, 256, 1024, 14175, 70000, -1])
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float64])
def test_any_label_above_0_stays_foreground(factor: int, dtype: type):
    if dtype is np.int16 and factor > 32767:
        pytest.skip("no such label in 16 bits")
    volume = mr(1, 0)
    foreground = ndimage.gaussian_filter(np.random.default_rng(4).normal(size=volume.array.shape), 2) > 0.05
    labels = (np.where(foreground, 0, -1) if factor < 0 else foreground * factor).astype(dtype)
    preparation = plan(PROFILES["generic"], [volume])
    prepared = prepare(volume, preparation, labels, "file")
    assert prepared.mask is not None and prepared.mask.dtype == np.uint8
    assert np.array_equal(prepared.mask > 0, labels > 0)
    told = [note for note in prepared.warnings if "mask" in note]
    assert len(told) == (factor < 0 or factor > 255)
    assert factor < 0 or prepared.mask.max() == min(factor, 255)
