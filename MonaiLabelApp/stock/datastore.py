"""/datastore: the synthetic images with their labels, and training cases read-only as `train:<id>`."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException, Request, Response, UploadFile
from fastapi.responses import FileResponse
from monailabel.utils.others.generic import get_mime_type
from starlette.background import BackgroundTask

from replica_detection_server.access.identity import Identity
from replica_detection_server.collection.client_notes import require_own_names
from replica_detection_server.computing.queue import heavy
from replica_detection_server.computing.services import Services
from replica_detection_server.incoming.names import KnownId, NewId, Tag, json_object
from replica_detection_server.records.recorded_replies import shows
from replica_detection_server.routes.received_files import received
from replica_detection_server.routes.upload_limits import upload_limits
from replica_detection_server.settings.case_ids import TRAINING, suffix_of
from replica_detection_server.stock.lookup import ADMIN, ANNOTATOR, USER, app, image_file, known_image, known_label
from replica_detection_server.util.json_values import plain

router = APIRouter(prefix="/datastore", tags=["MONAI Label"])


class Listing(StrEnum):
    train = "train"
    stats = "stats"
    all = "all"


@router.get("/", summary="Counts, or all images with their labels")
def listing(who: Annotated[Identity, USER], output: Listing = Listing.stats) -> Any:
    store = app().datastore()
    if output is Listing.all:
        return plain(store.json())
    if output is Listing.train:
        return [{key: Path(path).name for key, path in pair.items()} for pair in store.datalist()]
    return plain(store.status())


@router.put("/", include_in_schema=False, dependencies=[heavy])
@router.put("/image", summary="Add a synthetic image", dependencies=[heavy])
def add_image(
    request: Request,
    who: Annotated[Identity, ANNOTATOR],
    file: UploadFile,
    image: NewId,
    params: Annotated[str, Form()] = "{}",
) -> dict[str, str]:
    """`image` is its id: MONAI Label's own guess from the file name gives different files one id."""
    notes = require_own_names(json_object(params, "params"), {})
    with _kept(request, file) as path:
        return {"image": app().datastore().add_image(image, str(path), {**notes, "user": _name(who)})}


@router.delete("/image", summary="Remove a synthetic image and its labels")
def remove_image(who: Annotated[Identity, ADMIN], id: KnownId) -> dict[str, str]:
    known_image(id)
    app().datastore().remove_image(id)
    return {}


@router.head("/image", summary="Whether an image exists", include_in_schema=False)
def check_image(who: Annotated[Identity, USER], image: KnownId, check_sum: str | None = None) -> Response:
    known_image(image)
    if check_sum and not _same(image_file(image), check_sum):
        raise HTTPException(404, "The image has another checksum.")
    return Response()


@router.get("/image", summary="Download an image", response_class=FileResponse)
def download_image(request: Request, who: Annotated[Identity, USER], image: KnownId) -> FileResponse:
    """A DICOM series comes as one NIfTI file; `/replica/cases/ID/files` gives its own files."""
    path = image_file(image)
    shows(request, [image])
    return _file(path, path.name if image.startswith(TRAINING) else f"{image}{suffix_of(path.name)}")


@router.get("/image/info", summary="Notes on an image")
def image_info(who: Annotated[Identity, USER], image: KnownId) -> dict[str, Any]:
    known_image(image)
    return {k: v for k, v in plain(app().datastore().get_image_info(image)).items() if k != "path"}


@router.put("/image/info", summary="Add to the notes on an image")
def add_image_info(
    who: Annotated[Identity, ANNOTATOR], image: KnownId, info: Annotated[str | None, Form()] = None
) -> None:
    known_image(image)
    notes = require_own_names(_given(info), app().datastore().get_image_info(image))
    app().datastore().update_image_info(image, {**notes, "user": _name(who)})


@router.put("/label", summary="Save a label", dependencies=[heavy])
def save_label(
    request: Request,
    who: Annotated[Identity, ANNOTATOR],
    image: KnownId,
    label: UploadFile,
    params: Annotated[str, Form()] = "{}",
    tag: Tag = "final",
) -> dict[str, Any]:
    notes = require_own_names(json_object(params, "params"), {})
    known_image(image)
    with _kept(request, label) as path:
        _require_on_grid(request, image, path)
        saved = app().datastore().save_label(image, str(path), tag, {**notes, "user": _name(who)})
    return {**plain(app().on_save_label(image, saved) or {}), "image": image, "label": saved}


@router.delete("/label", summary="Remove a label")
def remove_label(who: Annotated[Identity, ADMIN], id: KnownId, tag: Tag) -> dict[str, str]:
    known_label(id, tag)
    app().datastore().remove_label(id, tag)
    return {}


@router.head("/label", summary="Whether a label exists", include_in_schema=False)
def check_label(who: Annotated[Identity, USER], image: KnownId, tag: Tag) -> Response:
    known_label(image, tag)
    return Response()


@router.get("/label", summary="Download a label", response_class=FileResponse)
def download_label(request: Request, who: Annotated[Identity, USER], label: KnownId, tag: Tag) -> FileResponse:
    path = known_label(label, tag)
    shows(request, [label])
    return _file(path, path.name)


@router.get("/label/info", summary="Notes on a label")
def label_info(who: Annotated[Identity, USER], label: KnownId, tag: Tag) -> dict[str, Any]:
    known_label(label, tag)
    return dict(plain(app().datastore().get_label_info(label, tag)))


@router.put("/label/info", summary="Add to the notes on a label")
def add_label_info(
    who: Annotated[Identity, ANNOTATOR], label: KnownId, tag: Tag, info: Annotated[str | None, Form()] = None
) -> None:
    known_label(label, tag)
    notes = require_own_names(_given(info), app().datastore().get_label_info(label, tag))
    app().datastore().update_label_info(label, tag, {**notes, "user": _name(who)})


@router.get("/dataset", summary="All labelled images as a ZIP file", dependencies=[heavy], response_class=FileResponse)
def dataset(request: Request, who: Annotated[Identity, ANNOTATOR], limit_cases: int | None = None) -> FileResponse:
    store = app().datastore()
    if not store.datalist():
        raise HTTPException(404, "No image has a final label yet.")
    shows(request, store.get_labeled_images())
    path = Path(app().datastore().get_dataset_archive(limit_cases))
    return FileResponse(
        path, media_type="application/zip", filename="dataset.zip", background=BackgroundTask(path.unlink, True)
    )


def _given(info: str | None) -> dict[str, Any]:
    if info is None:
        raise HTTPException(422, "The field info is missing: send a form with it.")
    return json_object(info, "info")


def _name(who: Identity) -> str:
    # MONAI Label's own word for an unknown client.
    return who.reader or "admin"


@contextmanager
def _kept(request: Request, upload: UploadFile) -> Iterator[Path]:
    """The uploaded file on the disk under a name of our own, deleted afterwards."""
    state, folder = request.app.state, Path(tempfile.gettempdir())
    limits = upload_limits(state)
    with received({"file": upload}, folder, state.max_upload_bytes, limits, services=state.replica) as paths:
        yield paths["file"]


def _require_on_grid(request: Request, image: str, label: Path) -> None:
    """Refuses (422) a label that is no mask on the grid of its image, in the words of comparisons."""
    services: Services = request.app.state.replica
    case = services.engine.found.case(image)
    if case is not None:  # of a training case none is saved
        asked = {"label": str(label), "files": [str(path) for path in case.files]}
        services.workers.call("label", asked, uploaded=True)


def _file(path: Path, name: str) -> FileResponse:
    return FileResponse(path, media_type=get_mime_type(path), filename=name)


def _same(path: Path, check_sum: str) -> bool:
    """True if a file has the checksum, given as `SHA256:<hex>`, `SHA512:<hex>`, `MD5:<hex>` or SHA-256 alone."""
    found = re.fullmatch(r"(?:(SHA256|SHA512|MD5):)?([0-9a-fA-F]{32,128})", check_sum)
    if found is None:
        raise HTTPException(422, "check_sum must be SHA256:, SHA512: or MD5: with hexadecimal digits.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, (found[1] or "SHA256").lower())
    return digest.hexdigest() == found[2].lower()
