"""The case report and the plot: what stands on the page, what is in the scene, what the chart shows."""

from __future__ import annotations

import html
import re

import made_pairs
import numpy as np
import pytest

from bench.pictures import keep, near
from bench.views import draw_chart
from replica_detection.errors import InputError
from replica_detection.readers.ratings import Rating
from replica_detection.results.schema import Histogram
from ReplicaDetectionLib.CaseReport import fileName, grabWindow, jpeg
from ReplicaDetectionLib.RatioPlot import CASE_COLOR, NULL_COLOR, SYNTHETIC_COLOR, THRESHOLD_COLOR


def test_the_report_holds_pictures_measures_distances_and_rating(logic, layouts, application, tmp_path):
    logic.showPair(made_pairs.pair(alignment=made_pairs.mirrored()))
    pictures = {f"S {p}": grabWindow(layouts.view(f"ReplicaFirst{p}").renderWindow()) for p in ("Axial", "3D")}
    comment = 'same "vessel" <tree>'
    rating = Rating("r1", "Dr A", "syn_0007", "patient_0042", 4, comment, created="2026-01-31T14:05:00", seconds=31)
    scene, page = logic.writeReport(tmp_path / "reports", pictures, rating)
    assert page.name == "syn_0007_and_patient_0042.html" and scene.name == "syn_0007_and_patient_0042.mrb"
    text = page.read_text(encoding="utf-8")
    shown = html.unescape(re.sub(r"base64,[A-Za-z0-9+/=]+", "", text))
    for said in ("replica", "0.998", "dice", "0.9100", "0.001", "mirrored left-right", "Rating 4: the same scan"):
        assert said in shown, said
    assert "<p>memorization_index: MI 4.200, nearest layer 1 &lt;other&gt;</p>" in text and "dice:" not in text
    assert comment in shown and "<tree>" not in text
    for row in logic.surfaces.statistics():
        assert row.name in shown and f"{row.maximum:.2f}" in shown
    assert text.count("data:image/jpeg;base64,") == 2
    # Nothing is fetched from anywhere.
    assert not re.search(r"https?://|src=\"(?!data:)|<script", text)
    logic.clear()
    application.close_scene()
    logic.forget()
    assert application.scene.ReadFromMRB(str(scene), True)
    assert application.scene.GetFirstNodeByName("Training patient_0042") is not None
    assert application.scene.GetFirstNodeByName("Placement") is not None


def test_an_unrated_pair_without_surfaces_gives_a_report_too(logic, tmp_path):
    logic.showPair(made_pairs.pair(masked=False))
    _, page = logic.writeReport(tmp_path, {})
    text = page.read_text(encoding="utf-8")
    assert "Not rated." in text and "The synthetic image has no mask." in text


def test_nothing_on_screen_gives_no_report(logic, tmp_path):
    with pytest.raises(InputError, match="Open a case first"):
        logic.writeReport(tmp_path / "out", {})
    assert not (tmp_path / "out").exists()


def test_where_nothing_can_be_written_the_error_names_the_place(logic, tmp_path):
    logic.showPair(made_pairs.pair())
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="file"):
        logic.writeReport(tmp_path / "file", {})


def test_names_become_file_names():
    assert fileName("Case 4F2A91B0") == "Case_4F2A91B0"
    assert fileName("../a/b:c*?") == "a_b_c"
    assert fileName("...") == "case"
    assert fileName("ünï 1.2") == "ünï_1.2"


def test_a_picture_survives_as_jpeg(tmp_path):
    from PIL import Image

    rows, columns = np.mgrid[:60, :90]
    picture = np.stack([rows * 4, columns * 2, 255 - rows * 4], axis=-1).astype(np.uint8)
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg(picture))
    found = np.asarray(Image.open(path)).astype(int)
    assert found.shape == picture.shape and np.abs(found - picture).mean() < 3


def test_the_chart_shows_both_distributions_threshold_and_case(logic):
    rng = np.random.default_rng(0)
    null, synthetic = rng.normal(0.8, 0.05, 60), rng.normal(0.3, 0.05, 20)
    ids = tuple(f"syn_{n}" for n in range(20))
    histogram = Histogram("asd", ids, tuple(synthetic), tuple(null), 0.65)
    chart = logic.plot.show(histogram, "syn_3")
    picture = draw_chart(chart, (700, 400))
    keep(picture, "ratios")
    columns = {}
    named = {"null": NULL_COLOR, "synthetic": SYNTHETIC_COLOR, "threshold": THRESHOLD_COLOR, "case": CASE_COLOR}
    for name, color in named.items():
        # Above the base line, which both distributions share, and beside the legend.
        hits = near(picture[100:300, :560], np.array(color) * 255, 24)
        assert hits.sum() > 20, name
        columns[name] = float(np.median(np.flatnonzero(hits.any(axis=0))))
    assert columns["synthetic"] < columns["threshold"] < columns["null"]
    assert abs(columns["case"] - columns["synthetic"]) < 100
    series = [chart.GetNthPlotSeriesNode(i).GetName() for i in range(chart.GetNumberOfPlotSeriesNodes())]
    assert series == ["real cases", "synthetic", "threshold", "this case"]


def test_each_bar_counts_its_share(logic):
    values = (0.1, 0.1, 0.2, 0.9, None, float("nan"))
    chart = logic.plot.show(Histogram("mae", tuple("abcdef"), values, (0.5, 0.6), None), "e", bins=8)
    names = [chart.GetNthPlotSeriesNode(i).GetName() for i in range(chart.GetNumberOfPlotSeriesNodes())]
    assert names == ["real cases", "synthetic"]
    table = chart.GetNthPlotSeriesNode(1).GetTableNode().GetTable()
    x, y = (np.array([table.GetValue(r, c).ToDouble() for r in range(table.GetNumberOfRows())]) for c in (0, 1))
    # A staircase: every other point carries a bar's height.
    heights = y[1:-1:2]
    assert heights.sum() == pytest.approx(100) and heights[0] == pytest.approx(50 if x[2] < 0.2 else 75)


def test_drawing_again_and_clearing_leaves_no_old_series(logic):
    histogram = Histogram("", ("a", "b"), (1.0, 2.0), (0.0, 0.5), 1.5)
    before = logic.scene.GetNumberOfNodes()
    logic.plot.show(histogram, "a")
    shown = logic.scene.GetNumberOfNodes()
    for _ in range(3):
        logic.plot.show(histogram, "b")
    assert logic.scene.GetNumberOfNodes() == shown
    logic.plot.clear()
    assert logic.scene.GetNumberOfNodes() == before


def test_an_empty_histogram_is_an_empty_chart(logic):
    chart = logic.plot.show(Histogram("dice", (), (), (), None))
    assert chart.GetNumberOfPlotSeriesNodes() == 0
    assert draw_chart(chart, (300, 200)).shape == (200, 300, 3)
