"""A synthetic image beside a training case: surfaces, difference, and the training image aligned to it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Response

from replica_detection.results.schema import SurfaceReply, from_json
from replica_detection_server.computing.queue import heavy
from replica_detection_server.computing.services import Services
from replica_detection_server.computing.workers import Result
from replica_detection_server.routes.callers import Shared
from replica_detection_server.routes.error_route import REFUSALS, ErrorRoute
from replica_detection_server.settings.case_ids import TRAINING

router = APIRouter(tags=["Replica"], route_class=ErrorRoute, responses=REFUSALS)

CaseId = Annotated[str, Path(max_length=500)]
_VTP: dict[int | str, dict[str, Any]] = {200: {"content": {"application/vnd.vtk": {}}}}
_NIFTI: dict[int | str, dict[str, Any]] = {200: {"content": {"application/gzip": {}}}}


@router.get(
    "/surfaces/{synthetic_id}/{training_id}",
    summary="The surface of one image's mask, with the distance in mm to the other's at every vertex (.vtp)",
    dependencies=[heavy],
    response_class=Response,
    responses=_VTP,
)
def get_surface(
    shared: Shared, synthetic_id: CaseId, training_id: CaseId, of: Literal["synthetic", "training"] = "synthetic"
) -> Response:
    """In mm RAS+ of that image's own file. The distances are those on the grid on which the pair was compared."""
    found = _of_pair(shared, "surface", synthetic_id, training_id, of=of)
    return Response(found.content(), media_type="application/vnd.vtk")


@router.get(
    "/surfaces/{synthetic_id}/{training_id}/statistics",
    summary="Distances between the surfaces in mm",
    dependencies=[heavy],
)
def get_surface_statistics(shared: Shared, synthetic_id: CaseId, training_id: CaseId) -> SurfaceReply:
    """Each place is in mm RAS+ of the file of the image whose surface it lies on; `symmetric`: the farther one's."""
    return from_json(SurfaceReply, _of_pair(shared, "surface_statistics", synthetic_id, training_id).value)


@router.get(
    "/difference/{synthetic_id}/{training_id}",
    summary="Synthetic minus training image in mapped intensity, -1 to 1 (.nii.gz)",
    dependencies=[heavy],
    response_class=Response,
    responses=_NIFTI,
)
def get_difference(shared: Shared, synthetic_id: CaseId, training_id: CaseId) -> Response:
    found = _of_pair(shared, "difference", synthetic_id, training_id)
    return Response(found.content(), media_type="application/gzip")


@router.get(
    "/aligned/{synthetic_id}/{training_id}",
    summary="The training image aligned to the synthetic one (.nii.gz)",
    dependencies=[heavy],
    response_class=Response,
    responses=_NIFTI,
)
def get_aligned(shared: Shared, synthetic_id: CaseId, training_id: CaseId) -> Response:
    """In mapped intensity on the grid of the comparison, over the synthetic image; 0 outside the training image."""
    found = _of_pair(shared, "aligned", synthetic_id, training_id)
    return Response(found.content(), media_type="application/gzip")


def _of_pair(shared: Services, task: str, synthetic_id: str, training_id: str, **more: str) -> Result:
    """A computation on a pair; clients may give the training id as they give it elsewhere, with its prefix."""
    shared.engine.case(synthetic_id)
    shared.engine.required_index()
    plain = training_id.removeprefix(TRAINING)
    return shared.workers.call(task, {"synthetic_id": synthetic_id, "training_id": plain, **more})
