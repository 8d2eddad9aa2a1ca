"""Where the training image is put: a transform node over untouched voxels, by geometry and by the alignment."""

from __future__ import annotations

import made_pairs
import numpy as np
import pytest
import slicer
import vtk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.pictures import around, keep
from ReplicaDetectionLib.Blinding import Blinding
from ReplicaDetectionLib.ComparisonLayout import FIRST, ROWS
from ReplicaDetectionLib.DerivedVolumes import onGridOf
from ReplicaDetectionLib.MatchTransform import MODES
from ReplicaDetectionLib.Nodes import HEAT, arrayOf
from ReplicaDetectionLib.PlacedSurfaces import PlacedSurfaces


def key_that_swaps(wanted: bool, ids=("syn_0007", "patient_0042")) -> Blinding:
    return next(b for b in map(Blinding, (f"{n:032d}" for n in range(100))) if b.swapped(*ids) == wanted)


def to_world(logic) -> np.ndarray:
    return arrayOf(logic.placement.node.GetMatrixTransformToParent())


def test_files_of_one_geometry_need_no_move(logic):
    logic.showPair(made_pairs.pair())
    np.testing.assert_array_equal(to_world(logic), np.eye(4))
    assert logic.placement.mode == "compared" and not logic.placement.canAlign and logic.placement.words == ""
    with pytest.raises(ValueError, match="no alignment"):
        logic.placement.setMode("aligned")
    with pytest.raises(ValueError, match="compared"):
        logic.placement.setMode("elsewhere")


def test_the_training_image_is_moved_and_its_voxels_stay(logic):
    turned = made_pairs.affine(origin=(70.0, 10.0, -5.0), signs=(-1, 1, 1))
    pair = made_pairs.pair(training_affine=turned)
    logic.showPair(pair)
    second = logic.volumes()[1]
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(second).T, pair.training.array)
    stored = vtk.vtkMatrix4x4()
    second.GetIJKToRASMatrix(stored)
    np.testing.assert_allclose(arrayOf(stored), turned)
    assert second.GetParentTransformNode() is logic.placement.node
    # A voxel of the training image lies where the synthetic image has the voxel that it was compared with.
    np.testing.assert_allclose(to_world(logic) @ turned, made_pairs.affine(), atol=1e-9)


def test_an_alignment_is_shown_at_once_and_as_compared_at_a_click(logic, layouts):
    logic.showPair(made_pairs.pair(alignment=made_pairs.mirrored()))
    assert logic.placement.mode == "aligned" and logic.placement.canAlign
    assert logic.placement.words == "mirrored left-right"
    logic.composition.setCrosshair(False)
    logic.surfaces.setOutlines(False)
    # The right half of the made-up images is brighter; mirrored, the left half is.
    right, left = (10.0, 0.0, 0.0), (-10.0, 0.0, 0.0)

    def greys() -> tuple[float, float]:
        view = layouts.view("ReplicaSecondAxial")
        picture = view.picture()
        return tuple(float(around(picture, view.pixel_of(p)).mean()) for p in (right, left))

    aligned = greys()
    assert aligned[1] - aligned[0] > 10
    keep(layouts.picture(), "aligned")
    logic.placement.setMode("compared")
    compared = greys()
    assert compared[0] - compared[1] > 10
    logic.placement.setMode("aligned")
    assert greys() == pytest.approx(aligned, abs=1)


def test_the_chosen_place_stays_for_the_next_case(logic):
    logic.showPair(made_pairs.pair(alignment=made_pairs.mirrored()))
    logic.placement.setMode("compared")
    logic.showPair(made_pairs.pair(alignment=made_pairs.mirrored(), ids=("syn_0008", "patient_0001")))
    assert logic.placement.mode == "compared"
    logic.placement.setMode("aligned")
    logic.showPair(made_pairs.pair())
    assert logic.placement.mode == "compared"
    logic.showPair(made_pairs.pair(alignment=made_pairs.mirrored()))
    assert logic.placement.mode == "aligned"


def test_distances_and_difference_follow_the_place(logic):
    """The training image is the synthetic one mirrored: aligned, nothing differs."""
    synthetic, training = made_pairs.mirrored_copies()
    pair = made_pairs.pair_of(synthetic, training, made_pairs.mirrored())
    logic.layout.set("overlay")
    logic.showPair(pair)
    logic.composition.setMode("difference")
    volume = logic.composition._derived["difference"]

    def largest() -> float:
        # The two outermost layers lie outside the mirrored image.
        return float(np.abs(slicer.util.arrayFromVolume(volume)[2:-2, 2:-2, 2:-2]).max())

    assert logic.surfaces.statistics()[2].maximum < 0.1 and largest() < 0.01
    logic.placement.setMode("compared")
    assert logic.surfaces.statistics()[2].maximum > 2 and largest() > 0.3
    heat = slicer.util.arrayFromModelPointData(logic.surfaces._models[FIRST], "SurfaceDistance")
    np.testing.assert_allclose(heat, pair.surfaces.compared[0], rtol=1e-5)
    logic.placement.setMode("aligned")
    heat = slicer.util.arrayFromModelPointData(logic.surfaces._models[FIRST], "SurfaceDistance")
    np.testing.assert_allclose(heat, pair.surfaces.aligned[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_blinded_and_not_the_pair_lies_the_same_way(logic, swapped: bool, mode: str):
    """Only the second row's image ever moves, whichever it is; where the two lie on each other does not change."""
    turned = made_pairs.affine(origin=(70.0, 10.0, -5.0))
    pair = made_pairs.pair(training_affine=turned, alignment=made_pairs.mirrored_from(turned))
    logic.showPair(pair, key_that_swaps(swapped))
    logic.placement.setMode(mode)
    moved = to_world(logic)
    training_to_synthetic = np.linalg.inv(moved) if swapped else moved
    expected = pair.placement if mode == "compared" else np.array(pair.alignment.matrix)
    np.testing.assert_allclose(training_to_synthetic, expected, atol=1e-9)
    first, second = logic.volumes()
    assert first.GetParentTransformNode() is None and second.GetParentTransformNode() is not None
    statistics = [row.maximum for row in logic.surfaces.statistics()]
    logic.showPair(pair)
    logic.placement.setMode(mode)
    plain = [row.maximum for row in logic.surfaces.statistics()]
    assert statistics == pytest.approx([plain[1], plain[0], plain[2]] if swapped else plain)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**31 - 1))
def test_resampling_for_the_overlay_agrees_with_scipy(seed: int):
    from scipy import ndimage
    from scipy.spatial.transform import Rotation

    from ReplicaDetectionLib.CasePair import CaseImage

    rng = np.random.default_rng(seed)

    def image(shape) -> CaseImage:
        affine = np.eye(4)
        affine[:3, :3] = Rotation.random(random_state=rng.integers(2**31)).as_matrix() * rng.uniform(0.6, 2, 3)
        affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2) + rng.uniform(-1, 1, 3)
        return CaseImage("x", rng.uniform(0, 1, shape).astype(np.float32), affine, (0.0, 1.0))

    first, second = image((9, 7, 8)), image((12, 11, 10))
    placement = np.eye(4)
    placement[:3, 3] = rng.uniform(-1, 1, 3)
    found = onGridOf(first, second, placement)
    matrix = np.linalg.inv(placement @ second.affine) @ first.affine
    at = (matrix[:3, :3] @ np.indices(first.array.shape).reshape(3, -1)) + matrix[:3, 3:]
    expected = ndimage.map_coordinates(second.array, at, order=1, mode="nearest").reshape(first.array.shape)
    upper = np.array(second.array.shape)[:, None] - 1
    inside = ((at >= 0) & (at <= upper)).all(axis=0).reshape(first.array.shape)
    outside = ((at < -0.51) | (at > upper + 0.51)).any(axis=0).reshape(first.array.shape)
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-4)
    assert np.isnan(found[outside]).all() and not np.isnan(found[inside]).any()


def test_a_mirrored_surface_is_lit_from_outside(logic, layouts):
    """Its colours are the legend's, mirrored or not."""
    logic.showPair(made_pairs.pair_of(*made_pairs.mirrored_copies(), made_pairs.mirrored()))
    logic.composition.setCrosshair(False)
    for mode in ("aligned", "compared", "aligned"):
        logic.placement.setMode(mode)
        logic.surfaces.setRange(0.0, 1000.0)
        view = layouts.view("ReplicaSecond3D")
        picture = view.picture()
        # The front of the ball, seen from the front.
        found = np.median(around(picture, view.pixel_of((0.0, 14.0, 0.0))), axis=0)
        np.testing.assert_allclose(found, HEAT[0], atol=14, err_msg=mode)
    keep(layouts.picture(), "mirrored")


def test_a_mirrored_surface_keeps_its_outside(logic):
    pair = made_pairs.pair(alignment=made_pairs.mirrored())
    logic.showPair(pair)
    placed = PlacedSurfaces(pair, False, logic.placement.matrices)
    volumes = [placed.world(mode)[row].volume for mode in MODES for row in ROWS]
    assert min(volumes) > 0 and volumes[1] == pytest.approx(volumes[3])
