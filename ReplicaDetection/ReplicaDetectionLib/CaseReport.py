"""CaseReport: one case as files: the scene (.mrb) and a page (.html) with pictures, measures and the rating."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.errors import InputError


def writeScene(scene: Any, path: Path) -> Path:
    if not scene.WriteToMRB(str(path)):
        raise InputError(path, "cannot be written", "Check that its folder exists and the disk has room")
    return path


def writePage(logic, folder, pictures, rating=None):
    raise NotImplementedError


def grabWindow(renderWindow: Any) -> np.ndarray:
    """(H, W, 3) uint8 of a vtkRenderWindow, first row on top."""
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    renderWindow.Render()
    grab = vtk.vtkWindowToImageFilter()
    grab.SetInput(renderWindow)
    grab.ReadFrontBufferOff()
    grab.Update()
    image = grab.GetOutput()
    width, height, _ = image.GetDimensions()
    pixels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)
    return np.ascontiguousarray(pixels[::-1, :, :3])
