"""Surfaces, outlines, heat map and legend: what the pictures show is what was measured."""

from __future__ import annotations

import made_pairs
import numpy as np
import pytest
import slicer

from bench.pictures import around, keep, near
from replica_detection.surfaces.distances import compare_surfaces
from ReplicaDetectionLib.ComparisonLayout import FIRST, OVERLAY, PLANES, ROWS, SECOND
from ReplicaDetectionLib.Nodes import DISTANCE, HEAT, ROW_COLORS


def heat(share: float) -> np.ndarray:
    return np.array([np.interp(share, np.linspace(0, 1, len(HEAT)), [h[c] for h in HEAT]) for c in range(3)])


def legend_bar(picture: np.ndarray) -> tuple[int, int, int] | None:
    """(column, top row, bottom row) of the legend's colour bar: where a column runs through the heat colours."""
    best = max(range(picture.shape[1]), key=lambda c: len(np.unique(_levels(picture[:, c]))))
    levels = _levels(picture[:, best])
    rows = np.flatnonzero(levels >= 0)
    if not len(rows):
        return None
    runs = np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1)
    longest = max(runs, key=lambda r: len(np.unique(levels[r])))
    shown = len(np.unique(levels[longest])) >= 18
    return (best, int(longest[0]), int(longest[-1])) if shown else None


def _levels(column: np.ndarray) -> np.ndarray:
    """Which of 21 heat colours each pixel has, -1 for none."""
    table = np.stack([heat(s) for s in np.linspace(0, 1, 21)])
    apart = np.abs(column[:, None].astype(int) - table).max(axis=-1)
    return np.where(apart.min(axis=1) <= 12, apart.argmin(axis=1), -1)


def bare(logic) -> None:
    logic.composition.setCrosshair(False)
    logic.surfaces.mark(None)


def pixels_at(layouts, tag: str, ras, radius: int = 2) -> np.ndarray:
    view = layouts.view(tag)
    picture = view.picture()
    return around(picture, view.pixel_of(ras), radius)


def test_the_heat_at_the_bulge_has_the_colour_that_the_legend_gives_it(logic, layouts):
    logic.showPair(made_pairs.pair())
    height = made_pairs.bulge_height()
    logic.surfaces.setRange(0.0, 2 * height)
    peak = logic.surfaces.jumpToLargest()
    keep(layouts.picture(), "heat_at_the_bulge")
    bare(logic)
    assert peak.row == FIRST
    assert peak.distance == pytest.approx(height, abs=0.7)
    assert np.linalg.norm(np.subtract(peak.ras, made_pairs.bulge_tip())) < 2.5
    view = layouts.view("ReplicaFirst3D")
    picture = view.picture()
    found = np.median(around(picture, view.pixel_of(peak.ras)), axis=0)
    share = peak.distance / (2 * height)
    np.testing.assert_allclose(found, heat(share), atol=14)
    column, top, bottom = legend_bar(picture)
    assert bottom - top > 0.2 * picture.shape[0]
    on_legend = picture[round(bottom - share * (bottom - top)), column]
    np.testing.assert_allclose(found, on_legend, atol=16)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 1.0), (2.0, 0.5), (4.0, 0.25)])
def test_the_colour_follows_the_range(logic, layouts, share: float, expected: float):
    logic.showPair(made_pairs.pair())
    peak = logic.surfaces.jumpToLargest()
    logic.surfaces.setRange(0.0, share * peak.distance)
    bare(logic)
    found = np.median(pixels_at(layouts, "ReplicaFirst3D", peak.ras), axis=0)
    np.testing.assert_allclose(found, heat(expected), atol=14)
    assert logic.surfaces.range() == (0.0, share * peak.distance)


def test_a_copy_is_cold_everywhere(logic, layouts):
    logic.showPair(made_pairs.pair(same=True))
    bare(logic)
    assert logic.surfaces.range() == (0.0, 1.0)
    assert logic.surfaces.jumpToLargest() is None and logic.surfaces.peaks() == []
    for row in ROWS:
        picture = layouts.view(f"Replica{row}3D").picture()
        column, *_ = legend_bar(picture)
        surface = picture[:, : column - 60]
        assert near(surface, HEAT[0], 16).sum() > 500
        assert not near(surface, HEAT[-1], 40).any() and not near(surface, HEAT[2], 40).any()


def test_each_row_has_its_own_surface_and_legend(logic, layouts):
    logic.showPair(made_pairs.pair())
    logic.surfaces.jumpToLargest()
    bare(logic)
    pictures = {row: layouts.view(f"Replica{row}3D").picture() for row in ROWS}
    tip = layouts.view("ReplicaFirst3D").pixel_of(made_pairs.bulge_tip())
    assert near(around(pictures[FIRST], tip, 4), HEAT[-1], 30).mean() > 0.9
    # Seen from the side, only the first has a bulge.
    logic.cameras.fit(logic.surfaces.bounds(), "left")
    for row in ROWS:
        shown = np.median(pixels_at(layouts, f"Replica{row}3D", made_pairs.bulge_tip() * 0.9), axis=0)
        assert near(shown, HEAT[-1], 60) == (row == FIRST)
    assert all(legend_bar(pictures[row]) for row in ROWS)
    logic.surfaces.setLegend(False)
    assert not any(legend_bar(layouts.view(f"Replica{row}3D").picture()) for row in ROWS)


def test_a_layout_that_is_shown_later_has_its_legend_too(logic, layouts):
    logic.showPair(made_pairs.pair())
    for name in ("overlay", "rows", "single"):
        logic.layout.set(name)
        row = FIRST if name == "rows" else OVERLAY
        assert legend_bar(layouts.view(f"Replica{row}3D").picture()), name


def test_the_overlay_shows_one_surface_at_a_time(logic, layouts):
    logic.layout.set("overlay")
    logic.showPair(made_pairs.pair())
    bare(logic)
    tip = made_pairs.bulge_tip()
    view = layouts.view("ReplicaOverlay3D")
    first = near(around(view.picture(), view.pixel_of(tip), 3), HEAT[-1], 30).mean()
    logic.surfaces.setOverlaySurface(SECOND)
    picture = view.picture()
    keep(picture, "overlay_second_surface")
    # From the front, the ball under the bulge is as far from the bulge as it can be; its rim is not.
    assert first > 0.9
    shown = {row: logic.surfaces._models[row].GetNthDisplayNode(0) for row in ROWS}
    assert not shown[FIRST].IsDisplayableInView(view.node.GetID())
    assert shown[SECOND].IsDisplayableInView(view.node.GetID())
    with pytest.raises(ValueError, match="First"):
        logic.surfaces.setOverlaySurface("both")


def test_plain_colours_tell_the_rows_apart(logic, layouts):
    logic.showPair(made_pairs.pair())
    logic.surfaces.setHeat(False)
    for row in ROWS:
        picture = layouts.view(f"Replica{row}3D").picture()
        assert near(picture, np.array(ROW_COLORS[row]) * 255, 30).sum() > 500
        assert legend_bar(picture) is None
    logic.surfaces.setVisible(False)
    assert not near(layouts.view("ReplicaFirst3D").picture(), np.array(ROW_COLORS[FIRST]) * 255, 30).any()


def test_a_threshold_hides_what_is_near(logic, layouts):
    logic.showPair(made_pairs.pair())
    logic.surfaces.jumpToLargest()
    bare(logic)
    view = layouts.view("ReplicaFirst3D")
    whole = (np.abs(view.picture().astype(int) - view.picture()[2, 2]).max(axis=-1) > 60).sum()
    logic.surfaces.setThreshold(2.0)
    assert logic.surfaces.threshold() == 2.0
    picture = view.picture()
    keep(picture, "threshold")
    column, *_ = legend_bar(picture)
    surface = picture[:, : column - 60]
    assert near(surface, HEAT[-1], 40).sum() > 300
    assert not near(surface, HEAT[0], 20).any()
    assert (np.abs(surface.astype(int) - picture[2, 2]).max(axis=-1) > 60).sum() < 0.5 * whole
    logic.surfaces.setThreshold(0.0)
    assert near(view.picture()[:, : column - 60], HEAT[0], 20).any()


def test_outlines_of_both_images_stand_on_both_rows(logic, layouts):
    logic.showPair(made_pairs.pair())
    logic.composition.setCrosshair(False)
    logic.composition.jumpTo((0.0, 0.0, 2.0))
    orange, blue = (np.array(ROW_COLORS[row]) * 255 for row in ROWS)
    count = {}
    for both in (True, False):
        logic.surfaces.setOutlines(True, both)
        for row in ROWS:
            picture = layouts.view(f"Replica{row}Axial").picture()
            count[both, row] = near(picture, orange, 30).sum(), near(picture, blue, 30).sum()
    keep(layouts.picture(), "outlines")
    for row in ROWS:
        assert min(count[True, row]) > 40
    assert count[False, FIRST][0] > 150 and count[False, FIRST][1] == 0
    assert count[False, SECOND][1] > 150 and count[False, SECOND][0] == 0
    logic.surfaces.setOutlines(False)
    assert not near(layouts.view("ReplicaFirstAxial").picture(), orange, 30).any()


def test_the_outline_lies_on_the_edge_of_the_structure(logic, layouts):
    logic.showPair(made_pairs.pair())
    logic.composition.setCrosshair(False)
    logic.composition.jumpTo((0.0, 0.0, 0.0))
    view = layouts.view("ReplicaFirstCoronal")
    picture = view.picture()
    line = near(picture, np.array(ROW_COLORS[SECOND]) * 255, 30)
    for angle in np.linspace(0, 2 * np.pi, 12, endpoint=False):
        ras = 14.0 * np.cos(angle) - 0.5, 0.0, 14.0 * np.sin(angle) - 0.5
        row, column = view.pixel_of(ras)
        assert line[row - 9 : row + 10, column - 9 : column + 10].any(), angle


def test_statistics_are_those_of_the_core(logic):
    pair = made_pairs.pair()
    logic.showPair(pair)
    masks = made_pairs.mask(True), made_pairs.mask(False)
    found = compare_surfaces(*masks, made_pairs.affine())
    rows = logic.surfaces.statistics()
    assert [r.name for r in rows] == [
        "Synthetic syn_0007 to Training patient_0042",
        "Training patient_0042 to Synthetic syn_0007",
        "both",
    ]
    for row, expected in zip(rows, (found.forth, found.back, found.symmetric), strict=True):
        values = expected.mean, expected.median, expected.percentile_95, expected.maximum
        assert (row.mean, row.median, row.p95, row.maximum) == pytest.approx(values, abs=1e-6)
    low, high = logic.surfaces.fitRange()
    assert low == 0.0 and found.symmetric.percentile_95 <= high <= found.symmetric.percentile_95 + 0.1


def test_a_chosen_range_stays_and_a_fitted_one_follows_the_case(logic):
    logic.showPair(made_pairs.pair())
    fitted = logic.surfaces.range()
    logic.surfaces.setRange(0.5, 2.5)
    logic.showPair(made_pairs.pair(same=True))
    assert logic.surfaces.range() == (0.5, 2.5)
    logic.surfaces.fitRange()
    logic.showPair(made_pairs.pair())
    assert logic.surfaces.range() == fitted and fitted[1] > 1


def test_next_goes_through_separate_differences_by_size(logic):
    pair = made_pairs.pair_with_two_bulges()
    logic.showPair(pair)
    logic.surfaces.setThreshold(1.5)
    peaks = logic.surfaces.peaks()
    assert len(peaks) == 2 and peaks[0].distance > peaks[1].distance
    first = logic.surfaces.jumpToLargest()
    crosshair = logic.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    assert np.linalg.norm(np.subtract(crosshair.GetCrosshairRAS(), first.ras)) < 1.5
    second = logic.surfaces.jumpToNext()
    assert (first, second) == tuple(peaks) and first.ras[1] > 10 and second.ras[1] < -10
    assert logic.surfaces.jumpToNext() == first
    assert logic.surfaces.jumpToNext(-1) == second


def test_a_jump_moves_slices_marker_and_cameras(logic, layouts):
    logic.showPair(made_pairs.pair())
    peak = logic.surfaces.jumpToLargest()
    marker = logic.scene.GetFirstNodeByClass("vtkMRMLMarkupsFiducialNode")
    assert marker.GetNthControlPointLabel(0) == f"{peak.distance:.1f} mm"
    at = np.array(marker.GetNthControlPointPosition(0))
    assert np.linalg.norm(at - peak.ras) < 1.5
    for row in ROWS:
        for plane, axis in zip(PLANES, (2, 0, 1), strict=True):
            cut = logic.layout.sliceNode(row, plane).GetSliceToRAS().GetElement(axis, 3)
            assert cut == pytest.approx(at[axis], abs=1e-6)
        camera = logic.layout.cameraNode(row)
        np.testing.assert_allclose(camera.GetFocalPoint(), peak.ras)
        looking = np.subtract(camera.GetFocalPoint(), camera.GetPosition())
        assert np.dot(looking / np.linalg.norm(looking), peak.normal) == pytest.approx(-1, abs=1e-6)


def test_the_distances_are_in_the_scene_under_their_name(logic, application, tmp_path):
    logic.showPair(made_pairs.pair())
    model = logic.scene.GetFirstNodeByName("Synthetic syn_0007 surface")
    values = slicer.util.arrayFromModelPointData(model, DISTANCE)
    np.testing.assert_allclose(values, logic.pair.surfaces.compared[0], rtol=1e-5)
    path = logic.saveScene(tmp_path / "case.mrb")
    logic.clear()
    application.close_scene()
    assert application.scene.ReadFromMRB(str(path), True)
    restored = application.scene.GetFirstNodeByName("Synthetic syn_0007 surface")
    np.testing.assert_allclose(slicer.util.arrayFromModelPointData(restored, DISTANCE), values, rtol=1e-5)
    assert restored.GetNthDisplayNode(0).GetActiveScalarName() == DISTANCE
    logic.forget()


@pytest.mark.parametrize("flat", [False, True])
def test_a_pair_without_surfaces_says_why_and_every_button_is_harmless(logic, flat: bool):
    logic.showPair(made_pairs.flat_pair() if flat else made_pairs.pair(masked=False))
    display = logic.surfaces
    assert not display.available
    assert display.problem == ("Surfaces need 3D images." if flat else "The synthetic image has no mask.")
    for call in (display.setVisible, display.setOutlines, display.setHeat, display.setLegend):
        call(True)
    display.setRange(0, 2)
    display.setThreshold(1)
    display.fitRange()
    display.setOverlaySurface(SECOND)
    assert display.statistics() == [] and display.peaks() == []
    assert display.jumpToLargest() is None and display.jumpToNext() is None


def test_turning_one_3d_view_turns_the_other(logic, layouts):
    logic.showPair(made_pairs.pair())
    first, second = (logic.layout.cameraNode(row) for row in ROWS)
    first.SetInteractionFlags(first.CameraInteractionFlag)
    first.SetInteracting(True)
    first.SetPosition(0.0, -300.0, 20.0)
    first.SetInteracting(False)
    np.testing.assert_allclose(second.GetPosition(), (0.0, -300.0, 20.0), atol=1e-6)
