"""Makes `qt` and `ctk`, and adds to `slicer` what the application would."""

from __future__ import annotations

import os
import sys
import types
from pathlib import Path
from typing import Any

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

from PySide6 import QtCore, QtUiTools, QtWidgets

from qtbench.application import Application, modules_with
from qtbench.habits import flat_namespace
from qtbench.placeholders import CTK, CUSTOM_WIDGETS, QMRML

# What the offscreen platform says of itself.
_HARMLESS = ("propagateSizeHints", "does not support")
complaints: list[str] = []


def _hear(kind: Any, context: Any, text: str) -> None:
    """Qt prints its complaints (an unknown slot, a layout set twice) and goes on; here they are kept for the tests."""
    if not any(word in text for word in _HARMLESS):
        complaints.append(text)


class UiLoader(QtUiTools.QUiLoader):
    """Makes the widgets of a .ui file with PythonQt's habits; refuses a class that nobody knows."""

    def __init__(self, parent: Any = None):
        super().__init__(parent)
        for cls in CUSTOM_WIDGETS:
            self.registerCustomWidget(cls)

    def createWidget(self, name: str, parent: Any = None, object_name: str = "") -> QtWidgets.QWidget:
        cls = getattr(sys.modules["qt"], name, None)
        if isinstance(cls, type) and issubclass(cls, QtWidgets.QWidget):
            widget = cls(parent)
            widget.setObjectName(object_name)
            return widget
        if name not in self.availableWidgets():
            raise ValueError(f"the .ui file names the unknown class {name}")
        return super().createWidget(name, parent, object_name)


def install(
    scene: Any,
    module: str,
    path: Path,
    folder: Path,
    layout_manager: Any = None,
    modules: Any = None,
    logic: Any = None,
) -> Application:
    """Makes `import qt, ctk, slicer` work for one scripted module; may be called again for another scene.

    Args:
        scene: the vtkMRMLScene that widgets and logics share.
        module, path: name and file of the scripted module under test.
        folder: where settings and temporary files go.
        layout_manager, modules, logic: `slicer.app.layoutManager()`, `slicer.modules`, `slicer.app.applicationLogic()`.
    """
    import slicer
    import slicer.util

    from qtbench import scripted

    QtCore.qInstallMessageHandler(_hear)
    complaints.clear()
    application = Application(scene, folder, layout_manager, logic)
    if "qt" not in sys.modules:
        sys.modules["qt"] = flat_namespace()
        sys.modules["qt"].QUiLoader = UiLoader
        sys.modules["ctk"] = types.ModuleType("ctk")
        vars(sys.modules["ctk"]).update({cls.__name__: cls for cls in CTK})
        scripted.register()
    for cls in QMRML:
        setattr(slicer, cls.__name__, cls)
    sys.modules["qt"].QSettings = _settings_in(application)
    slicer.app, slicer.mrmlScene = application, scene
    slicer.modules = modules_with(modules, module, path)
    return application


def _settings_in(application: Application) -> type:
    """`qt.QSettings()` without arguments is the application's settings file, never the user's own."""

    class QSettings(QtCore.QSettings):
        def __init__(self, *arguments: Any):
            super().__init__(*(arguments or (application.settings().fileName(), QtCore.QSettings.IniFormat)))

    return QSettings
