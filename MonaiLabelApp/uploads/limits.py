"""The limits of an uploaded image, and the check that a file holds all voxels of its header."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from replica_detection.errors import InputError
from replica_detection.io.formats import DAMAGED

# Headers, private elements of scanners, extensions and the like beside the voxels.
BESIDE = 16 << 20


@dataclass(frozen=True)
class UploadLimits:
    """Limits of an uploaded image: voxels (of all its channels and frames), and bytes, packed and unpacked."""

    max_voxels: int
    max_bytes: int

    @classmethod
    def of(cls, max_voxels: int) -> UploadLimits:
        """For voxels of any kind: none takes more than 8 bytes."""
        return cls(max_voxels, 8 * max_voxels + BESIDE)


def require_whole(path: Path, promised: int, held: int, of: str = "bytes") -> None:
    """Raises InputError where the file holds less than its header promises."""
    if held < promised:
        found = f"is truncated: the header promises {promised} {of} of voxels, the file holds {max(0, held)}"
        raise InputError(path, found, DAMAGED)
