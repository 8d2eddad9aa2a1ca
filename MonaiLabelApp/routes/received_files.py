"""Uploaded files, kept only as long as the request."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import HTTPException, UploadFile

from replica_detection_server.computing.services import Services
from replica_detection_server.incoming.names import ARCHIVES
from replica_detection_server.settings.case_ids import SUFFIXES, suffix_of
from replica_detection_server.uploads.archives import unpack
from replica_detection_server.uploads.checks import examine_here
from replica_detection_server.uploads.limits import UploadLimits

if TYPE_CHECKING:
    from replica_detection_server.computing.services import Services

MAX_UPLOAD_BYTES = 1 << 30
INBOX = "upload-"
READABLE = (*SUFFIXES, ".dcm")
# Limit for the checks of the largest image; the computation itself may take longer.
EXAMINATION_SECONDS = 60.0


@contextmanager
def received(
    uploads: dict[str, UploadFile | None],
    folder: Path,
    limit: int,
    limits: UploadLimits,
    *,
    archives: tuple[str, ...] = (),
    services: Services | None = None,
) -> Iterator[dict[str, Path]]:
    """The uploads as files of a folder that only this user may enter, deleted when the block ends.

    Each is first checked to be one image in this file alone, or a series, see `check_upload`.

    Args:
        uploads: by the name of each file here; a client's name is used for its extension alone.
        limit: bytes of all together, as they come; of an archive also what it holds.
        limits: of each image, and of all images of an archive together.
        archives: which of them may be the files of a series in an archive; its path is then that of their folder.
        services: whose processes examine the uploads; None: this process does.

    Raises:
        HTTPException: 413 beyond the limits, 422 for an extension that cannot be read or an empty file.
        InputError: a file that may not be opened, or an archive that is damaged or has names that lead elsewhere.
    """
    folder.mkdir(parents=True, exist_ok=True)
    inbox = Path(tempfile.mkdtemp(prefix=INBOX, dir=folder))
    try:
        paths, left = {}, limit
        for name, upload in uploads.items():
            if upload is not None:
                ending = _extension(name, upload, ARCHIVES if name in archives else ())
                paths[name] = inbox / f"{name}{ending}"
                left -= _copy(upload, paths[name], left, limit)
                if ending in ARCHIVES:
                    paths[name] = _unpacked(paths[name], inbox / name, min(limit, limits.max_bytes))
                examine(services, paths[name], limits)
        yield paths
    finally:
        shutil.rmtree(inbox, ignore_errors=True)


def _extension(name: str, upload: UploadFile, more: tuple[str, ...]) -> str:
    given = (upload.filename or "").lower()
    found = suffix_of(given) or next((e for e in (".dcm", *more) if given.endswith(e)), "")
    if not found:
        raise HTTPException(422, f"the {name}'s file name must end in one of {', '.join((*READABLE, *more))}")
    return found


def _unpacked(archive: Path, folder: Path, limit: int) -> Path:
    folder.mkdir()
    unpack(archive, folder, limit)
    archive.unlink()
    return folder


def _copy(upload: UploadFile, path: Path, left: int, limit: int) -> int:
    size = 0
    with path.open("wb") as file:
        while part := upload.file.read(1 << 20):
            size += len(part)
            if size > left:
                raise HTTPException(413, f"at most {limit} bytes may be sent")
            file.write(part)
    if not size:
        raise HTTPException(422, f"the {path.name.partition('.')[0]} is an empty file")
    return size


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
    services.workers.call("examine", {**asked, "series": path.is_dir()}, uploaded=True, seconds=EXAMINATION_SECONDS)
