"""ReportPanel: the case on screen as files: the scene, and a page with pictures, measures and the rating."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ctk
import slicer

from replica_detection.errors import ReplicaDetectionError
from ReplicaDetectionLib.Panel import Panel
from ReplicaDetectionLib.Settings import Settings
from ReplicaDetectionLib.Translation import _


class ReportPanel(Panel):
    """One click writes both files. In a blinded reading they contain the case's code, no name and no score."""

    def __init__(self, session: Any, logic: Any, settings: Settings):
        super().__init__(session)
        self.logic, self.settings = logic, settings
        self.ui.reportFolderEdit.filters = ctk.ctkPathLineEdit.Dirs
        self.ui.reportFolderEdit.currentPath = settings.reportFolder or str(Path.home() / "ReplicaDetection")
        self.ui.reportButton.connect("clicked()", self.write)
        self.ui.reportLabel.openExternalLinks = True
        session.caseChanged.connect(self._update)
        self._update()

    def write(self) -> None:
        """Writes the pair on screen as it is shown."""
        folder = self.ui.reportFolderEdit.currentPath.strip()
        if not folder:
            self.session.failed(_("Choose a folder for the report."))
            return
        self.settings.reportFolder = folder
        try:
            with slicer.util.WaitCursor():
                scene, page = self.logic.writeReport(folder, viewPictures(), self.session.reading.stored)
        except (ReplicaDetectionError, OSError) as error:
            self.session.failed(str(error))
            return
        self.ui.reportLabel.setText(
            _("Written: {page} and {scene}").format(page=f'<a href="{page.as_uri()}">{page.name}</a>', scene=scene.name)
        )

    def _update(self) -> None:
        self.ui.reportButton.setEnabled(self.session.pair is not None)
        if self.session.pair is None:
            self.ui.reportLabel.setText("")


def viewPictures() -> dict[str, Any]:
    """Pictures of the views of the layout, (H, W, 3) uint8 each, by view label."""
    from ReplicaDetectionLib.CaseReport import grabWindow

    manager, found = slicer.app.layoutManager(), {}
    for name in manager.sliceViewNames():
        widget = manager.sliceWidget(name)
        node = widget.mrmlSliceNode()
        if node.IsMappedInLayout():
            found[f"{node.GetLayoutLabel()} {node.GetOrientation()}"] = grabWindow(widget.sliceView().renderWindow())
    for index in range(manager.threeDViewCount):
        widget = manager.threeDWidget(index)
        node = widget.mrmlViewNode()
        if node.IsMappedInLayout():
            found[f"{node.GetLayoutLabel()} 3D"] = grabWindow(widget.threeDView().renderWindow())
    return found
