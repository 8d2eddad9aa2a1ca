"""Every button of the module's panel, on real widgets over a real scene; pictures of it are kept to be looked at."""

from __future__ import annotations

import gzip
import time
import zipfile
from pathlib import Path

import pytest
import slicer
from made_source import MEASURES, MadeSource

from qtbench.fixtures import idle, module_widget, panels, press, screenshot, slicer_app, wait  # noqa: F401

# ruff: noqa: F811


@pytest.fixture
def source():
    return MadeSource(12)


@pytest.fixture
def opened(panels, source):
    """The panels over a collection, nothing on screen yet; the reader is Anna."""
    panels.session.setReader("anna")
    panels.session.open(lambda task: source)
    wait(idle(panels))
    return panels


@pytest.fixture
def reading(opened):
    """The most suspicious case is on screen."""
    opened.worklist.ui.nextUnratedButton.click()
    wait(shows(opened, "syn_0000"))
    return opened


def shows(panels, case, training=""):
    def condition():
        pair = panels.session.pair
        return pair is not None and pair.synthetic.id == case and training in ("", pair.training.id)

    return condition


def column(table, number):
    return [table.item(row, number).text() for row in range(table.rowCount)]


def selected(table):
    return sorted({index.row() for index in table.selectionModel().selectedRows()})


def message(panels):
    return panels.ui.messageLabel.text if not panels.ui.messageFrame.isHidden() else ""


# --- source


def test_nothing_is_open_at_first(panels):
    ui = panels.source.ui
    assert ui.statusLabel.text == "Not connected"
    assert ui.disconnectButton.isHidden()
    assert not ui.compareButton.enabled
    for button in (panels.worklist.ui.nextButton, panels.rating.ui.saveButton, panels.report.ui.reportButton):
        assert not button.enabled
    assert not message(panels)


def test_the_state_of_the_source_stands_in_one_line(opened, source):
    ui = opened.source.ui
    assert ui.statusLabel.text == "http://127.0.0.1:8000: 12 of 12 cases compared with 400 training images"
    assert ui.sourceTabs.isHidden()
    ui.tabsButton.click()
    assert not ui.sourceTabs.isHidden()
    source.problem = "no answer"
    opened.session.poll()
    wait(lambda: not opened.session.reachable)
    assert ui.statusLabel.text == "http://127.0.0.1:8000 does not answer"
    assert ui.statusMark.text == "✕"
    ui.disconnectButton.click()
    assert ui.statusLabel.text == "Not connected"
    assert opened.worklist.ui.caseTable.rowCount == 0


def test_a_folder_without_a_result_is_refused_in_words(panels, tmp_path):
    panels.source.ui.openFolderButton.click()
    assert "Choose the output folder" in message(panels)
    panels.source.ui.folderEdit.currentPath = str(tmp_path)
    panels.source.ui.openFolderButton.click()
    wait(idle(panels))
    assert "detection.json" in message(panels)
    assert str(tmp_path) in message(panels)
    assert panels.session.source is None
    panels.ui.messageCloseButton.click()
    assert not message(panels)


def test_nothing_can_be_opened_while_something_is_being_opened(panels, source):
    source.hold.set()
    panels.session.open(lambda task: (time.sleep(0.1), source)[1])
    assert not panels.source.ui.openFolderButton.enabled
    assert not panels.source.connection.ui.connectButton.enabled
    assert not panels.ui.activityFrame.isHidden()
    wait(idle(panels))
    assert panels.source.ui.openFolderButton.enabled
    assert panels.ui.activityFrame.isHidden()


def test_leaving_asks_where_ratings_would_be_lost(reading, source, monkeypatch):
    questions, answers = [], [False, True]

    def ask(text, **options):
        questions.append(text)
        return answers.pop(0)

    monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", ask)
    reading.rating.ui.rating2Button.click()
    reading.source.ui.disconnectButton.click()
    assert "Unsaved ratings: 1" in questions[0]
    assert reading.session.source is source
    assert reading.session.reading.draft.rating == 2
    reading.source.ui.disconnectButton.click()
    assert reading.session.source is None
    reading.session.open(lambda task: source)
    wait(idle(reading))
    reading.source.ui.disconnectButton.click()
    assert len(questions) == 2, "nothing to lose, nothing to ask"


# --- connection


@pytest.fixture
def servers(monkeypatch, source):
    """Connecting opens the made source; what was asked for is kept."""
    from ReplicaDetectionLib import ConnectionPanel

    asked = []

    def make(url, key):
        asked.append((url, key))
        source.name = url
        return source

    monkeypatch.setattr(ConnectionPanel, "serverSource", make)
    return asked


def test_connecting_remembers_the_address_and_forgets_the_key(panels, servers, slicer_app):
    ui = panels.source.connection.ui
    ui.urlBox.setEditText(" hospital:8000/ ")
    ui.keyEdit.setText("secret-key")
    ui.connectButton.click()
    wait(idle(panels))
    assert servers == [("http://hospital:8000", "secret-key")]
    assert panels.session.reachable
    assert ui.urlBox.itemText(0) == "http://hospital:8000"
    slicer_app.settings().sync()
    text = Path(slicer_app.settings().fileName()).read_text(encoding="utf-8")
    assert "hospital" in text
    assert "secret-key" not in text


def test_a_key_is_kept_only_where_the_box_is_ticked_and_only_for_its_address(panels, servers, slicer_app):
    ui = panels.source.connection.ui
    ui.urlBox.setEditText("http://hospital:8000")
    ui.keyEdit.setText("secret-key")
    ui.rememberBox.click()
    ui.connectButton.click()
    wait(idle(panels))
    ui.urlBox.setEditText("http://elsewhere:8000")
    assert ui.keyEdit.text == "", "a key must not go to another server"
    assert not ui.rememberBox.checked
    ui.urlBox.setEditText("http://hospital:8000")
    assert ui.keyEdit.text == "secret-key"
    assert ui.rememberBox.checked
    ui.rememberBox.click()
    slicer_app.settings().sync()
    assert "secret-key" not in Path(slicer_app.settings().fileName()).read_text(encoding="utf-8")


def test_a_server_that_is_gone_is_said_and_leaves_the_panel_usable(panels, servers, source):
    source.problem = "http://hospital:8000: no answer (connection refused). Check that the server runs."
    ui = panels.source.connection.ui
    ui.urlBox.setEditText("http://hospital:8000")
    ui.connectButton.click()
    wait(idle(panels))
    assert message(panels) == source.problem
    assert panels.session.source is None
    assert "http://hospital:8000" not in [ui.urlBox.itemText(i) for i in range(ui.urlBox.count)]
    assert ui.connectButton.enabled
    source.problem = ""
    ui.connectButton.click()
    wait(idle(panels))
    assert panels.session.reachable


def test_an_empty_address_is_asked_for(panels, servers):
    panels.source.connection.ui.urlBox.setEditText("  ")
    panels.source.connection.ui.connectButton.click()
    assert "Enter the address" in message(panels)
    assert not servers


# --- an image of the scene


@pytest.fixture
def image():
    import numpy as np

    from ReplicaDetectionLib.Nodes import addVolume

    def make():
        affine = np.diag([-2.0, -2.0, 3.0, 1.0])
        return addVolume(slicer.mrmlScene, "Mr Miller head", np.arange(60, dtype=np.int16).reshape(3, 4, 5), affine)

    return make


def test_an_image_is_sent_only_after_a_yes(opened, source, image, monkeypatch):
    ui = opened.source.ui
    assert not ui.compareButton.enabled, "no image is chosen"
    node = image()
    ui.imageSelector.setCurrentNode(node)
    assert ui.compareButton.enabled
    questions, answers = [], [False, True]

    def ask(text, **options):
        questions.append(text)
        return answers.pop(0)

    monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", ask)
    ui.compareButton.click()
    wait(idle(opened))
    assert not source.sent
    assert "leaves this computer" in questions[0]
    assert "Mr Miller head" in questions[0]
    assert source.name in questions[0]
    ui.compareButton.click()
    wait(lambda: opened.session.pair is not None)
    assert len(source.sent) == 1
    assert opened.session.pair.synthetic.id == "image"


def test_what_is_sent_is_voxels_and_geometry_and_no_name(opened, source, image, monkeypatch):
    import nibabel
    import numpy as np

    seen = {}

    def compare(path, mask="", k=10):
        stored = nibabel.load(path)
        seen["array"], seen["affine"] = np.asarray(stored.dataobj), stored.affine
        seen["bytes"] = gzip.decompress(Path(path).read_bytes())
        return MadeSource.compareImage(source, path, mask)

    monkeypatch.setattr(source, "compareImage", compare)
    monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", lambda *a, **k: True)
    opened.source.ui.imageSelector.setCurrentNode(image())
    opened.source.ui.compareButton.click()
    wait(lambda: opened.session.pair is not None)
    assert np.array_equal(seen["array"], np.arange(60).reshape(3, 4, 5))
    assert np.allclose(seen["affine"], np.diag([-2, -2, 3, 1]))
    assert b"Miller" not in seen["bytes"]
    assert not Path(source.sent[0]).exists(), "the file is gone once it was compared"


def test_an_image_under_a_transform_is_refused(opened, source, image, monkeypatch):
    monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", lambda *a, **k: True)
    node = image()
    node.SetAndObserveTransformNodeID(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode").GetID())
    opened.source.ui.imageSelector.setCurrentNode(node)
    opened.source.ui.compareButton.click()
    wait(idle(opened))
    assert not source.sent
    assert "transform" in message(opened)


def test_a_result_folder_takes_no_images(panels, image):
    panels.session.open(lambda task: MadeSource(3, remote=False))
    wait(idle(panels))
    panels.source.ui.imageSelector.setCurrentNode(image())
    assert not panels.source.ui.compareButton.enabled
    assert "server" in panels.source.ui.sceneNote.text


# --- cases


def test_the_table_shows_what_was_found(opened):
    table = opened.worklist.ui.caseTable
    assert column(table, 0)[:3] == ["syn_0000", "syn_0001", "syn_0002"]
    assert column(table, 2)[:2] == ["1.000", "0.917"]
    assert column(table, 3)[0] == "replica"
    assert column(table, 4)[0] == "train_000"
    assert column(table, 5)[1] == "voxel, segmentation (other match)"
    assert opened.worklist.ui.pageLabel.text == "1 to 12 of 12"


def test_a_click_on_a_header_sorts_and_a_second_one_turns_round(opened):
    table = opened.worklist.ui.caseTable
    header = table.horizontalHeader()
    header.sectionClicked.emit(0)
    wait(idle(opened))
    assert column(table, 0)[0] == "syn_0000"
    header.sectionClicked.emit(0)
    wait(idle(opened))
    assert column(table, 0)[0] == "syn_0011"
    header.sectionClicked.emit(5)  # nothing sorts by levels
    assert header.sortIndicatorSection() == 0
    header.sectionClicked.emit(2)
    wait(idle(opened))
    assert column(table, 0)[0] == "syn_0000"


def test_filters(opened):
    ui = opened.worklist.ui
    ui.verdictBox.setCurrentIndex(ui.verdictBox.findData("suspicious"))
    wait(idle(opened))
    assert set(column(ui.caseTable, 3)) == {"suspicious"}
    ui.verdictBox.setCurrentIndex(ui.verdictBox.findData("undecided"))
    wait(idle(opened))
    assert set(column(ui.caseTable, 3)) == {"undecided: null too small"}
    ui.verdictBox.setCurrentIndex(1)  # all that a person should look at
    wait(idle(opened))
    shown = {text.partition(":")[0] for text in column(ui.caseTable, 3)}
    assert shown == {"replica", "suspicious", "undecided"}
    ui.verdictBox.setCurrentIndex(ui.verdictBox.findData("undefined"))
    wait(idle(opened))
    assert ui.caseTable.rowCount == 0
    assert ui.pageLabel.text == "No case matches the filter."
    assert not ui.nextButton.enabled
    ui.verdictBox.setCurrentIndex(0)
    wait(idle(opened))
    ui.searchEdit.setText("0007")
    ui.searchEdit.editingFinished.emit()
    wait(idle(opened))
    assert column(ui.caseTable, 0) == ["syn_0007"]


def test_a_click_opens_a_case_and_buttons_and_keys_step(opened, module_widget):
    module_widget.parent.show()
    ui = opened.worklist.ui
    ui.caseTable.cellClicked.emit(4, 0)
    wait(shows(opened, "syn_0004"))
    assert selected(ui.caseTable) == [4]
    ui.nextButton.click()
    wait(shows(opened, "syn_0005"))
    ui.previousButton.click()
    wait(shows(opened, "syn_0004"))
    press(module_widget.parent, "N")
    wait(shows(opened, "syn_0005"))
    press(module_widget.parent, "P")
    wait(shows(opened, "syn_0004"))
    ui.nextUnratedButton.click()
    wait(shows(opened, "syn_0005"))
    opened.session.openItem(opened.session.list.items[0])
    wait(shows(opened, "syn_0000"))
    press(module_widget.parent, "P")
    assert message(opened) == "This is the first case."


def test_the_next_case_waits_in_memory(reading, source):
    wait(lambda: reading.session._loader.isReady("syn_0001"))
    source.hold.set()  # from here on nothing more can be read
    reading.worklist.ui.nextButton.click()
    assert shows(reading, "syn_0001")()
    source.hold.clear()


def test_a_case_that_is_being_read_ahead_is_not_read_twice(opened, source):
    source.seconds = 0.3
    opened.worklist.ui.nextUnratedButton.click()
    wait(shows(opened, "syn_0000"))
    wait(lambda: ("syn_0001", "") in opened.session._loader._running)
    opened.worklist.ui.nextButton.click()
    wait(shows(opened, "syn_0001"))
    time.sleep(0.4)
    slicer.app.processEvents()
    assert source.read.count(("syn_0001", "")) == 1


def test_reading_a_case_shows_how_far_it_is_and_can_be_cancelled(opened, source):
    source.hold.set()
    opened.worklist.ui.nextUnratedButton.click()
    wait(lambda: opened.ui.activityLabel.text == "reading the training image…")
    assert (opened.ui.activityBar.value, opened.ui.activityBar.maximum) == (3, 8)
    opened.ui.cancelButton.click()
    assert opened.ui.activityFrame.isHidden()
    source.hold.clear()
    time.sleep(0.1)
    slicer.app.processEvents()
    assert opened.session.pair is None
    opened.session.openItem(opened.session.list.items[0])
    wait(shows(opened, "syn_0000"))


def test_five_thousand_cases_do_not_hold_up_the_window(panels):
    """By the processor time of the window's thread, which a busy machine does not change."""
    source = MadeSource(5000, masks=False)
    panels.session.open(lambda task: source)
    wait(idle(panels))
    assert panels.worklist.ui.pageLabel.text == "1 to 100 of 5000"
    slowest = 0.0
    for turn in (panels.worklist.ui.pageForwardButton.click, panels.worklist.ui.pageForwardButton.click):
        turn()
        start = time.perf_counter()
        while not idle(panels)():
            before = time.thread_time()
            slicer.app.processEvents()
            slowest = max(slowest, time.thread_time() - before)
            time.sleep(0.001)
        assert time.perf_counter() - start < 30
    assert panels.worklist.ui.pageLabel.text == "201 to 300 of 5000"
    assert slowest < 0.3
    panels.session.list.at(4321, panels.session.openItem)
    wait(shows(panels, "syn_4321"))
    assert selected(panels.worklist.ui.caseTable) == [21]


# --- what was found for a case


def test_the_case_says_what_was_found(reading):
    ui = reading.case.ui
    assert "syn_0000" in ui.headlineLabel.text
    assert "replica" in ui.headlineLabel.text
    assert "score 1.000" in ui.headlineLabel.text
    assert "train_000" in ui.detailLabel.text
    assert "nearest match" in ui.detailLabel.text
    assert column(ui.measureTable, 0) == [name for name, _ in MEASURES]
    assert column(ui.measureTable, 7) == [level for _, level in MEASURES]
    assert column(ui.neighborTable, 1)[:2] == ["train_000", "train_001"]
    assert selected(ui.neighborTable) == [0]


def test_what_a_measure_says_beyond_its_match_stands_above_its_neighbours(reading):
    ui = reading.case.ui
    assert "MI" not in ui.neighborLabel.text
    ui.measureTable.setCurrentCell(4, 0)
    assert ui.neighborLabel.text.startswith("memorization_index: MI 4, nearest &lt;train&gt;<br>")
    assert "by memorization_index" in ui.neighborLabel.text
    ui.measureTable.setCurrentCell(0, 0)
    assert "MI" not in ui.neighborLabel.text


def test_a_case_without_measures_is_shown_all_the_same(panels, source):
    from dataclasses import replace

    whole = source.comparison
    source.comparison = lambda case, k=10: replace(whole(case), measures=(), verdict="undefined", score=None)
    panels.session.open(lambda task: source)
    wait(idle(panels))
    panels.session.step(1)
    wait(shows(panels, "syn_0000"))
    assert panels.case.ui.measureTable.rowCount == panels.case.ui.neighborTable.rowCount == 0
    assert "undefined" in panels.case.ui.headlineLabel.text
    assert "score" not in panels.case.ui.headlineLabel.text


def test_names_from_files_are_no_markup(panels):
    from dataclasses import replace

    source = MadeSource(2, masks=False)
    source._items = tuple(replace(i, nearest_training_id="<img src=x>001") for i in source._items)
    panels.session.open(lambda task: source)
    wait(idle(panels))
    panels.session.step(1)
    wait(shows(panels, "syn_0000"))
    assert "&lt;img src=x&gt;001" in panels.case.ui.detailLabel.text
    assert "<img" not in panels.case.ui.detailLabel.text


def test_choosing_a_neighbour_shows_it_and_keeps_the_slices(reading):
    ui = reading.case.ui
    reading.logic.composition.jumpTo((5.0, -3.0, 40.0))
    ui.measureTable.setCurrentCell(2, 0)
    assert "dice" in ui.neighborLabel.text
    assert column(ui.neighborTable, 1)[2] == "train_042"
    ui.neighborTable.setCurrentCell(2, 0)
    wait(shows(reading, "syn_0000", "train_042"))
    assert "train_042" in ui.detailLabel.text
    assert "nearest match" not in ui.detailLabel.text
    at = reading.logic.composition.position()
    assert abs(at[2] - 40.0) < 1.5
    assert "dice" in ui.neighborLabel.text, "the chosen measure stays"


# --- comparison


def test_layouts_and_overlay(reading):
    ui, logic = reading.comparison.ui, reading.logic
    assert logic.layout.current == "rows"
    assert ui.overlayBox.isHidden()
    ui.overlayButton.click()
    assert logic.layout.current == "overlay"
    assert not ui.overlayBox.isHidden()
    ui.singleButton.click()
    assert logic.layout.current == "single"
    assert not ui.planeBox.isHidden()
    ui.planeBox.setCurrentIndex(ui.planeBox.findData("Coronal"))
    assert logic.layout.sliceNode("Overlay", "Large").GetOrientation() == "Coronal"
    assert ui.modeBox.itemText(2) == "Difference (Synthetic syn_0000 minus Training train_000)"
    sliders = {"checkerboard": ui.checkerSlider, "difference": ui.differenceSlider, "fade": ui.opacitySlider}
    for mode in sliders:
        ui.modeBox.setCurrentIndex(ui.modeBox.findData(mode))
        assert logic.composition.mode == mode
        assert [name for name, slider in sliders.items() if not slider.isHidden()] == [mode]
    ui.opacitySlider.value = 0.2
    assert logic.composition.opacity() == pytest.approx(0.2)
    ui.rowsButton.click()
    assert logic.layout.current == "rows"


def test_sliders_reach_the_displays(reading):
    ui, logic = reading.comparison.ui, reading.logic
    ui.overlayButton.click()
    ui.modeBox.setCurrentIndex(ui.modeBox.findData("difference"))
    ui.differenceSlider.value = 0.25
    assert logic.composition.differenceRange() == pytest.approx(0.25)
    ui.windowRange.setValues(0.2, 0.7)
    assert logic.composition.windowRange() == pytest.approx((0.2, 0.7))
    ui.windowButton.click()
    assert logic.composition.windowRange() == pytest.approx((0.0, 1.0))
    ui.crosshairBox.click()
    crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    assert crosshair.GetCrosshairMode() == crosshair.NoCrosshair
    ui.linkBox.click()
    node = logic.layout.sliceNode("Overlay", "Axial")
    assert not logic.layout.sliceLogic(node).GetSliceCompositeNode().GetLinkedControl()
    before = tuple(node.GetFieldOfView())
    node.SetFieldOfView(10, 10, before[2])
    ui.fitButton.click()
    assert node.GetFieldOfView()[0] == pytest.approx(before[0])


def test_blinking_swaps_the_images_and_stops(reading):
    ui, logic = reading.comparison.ui, reading.logic
    ui.overlayButton.click()
    ui.opacitySlider.value = 0.4
    composite = logic.layout.sliceLogic(logic.layout.sliceNode("Overlay", "Axial")).GetSliceCompositeNode()
    ui.blinkButton.click()
    seen = set()

    def both():
        seen.add(composite.GetForegroundOpacity())
        return {0.0, 1.0} <= seen

    wait(both, 5)
    ui.blinkButton.click()
    assert composite.GetForegroundOpacity() == pytest.approx(0.4)
    ui.blinkButton.click()
    ui.opacitySlider.value = 0.6
    assert not ui.blinkButton.checked, "the slider says what is wanted instead"
    assert composite.GetForegroundOpacity() == pytest.approx(0.6)
    ui.blinkButton.click()
    reading.exit()
    assert not ui.blinkButton.checked
    reading.enter()


def test_as_it_is_and_aligned(reading):
    ui, logic = reading.comparison.ui, reading.logic
    assert ui.alignedButton.checked
    assert ui.alignmentLabel.text == "moved 4.0 mm"
    matrix = logic.placement.node.GetMatrixTransformToParent()
    assert matrix.GetElement(0, 3) == 4.0
    ui.comparedButton.click()
    assert logic.placement.node.GetMatrixTransformToParent().GetElement(0, 3) == 0.0
    ui.alignedButton.click()
    assert logic.placement.mode == "aligned"


def test_without_alignment_there_is_nothing_to_choose(panels):
    panels.session.open(lambda task: MadeSource(2, aligned=False))
    wait(idle(panels))
    panels.session.step(1)
    wait(shows(panels, "syn_0000"))
    ui = panels.comparison.ui
    assert not ui.alignedButton.enabled
    assert ui.comparedButton.checked
    assert ui.alignmentLabel.text == "No alignment was computed for this pair."


def test_a_pair_of_2d_images_has_its_own_layout(panels):
    from made_pairs import flat_pair

    source = MadeSource(3, masks=False)
    source.pair = lambda *arguments, **options: flat_pair()
    panels.session.open(lambda task: source)
    wait(idle(panels))
    panels.session.step(1)
    wait(lambda: panels.session.pair is not None)
    assert panels.logic.layout.current == "flat"
    ui = panels.comparison.ui
    assert not ui.overlayButton.enabled
    assert not ui.overlayBox.isHidden()
    assert panels.surfaces.ui.problemLabel.text == "Surfaces need 3D images."
    ui.modeBox.setCurrentIndex(ui.modeBox.findData("difference"))
    assert panels.logic.composition.mode == "difference"


# --- surfaces


def test_surface_controls_reach_the_displays(reading):
    ui, surfaces = reading.surfaces.ui, reading.logic.surfaces
    assert column(ui.statisticsTable, 0)[2] == "both"
    low, high = ui.rangeWidget.minimumValue, ui.rangeWidget.maximumValue
    assert (low, high) == pytest.approx(surfaces.range(), abs=0.05)
    ui.rangeWidget.setValues(0.5, 2.5)
    assert surfaces.range() == pytest.approx((0.5, 2.5))
    ui.fitRangeButton.click()
    assert surfaces.range() == pytest.approx((0.0, high), abs=0.1)
    ui.thresholdSlider.value = 1.5
    assert surfaces.threshold() == pytest.approx(1.5)
    model = surfaces._models["First"].GetNthDisplayNode(0)
    ui.heatBox.click()
    assert not model.GetScalarVisibility()
    assert not ui.legendBox.enabled
    ui.heatBox.click()
    ui.visibleBox.click()
    assert not model.GetVisibility()
    ui.visibleBox.click()
    ui.outlinesBox.click()
    assert not surfaces._models["First"].GetNthDisplayNode(1).GetVisibility()
    assert not ui.bothBox.enabled
    reading.comparison.ui.overlayButton.click()
    assert ui.overlaySurfaceBox.itemText(1) == "Training train_000"
    ui.overlaySurfaceBox.setCurrentIndex(1)
    assert (
        reading.logic.layout.viewNode("Overlay").GetID()
        in surfaces._models["Second"].GetNthDisplayNode(0).GetViewNodeIDs()
    )


def test_jumps_to_differences_move_all_views(reading):
    ui, logic = reading.surfaces.ui, reading.logic
    ui.thresholdSlider.value = 0.0
    ui.largestButton.click()
    first = logic.surfaces.peaks()[0]
    assert ui.peakLabel.text.startswith(f"{first.distance:.1f} mm")
    assert logic.composition.position() == pytest.approx(first.ras, abs=1.6)
    if len(logic.surfaces.peaks()) > 1:
        ui.nextPeakButton.click()
        assert logic.composition.position() == pytest.approx(logic.surfaces.peaks()[1].ras, abs=1.6)
    ui.thresholdSlider.maximum = 99
    ui.thresholdSlider.value = 99.0
    ui.largestButton.click()
    assert "No distance" in ui.peakLabel.text


def test_a_pair_without_masks_says_so(panels):
    panels.session.open(lambda task: MadeSource(2, masks=False))
    wait(idle(panels))
    panels.session.step(1)
    wait(shows(panels, "syn_0000"))
    assert panels.surfaces.ui.problemLabel.text == "The synthetic image has no mask."
    assert not panels.surfaces.ui.surfaceControls.enabled


# --- plots and readers


def test_ratios_are_read_when_the_panel_is_opened(reading, source):
    ui = reading.plot.ui
    assert ui.measureBox.count == 0
    reading.plot.widget.collapsed = False
    wait(lambda: ui.measureBox.count == 1 + len(MEASURES))
    chart = reading.plot._view.GetPlotChartNode()
    assert chart.GetTitle() == "all measures together"
    assert "At or above 1.600" in ui.plotNote.text
    ui.measureBox.setCurrentIndex(2)
    assert reading.plot._view.GetPlotChartNode().GetTitle() == "rmse"
    assert "At or below 0.600" in ui.plotNote.text
    names = [chart.GetNthPlotSeriesNode(i).GetName() for i in range(chart.GetNumberOfPlotSeriesNodes())]
    assert "this case" in names


def test_agreement(opened):
    opened.agreement.widget.collapsed = False
    ui = opened.agreement.ui
    ui.agreementButton.click()
    wait(idle(opened))
    assert column(ui.pairsTable, 0) == ["anna and ben"]
    assert column(ui.pairsTable, 2) == ["85.0 %"]
    assert column(ui.thresholdsTable, 3) == ["0.90 (0.80 to 0.97)"]
    assert "6 of them replicas" in ui.summaryLabel.text
    opened.session.close()
    assert ui.pairsTable.rowCount == 0
    assert not ui.agreementButton.enabled


def messages(panels) -> list[str]:
    said: list[str] = []
    panels.session.failed.connect(said.append)
    return said


def test_a_reader_is_told_beforehand_who_can_see_the_agreement(panels, source):
    source.apart = True
    said = messages(panels)
    panels.session.open(lambda task: source)
    wait(idle(panels))
    ui = panels.agreement.ui
    assert not ui.agreementButton.enabled
    assert ui.summaryLabel.text == (
        "On this server readers see only their own ratings. A reviewer can see the agreement."
    )
    assert said == []


def test_a_server_that_tells_nothing_beforehand_is_asked_once(panels):
    source = MadeSource(3, told=False)
    source.apart = True
    said = messages(panels)
    panels.session.open(lambda task: source)
    wait(idle(panels))
    ui = panels.agreement.ui
    assert ui.summaryLabel.text == ""
    ui.agreementButton.click()
    wait(idle(panels))
    assert "A reviewer can see the agreement." in ui.summaryLabel.text and said == []
    assert not ui.agreementButton.enabled and not ui.pairsTable.visible
    panels.session.close()
    panels.session.open(lambda task: MadeSource(3))
    wait(idle(panels))
    assert ui.agreementButton.enabled and ui.summaryLabel.text == ""


def test_other_failures_of_the_agreement_are_told_as_failures(panels, source):
    said = messages(panels)
    panels.session.open(lambda task: source)
    wait(idle(panels))
    source.problem = "no answer"
    panels.agreement.ui.agreementButton.click()
    wait(idle(panels))
    assert said and panels.agreement.ui.agreementButton.enabled


# --- rating


def test_rating_by_mouse(reading, source):
    ui = reading.rating.ui
    assert ui.rating3Button.text == "3  nearly the same anatomy"
    assert "3 and 4 count as a replica" in ui.meaningLabel.text
    assert not ui.saveButton.enabled
    ui.rating3Button.click()
    assert ui.rating3Button.checked
    assert ui.saveButton.enabled
    ui.rating3Button.click()
    assert ui.rating3Button.checked, "a second click does not take the choice away"
    assert column(reading.worklist.ui.caseTable, 1)[0] == "(3)"
    ui.undoButton.click()
    assert not ui.rating3Button.checked
    ui.rating4Button.click()
    ui.saveNextButton.click()
    wait(shows(reading, "syn_0001"))
    assert [r.rating for r in source.stored] == [4]
    assert column(reading.worklist.ui.caseTable, 1)[0] == "4"
    assert not ui.rating4Button.checked
    ui.undoButton.click()
    wait(shows(reading, "syn_0000"))
    wait(lambda: ui.rating4Button.checked)
    assert "Saved: 4" in ui.savedLabel.text


def test_rating_by_keys(reading, module_widget, source):
    module_widget.parent.show()
    reading.worklist.ui.caseTable.setFocus()
    for key, point in (("1", 1), ("2", 2), ("3", 3), ("4", 4)):
        press(module_widget.parent, key)
        assert reading.session.reading.draft.rating == point
    press(module_widget.parent, "U")
    assert reading.session.reading.draft.rating == 3
    press(module_widget.parent, "5")
    assert reading.session.reading.draft.rating == 3
    press(module_widget.parent, "S")
    wait(shows(reading, "syn_0001"))
    assert [r.rating for r in source.stored] == [3]


def test_typing_a_comment_does_not_rate(reading, module_widget, source):
    module_widget.parent.show()
    edit = reading.rating.ui.commentEdit
    edit.setFocus()
    for key in "12NPSU34":
        press(module_widget.parent, key)
    assert edit.text.upper() == "12NPSU34"
    assert reading.session.reading.draft.rating is None
    assert shows(reading, "syn_0000")()
    edit.clearFocus()
    press(module_widget.parent, "3")
    assert reading.session.reading.draft.rating == 3
    assert reading.session.reading.draft.comment.upper() == "12NPSU34"
    edit.setFocus()
    press(module_widget.parent, "Return")
    wait(shows(reading, "syn_0001"))
    assert source.stored[0].comment.upper() == "12NPSU34"
    assert edit.text == ""


def test_typing_in_search_and_name_does_not_rate_either(reading, module_widget):
    module_widget.parent.show()
    for edit in (reading.worklist.ui.searchEdit, reading.rating.ui.readerEdit):
        edit.setFocus()
        press(module_widget.parent, "3")
        press(module_widget.parent, "N")
    assert reading.session.reading.draft.rating is None
    assert shows(reading, "syn_0000")()


def test_a_rating_that_cannot_be_stored_stays(reading, source):
    ui = reading.rating.ui
    ui.rating3Button.click()
    source.problem = "http://127.0.0.1:8000: no answer within 30 s. The rating is kept here; save it again."
    ui.saveNextButton.click()
    wait(idle(reading))
    assert message(reading) == source.problem
    assert shows(reading, "syn_0000")()
    assert ui.rating3Button.checked
    assert ui.saveButton.enabled
    source.problem = ""
    ui.saveButton.click()
    wait(idle(reading))
    assert len(source.stored) == 1


def test_the_reader_s_name_is_asked_for_kept_and_taken_from_the_key(panels, source, slicer_app):
    panels.session.open(lambda task: source)
    wait(idle(panels))
    panels.session.step(1)
    wait(shows(panels, "syn_0000"))
    ui = panels.rating.ui
    assert "name" in ui.savedLabel.text
    assert not ui.rating1Button.enabled
    assert not ui.blindedBox.enabled
    ui.readerEdit.setText("Dr Lee")
    ui.readerEdit.editingFinished.emit()
    wait(idle(panels))
    assert ui.rating1Button.enabled
    assert slicer_app.settings().value("ReplicaDetection/Reader") == "Dr Lee"
    panels.session.open(lambda task: MadeSource(2, reader="key-name"))
    wait(idle(panels))
    assert ui.readerEdit.text == "key-name"
    assert not ui.readerEdit.enabled


# --- blinded


def test_a_blinded_session_shows_neither_names_nor_scores(opened, source, module_widget, monkeypatch, tmp_path):
    ui = opened.rating.ui
    opened.plot.widget.collapsed = False
    wait(lambda: opened.plot.ui.measureBox.count == 1 + len(MEASURES))
    ui.blindedBox.click()
    wait(idle(opened))
    table = opened.worklist.ui.caseTable
    assert all(name.startswith("Case ") for name in column(table, 0))
    assert all(table.isColumnHidden(c) for c in range(2, 6))
    assert not opened.worklist.ui.verdictBox.enabled
    assert opened.plot.ui.plotFrame.isHidden()
    assert not opened.agreement.ui.agreementButton.enabled
    opened.worklist.ui.nextUnratedButton.click()
    wait(lambda: opened.session.pair is not None)
    wait(idle(opened))
    module_widget.parent.show()
    screenshot(module_widget.parent, "panel_blinded")
    case = opened.session.pair.synthetic.id
    texts = visible_texts(module_widget.parent)
    assert texts
    assert not [t for t in texts if "syn_" in t or "train_" in t]
    assert not [t for t in texts if t in ("replica", "suspicious", "novel")]
    assert not [n for n in node_names() if "syn_" in n or "train_" in n]
    with zipfile.ZipFile(opened.logic.saveScene(tmp_path / "blinded.mrb")) as stored:
        for name in stored.namelist():
            assert b"syn_0" not in stored.read(name), name
            assert b"train_0" not in stored.read(name), name
            assert b"anna" not in stored.read(name), name
    assert opened.surfaces.ui.heatControls.isHidden()
    assert opened.case.ui.findings.isHidden()
    ui.rating2Button.click()
    ui.saveButton.click()
    wait(idle(opened))
    assert source.stored[0].blinded
    assert not opened.case.ui.findings.isHidden()
    assert case in opened.case.ui.headlineLabel.text
    assert not ui.rating1Button.enabled
    assert "Rated blinded" in ui.savedLabel.text
    ui.saveNextButton.click()
    wait(lambda: opened.session.pair is not None and opened.session.pair.synthetic.id != case)
    assert opened.case.ui.findings.isHidden()
    monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", lambda *a, **k: False)
    ui.blindedBox.click()
    assert ui.blindedBox.checked
    assert opened.session.blinded
    monkeypatch.setattr(slicer.util, "confirmYesNoDisplay", lambda *a, **k: True)
    ui.blindedBox.click()
    wait(idle(opened))
    assert not opened.session.blinded
    assert column(table, 0)[0] == "syn_0000"


def test_a_blinded_reading_goes_on_another_day(opened, source):
    opened.rating.ui.blindedBox.click()
    wait(idle(opened))
    before = column(opened.worklist.ui.caseTable, 0)
    opened.worklist.ui.nextUnratedButton.click()
    wait(lambda: opened.session.pair is not None)
    opened.rating.ui.rating1Button.click()
    opened.rating.ui.saveNextButton.click()
    wait(lambda: source.stored)
    wait(idle(opened))
    opened.session.open(lambda task: source)
    wait(idle(opened))
    assert not opened.session.blinded
    opened.rating.ui.blindedBox.click()
    wait(idle(opened))
    assert column(opened.worklist.ui.caseTable, 0) == before
    assert column(opened.worklist.ui.caseTable, 1).count("1") == 1


def visible_texts(root):
    """What a person can read in a widget."""
    from PySide6 import QtWidgets

    texts = []
    for widget in root.findChildren(QtWidgets.QWidget):
        if not widget.isVisible():
            continue
        for name in ("text", "currentText", "title"):
            value = widget.property(name)
            if isinstance(value, str) and value:
                texts.append(value)
        if isinstance(widget, QtWidgets.QTableWidget):
            shown = [c for c in range(widget.columnCount) if not widget.isColumnHidden(c)]
            texts += [widget.item(r, c).text() for r in range(widget.rowCount) for c in shown if widget.item(r, c)]
        texts += [widget.toolTip] if widget.toolTip else []
    return texts


def node_names():
    scene = slicer.mrmlScene
    return [scene.GetNthNode(i).GetName() or "" for i in range(scene.GetNumberOfNodes())]


# --- report


def test_one_click_writes_the_report(reading, tmp_path, monkeypatch):
    written = {}

    def write(folder, pictures, rating=None):
        written.update(folder=folder, pictures=pictures, rating=rating)
        return tmp_path / "case.mrb", tmp_path / "case.html"

    monkeypatch.setattr(reading.logic, "writeReport", write)
    reading.report.widget.collapsed = False
    ui = reading.report.ui
    ui.reportFolderEdit.currentPath = str(tmp_path)
    reading.session.rate(3)
    reading.session.save()
    wait(idle(reading))
    ui.reportButton.click()
    assert written["folder"] == str(tmp_path)
    assert written["rating"].rating == 3
    assert len(written["pictures"]) == 8
    assert all(p.ndim == 3 and p.std() > 1 for p in written["pictures"].values()), "no picture is blank"
    assert "case.html" in ui.reportLabel.text
    reading.session.closeCase()
    assert not ui.reportButton.enabled


def test_a_report_that_cannot_be_written_says_why(reading, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way", encoding="utf-8")
    reading.report.ui.reportFolderEdit.currentPath = str(blocked / "folder")
    reading.report.ui.reportButton.click()
    assert message(reading)
    assert not reading.report.ui.reportLabel.text


# --- room


def test_long_names_do_not_widen_the_panel(panels, module_widget):
    """Slicer's module panel is narrow, and a wide section would push its edge out of sight."""
    source = MadeSource(3, prefix="generator_epoch_0400_patient_from_the_second_hospital_")
    source.name = "/data/" + "a_folder_with_a_long_name/" * 5
    panels.session.setReader("anna")
    panels.session.open(lambda task: source)
    wait(idle(panels))
    panels.session.step(1)
    wait(lambda: panels.session.pair is not None)
    module_widget.parent.show()
    panels.plot.widget.collapsed = False
    panels.agreement.widget.collapsed = False
    panels.report.widget.collapsed = False
    wait(idle(panels))
    panels.agreement.ui.agreementButton.click()
    wait(idle(panels))
    panels.surfaces.ui.largestButton.click()
    for button in (panels.comparison.ui.overlayButton, panels.comparison.ui.singleButton):
        button.click()
        for mode in ("fade", "difference"):
            panels.comparison.ui.modeBox.setCurrentIndex(panels.comparison.ui.modeBox.findData(mode))
            for _ in range(3):
                slicer.app.processEvents()
            assert module_widget.parent.minimumSizeHint().width() <= 460
    panels.session.failed("/data/" + "a_folder_with_a_long_name/" * 5 + ": cannot be read. Check it.")
    screenshot(module_widget.parent, "panel_long_names")
    assert module_widget.parent.minimumSizeHint().width() <= 460


# --- pictures to look at


def test_pictures_of_the_panel(reading, module_widget, layouts):
    from bench.pictures import keep

    module_widget.parent.show()
    screenshot(module_widget.parent, "panel_reading")
    reading.comparison.ui.overlayButton.click()
    reading.rating.ui.rating3Button.click()
    reading.plot.widget.collapsed = False
    wait(lambda: reading.plot.ui.measureBox.count == 1 + len(MEASURES))
    reading.agreement.widget.collapsed = False
    wait(idle(reading))
    reading.agreement.ui.agreementButton.click()
    wait(idle(reading))
    reading.report.widget.collapsed = False
    reading.source.ui.tabsButton.click()
    reading.source.ui.sourceTabs.setCurrentIndex(2)
    reading.session.failed("http://127.0.0.1:8000: no answer within 30 s. Check that the server runs.")
    module_widget.parent.resize(460, 2500)
    path = screenshot(module_widget.parent, "panel_everything")
    keep(layouts.picture(), "panel_views")
    assert path.stat().st_size > 10000
