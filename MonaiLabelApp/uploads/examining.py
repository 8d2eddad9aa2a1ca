"""Where an upload is examined: in a process that can be ended, for no examination is safe from every file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from replica_detection_server.uploads.checks import UploadLimits, check_series, check_upload

if TYPE_CHECKING:
    from replica_detection_server.computing.services import Services

# Of the largest image; the computation itself may take longer.
SECONDS = 60.0


def examine(services: Services | None, path: Path, limits: UploadLimits) -> None:
    """As `check_upload`, or `check_series` for a folder, in another process; in this one without services.

    Raises:
        InputError: without services, as `check_upload`.
        HTTPException: 413 and 422 with the same words; 422 where it takes too long or too much memory.
    """
    if services is None:
        examine_here(path, limits, series=path.is_dir())
        return
    asked = {"path": str(path), "max_voxels": limits.max_voxels, "max_bytes": limits.max_bytes}
    services.workers.call("examine", {**asked, "series": path.is_dir()}, uploaded=True, seconds=SECONDS)


def examine_here(path: Path, limits: UploadLimits, *, series: bool) -> None:
    (check_series if series else check_upload)(path, limits)
