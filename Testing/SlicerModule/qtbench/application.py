"""What scripted modules touch of `slicer.app`, `slicer.modules` and Slicer's dialogs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PySide6 import QtCore, QtWidgets

from qtbench.habits import with_habits


@with_habits
class ModuleManager(QtCore.QObject):
    """Tells modules that they are about to go."""

    moduleAboutToBeUnloaded = QtCore.Signal(str)


class Application:
    """`slicer.app`: settings in a folder of the test, a layout manager that the test may set, no windows."""

    applicationName = "Slicer"
    majorVersion, minorVersion = 5, 10
    documentationBaseUrl = ""

    def __init__(self, scene: Any, folder: Path, layout_manager: Any = None, logic: Any = None):
        self._qt = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["qtbench"])
        self._scene, self._layout_manager, self._logic = scene, layout_manager, logic
        self._modules = ModuleManager()
        self._settings = QtCore.QSettings(str(folder / "Slicer.ini"), QtCore.QSettings.IniFormat)
        self.temporaryPath = str(folder)

    def settings(self) -> QtCore.QSettings:
        return self._settings

    userSettings = revisionUserSettings = settings

    def mrmlScene(self) -> Any:
        return self._scene

    def applicationLogic(self) -> Any:
        return self._logic

    def layoutManager(self) -> Any:
        return self._layout_manager

    def moduleManager(self) -> ModuleManager:
        return self._modules

    def processEvents(self) -> None:
        self._qt.processEvents()

    def topLevelWidgets(self) -> list[Any]:
        """No main window."""
        return []

    def testingEnabled(self) -> bool:
        """True, as under Slicer's test runner: message boxes answer themselves."""
        return True

    def translate(self, context: str, text: str) -> str:
        return text

    def setOverrideCursor(self, cursor: Any) -> None:
        self._qt.setOverrideCursor(cursor)

    def restoreOverrideCursor(self) -> None:
        self._qt.restoreOverrideCursor()


def modules_with(modules: Any, name: str, path: Path) -> Any:
    """`slicer.modules` with an entry of the module under test, which gives its file's place to `modulePath`."""
    return SimpleNamespace(**vars(modules), **{name.lower(): SimpleNamespace(path=str(path), name=name)})
