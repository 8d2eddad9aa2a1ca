"""The bench in a process of its own, without pytest."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Before vtk is imported: a window that needs no screen.
os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")

MODULE = Path(__file__).resolve().parents[3] / "ReplicaDetection" / "ReplicaDetection.py"


@contextmanager
def running(folder: Path, *, views: bool = True) -> Iterator[Any]:
    """`slicer.app` over a fresh scene, as scripted modules find it.

    Args:
        folder: for settings and temporary files.
        views: whether there is a layout manager; without one it is an application without its main window.

    Raises:
        AssertionError: at the end, where VTK or Qt reported an error or a slot raised one.
    """
    import qtbench
    from bench.application import BenchApplication
    from bench.errors import ErrorLog
    from bench.layouts import LayoutManager
    from qtbench.installation import complaints

    raised: list[BaseException] = []
    sys.excepthook = lambda kind, error, trace: raised.append(error)
    log = ErrorLog(folder / "vtk.log")
    log.start()
    application = BenchApplication(folder / "cache")
    layouts = LayoutManager(application) if views else None
    try:
        yield qtbench.install(
            application.scene,
            "ReplicaDetection",
            MODULE,
            folder,
            layout_manager=layouts,
            modules=application.modules,
            logic=application.appLogic,
        )
    finally:
        sys.excepthook = sys.__excepthook__
        if layouts is not None:
            layouts.close()
        application.end()
        log.stop()
    assert not raised, raised
    assert not complaints, complaints
    assert not log.errors, "\n".join(log.errors)
