"""The bench for the Slicer module: skipped as a whole where Slicer's MRML library is not installed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# Before vtk is imported: a window that needs no screen.
os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "ReplicaDetection"))

try:
    import slicer  # noqa: F401
except ImportError:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def vtk_errors(tmp_path):
    """Fails the test where VTK or MRML reported an error."""
    from bench.errors import ErrorLog

    log = ErrorLog(tmp_path / "vtk.log")
    log.start()
    yield log
    log.stop()
    assert not log.errors, "\n".join(log.errors)


@pytest.fixture
def application(tmp_path, vtk_errors):
    """A fresh scene with its logics."""
    from bench.application import BenchApplication

    app = BenchApplication(tmp_path / "cache")
    yield app
    app.end()


@pytest.fixture
def layouts(application):
    """Off-screen views of the scene, as Slicer's layout manager gives them."""
    from bench.layouts import LayoutManager

    manager = LayoutManager(application)
    yield manager
    manager.close()


@pytest.fixture
def logic(application, layouts):
    """The module's logic with its two rows of views."""
    from ReplicaDetectionLib.Logic import ReplicaDetectionLogic

    made = ReplicaDetectionLogic(application.scene, application.appLogic)
    made.layout.set("rows")
    yield made
    made.clear()
