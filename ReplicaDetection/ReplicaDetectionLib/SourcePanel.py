"""SourcePanel: the source of cases: a server, a result folder, or an image of the scene that is sent to the server."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import ctk
import slicer

from replica_detection.errors import ReplicaDetectionError
from ReplicaDetectionLib.ConnectionPanel import ConnectionPanel
from ReplicaDetectionLib.Panel import Panel
from ReplicaDetectionLib.SceneImage import writeImage
from ReplicaDetectionLib.Settings import Settings
from ReplicaDetectionLib.Sources import Source, Steps
from ReplicaDetectionLib.Translation import _

GREEN, RED, GREY = "#2e7d32", "#c62828", "#757575"


def folderSource(folder: str) -> Source:
    """A source for a result folder; imports the file readers late, when they are used."""
    from ReplicaDetectionLib.FolderSource import FolderSource

    return FolderSource(folder)


def exampleSource(folder: Path, task: Any) -> Source:
    """A small simulated collection, written into a folder and opened."""
    from ReplicaDetectionLib.Example import TOTAL, writeExample

    step = Steps(TOTAL + 1, task.progress, task.cancelled)
    return folderSource(str(writeExample(folder, step)))


class SourcePanel(Panel):
    """One line shows the state of the connection, for every tab."""

    def __init__(self, session: Any, settings: Settings):
        super().__init__(session)
        self.connection = ConnectionPanel(session, settings, self.mayLeave)
        self.ui.serverTab.layout().addWidget(self.connection.widget)
        self.settings = settings
        self.ui.folderEdit.filters = ctk.ctkPathLineEdit.Dirs
        self.ui.folderEdit.currentPath = settings.resultFolder
        self.ui.openFolderButton.connect("clicked()", self.openFolder)
        self.ui.exampleButton.connect("clicked()", self.openExample)
        self.ui.compareButton.connect("clicked()", self.compareImage)
        for selector in (self.ui.imageSelector, self.ui.maskSelector):
            selector.setMRMLScene(slicer.mrmlScene)
        self.ui.imageSelector.connect("currentNodeIDChanged(QString)", lambda node: self._update())
        self.ui.disconnectButton.connect("clicked()", self.disconnect)
        self.ui.tabsButton.connect("toggled(bool)", lambda shown: self.ui.sourceTabs.setVisible(shown))
        session.sourceChanged.connect(self._update)
        session.activities.changed.connect(self._update)
        self._folders: list[tempfile.TemporaryDirectory] = []
        self._connected = False
        self._update()

    def openFolder(self) -> None:
        folder = self.ui.folderEdit.currentPath.strip()
        if not folder:
            self.session.failed(_("Choose the output folder of a finished `replica-detection detect`."))
            return
        if not self.mayLeave():
            return
        self.settings.resultFolder = folder
        self.session.open(lambda task: folderSource(folder))

    def openExample(self) -> None:
        """Opens a simulated collection, to try the module without data."""
        if not self.mayLeave():
            return
        folder = self._temporaryFolder()
        self.session.open(lambda task: exampleSource(folder, task))

    def disconnect(self) -> None:
        if self.mayLeave():
            self.session.close()

    def mayLeave(self) -> bool:
        """Asks before ratings are lost that were chosen and not saved."""
        lost = self.session.reading.unsavedCount
        if not lost:
            return True
        question = _("Unsaved ratings: {count}. Leave this source and discard them?").format(count=lost)
        return slicer.util.confirmYesNoDisplay(question, windowTitle=_("Ratings not saved"))

    def compareImage(self) -> None:
        """Asks, writes the image to a temporary file and sends it."""
        image, mask = self.ui.imageSelector.currentNode(), self.ui.maskSelector.currentNode()
        source = self.session.source
        if image is None or source is None or not source.comparesImages:
            return
        question = _(
            'The image "{image}" leaves this computer: it is sent to {server} to be compared with the training images '
            "there. It is deleted after the comparison. It may show a patient: send it only if you are allowed to."
        ).format(image=image.GetName(), server=source.name)
        if mask is not None:
            question += " " + _('The mask "{mask}" is sent with it.').format(mask=mask.GetName())
        if not slicer.util.confirmYesNoDisplay(question + "\n\n" + _("Send it?"), windowTitle=_("Send an image")):
            return
        folder = self._temporaryFolder()
        try:
            path = writeImage(image, folder / "image.nii.gz")
            maskPath = writeImage(mask, folder / "mask.nii.gz") if mask is not None else ""
        except ReplicaDetectionError as error:
            self.session.failed(str(error))
            return
        self.session.compareImage(str(path), str(maskPath), lambda: shutil.rmtree(folder, ignore_errors=True))

    def cleanup(self) -> None:
        """Deletes the temporary files."""
        for folder in self._folders:
            folder.cleanup()
        self._folders.clear()

    def _temporaryFolder(self) -> Path:
        self._folders.append(tempfile.TemporaryDirectory(prefix="ReplicaDetection-", ignore_cleanup_errors=True))
        return Path(self._folders[-1].name)

    def _update(self) -> None:
        source, status = self.session.source, self.session.status
        busy = self.session.activities.current is not None
        self.ui.disconnectButton.setVisible(source is not None)
        self.ui.tabsButton.setVisible(source is not None)
        if self._connected != (source is not None):  # once connected, the tabs only take room
            self._connected = source is not None
            self.ui.tabsButton.setChecked(not self._connected)
        self.ui.openFolderButton.setEnabled(not busy)
        self.ui.exampleButton.setEnabled(not busy)
        self.connection.ui.connectButton.setEnabled(not busy)
        sends = source is not None and source.comparesImages and self.session.reachable
        self.ui.compareButton.setEnabled(sends and not busy and self.ui.imageSelector.currentNode() is not None)
        note = _("To compare another image, connect to a server first.")
        self.ui.sceneNote.setText("" if sends else note)
        name = shortened(source.name) if source is not None else ""
        if source is None:
            mark, colour, text = "○", GREY, _("Not connected")
        elif not self.session.reachable:
            mark, colour, text = "✕", RED, _("{name} does not answer").format(name=name)
        else:
            mark, colour = "●", GREEN
            text = _("{name}: {scored} of {studies} cases compared with {training} training images").format(
                name=name, scored=status.scored, studies=status.studies, training=status.training
            )
            for job in status.jobs:
                if job.state == "running":
                    plainly = f"{job.stage or job.kind}" + (f" {job.done}/{job.total}" if job.total else "")
                    text += f"\n{job.words or plainly}"
        self.ui.statusMark.setText(mark)
        self.ui.statusMark.setStyleSheet(f"color: {colour}; font-size: 14pt")
        self.ui.statusLabel.setText(text)
        self.ui.statusLabel.setToolTip(source.name if source is not None else "")
        self.widget.text = _("Source: {name}").format(name=name) if name else _("Source")


def shortened(name: str, length: int = 40) -> str:
    """The end of a long name, which tells folders apart better than its start."""
    return name if len(name) <= length else "…" + name[1 - length :]
