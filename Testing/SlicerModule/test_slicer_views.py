"""Layouts and slice views: both rows at one place, one window, and two images laid over each other."""

from __future__ import annotations

import made_pairs
import numpy as np
import pytest
import slicer

from bench.pictures import around, keep, near
from ReplicaDetectionLib.ComparisonLayout import FIRST, LAYOUTS, OVERLAY, PLANES, ROWS, SECOND
from ReplicaDetectionLib.Nodes import DIVERGING, arrayOf

ORANGE, BLUE, BLACK = DIVERGING[-1], DIVERGING[0], DIVERGING[2]


def pixel_and_picture(layouts, row: str, plane: str, ras):
    view = layouts.view(f"Replica{row}{plane}")
    return view.pixel_of(ras), view.picture()


def bare(logic) -> None:
    """Nothing over the images that could hide a pixel."""
    logic.composition.setCrosshair(False)
    logic.surfaces.setOutlines(False)


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_every_layout_makes_its_views(logic, layouts, name: str):
    logic.layout.set(name)
    assert logic.layout.current == name
    expected = {
        "rows": [f"Replica{r}{p}" for r in ROWS for p in (*PLANES, "3D")],
        "overlay": [f"ReplicaOverlay{p}" for p in (*PLANES, "3D")],
        "single": ["ReplicaOverlayLarge", "ReplicaOverlay3D"],
        "flat": [f"Replica{r}Axial" for r in (*ROWS, OVERLAY)],
    }[name]
    shown = [*layouts.slices.values(), *layouts.threeDs.values()]
    assert sorted(v.node.GetLayoutName() for v in shown if v.node.IsMappedInLayout()) == sorted(expected)


def test_an_unknown_layout_or_plane_is_refused(logic):
    with pytest.raises(ValueError, match="known: rows"):
        logic.layout.set("cube")
    with pytest.raises(ValueError, match="Coronal"):
        logic.layout.setPlane("Oblique")


def test_a_layout_survives_that_the_scene_is_closed(logic, application):
    logic.showPair(made_pairs.pair())
    application.close_scene()
    logic.forget()
    logic.layout.set("overlay")
    logic.showPair(made_pairs.pair())
    assert logic.layout.current == "overlay" and logic.volumes() is not None


def test_both_rows_show_the_same_place(logic, layouts):
    """Also where the files' own coordinates have nothing in common."""
    moved = made_pairs.affine(origin=(60.0, -11.0, 40.0), signs=(-1, 1, 1))
    logic.showPair(made_pairs.pair(training_affine=moved))
    logic.composition.jumpTo((-3.0, 4.0, 5.0))
    for plane in PLANES:
        first, second = (logic.layout.sliceNode(row, plane) for row in ROWS)
        np.testing.assert_allclose(arrayOf(first.GetSliceToRAS()), arrayOf(second.GetSliceToRAS()), atol=1e-6)
        np.testing.assert_allclose(first.GetFieldOfView(), second.GetFieldOfView(), rtol=1e-6)
    bare(logic)
    keep(layouts.picture(), "both_rows")
    for plane in PLANES:
        pixels = [pixel_and_picture(layouts, row, plane, (0.0, 0.0, 0.0)) for row in ROWS]
        assert pixels[0][0] == pixels[1][0]
        greys = [around(picture, pixel).mean() for pixel, picture in pixels]
        assert greys[0] == pytest.approx(greys[1], abs=6) and greys[0] > 180


def test_scrolling_one_view_moves_its_sibling_and_no_volume(logic, layouts):
    logic.showPair(made_pairs.pair())
    volumes = [v.GetID() for v in logic.volumes()]
    view, sibling = layouts.view("ReplicaFirstAxial"), layouts.view("ReplicaSecondAxial")
    before = sibling.logic.GetSliceOffset()
    view.logic.StartSliceOffsetInteraction()
    view.logic.SetSliceOffset(before + 7)
    view.logic.EndSliceOffsetInteraction()
    assert sibling.logic.GetSliceOffset() == pytest.approx(before + 7)
    view.logic.StartSliceCompositeNodeInteraction(view.composite.BackgroundVolumeFlag)
    view.composite.SetBackgroundVolumeID(volumes[1])
    view.logic.EndSliceCompositeNodeInteraction()
    assert sibling.composite.GetBackgroundVolumeID() == volumes[1]
    assert layouts.view("ReplicaSecondSagittal").composite.GetBackgroundVolumeID() == volumes[1]
    assert layouts.view("ReplicaFirstSagittal").composite.GetBackgroundVolumeID() == volumes[0]


def test_without_links_every_view_scrolls_alone(logic, layouts):
    logic.showPair(made_pairs.pair())
    logic.composition.setLinked(False)
    view, sibling = layouts.view("ReplicaFirstAxial"), layouts.view("ReplicaSecondAxial")
    before = sibling.logic.GetSliceOffset()
    view.logic.StartSliceOffsetInteraction()
    view.logic.SetSliceOffset(before + 7)
    view.logic.EndSliceOffsetInteraction()
    assert sibling.logic.GetSliceOffset() == pytest.approx(before)


def test_one_window_holds_for_both_images_whatever_their_scale(logic, layouts):
    logic.showPair(made_pairs.pair(training_scale=40.0))
    bare(logic)
    first, second = (v.GetDisplayNode() for v in logic.volumes())
    assert (second.GetWindowLevelMin(), second.GetWindowLevelMax()) == (0.0, 4000.0)
    first.SetWindowLevelMinMax(20.0, 90.0)
    assert (second.GetWindowLevelMin(), second.GetWindowLevelMax()) == pytest.approx((800.0, 3600.0))
    second.SetWindowLevelMinMax(0.0, 2000.0)
    assert logic.composition.windowRange() == pytest.approx((0.0, 0.5))
    assert (first.GetWindowLevelMin(), first.GetWindowLevelMax()) == pytest.approx((0.0, 50.0))
    logic.composition.setWindowRange(0.0, 1.0)
    greys = []
    for row in ROWS:
        pixel, picture = pixel_and_picture(layouts, row, "Axial", (-6.0, 0.0, 0.0))
        greys.append(around(picture, pixel).mean())
    assert greys[0] == pytest.approx(greys[1], abs=4) and greys[0] == pytest.approx(2.55 * 80, abs=8)


def test_the_window_stays_for_the_next_case(logic):
    logic.showPair(made_pairs.pair())
    logic.volumes()[0].GetDisplayNode().SetWindowLevelMinMax(10.0, 60.0)
    logic.showPair(made_pairs.pair(training_scale=2.0, ids=("syn_0008", "patient_0001")))
    second = logic.volumes()[1].GetDisplayNode()
    assert (second.GetWindowLevelMin(), second.GetWindowLevelMax()) == pytest.approx((20.0, 120.0))


def test_fading_and_blinking_show_either_image(logic, layouts):
    logic.layout.set("overlay")
    logic.showPair(made_pairs.pair())
    bare(logic)
    logic.composition.jumpTo((0.0, 0.0, 2.0))
    in_bulge = (-3.0, 17.0, 2.0)

    def grey() -> float:
        pixel, picture = pixel_and_picture(layouts, OVERLAY, "Axial", in_bulge)
        return float(around(picture, pixel).mean()) / 2.55

    found = {}
    for opacity in (0.0, 0.5, 1.0):
        logic.composition.setOpacity(opacity)
        found[opacity] = grey()
    assert found[0.0] == pytest.approx(80, abs=3) and found[1.0] == pytest.approx(30, abs=3)
    assert found[0.5] == pytest.approx(55, abs=3)
    logic.composition.setOpacity(0.3)
    seen = []
    for _ in range(4):
        logic.composition.blink()
        seen.append(round(grey(), -1))
    assert seen == [30, 80, 30, 80]
    logic.composition.stopBlinking()
    assert logic.composition.opacity() == 0.3 and 30 < grey() < 80
    keep(layouts.picture(), "fade")


def test_the_difference_is_orange_where_the_first_image_is_brighter(logic, layouts):
    logic.layout.set("overlay")
    pair = made_pairs.pair(training_affine=made_pairs.affine(origin=(10.0, 20.0, 30.0)), training_scale=7.0)
    # A dark spot in the synthetic image alone.
    pair.synthetic.array[10:16, 10:16, 26:34] = 0
    logic.showPair(pair)
    bare(logic)
    logic.composition.setMode("difference")
    logic.composition.jumpTo((0.0, 0.0, 2.0))
    pixel, picture = pixel_and_picture(layouts, OVERLAY, "Axial", (-3.0, 17.0, 2.0))
    keep(layouts.picture(), "difference")
    assert near(around(picture, pixel), ORANGE).all()
    pixel, _ = pixel_and_picture(layouts, OVERLAY, "Axial", (-15.0, -15.0, 2.0))
    assert near(around(picture, pixel), BLUE).all()
    # Noise of one hundredth of the scale is far from the ends of the colours.
    pixel, _ = pixel_and_picture(layouts, OVERLAY, "Axial", (0.0, 0.0, 2.0))
    assert near(around(picture, pixel), BLACK, tolerance=40).all()
    logic.composition.setDifferenceRange(1.0)
    pixel, picture = pixel_and_picture(layouts, OVERLAY, "Axial", (-3.0, 17.0, 2.0))
    half = DIVERGING[3]
    assert near(around(picture, pixel), half, tolerance=25).all()


def test_the_checkerboard_takes_turns(logic, layouts):
    logic.layout.set("overlay")
    logic.showPair(made_pairs.pair(training_scale=3.0))
    bare(logic)
    logic.composition.setCheckerSize(8.0)
    logic.composition.setMode("checkerboard")
    logic.composition.jumpTo((0.0, 0.0, 0.0))
    keep(layouts.picture(), "checkerboard")
    volume = slicer.util.arrayFromVolume(logic.scene.GetFirstNodeByName("Checkerboard")).T
    pair = logic.pair
    at = np.indices(volume.shape) // 8
    turn = at.sum(axis=0) % 2 == 1
    np.testing.assert_allclose(volume[~turn], pair.synthetic.array[~turn], atol=1e-3)
    np.testing.assert_allclose(volume[turn], np.clip(pair.training.array[turn] / 3, 0, 100), atol=1e-3)
    logic.composition.setCheckerSize(4.0)
    volume = slicer.util.arrayFromVolume(logic.scene.GetFirstNodeByName("Checkerboard")).T
    np.testing.assert_allclose(volume[4, 0, 0], np.clip(pair.training.array[4, 0, 0] / 3, 0, 100), atol=1e-3)


def test_outside_the_second_image_nothing_is_made_up(logic):
    pair = made_pairs.pair(training_affine=made_pairs.affine(origin=(-28.0 + 20, -28.0, -28.0)))
    # In one coordinate system, half beside each other.
    object.__setattr__(pair, "placement", np.eye(4))
    logic.layout.set("overlay")
    logic.showPair(pair)
    logic.composition.setMode("difference")
    found = slicer.util.arrayFromVolume(logic.composition._derived["difference"]).T
    assert (found[:19] == 0).all() and (found[21:] != 0).any()


def test_an_unknown_mode_is_refused(logic):
    with pytest.raises(ValueError, match="checkerboard"):
        logic.composition.setMode("subtract")


def test_crosshair_and_slices_follow_a_jump(logic, layouts):
    logic.showPair(made_pairs.pair())
    logic.composition.jumpTo((5.0, -6.0, 7.0))
    crosshair = logic.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    assert tuple(crosshair.GetCrosshairRAS()) == (5.0, -6.0, 7.0)
    assert crosshair.GetCrosshairMode() == crosshair.ShowIntersection
    planes = zip(PLANES, (2, 0, 1), strict=True)
    cuts = [arrayOf(logic.layout.sliceNode(SECOND, plane).GetSliceToRAS())[axis, 3] for plane, axis in planes]
    assert cuts == pytest.approx([7.0, 5.0, -6.0])
    logic.composition.setCrosshair(False)
    assert crosshair.GetCrosshairMode() == crosshair.NoCrosshair


def test_another_layout_keeps_the_place(logic, layouts):
    logic.showPair(made_pairs.pair())
    logic.composition.jumpTo((5.0, -6.0, 7.0))
    for name in ("overlay", "single", "rows"):
        logic.layout.set(name)
        assert logic.composition.position() == pytest.approx((5.0, -6.0, 7.0), abs=0.6), name
    view = layouts.view("ReplicaFirstCoronal")
    view.logic.SetSliceOffset(11.0)
    logic.layout.set("overlay")
    assert logic.composition.position() == pytest.approx((5.0, 11.0, 7.0), abs=0.6)


def test_another_match_keeps_the_place_and_another_case_does_not(logic):
    logic.showPair(made_pairs.pair())
    logic.composition.jumpTo((5.0, -6.0, 7.0))
    logic.showPair(made_pairs.pair(ids=("syn_0007", "patient_0001")), keepPosition=True)
    assert logic.composition.position() == pytest.approx((5.0, -6.0, 7.0))
    logic.showPair(made_pairs.pair(ids=("syn_0008", "patient_0001")))
    assert logic.composition.position() != pytest.approx((5.0, -6.0, 7.0), abs=1)


def test_the_large_plane_can_be_chosen(logic, layouts):
    logic.layout.set("single")
    logic.showPair(made_pairs.pair())
    logic.layout.setPlane("Coronal")
    assert layouts.view("ReplicaOverlayLarge").node.GetOrientation() == "Coronal"
    keep(layouts.picture(), "single")


def test_2d_images_are_shown_side_by_side(logic, layouts):
    pair = made_pairs.flat_pair()
    logic.layout.set("flat")
    logic.showPair(pair)
    logic.composition.setCrosshair(False)
    picture = layouts.picture()
    keep(picture, "flat")
    third = picture.shape[1] // 3
    assert not logic.surfaces.available and "3D" in logic.surfaces.problem
    middle = picture.shape[0] // 2, third // 2
    for column, grey in ((0, 200), (1, 120), (2, 160)):
        part = around(picture, (middle[0], middle[1] + column * third), radius=20)
        assert part.mean() == pytest.approx(grey, abs=2)


def test_nothing_of_a_pair_is_left_behind(logic, application):
    before = {application.scene.GetNthNode(i).GetID() for i in range(application.scene.GetNumberOfNodes())}
    logic.layout.set("overlay")
    for mode in ("difference", "checkerboard", "fade"):
        logic.showPair(made_pairs.pair())
        logic.composition.setMode(mode)
        logic.surfaces.jumpToLargest()
    logic.layout.set("rows")
    logic.clear()
    left = [application.scene.GetNthNode(i) for i in range(application.scene.GetNumberOfNodes())]
    kinds = ("Volume", "Model", "Transform", "Markups", "Legend", "Plot", "Storage")
    new = [n for n in left if n.GetID() not in before and any(k in n.GetClassName() for k in kinds)]
    # Each slice view that was made since has a model and a transform of its own.
    assert [n.GetName() for n in new if "Slice" not in n.GetName()] == []


def test_rows_are_named_for_what_they_show(logic):
    logic.showPair(made_pairs.pair())
    assert logic.names() == ("Synthetic syn_0007", "Training patient_0042")
    labels = [logic.layout.sliceNode(row, "Axial").GetLayoutLabel() for row in ROWS]
    assert labels == ["S", "T"]
    assert logic.layout.viewNode(FIRST).GetLayoutLabel() == "S"
    assert logic.layout.viewNode(SECOND).GetLayoutLabel() == "T"
