"""Widget: builds the panels, and connects them with the scene, the keyboard and the module's start and end."""

from __future__ import annotations

from typing import Any

import qt
import slicer

from replica_detection.readers.ratings import SCALE
from ReplicaDetectionLib.AgreementPanel import AgreementPanel
from ReplicaDetectionLib.CasePanel import CasePanel
from ReplicaDetectionLib.ComparisonPanel import ComparisonPanel
from ReplicaDetectionLib.Logic import ReplicaDetectionLogic
from ReplicaDetectionLib.Panel import RESOURCES, quietly
from ReplicaDetectionLib.Parameter import Parameter
from ReplicaDetectionLib.PlotPanel import PlotPanel
from ReplicaDetectionLib.RatingPanel import RatingPanel
from ReplicaDetectionLib.ReportPanel import ReportPanel
from ReplicaDetectionLib.Session import Session
from ReplicaDetectionLib.Settings import Settings
from ReplicaDetectionLib.SourcePanel import SourcePanel
from ReplicaDetectionLib.SurfacePanel import SurfacePanel
from ReplicaDetectionLib.Translation import _
from ReplicaDetectionLib.Transport import Transport
from ReplicaDetectionLib.WorklistPanel import WorklistPanel

# How often a server is asked whether it is still there.
POLL_MS = 15000
MESSAGE_STYLE = {"problem": "color: #c62828", "note": ""}


class Widget:
    """The module's panel.

    Args:
        node: gives the module's parameter node in the present scene.

    Attributes:
        widget: the qMRMLWidget that holds everything.
        session, logic: see Session and ReplicaDetectionLogic.
    """

    def __init__(self, node: Any):
        self._node = node
        self.widget = slicer.util.loadUI(str(RESOURCES / "UI" / "ReplicaDetection.ui"))
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self.transport = Transport()
        self.logic = ReplicaDetectionLogic(slicer.mrmlScene, slicer.app.applicationLogic())
        self.session = Session(self.transport, self.logic)
        settings = Settings()
        self.source = SourcePanel(self.session, settings)
        self.worklist = WorklistPanel(self.session)
        self.rating = RatingPanel(self.session, settings)
        self.case = CasePanel(self.session)
        self.comparison = ComparisonPanel(self.session, self.logic, self._store)
        self.surfaces = SurfacePanel(self.session, self.logic, self._store)
        self.plot = PlotPanel(self.session, self.logic)
        self.agreement = AgreementPanel(self.session)
        self.report = ReportPanel(self.session, self.logic, settings)
        self.panels = (
            self.source,
            self.worklist,
            self.rating,
            self.case,
            self.comparison,
            self.surfaces,
            self.plot,
            self.agreement,
            self.report,
        )
        for panel in self.panels:
            self.ui.panels.layout().addWidget(panel.widget)
        self.ui.panels.layout().addStretch(1)
        self._connect()
        self._keys: list[Any] = []
        self._observed: list[int] = []

    def _connect(self) -> None:
        session = self.session
        session.failed.connect(lambda text: self._say(text, "problem"))
        session.told.connect(lambda text: self._say(text, "note"))
        session.activities.changed.connect(self._showActivity)
        session.caseChanged.connect(lambda: self._say("") if session.pair is not None else None)
        self.ui.cancelButton.connect("clicked()", session.cancel)
        self.ui.messageCloseButton.connect("clicked()", lambda: self._say(""))
        self._poll = qt.QTimer()
        self._poll.setInterval(POLL_MS)
        self._poll.connect("timeout()", session.poll)
        self._say("")
        self._showActivity()

    # --- the module's life

    def enter(self) -> None:
        """Starts keys, clock and polling when the module is shown."""
        if not self._keys:
            actions = {str(point): self._rater(point) for point in SCALE}
            actions |= {
                "N": lambda: self.session.step(1),
                "P": lambda: self.session.step(-1),
                "S": lambda: self.session.save(True),
                "U": self.session.undo,
            }
            self._keys = [self._key(key, action) for key, action in actions.items()]
        self._observe()
        self._restore()
        self.session.reading.resume()
        self._poll.start()
        self.session.poll()
        if self.session.pair is not None:
            self.comparison.showLayout()

    def exit(self) -> None:
        """Stops keys, clock, blinking and polling when another module is shown."""
        for key in self._keys:
            key.setParent(None)
            key.deleteLater()
        self._keys = []
        self._poll.stop()
        self.comparison.stop()
        self.session.reading.pause()

    def cleanup(self) -> None:
        """Ends the module: removes its threads, timers, keys, observers, nodes and temporary files."""
        self.exit()
        self.session.close()
        self.transport.close()
        self.source.cleanup()
        for tag in self._observed:
            slicer.mrmlScene.RemoveObserver(tag)
        self._observed = []

    def _observe(self) -> None:
        """Observes closing and loading of the scene; does nothing if it does so already."""
        if not self._observed:
            kind = slicer.vtkMRMLScene
            for event, call in ((kind.EndCloseEvent, self._closed), (kind.EndImportEvent, self._restore)):
                self._observed.append(slicer.mrmlScene.AddObserver(event, lambda *_, call=call: call()))

    def _key(self, key: str, action: Any) -> Any:
        shortcut = qt.QShortcut(qt.QKeySequence(key), self.widget)
        shortcut.connect("activated()", action)
        return shortcut

    def _rater(self, point: int) -> Any:
        return lambda: self.session.rate(point)

    # --- the scene

    def _closed(self) -> None:
        self.session.forgetScene()
        self.plot.forgetScene()
        if self._keys:  # else the new scene may do without a node of this module
            self._restore()

    def _restore(self) -> None:
        """Sets the panels from the parameters of the scene."""
        parameter = Parameter.read(self._node())
        self.comparison.read(parameter)
        self.surfaces.read(parameter)

    def _store(self) -> None:
        parameter = Parameter()
        self.comparison.write(parameter)
        self.surfaces.write(parameter)
        parameter.write(self._node())

    # --- what is said

    def _say(self, text: str, kind: str = "note") -> None:
        self.ui.messageLabel.setText(text)
        self.ui.messageLabel.setStyleSheet(MESSAGE_STYLE[kind])
        self.ui.messageFrame.setVisible(bool(text))
        if text:
            slicer.util.showStatusMessage(text, 5000)

    def _showActivity(self) -> None:
        activity = self.session.activities.current
        self.ui.activityFrame.setVisible(activity is not None)
        if activity is None:
            return
        self.ui.activityLabel.setText(_("{what}…").format(what=activity.text))
        with quietly(self.ui.activityBar):
            self.ui.activityBar.setRange(0, max(activity.total, 0))
            self.ui.activityBar.setValue(min(activity.done, activity.total))
