"""Masks without a user's: blood on head CT, vessels on MRA and CTA; against phantoms' truth and on real scans."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from replica_detection.errors import ConfigurationError
from replica_detection.io.cohort import Cohort
from replica_detection.io.volume import Volume, read_volume
from replica_detection.phantom import make_head_ct, make_replica, make_tof_mra
from replica_detection.segmentation import SEGMENTERS, make_segmenter
from replica_detection.segmentation.base import WorkingGrid, merge, unmerge
from replica_detection.segmentation.brain import find_brain


def dice(a, b):
    both = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero((a > 0) & (b > 0)) / both if both else 1.0


def volume(phantom):
    return Volume(phantom.image, phantom.affine, True)


def turned(v, order, flips):
    """The same scan stored with other axes."""
    affine = v.affine.copy()
    affine[:3, :3] = v.affine[:3, :3][:, order]
    array = v.array.transpose(order)
    for axis in flips:
        affine[:3, 3] += affine[:3, axis] * (array.shape[axis] - 1)
        affine[:3, axis] *= -1
        array = np.flip(array, axis)
    return Volume(np.ascontiguousarray(array), affine, True)


def turned_array(array, order, flips):
    return np.flip(array.transpose(order), flips)


@pytest.fixture(scope="module")
def heads():
    return [make_head_ct(seed) for seed in (201, 202)]


@pytest.fixture(scope="module")
def angiographies():
    return [make_tof_mra(seed) for seed in (201, 202)]


CASES = [("hemorrhage", "heads", 0.9), ("vessels", "angiographies", 0.82)]


@pytest.mark.parametrize(("name", "scans", "least"), CASES)
def test_the_truth_of_phantoms_is_found(name, scans, least, request):
    for phantom in request.getfixturevalue(scans):
        mask = make_segmenter(name).segment(volume(phantom))
        assert mask.dtype == np.uint8 and mask.shape == phantom.image.shape
        assert set(np.unique(mask)) == {0, 1}
        assert dice(mask, phantom.mask) >= least


@pytest.mark.parametrize(("name", "scans", "least"), CASES)
def test_a_replica_keeps_its_mask_and_another_patient_does_not(name, scans, least, request):
    first, second = request.getfixturevalue(scans)
    segment = make_segmenter(name).segment
    mask = segment(volume(first))
    assert dice(mask, segment(volume(second))) < 0.3
    for kind in ("noise", "anatomy"):
        copy = make_replica(kind, first, np.random.default_rng(3), second)
        assert dice(mask, segment(volume(copy))) > least - 0.02


@pytest.mark.parametrize(("name", "scans"), [case[:2] for case in CASES])
@pytest.mark.parametrize(("order", "flips"), [((2, 0, 1), (0,)), ((1, 2, 0), (0, 2)), ((0, 1, 2), (0, 1))])
def test_the_mask_follows_the_storage_order(name, scans, order, flips, request):
    scan = volume(request.getfixturevalue(scans)[0])
    segment = make_segmenter(name).segment
    np.testing.assert_array_equal(segment(turned(scan, order, flips)), turned_array(segment(scan), order, flips))


def test_an_untrusted_geometry_is_taken_as_stored(heads):
    scan = volume(heads[0])
    mask = make_segmenter("hemorrhage").segment(scan)
    np.testing.assert_array_equal(make_segmenter("hemorrhage").segment(replace(scan, trusted=False)), mask)


@pytest.mark.parametrize(("name", "scans"), [case[:2] for case in CASES])
def test_the_same_scan_gives_the_same_mask_and_is_not_changed(name, scans, request):
    scan = volume(request.getfixturevalue(scans)[1])
    before = scan.array.copy()
    first, second = (make_segmenter(name).segment(scan) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(scan.array, before)


def test_thin_and_fine_slices_give_the_same_blood(heads):
    phantom = heads[0]
    fine = ndimage.zoom(phantom.image, (2, 2, 1.5), order=1, grid_mode=True, mode="nearest")
    truth = ndimage.zoom(phantom.mask, (2, 2, 1.5), order=0, grid_mode=True, mode="nearest")
    affine = phantom.affine @ np.diag([0.5, 0.5, 1 / 1.5, 1])
    assert dice(make_segmenter("hemorrhage").segment(Volume(fine, affine, True)), truth) > 0.88


def test_merged_voxels_come_back_where_they_were():
    x, y, z = np.indices((13, 12, 10)).astype(np.float32)
    ramp = 2 * x - y + 3 * z
    back = unmerge(merge(ramp, (2, 3, 1)), (2, 3, 1), ramp.shape)
    np.testing.assert_allclose(back[1:-2, 1:-1], ramp[1:-2, 1:-1], atol=1e-4)


def test_vessels_in_anisotropic_voxels(angiographies):
    phantom = angiographies[0]
    fine = ndimage.zoom(phantom.image, (2, 2, 1), order=1, grid_mode=True, mode="nearest")
    truth = ndimage.zoom(phantom.mask, (2, 2, 1), order=0, grid_mode=True, mode="nearest")
    mask = make_segmenter("vessels").segment(Volume(fine, phantom.affine @ np.diag([0.5, 0.5, 1, 1]), True))
    assert dice(mask, truth) > 0.78


def without_blood(phantom):
    """The scan with brain in place of the hematoma, its rim and its edema included."""
    around = ndimage.binary_dilation(phantom.mask, iterations=3)
    brain = np.random.default_rng(1).normal(31, 4, phantom.image.shape).astype(np.float32)
    return np.where(around & (phantom.image > 0) & (phantom.image < 120), np.rint(brain), phantom.image)


def test_a_head_without_blood_has_no_mask(heads):
    for phantom in heads:
        assert not make_segmenter("hemorrhage").segment(Volume(without_blood(phantom), phantom.affine, True)).any()


def test_a_scan_that_ends_within_the_head(heads):
    phantom = heads[0]
    where = np.flatnonzero(phantom.mask.any(axis=(0, 1)))
    part = slice(max(0, where[0] - 3), where[-1] + 4)
    image = np.ascontiguousarray(phantom.image[:, :, part])
    assert (
        dice(make_segmenter("hemorrhage").segment(Volume(image, phantom.affine, True)), phantom.mask[:, :, part]) > 0.9
    )


def test_no_head_no_blood():
    air = np.full((40, 40, 20), -1000, np.float32)
    air[10:30, 10:30, 5:15] = 1000
    assert not make_segmenter("hemorrhage").segment(Volume(air, np.diag([2.0, 2, 4, 1]), True)).any()


def test_noise_has_no_vessels():
    noise = np.random.default_rng(0).normal(100, 5, (60, 60, 30)).astype(np.float32)
    assert not make_segmenter("vessels").segment(Volume(noise, np.eye(4), True)).any()


def test_vessels_of_a_suppressed_background_are_found_and_a_sheet_is_not():
    x, y, z = np.indices((60, 60, 40)).astype(np.float32)
    tube = 200 * np.clip(2.5 - np.hypot(x - 20 - 4 * np.sin(z / 6), y - 30), 0, 1)
    sheet = 60.0 * (np.abs(x - 50) < 2)
    mask = make_segmenter("vessels").segment(Volume((tube + sheet).astype(np.float32), np.eye(4), True))
    assert dice(mask, tube > 100) > 0.9
    assert not mask[46:].any()


@pytest.mark.parametrize("name", ["hemorrhage", "vessels"])
def test_settings_say_all_and_fit_json(name):
    segmenter = make_segmenter(name)
    settings = json.loads(json.dumps(segmenter.settings()))
    assert settings["name"] == segmenter.name == name and settings["version"] >= 1
    assert settings != make_segmenter(name, voxel_mm=2.0).settings()
    assert all(label > 0 for label in segmenter.labels)


def test_wrong_names_and_options_are_explained(heads):
    with pytest.raises(ConfigurationError, match=r"unknown segmenter 'liver'; known: .*hemorrhage.*vessels"):
        make_segmenter("liver")
    with pytest.raises(ConfigurationError, match=r"no option 'threshold'.*rim_mm"):
        make_segmenter("hemorrhage", threshold=3)
    with pytest.raises(ConfigurationError, match="rim_mm must be above 0"):
        make_segmenter("hemorrhage", rim_mm=-1.0)
    with pytest.raises(ConfigurationError, match="known: auto, mra, cta"):
        make_segmenter("vessels", modality="pet")
    assert {"hemorrhage", "vessels"} <= set(SEGMENTERS)


def test_images_of_another_kind_are_refused(heads):
    flat = Volume(heads[0].image[:, :, 15], heads[0].affine, True)
    for name in ("hemorrhage", "vessels"):
        with pytest.raises(ConfigurationError, match="needs a 3D volume"):
            make_segmenter(name).segment(flat)
    shifted = replace(volume(heads[0]), array=heads[0].image + 1024)
    with pytest.raises(ConfigurationError, match="subtract 1024"):
        make_segmenter("hemorrhage").segment(shifted)
    with pytest.raises(ConfigurationError, match="cta"):
        make_segmenter("vessels", modality="cta").segment(shifted)


@pytest.fixture(scope="module")
def real_ct(real_data):
    folder = real_data / "head_ct" / "ge_human_dicom"
    if not folder.is_dir():
        pytest.skip("no real head CT")
    return read_volume(Cohort.read(folder).cases[0])


def test_a_real_head_without_blood(real_ct):
    grid = WorkingGrid.of(real_ct, 1.0)
    brain = find_brain(grid.to_grid(real_ct.array), grid.spacing_mm)
    assert 1000 < np.count_nonzero(brain.mask) * np.prod(grid.spacing_mm) / 1000 < 1700
    assert 22 < brain.median_hu < 38
    assert not make_segmenter("hemorrhage").segment(real_ct).any()


def test_blood_painted_into_a_real_head(real_ct):
    grid = WorkingGrid.of(real_ct, 1.0)
    brain = find_brain(grid.to_grid(real_ct.array), grid.spacing_mm)
    middle = np.array(ndimage.center_of_mass(grid.to_volume(brain.mask - 0.5)))
    middle[0] += 25 / real_ct.spacing[0]
    index = np.indices(real_ct.array.shape, dtype=np.float32)
    away = np.sqrt(sum(((i - m) * s) ** 2 for i, m, s in zip(index, middle, real_ct.spacing, strict=True)))
    opacity = np.clip((12 - away) / 2 + 0.5, 0, 1)
    bloody = real_ct.array + opacity * 34
    mask = make_segmenter("hemorrhage").segment(replace(real_ct, array=bloody.astype(np.float32)))
    assert dice(mask, opacity > 0.5) > 0.85


def test_a_real_angiography(real_data):
    path = real_data / "mra" / "chris_MRA.nii.gz"
    if not path.is_file():
        pytest.skip("no real angiography")
    scan = read_volume(path)
    mask = make_segmenter("vessels").segment(scan) > 0
    assert 2.5 < np.count_nonzero(mask) * np.prod(scan.spacing) / 1000 < 8
    # Nearly all that is bright is a vessel, and nothing dim is.
    assert np.count_nonzero(mask & (scan.array > 180)) > 0.93 * np.count_nonzero(scan.array > 180)
    assert np.median(scan.array[mask]) > 120
    # The carotids, the circle and the middle cerebral arteries of both sides hang together.
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
    assert largest.sum() > 0.8 * mask.sum()
    halves = [np.count_nonzero(largest[:100]), np.count_nonzero(largest[100:])]
    assert min(halves) > 0.35 * sum(halves)
