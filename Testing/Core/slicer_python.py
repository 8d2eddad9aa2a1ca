"""A Python that holds no more packages than Slicer's own: the import of any other raises ModuleNotFoundError."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

TESTING = Path(__file__).resolve().parents[1]
MODULE = TESTING.parent / "ReplicaDetection"
#: Slicer 5.10 brings these along, beside Python's standard library.
BUNDLED = ("numpy", "scipy", "vtk", "vtkmodules", "SimpleITK", "requests", "pydicom")
#: Packages of the whole tool that Slicer lacks.
HEAVY = ("numba", "torch", "monai", "zarr", "faiss", "nrrd", "nibabel", "skimage", "matplotlib", "typer", "rich")
_OURS = ("replica_detection", "ReplicaDetection", "ReplicaDetectionLib")


class _Absent:
    """A finder for `sys.meta_path` that knows only some top-level packages."""

    def __init__(self, known: Iterable[str]):
        self.known = set(known)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        top = name.partition(".")[0]
        # A leading underscore: compiled halves of packages, and the standard library's own tables.
        if top not in self.known and not top.startswith("_"):
            raise ModuleNotFoundError(f"No module named '{name}' (Slicer has no {top})", name=name)


def leave_only(*packages: str) -> None:
    """From here on this process imports the standard library, this project and `packages`; nothing else."""
    sys.meta_path.insert(0, _Absent((*sys.stdlib_module_names, *_OURS, *packages)))
    for name in HEAVY:
        assert name not in sys.modules, f"{name} was imported before"


def run(code: str, *packages: str, timeout: float = 120) -> str:
    """Runs code in a fresh interpreter after `leave_only(*packages)` and returns what it printed.

    Raises:
        AssertionError: the code raised; the message is its traceback.
    """
    folders = (TESTING, TESTING / "SlicerModule", MODULE)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    start = f"from Core.slicer_python import leave_only\nleave_only(*{packages!r})\ndel leave_only\n"
    done = subprocess.run(
        [sys.executable, "-c", start + code], capture_output=True, encoding="utf-8", timeout=timeout, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
