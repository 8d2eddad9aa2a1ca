"""Cameras: moves the cameras of all 3D views of a layout in the same way."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ReplicaDetectionLib.ComparisonLayout import OVERLAY, ROWS, ComparisonLayout

#: Where the camera stands, seen from the patient (mm RAS+), and what is up.
DIRECTIONS = {
    "anterior": ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
    "left": ((-1.0, 0.0, 0.0), (0.0, 0.0, 1.0)),
    "right": ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0)),
    "superior": ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0)),
}


class Cameras:
    """Moves the cameras of all 3D views of the layout together."""

    def __init__(self, layout: ComparisonLayout):
        self.layout = layout
        self._radius = 1.0

    def fit(self, bounds: np.ndarray, direction: str = "anterior") -> None:
        """Shows the whole box (2, 3), mm RAS+, from one of DIRECTIONS."""
        self._radius = max(float(np.linalg.norm(bounds[1] - bounds[0])) / 2, 1.0)
        towards, up = DIRECTIONS[direction]
        self._look(bounds.mean(axis=0), np.array(towards), np.array(up), self._radius)

    def face(self, ras: tuple[float, float, float], normal: tuple[float, float, float]) -> None:
        """Looks at a point of a surface along its normal, from a shorter distance than `fit`."""
        towards = np.array(normal) / max(float(np.linalg.norm(normal)), 1e-9)
        up = np.array((0.0, 0.0, 1.0) if abs(towards[2]) < 0.9 else (0.0, 1.0, 0.0))
        self._look(np.array(ras), towards, up, 0.6 * self._radius)

    def _look(self, middle: np.ndarray, towards: np.ndarray, up: np.ndarray, radius: float) -> None:
        for camera in self._cameras():
            away = 1.05 * radius / math.sin(math.radians(camera.GetViewAngle()) / 2)
            modified = camera.StartModify()
            camera.SetFocalPoint(*middle)
            camera.SetPosition(*(middle + away * towards))
            camera.SetViewUp(*up)
            camera.EndModify(modified)
            camera.ResetClippingRange()

    def _cameras(self) -> list[Any]:
        found = [self.layout.cameraNode(row) for row in (*ROWS, OVERLAY)]
        return [camera for camera in found if camera is not None]
