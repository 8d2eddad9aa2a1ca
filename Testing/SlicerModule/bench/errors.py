"""VTK prints errors and carries on; here they are collected, so that a test can fail on them."""

from __future__ import annotations

import re
from pathlib import Path

import vtk

# What the library says for want of Slicer's own resource files; none of it concerns what is tested.
EXPECTED = r"vtkSlicerTerminologiesModuleLogic|FindDefaultColorFiles|RegionContext|Terminolog"


class ErrorLog:
    """Everything that VTK and MRML call an error between `start` and `stop`."""

    def __init__(self, path: Path):
        self.path = path

    def start(self) -> None:
        vtk.vtkLogger.SetStderrVerbosity(vtk.vtkLogger.VERBOSITY_OFF)
        vtk.vtkLogger.LogToFile(str(self.path), vtk.vtkLogger.TRUNCATE, vtk.vtkLogger.VERBOSITY_ERROR)

    def stop(self) -> None:
        vtk.vtkLogger.EndLogToFile(str(self.path))

    @property
    def errors(self) -> list[str]:
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.is_file() else []
        return [line for line in lines if "ERR|" in line and not re.search(EXPECTED, line)]
