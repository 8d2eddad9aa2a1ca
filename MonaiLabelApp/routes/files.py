"""Files that a request brings, kept only as long as the request."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastapi import HTTPException, UploadFile

from replica_detection_server.cohorts import SUFFIXES, suffix_of
from replica_detection_server.hardening.uploads import UploadLimits, check_upload

MAX_UPLOAD_BYTES = 1 << 30
INBOX = "upload-"
READABLE = (*SUFFIXES, ".dcm")


@contextmanager
def received(
    uploads: dict[str, UploadFile | None], folder: Path, limit: int, limits: UploadLimits
) -> Iterator[dict[str, Path]]:
    """The uploads as files of a folder that only this user may enter, gone when the block ends.

    Each is known to be one image that lies in this file alone before it is handed on, see `check_upload`.

    Args:
        uploads: by the name of each file here; a client's name is used for its extension alone.
        limit: bytes of all together, as they come.
        limits: of each image.

    Raises:
        HTTPException: 413 beyond the limits, 422 for an extension that cannot be read or an empty file.
        InputError: a file that may not be opened.
    """
    folder.mkdir(parents=True, exist_ok=True)
    inbox = Path(tempfile.mkdtemp(prefix=INBOX, dir=folder))
    try:
        paths, left = {}, limit
        for name, upload in uploads.items():
            if upload is not None:
                paths[name] = inbox / f"{name}{_extension(name, upload)}"
                left -= _copy(upload, paths[name], left, limit)
                check_upload(paths[name], limits)
        yield paths
    finally:
        shutil.rmtree(inbox, ignore_errors=True)


def _extension(name: str, upload: UploadFile) -> str:
    given = (upload.filename or "").lower()
    found = suffix_of(given) or (".dcm" if given.endswith(".dcm") else "")
    if not found:
        raise HTTPException(422, f"the {name}'s file name must end in one of {', '.join(READABLE)}")
    return found


def _copy(upload: UploadFile, path: Path, left: int, limit: int) -> int:
    size = 0
    with path.open("wb") as file:
        while part := upload.file.read(1 << 20):
            size += len(part)
            if size > left:
                raise HTTPException(413, f"at most {limit} bytes may be sent")
            file.write(part)
    if not size:
        raise HTTPException(422, f"the {path.stem} is an empty file")
    return size
