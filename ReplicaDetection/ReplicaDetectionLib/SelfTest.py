"""SelfTest: opens the example and reads it as a user would. Slicer's test runner runs it, and so do the tests."""

from __future__ import annotations

import tempfile
import time
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer

from ReplicaDetectionLib.Example import NOVEL, PLANTED
from ReplicaDetectionLib.ReportPanel import viewPictures
from ReplicaDetectionLib.SourcePanel import exampleSource, folderSource
from ReplicaDetectionLib.Widget import Widget

READER = "self-test"
KEY = "00112233445566778899aabbccddeeff"
# Slicer holds Python's lock most of the time, so that background work takes longer there.
SECONDS = 180


def runSelfTest(test: unittest.TestCase, node: Callable[[], Any]) -> None:
    """Runs all checks on the application's scene, which is closed first and last.

    Args:
        test: its assert methods are used.
        node: gives the module's parameter node.
    """
    if slicer.app.layoutManager() is None:
        test.skipTest("there are no views without the main window")
    with tempfile.TemporaryDirectory(prefix="ReplicaDetection-", ignore_cleanup_errors=True) as folder:
        slicer.mrmlScene.Clear(False)
        widget = Widget(node)
        widget.widget.setMRMLScene(slicer.mrmlScene)
        widget.enter()
        try:
            _Reader(test, widget, Path(folder)).readAll()
        finally:
            widget.cleanup()
            slicer.mrmlScene.Clear(False)


class _Reader:
    """One reading from the first click to the last."""

    def __init__(self, test: unittest.TestCase, widget: Widget, folder: Path):
        self.test, self.widget, self.folder = test, widget, folder
        self.session, self.logic = widget.session, widget.logic
        self.messages: list[str] = []
        self.session.failed.connect(self.messages.append)

    def readAll(self) -> None:
        for step in (
            self.opens,
            self.showsTheMostSuspicious,
            self.laysOneOverTheOther,
            self.measuresSurfaces,
            self.storesRatings,
            self.readsBlinded,
            self.writesAReport,
            self.survivesAClosedScene,
        ):
            step()
            self.test.assertEqual(self.messages, [], step.__name__)

    def wait(self, condition: Callable[[], Any], what: str) -> None:
        """Handles the window's events until the condition holds."""
        end = time.monotonic() + SECONDS
        while not condition() and not self.messages:
            self.test.assertLess(time.monotonic(), end, what)
            slicer.app.processEvents()
            time.sleep(0.005)
        self.test.assertEqual(self.messages, [], what)

    def idle(self) -> bool:
        return self.session.activities.current is None

    def opens(self) -> None:
        self.session.setReader(READER)
        folder, ticks = self.folder / "example", [0]
        self.session.open(lambda task: exampleSource(folder, task))

        def listed() -> bool:
            ticks[0] += 1
            return self.session.list is not None and bool(self.session.list.items) and self.idle()

        self.wait(listed, "the example opens")
        self.test.assertGreater(ticks[0], 20, "the window lives on while the example is made")
        verdicts = {i.synthetic_id: i.verdict for i in self.session.list.items}
        self.test.assertEqual(sum(v == "replica" for v in verdicts.values()), len(PLANTED))
        self.test.assertEqual(sum(v == "novel" for v in verdicts.values()), NOVEL)

    def showsTheMostSuspicious(self) -> None:
        self.widget.worklist.ui.nextUnratedButton.click()
        self.wait(lambda: self.session.pair is not None and self.idle(), "a case appears")
        pair = self.session.pair
        self.test.assertEqual(pair.synthetic.id, self.session.list.items[0].synthetic_id)
        self.test.assertEqual(self.logic.layout.current, "rows")
        shown = [self._background(row) for row in ("First", "Second")]
        self.test.assertEqual(shown, list(self.logic.volumes()))
        self.test.assertIn(pair.training.id, self.widget.case.ui.detailLabel.text)

    def _background(self, row: str) -> Any:
        view = self.logic.layout.sliceLogic(self.logic.layout.sliceNode(row, "Axial"))
        return slicer.mrmlScene.GetNodeByID(view.GetSliceCompositeNode().GetBackgroundVolumeID())

    def laysOneOverTheOther(self) -> None:
        ui = self.widget.comparison.ui
        ui.overlayButton.click()
        self.test.assertEqual(self.logic.layout.current, "overlay")
        for mode in ("checkerboard", "difference", "fade"):
            ui.modeBox.setCurrentIndex(ui.modeBox.findData(mode))
            self.test.assertEqual(self.logic.composition.mode, mode)
            slicer.app.processEvents()
        ui.blinkButton.click()
        slicer.app.processEvents()
        ui.blinkButton.click()
        ui.rowsButton.click()

    def measuresSurfaces(self) -> None:
        self.test.assertTrue(self.logic.surfaces.available, self.logic.surfaces.problem)
        self.test.assertEqual(len(self.logic.surfaces.statistics()), 3)
        self.widget.surfaces.ui.largestButton.click()
        peaks = self.logic.surfaces.peaks()
        if peaks:
            at = self.logic.composition.position()
            for have, want in zip(at, peaks[0].ras, strict=True):
                self.test.assertAlmostEqual(have, want, delta=4.5)
        self.widget.surfaces.ui.fitRangeButton.click()

    def storesRatings(self) -> None:
        first = self.session.pair.synthetic.id
        self.widget.rating.ui.rating4Button.click()
        self.widget.rating.ui.saveNextButton.click()
        self.wait(lambda: self._shownOther(first), "the next case appears")
        source = folderSource(self.session.source.name)
        self.test.assertEqual([(r.synthetic_id, r.rating) for r in source.ratings(READER)], [(first, 4)])
        self.widget.rating.ui.undoButton.click()
        self.wait(lambda: self.session.pair is not None and self.session.pair.synthetic.id == first, "undo goes back")
        self.test.assertTrue(self.widget.rating.ui.rating4Button.checked)

    def _shownOther(self, case: str) -> bool:
        return self.idle() and self.session.pair is not None and self.session.pair.synthetic.id != case

    def readsBlinded(self) -> None:
        self.session.setBlinded(KEY)
        self.wait(lambda: self.session.blinded and self.idle(), "the blinded list appears")
        self.widget.worklist.ui.nextUnratedButton.click()
        self.wait(lambda: self.session.pair is not None and self.idle(), "a blinded case appears")
        pair, scene = self.session.pair, slicer.mrmlScene
        names = [scene.GetNthNode(i).GetName() or "" for i in range(scene.GetNumberOfNodes())]
        for hidden in (pair.synthetic.id, pair.training.id):
            self.test.assertFalse([n for n in names if hidden in n], "a blinded scene tells names")
        self.test.assertFalse(self.widget.case.ui.findings.visible)
        self.session.setBlinded("")
        self.wait(lambda: not self.session.blinded and self.idle(), "the list appears again")

    def writesAReport(self) -> None:
        self.session.step(1)
        self.wait(lambda: self.session.pair is not None and self.idle(), "a case appears")
        scene, page = self.logic.writeReport(self.folder / "report", viewPictures(), None)
        self.test.assertTrue(scene.is_file())
        self.test.assertIn(self.session.pair.training.id, page.read_text(encoding="utf-8"))

    def survivesAClosedScene(self) -> None:
        slicer.mrmlScene.Clear(False)
        self.test.assertIsNone(self.session.pair)
        self.session.step(1)
        self.wait(lambda: self.session.pair is not None and self.idle(), "a case appears in the new scene")
