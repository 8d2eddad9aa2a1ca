"""Cameras: the 3D views of a layout looked at from one side, all alike."""

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

    def fit(self, bounds: np.ndarray, direction: str = "anterior") -> None:
        """Everything in the box (2, 3) mm RAS+ in sight, from one of DIRECTIONS."""
        middle, radius = bounds.mean(axis=0), float(np.linalg.norm(bounds[1] - bounds[0])) / 2
        towards, up = DIRECTIONS[direction]
        for camera in self._cameras():
            away = 1.05 * max(radius, 1.0) / math.sin(math.radians(camera.GetViewAngle()) / 2)
            self._place(camera, middle, np.array(towards), np.array(up), away)

    def face(self, ras: tuple[float, float, float], normal: tuple[float, float, float]) -> None:
        """Looks at a point of a surface against its normal, from as far away as before."""
        towards = np.array(normal) / max(float(np.linalg.norm(normal)), 1e-9)
        up = np.array((0.0, 0.0, 1.0) if abs(towards[2]) < 0.9 else (0.0, 1.0, 0.0))
        for camera in self._cameras():
            away = float(np.linalg.norm(np.subtract(camera.GetPosition(), camera.GetFocalPoint())))
            self._place(camera, np.array(ras), towards, up, away)

    def _cameras(self) -> list[Any]:
        found = [self.layout.cameraNode(row) for row in (*ROWS, OVERLAY)]
        return [camera for camera in found if camera is not None]

    @staticmethod
    def _place(camera: Any, middle: np.ndarray, towards: np.ndarray, up: np.ndarray, away: float) -> None:
        modified = camera.StartModify()
        camera.SetFocalPoint(*middle)
        camera.SetPosition(*(middle + away * towards))
        camera.SetViewUp(*up)
        camera.EndModify(modified)
        camera.ResetClippingRange()
