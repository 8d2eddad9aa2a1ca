"""POST /infer/{model}: segmentation or comparison of one image."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException, Request, Response, UploadFile
from fastapi.responses import FileResponse, JSONResponse, StreamingResponse
from monailabel.utils.others.generic import get_mime_type
from requests_toolbelt import MultipartEncoder
from starlette.background import BackgroundTask

from replica_detection_server.access.identity import ROLES, Identity
from replica_detection_server.computing.queue import heavy
from replica_detection_server.incoming.names import NONE, KnownId, SessionId, TaskName, json_object
from replica_detection_server.records.recorded_replies import shows, shows_answer
from replica_detection_server.routes.received_files import received
from replica_detection_server.routes.upload_limits import upload_limits
from replica_detection_server.stock.lookup import USER, app, known_image, known_task, options
from replica_detection_server.util.json_values import plain

router = APIRouter(tags=["MONAI Label"])

CHUNK = 1 << 20
# Options of the writer of masks; `points` and the like come from the task's own description.
WRITER = ("result_extension", "result_dtype", "result_compress", "save_label", "label_tag", "label_info")


class Output(StrEnum):
    """The kind of reply: the file, the JSON, or both in one multipart reply."""

    image = "image"
    json = "json"
    all = "all"
    dicom_seg = "dicom_seg"


@router.post("/infer/{model}", summary="Run a model on one image", dependencies=[heavy], response_class=Response)
def infer(
    request: Request,
    model: TaskName,
    who: Annotated[Identity, USER],
    image: KnownId | NONE = "",
    session_id: SessionId | NONE = "",
    params: Annotated[str, Form()] = "{}",
    file: UploadFile | None = None,
    label: UploadFile | None = None,
    output: Output | None = None,
) -> Response:
    """On a known image (`image`), an uploaded one (`file`), or that of a session; `params` is a JSON object."""
    task = known_task("models", model)
    asked = options(json_object(params, "params"), task, WRITER)
    if asked.get("save_label") and who.rank < ROLES.index("annotator"):
        raise HTTPException(403, "Saving a label needs the role of annotator.")
    if output is Output.dicom_seg:
        raise HTTPException(422, "DICOM SEG is given for images of a DICOMweb server only.")
    uploads = {"image": _sent(file), "label": _sent(label)}
    state, folder = request.app.state, Path(tempfile.gettempdir())
    limits, archives = upload_limits(state), ("image",)
    with received(uploads, folder, state.max_upload_bytes, limits, archives=archives, services=state.replica) as paths:
        asked["image"] = _image(paths.get("image"), image, session_id, asked)
        if asked["image"] == image:
            shows(request, [image])
        if "label" in paths:
            asked["label"] = str(paths["label"])
        result = app().infer({**asked, "model": model})
    if result is None:
        raise HTTPException(422, f"{model} gave no answer for this image.")
    return _reply(request, result, output)


def _image(file: Path | None, image: str, session_id: str, asked: dict[str, Any]) -> str:
    """The value of `image` for MONAI Label's app: the id of a known one, else a file that is ours."""
    if session_id:
        session = app().sessions().get_session(session_id)
        if session is None:
            raise HTTPException(404, "There is no such session; it may have expired.")
        asked["session"] = session.to_json()
        return str(session.image)
    if file is not None:
        return str(file)
    if not image:
        raise HTTPException(422, "Name an image or a session, or send a file.")
    known_image(image)
    return image


def _sent(upload: UploadFile | None) -> UploadFile | None:
    """The upload; None for the empty field that some clients send instead of no file."""
    return upload if upload is not None and upload.filename else None


def _reply(request: Request, result: dict[str, Any], output: Output | None) -> Response:
    made = result.get("file") or result.get("label")
    path = Path(made) if isinstance(made, str) and Path(made).is_file() else None
    try:
        answer = plain(result.get("params"))
        shows_answer(request, answer)
        if output is Output.image:
            if path is None:
                raise HTTPException(422, "This model gives no image; ask for output=json.")
            return FileResponse(path, media_type=get_mime_type(path), background=BackgroundTask(_remove_ours, path))
        if output is Output.json or path is None:
            _remove_ours(path)
            return JSONResponse(answer)
        text = request.app.state.scrub.text(json.dumps(answer))
        return _multipart(text, path)
    except BaseException:
        _remove_ours(path)
        raise


def _multipart(text: str, path: Path) -> Response:
    """Both parts in one reply, the file streamed from the disk."""
    file = path.open("rb")
    parts = MultipartEncoder(
        {"params": (None, text, "application/json"), "image": (path.name, file, get_mime_type(path))}
    )

    def pieces() -> Iterator[bytes]:
        with file:
            while piece := parts.read(CHUNK):
                yield piece

    return StreamingResponse(
        pieces(),
        media_type=parts.content_type,
        headers={"content-length": str(parts.len)},
        background=BackgroundTask(_remove_ours, path),
    )


def _remove_ours(path: Path | None) -> None:
    """Removes a result after its reply. MONAI Label removes any file that a task named, even a training image."""
    if path is not None and path.resolve().is_relative_to(Path(tempfile.gettempdir()).resolve()):
        with suppress(OSError):
            path.unlink()
