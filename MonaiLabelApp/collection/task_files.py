"""Files that a task reads and writes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replica_detection_server.errors import InvalidRequestError

if TYPE_CHECKING:
    from replica_detection.io.volume import Volume

WRITTEN = (".nii.gz", ".nii", ".nrrd")


@contextmanager
def fresh_file(suffix: str) -> Iterator[Path]:
    """A new file for a task's reply, gone again after an error.

    MONAI Label deletes whatever file a task returns, once it is sent: never return one that is there already.
    """
    handle, name = tempfile.mkstemp(suffix=suffix, prefix="replica-")
    os.close(handle)
    path = Path(name)
    try:
        yield path
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def result_suffix(request: dict[str, Any]) -> str:
    """The extension of the file that a client asks for. Raises InvalidRequestError for one that cannot be written."""
    wanted = request.get("result_extension") or WRITTEN[0]
    if wanted not in WRITTEN:
        raise InvalidRequestError(f"result_extension {wanted!r} cannot be written; use one of {', '.join(WRITTEN)}")
    return str(wanted)


def read_image(path: str) -> Volume:
    """The image that MONAI Label names: a file, or the folder of an uploaded series."""
    from replica_detection.io.volume import read_volume
    from replica_detection_server.collection.series import case_at

    return read_volume(case_at(Path(path), "image"))
