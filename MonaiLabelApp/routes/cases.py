"""Comparison of one image with the training cohort: a study, or an image of the request. Masks of single cases."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, File, Path, Query, Request, Response, UploadFile
from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from replica_detection.results.schema import Comparison, from_json
from replica_detection_server.collection.series import write_zip
from replica_detection_server.collection.task_files import fresh_file
from replica_detection_server.computing.queue import heavy
from replica_detection_server.records.recorded_replies import shows_matches
from replica_detection_server.routes.callers import Shared
from replica_detection_server.routes.error_route import REFUSALS, ErrorRoute
from replica_detection_server.routes.received_files import MAX_UPLOAD_BYTES, received
from replica_detection_server.routes.upload_limits import upload_limits

router = APIRouter(tags=["Replica"], route_class=ErrorRoute, responses=REFUSALS)

CaseId = Annotated[str, Path(max_length=500)]
K = Annotated[int, Query(ge=1, le=1000, description="Nearest training cases under each measure, at most.")]


@router.get(
    "/cases/{synthetic_id}/comparison", summary="A synthetic image against the training cohort", dependencies=[heavy]
)
def get_comparison(request: Request, shared: Shared, synthetic_id: CaseId, k: K = 10) -> Comparison:
    found = shared.engine.known_comparison(synthetic_id, k)
    if found is None:
        made = shared.workers.call("comparison", {"synthetic_id": synthetic_id, "k": k})
        found = from_json(Comparison, made.value)
    return shows_matches(request, found)


@router.post(
    "/compare", summary="An image of the caller's against the training cohort; it is not kept", dependencies=[heavy]
)
def post_compare(
    request: Request,
    shared: Shared,
    file: Annotated[UploadFile, File(description="One image file, or a ZIP file of one DICOM series.")],
    mask: Annotated[UploadFile | None, File(description="Its mask, on the same grid.")] = None,
    k: K = 10,
) -> Comparison:
    limit = getattr(request.app.state, "max_upload_bytes", MAX_UPLOAD_BYTES)
    inbox = shared.configuration.data / "uploads"
    limits, archives = upload_limits(request.app.state), ("image",)
    sent_files = {"image": file, "mask": mask}
    with received(sent_files, inbox, limit, limits, archives=archives, services=shared) as paths:
        shared.engine.required_index()
        sent = {"image": str(paths["image"]), "mask": str(paths["mask"]) if "mask" in paths else None, "k": k}
        found = from_json(Comparison, shared.workers.call("compare", sent, uploaded=True).value)
        return shows_matches(request, found)


@router.get(
    "/cases/{synthetic_id}/files",
    summary="The files of a synthetic image as they are, in a ZIP file",
    dependencies=[heavy],
    response_class=FileResponse,
    responses={200: {"content": {"application/zip": {}}}},
)
def get_files(shared: Shared, synthetic_id: CaseId) -> FileResponse:
    """For a DICOM series; `/datastore/image` gives it as one NIfTI file."""
    case = shared.engine.case(synthetic_id)
    with fresh_file(".zip") as path:
        write_zip(case, path)
    after = BackgroundTask(path.unlink, missing_ok=True)
    return FileResponse(path, media_type="application/zip", filename=f"{case.id}.zip", background=after)


@router.get(
    "/masks/{case_id}",
    summary="The mask that comparisons use; train:ID for a training case",
    dependencies=[heavy],
    response_class=Response,
    responses={200: {"content": {"application/gzip": {}}}},
)
def get_mask(shared: Shared, case_id: CaseId) -> Response:
    shared.engine.required_index()
    return Response(shared.workers.call("mask", {"case_id": case_id}).content(), media_type="application/gzip")
