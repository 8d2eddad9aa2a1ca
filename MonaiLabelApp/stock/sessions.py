"""/session: an uploaded image or series that is kept for a while."""

from __future__ import annotations

import re
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request, UploadFile
from fastapi.responses import FileResponse
from monailabel.utils.others.generic import get_mime_type
from monailabel.utils.sessions import SessionInfo

from replica_detection_server.access.identity import Identity
from replica_detection_server.computing.queue import heavy
from replica_detection_server.incoming.names import ARCHIVES, QUERIES, SessionId, extension
from replica_detection_server.routes.received_files import examine
from replica_detection_server.routes.upload_limits import upload_limits
from replica_detection_server.settings.launch_settings import Settings
from replica_detection_server.stock.lookup import USER, app
from replica_detection_server.uploads.archives import unpack
from replica_detection_server.uploads.sessions import UploadSessions

router = APIRouter(prefix="/session", tags=["MONAI Label"])

CHUNK = 1 << 20
# Limit of all sessions together, as a multiple of the largest upload.
ROOM = 8


@router.put("/", summary="Keep an image, a series of files, or (uncompress) an archive of files", dependencies=[heavy])
def create(
    request: Request,
    who: Annotated[Identity, USER],
    files: list[UploadFile],
    uncompress: bool = False,
    expiry: Annotated[int, Query(ge=0, le=7 * 86400)] = 0,
) -> dict[str, Any]:
    """`expiry`: seconds after its last use; 0 for the server's own, which is also the longest."""
    settings: Settings = request.app.state.settings
    if _sessions().total_bytes() > ROOM * settings.max_upload_bytes:
        raise HTTPException(409, "The sessions fill their space; remove some, or wait until they expire.")
    state = request.app.state
    limits = upload_limits(state)
    folder = Path(tempfile.mkdtemp(prefix="session-"))
    try:
        image = _received(folder, files, uncompress, min(settings.max_upload_bytes, limits.max_bytes))
        examine(state.replica, image, limits)
        # MONAI Label's own ids contain time and machine, so the next one can be guessed.
        id, info = _sessions().add_session(str(image), expiry, session_id=str(uuid.uuid4()))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"session_id": id, "session_info": _shown(info)}


@router.get("/{session_id}", summary="A session, or its image")
def get(who: Annotated[Identity, USER], session_id: SessionId, update_ts: bool = False, image: bool = False) -> Any:
    info = _known(session_id, update_ts)
    if not image:
        return _shown(info)
    if not Path(info.image).is_file():
        raise HTTPException(422, "This session holds a series of files, not one image.")
    return FileResponse(info.image, media_type=get_mime_type(info.image), filename=Path(info.image).name)


@router.delete("/{session_id}", summary="Remove a session")
def remove(who: Annotated[Identity, USER], session_id: SessionId) -> Any:
    info = _known(session_id, False)
    _sessions().remove_session(session_id)
    return _shown(info)


def _received(folder: Path, files: list[UploadFile], uncompress: bool, max_bytes: int) -> Path:
    """One file, or the folder of a series."""
    if uncompress:
        if len(files) != 1:
            raise HTTPException(422, "Send one archive.")
        archive = folder / f"archive{extension(files[0].filename, ARCHIVES)}"
        _copy(files[0], archive)
        series = folder / "series"
        series.mkdir()
        unpack(archive, series, max_bytes)
        found = [path for path in series.rglob("*") if path.is_file()]
        if len(found) != 1:
            return series
        return found[0].rename(folder / f"image{_suffix(found[0].name)}")
    if len(files) == 1:
        image = folder / f"image{_suffix(files[0].filename)}"
        _copy(files[0], image)
        return image
    series = folder / "series"
    series.mkdir()
    for n, file in enumerate(files):
        _copy(file, series / f"{n:05d}{_suffix(file.filename)}")
    return series


def _suffix(filename: str | None) -> str:
    """The extension of a file. Names without one, or that end with a number as those of scanners do, are DICOM."""
    name = Path((filename or "").replace("\\", "/")).name
    return ".dcm" if re.fullmatch(r"[^.]*|.*\.(\d+|ima)", name, re.IGNORECASE) else extension(name, QUERIES)


def _copy(upload: UploadFile, path: Path) -> None:
    with path.open("wb") as target:
        shutil.copyfileobj(upload.file, target, CHUNK)


def _known(session_id: str, update: bool) -> SessionInfo:
    info = _sessions().get_session(session_id, update_ts=update)
    if info is None:
        raise HTTPException(404, "There is no such session; it may have expired.")
    return info


def _shown(info: SessionInfo) -> dict[str, Any]:
    """The session without the folders of this machine."""
    return {**info.to_json(), "path": "", "image": Path(info.image).name}


def _sessions() -> UploadSessions:
    found: UploadSessions = app().sessions()
    return found
