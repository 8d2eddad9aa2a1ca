"""An upload must hold all voxels that its header promises: a copy that was cut short is refused, and nothing kept."""

from __future__ import annotations

from pathlib import Path

from replica_detection.errors import InputError
from replica_detection.io.formats import DAMAGED


def require_whole(path: Path, promised: int, held: int, of: str = "bytes") -> None:
    """Raises InputError where the file holds less than its header promises."""
    if held < promised:
        found = f"is truncated: the header promises {promised} {of} of voxels, the file holds {max(0, held)}"
        raise InputError(path, found, DAMAGED)
