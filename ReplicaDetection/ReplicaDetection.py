"""Replica Detection: shows a suspicious synthetic image beside its nearest training image.

This file holds only the classes that Slicer looks for in a scripted module. The work is in ReplicaDetectionLib, which
is imported when the module is opened.
"""

import sys

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)


class ReplicaDetection(ScriptedLoadableModule):
    """Title, category and help."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Replica Detection")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Quantification")]
        self.parent.dependencies = []
        self.parent.contributors = ["The Replica Detection developers"]
        self.parent.helpText = _(
            "Shows synthetic images that resemble a training scan beside that scan: slices, surfaces and the distance "
            "between them, and stores a reader's rating from 1 to 4. Open a result folder of the replica-detection "
            "command, or connect to a replica-detection server. Images of the scene are sent to a server only after a "
            "question."
        )
        self.parent.acknowledgementText = _(
            "It reports resemblance; it cannot show that nothing about a patient can be learned from an image."
        )


class ReplicaDetectionWidget(ScriptedLoadableModuleWidget):
    """Passes every call to ReplicaDetectionLib.Widget."""

    def __init__(self, parent=None):
        self.panels = None
        ScriptedLoadableModuleWidget.__init__(self, parent)

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        from ReplicaDetectionLib.Widget import Widget

        self.panels = Widget(ReplicaDetectionLogic().getParameterNode)
        self.panels.widget.setMRMLScene(slicer.mrmlScene)
        self.layout.addWidget(self.panels.widget)

    def enter(self):
        self.panels.enter()

    def exit(self):
        self.panels.exit()

    def cleanup(self):
        self.panels.cleanup()

    def onReload(self):
        """Removes what this file imported, so that it is read again too; Slicer reloads only this file."""
        for name in list(sys.modules):
            if name.split(".")[0] in ("ReplicaDetectionLib", "replica_detection"):
                del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)


class ReplicaDetectionLogic(ScriptedLoadableModuleLogic):
    """The module's parameter node, and for scripts the displays without the panel."""

    def makeDisplays(self):
        """A `ReplicaDetectionLib.Logic.ReplicaDetectionLogic` on the application's scene."""
        from ReplicaDetectionLib.Logic import ReplicaDetectionLogic as Displays

        return Displays(slicer.mrmlScene, slicer.app.applicationLogic())


class ReplicaDetectionTest(ScriptedLoadableModuleTest):
    """Opens the example and reads it as a person would; see ReplicaDetectionLib.SelfTest."""

    def runTest(self, **arguments):
        from ReplicaDetectionLib.SelfTest import runSelfTest

        runSelfTest(self, ReplicaDetectionLogic().getParameterNode)
