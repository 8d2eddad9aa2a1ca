"""The module's widget, set up as Slicer sets it up. Tests import what they use from here."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qtbench.installation import complaints
from qtbench.standalone import MODULE


@pytest.fixture
def slicer_app(application, layouts, tmp_path, monkeypatch):
    """`slicer.app` over a fresh scene with off-screen views. What Qt complains of, and what a slot raises, fails the
    test."""
    import qtbench

    raised: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: raised.append(error))

    folder = tmp_path / "application"
    folder.mkdir()
    app = qtbench.install(
        application.scene,
        "ReplicaDetection",
        MODULE,
        folder,
        layout_manager=layouts,
        modules=application.modules,
        logic=application.appLogic,
    )
    yield app
    app.processEvents()
    assert not complaints, complaints
    assert not raised, raised


@pytest.fixture
def module_widget(slicer_app):
    """A ReplicaDetectionWidget, entered."""
    widget = make_widget()
    widget.enter()
    yield widget
    widget.exit()
    widget.cleanup()
    widget.parent.hide()
    widget.parent.deleteLater()
    slicer_app.processEvents()


def make_widget() -> Any:
    """The widget of the module file, imported afresh under its name as Slicer does it."""
    sys.modules.pop("ReplicaDetection", None)
    module = importlib.import_module("ReplicaDetection")
    widget = module.ReplicaDetectionWidget()
    widget.parent.resize(460, 1400)
    return widget


@pytest.fixture
def panels(module_widget) -> Any:
    """The ReplicaDetectionLib.Widget inside."""
    return module_widget.panels


def wait(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Lets the window live until the condition holds."""
    from PySide6 import QtWidgets

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the window waited in vain"
        QtWidgets.QApplication.processEvents()
        time.sleep(0.002)


def idle(panels: Any) -> Callable[[], bool]:
    """Nobody waits for anything."""
    return lambda: panels.session.activities.current is None


def press(widget: Any, key: str) -> None:
    """A key on the keyboard, to whatever has the focus in the widget's window."""
    from PySide6 import QtGui, QtTest, QtWidgets

    target = QtWidgets.QApplication.focusWidget() or widget
    QtTest.QTest.keyClick(target, QtGui.QKeySequence(key)[0].key())
    QtWidgets.QApplication.processEvents()


def picture_of(widget: Any) -> Any:
    """(H, W, 3) uint8 of a widget, once its layouts have settled."""
    import numpy as np
    from PySide6 import QtGui, QtWidgets

    for _ in range(5):  # a layout inside a layout settles later
        QtWidgets.QApplication.processEvents()
        if widget.layout() is not None and widget.layout().hasHeightForWidth():
            # As the scroll area does in which Slicer puts a module.
            widget.resize(widget.width, widget.layout().heightForWidth(widget.width))
    image = widget.grab().toImage().convertToFormat(QtGui.QImage.Format_RGB888)
    rows = np.frombuffer(image.constBits(), np.uint8).reshape(image.height(), image.bytesPerLine())
    return rows[:, : 3 * image.width()].reshape(image.height(), image.width(), 3).copy()


def screenshot(widget: Any, name: str) -> Path:
    """Keeps a picture of a widget among the test output, to be looked at."""
    from bench.pictures import keep

    return keep(picture_of(widget), name)


__all__ = ["idle", "make_widget", "module_widget", "panels", "picture_of", "press", "screenshot", "slicer_app", "wait"]
