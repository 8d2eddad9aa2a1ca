"""One image against the training cohort: a study, or an image that the request brings. Masks of single cases."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, File, HTTPException, Path, Query, Request, Response, UploadFile

from replica_detection.cohort import Case
from replica_detection.schema import Comparison
from replica_detection_server.cohorts import TRAINING
from replica_detection_server.hardening.access import shows_matches
from replica_detection_server.hardening.queue import heavy
from replica_detection_server.routes.callers import Shared
from replica_detection_server.routes.files import MAX_UPLOAD_BYTES, received
from replica_detection_server.routes.guarded import REFUSALS, Guarded
from replica_detection_server.volumes import nifti

router = APIRouter(tags=["Replica"], route_class=Guarded, responses=REFUSALS)

CaseId = Annotated[str, Path(max_length=500)]
K = Annotated[int, Query(ge=1, le=1000, description="Nearest training cases under each measure, at most.")]
UPLOADED = "uploaded"


@router.get(
    "/cases/{synthetic_id}/comparison", summary="A synthetic image against the training cohort", dependencies=[heavy]
)
def get_comparison(request: Request, shared: Shared, synthetic_id: CaseId, k: K = 10) -> Comparison:
    return shows_matches(request, shared.engine.comparison(synthetic_id, k))


@router.post(
    "/compare", summary="An image of the caller's against the training cohort; it is not kept", dependencies=[heavy]
)
def post_compare(
    request: Request,
    shared: Shared,
    file: Annotated[UploadFile, File(description="One image file.")],
    mask: Annotated[UploadFile | None, File(description="Its mask, on the same grid.")] = None,
    k: K = 10,
) -> Comparison:
    limit = getattr(request.app.state, "max_upload_bytes", MAX_UPLOAD_BYTES)
    inbox = shared.configuration.data / "uploads"
    with received({"image": file, "mask": mask}, inbox, limit) as paths:
        found = shared.engine.compare(Case(UPLOADED, (paths["image"],), paths.get("mask")), k)
        return shows_matches(request, found)


@router.get(
    "/masks/{case_id}",
    summary="The mask that comparisons use; train:ID for a training case",
    dependencies=[heavy],
    response_class=Response,
    responses={200: {"content": {"application/gzip": {}}}},
)
def get_mask(shared: Shared, case_id: CaseId) -> Response:
    opened = shared.engine.required_index()
    if not opened.has_masks:
        raise HTTPException(409, "the index holds no masks: build it with masks, or with a segmenter")
    if case_id.startswith(TRAINING):
        prepared = opened.stored(case_id.removeprefix(TRAINING))
    else:
        prepared = shared.engine.prepared(shared.engine.case(case_id))
    if prepared.mask is None:
        raise HTTPException(409, f"'{case_id}' has no mask")
    return Response(nifti(prepared.mask, prepared.affine), media_type="application/gzip")
