"""Masks in the report: outlines on slices, surfaces with a heat map, and levels that name different training cases."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from browser import open_page
from made_up_result import make_pairs, make_result
from pages import Page, render, stable
from PIL import Image
from scipy.ndimage import gaussian_filter

from replica_detection.report import Pair, pictures, surfaces, tables
from replica_detection.report.raster import Camera, draw
from replica_detection.results.result import (
    FLAGGED,
    CaseSummary,
    Match,
    levels_differ,
    nearest_by_level,
)
from replica_detection.surfaces.distances import compare_surfaces
from replica_detection.surfaces.mesh import mesh_of_mask

ONE = (1.0, 1.0, 1.0)
SIZE = 48
LEFT, ANTERIOR, HIGH = (-1, 0, 0), (0, 1, 0), (0, 0, 1)


def ball(radius=11.0, at=(0.0, 0.0, 0.0)):
    axes = np.indices((SIZE,) * 3) - SIZE / 2
    return np.linalg.norm(axes - np.reshape(at, (3, 1, 1, 1)), axis=0) < radius


def with_masks(synthetic, training, spacing=ONE):
    image = gaussian_filter(np.random.default_rng(0).random(synthetic.shape, np.float32), 1)
    return Pair(image, image, spacing, synthetic.astype(np.uint8), training.astype(np.uint8))


def hot(picture):
    """Pixels (row, column) of the colours of a large distance: red, and nothing like it."""
    red, green, blue = np.asarray(picture.convert("RGB"), int).transpose(2, 0, 1)
    return np.argwhere((red > 70) & (red > 2.5 * green) & (red > 1.5 * blue))


def panels(picture):
    """The parts of a picture of surfaces: {(view, column): picture}."""
    array = np.asarray(picture.convert("RGB"), int)
    left = surfaces._PANEL + surfaces._GAP
    gaps = np.flatnonzero((array[:, 2 : surfaces._PANEL - 2] == 255).all(axis=(1, 2)))
    split = next(row for row in gaps if row > surfaces._HEADER + 20)
    found = {}
    for column in (0, 1):
        x = column * left
        found["from the front", column] = picture.crop((x, surfaces._HEADER, x + surfaces._PANEL, split))
        found["from below", column] = picture.crop((x, split + surfaces._GAP, x + surfaces._PANEL, picture.height))
    return found


@pytest.mark.parametrize(
    ("direction", "where"),
    [
        (LEFT, {"from the front": (0, 1), "from below": (0, 1)}),
        ((1, 0, 0), {"from the front": (0, -1), "from below": (0, -1)}),
        (HIGH, {"from the front": (-1, 0)}),
        (ANTERIOR, {"from below": (-1, 0)}),
        ((0, -1, 0), {"from below": (1, 0)}),
    ],
)
def test_a_bulge_is_red_where_it_is(direction, where):
    """A planted bulge: patient left is on the picture's right, head and front are on top."""
    bulge = ball(6, tuple(14 * d for d in direction))
    found = compare_surfaces(ball() | bulge, ball(), np.eye(4))
    seen = panels(surfaces.compose(found))
    for view, (down, right) in where.items():
        panel = seen[view, 0]
        pixels = hot(panel)
        assert len(pixels) > 200, view
        row, column = np.median(pixels, axis=0) - (panel.height / 2, panel.width / 2)
        for offset, sign in ((row, down), (column, right)):
            assert offset * sign > 40 if sign else abs(offset) < 30, (view, offset, sign)


def test_equal_masks_are_pale_all_over():
    found = compare_surfaces(ball(), ball(), np.eye(4))
    picture = surfaces.compose(found)
    assert surfaces.colour_range(found) == 1
    for panel in panels(picture).values():
        assert not len(hot(panel))
        pixels = np.asarray(panel, int).reshape(-1, 3)
        assert (np.abs(pixels - surfaces._PANEL_COLOUR).sum(1) > 60).mean() > 0.2, "there is a surface"
    seen = panels(picture)
    assert seen["from below", 0].tobytes() == seen["from below", 1].tobytes(), "one camera for both"
    assert np.asarray(picture)[:, -surfaces._BAR :].std() > 10
    assert len(hot(picture.crop((picture.width - surfaces._BAR, 0, picture.width, picture.height)))) > 100, "the legend"


def test_colours_end_above_the_95th_percentile():
    wide = compare_surfaces(ball(8), ball(14), np.eye(4))
    assert 6 <= wide.symmetric.percentile_95 <= surfaces.colour_range(wide) <= 8
    panel = np.asarray(panels(surfaces.compose(wide))["from the front", 0], int).reshape(-1, 3)
    surface = panel[np.abs(panel - surfaces._PANEL_COLOUR).sum(1) > 60]
    share = wide.forth.mean / surfaces.colour_range(wide)
    expected = surfaces.heat()[round(255 * share)]
    seen = np.median(surface / surface.max(axis=1, keepdims=True), axis=0)
    assert np.allclose(seen, expected / expected.max(), atol=0.12), "the legend's colour, lighter or darker"
    lightness = surfaces.heat().astype(float) @ (0.3, 0.59, 0.11)
    assert lightness[0] > 190 and lightness[-1] < 60
    assert (np.diff(lightness[64:]) < 0).all(), "told apart without colour vision"


def test_views_are_right_handed_and_marked():
    letters = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    for view in surfaces.VIEWS:
        assert (np.cross(view.right, view.up) == view.near).all(), "else the patient is mirrored"
        left, right, top, bottom = (letters[m] for m in view.marks)
        assert view.right == right == tuple(-v for v in left) and view.up == top == tuple(-v for v in bottom)


@pytest.mark.parametrize("view", surfaces.VIEWS, ids=lambda v: v.name)
@pytest.mark.parametrize("order", [1, -1])
def test_near_hides_far(view, order):
    """Whatever comes first in the list of triangles, and the silhouette is that of a sphere."""
    near, far = (np.multiply(view.near, distance) for distance in (12, -12))
    mesh = mesh_of_mask(ball(6, near) | ball(6, far), np.eye(4))
    mesh = replace(mesh, triangles=mesh.triangles[::order])
    depth = mesh.points @ view.axes[2]
    seen = mesh.points @ view.axes.T
    camera = Camera(view, seen.min(axis=0) - 1, seen.max(axis=0) + 1, 8.0)
    colours = np.array([(0, 0, 250), (250, 0, 0)], np.uint8)
    picture = draw(mesh, colours, (depth > depth.mean()).astype(float), camera, (0, 255, 0)).astype(int)
    drawn = picture[..., 1] < 128
    assert drawn.sum() == pytest.approx(np.pi * 6**2 * 8**2, rel=0.05)
    assert (picture[drawn][:, 0] > picture[drawn][:, 2]).mean() > 0.99
    centre = np.argwhere(drawn).mean(axis=0)[::-1]
    assert np.allclose(centre, camera.pixel(np.full((1, 3), SIZE / 2))[0], atol=3)


def test_outlines_run_along_the_border():
    mask, other = np.zeros((2, SIZE, SIZE, SIZE), bool)
    mask[10:30, 12:36, 8:40] = True
    other[16:36, 12:36, 8:40] = True
    pair = with_masks(mask, other)
    picture = np.asarray(pictures.compose(pair, ("", "", "")).convert("RGB"), int)
    axial = picture[pictures._HEADER : pictures._HEADER + pictures._CELL_WIDTH]
    scale = pictures._CELL_WIDTH / SIZE

    def drawn(column, colour):
        left = column * (pictures._CELL_WIDTH + pictures._GAP)
        panel = axial[:, left : left + pictures._CELL_WIDTH]
        return np.argwhere((panel == colour).all(axis=2)) / scale

    for column in (0, 1):
        for colour, (low, high) in ((pictures.SYNTHETIC_OUTLINE, (10, 30)), (pictures.TRAINING_OUTLINE, (16, 36))):
            at = drawn(column, colour)
            assert len(at) > 60
            # Rows run from front to back and columns from patient right to left: both against the array.
            y, x = SIZE - at[:, 0], SIZE - at[:, 1]
            border = np.minimum(
                np.maximum(np.minimum(abs(x - low), abs(x - high)), np.maximum(12 - y, y - 36)),
                np.maximum(np.minimum(abs(y - 12), abs(y - 36)), np.maximum(low - x, x - high)),
            )
            assert border.max() < 0.6
            assert abs(x.min() - low) < 0.6 and abs(x.max() - high) < 0.6
    assert not len(drawn(2, pictures.SYNTHETIC_OUTLINE)) and not len(drawn(2, pictures.TRAINING_OUTLINE))
    same = with_masks(mask, mask)
    axial = np.asarray(pictures.compose(same, ("", "", "")), int)[pictures._HEADER : pictures._HEADER + 318]
    counts = [len(drawn(0, c)) for c in (pictures.SYNTHETIC_OUTLINE, pictures.TRAINING_OUTLINE)]
    assert min(counts) > 0.3 * max(counts), "where both coincide, both can be seen"


def test_slices_go_through_the_masks():
    mask, other = np.zeros((2, SIZE, SIZE, SIZE), bool)
    mask[4:9, 30:40, 20:22] = True
    other[6:9, 33:40, 21:22] = True
    assert 6 <= pictures.position(with_masks(mask, other))[0] < 9
    assert pictures.position(with_masks(mask, other))[2] == 21
    assert pictures.position(with_masks(mask, mask & False))[2] == 20
    image = with_masks(mask, mask).synthetic
    without = Pair(image, image, ONE)
    assert pictures.position(with_masks(mask & False, mask & False)) == pictures.position(without)


@pytest.mark.parametrize("shape", [(32, 32, 16), (40, 32)])
def test_pages_without_masks_are_unchanged(tmp_path, shape):
    result, spacing = make_result(), (1.0,) * len(shape)
    plain = make_pairs(shape, spacing)

    def empty(*ids):
        made = plain(*ids)
        return Pair(made.synthetic, made.training, spacing, np.zeros(shape, np.uint8), None)

    html = render(tmp_path, result, plain, max_pairs=3)
    assert stable(html) == stable(render(tmp_path, result, empty, max_pairs=3))
    assert "surface distance" not in html and "outlines" not in html and "No surfaces" not in html
    assert html.count("data:image/jpeg") == 3


def test_surfaces_stand_in_the_page(tmp_path):
    result = make_result()
    html = render(tmp_path, result, lambda *_: with_masks(ball() | ball(6, (0, 14, 0)), ball()), max_pairs=2)
    page = Page(html)
    assert html.count("data:image/jpeg") == 4 and html.count('class="pair surfaces"') == 2
    alternatives = [a["alt"] for tag, a in page.tags if tag == "img"]
    assert sum("coloured by the distance to the other surface from 0 to" in a for a in alternatives) == 2
    assert re.search(r"distance to the other surface, from 0 mm \(pale\) to \d+ mm or more", page.text)
    assert "outlines: synthetic mask, mask of the training case" in page.text
    found = compare_surfaces(ball() | ball(6, (0, 14, 0)), ball(), np.eye(4))
    for name, statistics in (
        ("synthetic to training", found.forth),
        ("training to synthetic", found.back),
        ("both", found.symmetric),
    ):
        numbers = (statistics.mean, statistics.median, statistics.percentile_95, statistics.maximum)
        x, y, z = np.round(statistics.position).astype(int) + 1
        row = " ".join(f"{v:.2f}" for v in numbers) + f" axial {z}, coronal {y}, sagittal {x}"
        assert f"{name} {row}" in page.text
    copy = Page(render(tmp_path, result, lambda *_: with_masks(ball(), ball()), max_pairs=1)).text
    assert "both 0.00 0.00 0.00 0.00 –" in copy and "Ring" in page.text and "Ring" not in copy
    opened = open_page(tmp_path / "report" / "index.html", tmp_path / "profile")
    assert opened.console == () and "surface distance, mm" in opened.dom


@pytest.mark.parametrize(
    ("synthetic", "training", "sentence"),
    [
        (False, True, "No surfaces: the synthetic mask is empty."),
        (True, False, "No surfaces: the mask of the training case is empty."),
        (False, False, "No surfaces: both masks are empty."),
    ],
)
def test_empty_masks_are_named(tmp_path, synthetic, training, sentence):
    page = render(tmp_path, make_result(), lambda *_: with_masks(ball() & synthetic, ball() & training), max_pairs=1)
    assert sentence in page and page.count("data:image/jpeg") == 1


def test_single_voxels_and_thick_slices_are_drawn():
    mask = np.zeros((20, 20, 6), bool)
    mask[3, 4, 5] = True
    made = surfaces.surface_picture(with_masks(mask, np.roll(mask, 3, axis=0), (0.5, 0.5, 6.0)), 10**6)
    assert made is not None and made.rows[2].maximum == pytest.approx(1.5, abs=0.1)
    assert made.width == Image.open(io.BytesIO(base64.b64decode(made.uri.split(",")[1]))).width
    assert made.height < 1000
    mesh = mesh_of_mask(mask, np.eye(4))
    assert all(camera.scale == 9 for camera in surfaces._cameras((mesh, mesh))), "one voxel does not fill the picture"


def test_two_dimensional_masks_are_outlined_only(tmp_path):
    mask = np.zeros((40, 32), np.uint8)
    mask[8:20, 8:20] = 1
    image = np.random.default_rng(0).random((40, 32), np.float32)
    html = render(tmp_path, make_result(), lambda *_: Pair(image, image, (1.0, 1.0), mask, mask), max_pairs=1)
    assert "outlines" in html and "surfaces" not in Page(html).text.lower()


def test_masks_need_the_shape_of_the_image():
    image = np.zeros((4, 4, 4), np.float32)
    with pytest.raises(ValueError, match="a mask needs the shape of its image"):
        Pair(image, image, ONE, None, np.zeros((4, 4), np.uint8))


def test_fifty_cases_with_surfaces_stay_below_30_mb(tmp_path):
    """Noise, which compresses worst, in images and masks."""
    rng = np.random.default_rng(0)
    image = rng.random((2, 64, 64, 64), np.float32)
    masks = gaussian_filter(rng.normal(size=(2, 64, 64, 64)), (0, 2, 2, 2))[:, :24, :24, :24]
    masks = np.pad((masks > 1.6 * masks.std()).astype(np.uint8), ((0, 0), (0, 40), (0, 40), (0, 40)))
    noise = Pair(*image, ONE, *masks)
    result = make_result(cases=140, copies=60)
    html = render(tmp_path, result, lambda *_: noise)
    assert html.count('class="pair surfaces"') == 50
    assert 10_000_000 < len(html) < 30_000_000


def match(level, measure, nearest, p, verdict="replica"):
    return Match("s", measure, level, nearest, 0.5, 0.5, 0.5, p, p, verdict)


def case(*levels):
    return CaseSummary("s", "replica", 0.99, "a", levels, 1)


def test_each_level_names_the_nearest_of_its_smallest_p():
    matches = [
        match("voxel", "mae", "b", 0.02),
        match("voxel", "ssim", "a", 0.001),
        match("feature", "cosine", "c", 0.01),
        match("feature", "rmse", "d", 0.01),
        match("feature", "pearson", "d", 0.01),
        match("segmentation", "dice", "e", np.nan),
        match("segmentation", "asd", "", 0.001),
    ]
    assert nearest_by_level(matches) == {"voxel": "a", "feature": "d"}


def test_levels_that_name_different_training_cases_are_told():
    matches = [match("segmentation", "dice", "mra_007", 0.01), match("voxel", "mae", "mra_012", 0.01)]
    differ = ("segmentation mra_007", "voxel mra_012")
    assert levels_differ(("voxel", "segmentation"), matches) == differ
    assert tables.levels_differ(replace(case("segmentation", "voxel"), levels_differ=differ)) == ", ".join(differ)
    # What a level names that flagged nothing is chance.
    assert levels_differ(("voxel",), matches) == ()
    assert levels_differ((), matches) == ()
    same = [replace(m, nearest_training_id="mra_012") for m in matches]
    assert levels_differ(("voxel", "segmentation"), same) == ()
    assert tables.flagged_by(case("segmentation", "voxel"), matches) == (
        "Flagged at 2 levels: voxel (mae); segmentation (dice)."
    )
    assert "No level flagged it by itself" in tables.flagged_by(case(), matches)


def test_the_page_marks_such_cases(tmp_path):
    result = make_result()
    worst = result.worklist()[0]
    assert len(worst.levels_flagged) > 1

    def told(differ):
        changed = tuple(
            replace(m, nearest_training_id="other_01" if differ and m.level == "segmentation" else "first_01")
            for m in result.matches
        )
        told_by = replace(result, matches=changed)
        summary = tuple(
            replace(c, levels_differ=levels_differ(c.levels_flagged, told_by.matches_of(c.synthetic_id)))
            for c in result.summary
        )
        return Page(render(tmp_path, replace(told_by, summary=summary), max_pairs=3))

    page = told(True)
    sentence = "voxel first_01, feature first_01, segmentation other_01"
    assert f"≠ Levels name different training cases: {sentence}." in page.text
    assert "≠" in page.rows[0][5] and sentence in page.rows[0][5]
    marked = sum("≠" in row[5] for row in page.rows)
    both = [c for c in result.summary if "segmentation" in c.levels_flagged and len(c.levels_flagged) > 1]
    assert marked == len(both) > 0
    assert sum(c.verdict in FLAGGED for c in both) > 0
    assert "name different training cases" not in told(False).text
