"""A synthetic image beside a training case: surfaces, difference, and the training image moved onto it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Path, Response

from replica_detection.schema import SurfaceReply, SurfaceStatistics
from replica_detection.surface import Statistics
from replica_detection_server.cohorts import TRAINING
from replica_detection_server.hardening.queue import heavy
from replica_detection_server.routes.callers import Shared
from replica_detection_server.routes.guarded import REFUSALS, Guarded
from replica_detection_server.volumes import difference, in_file_space, nifti, positions_in_file, vtp

router = APIRouter(tags=["Replica"], route_class=Guarded, responses=REFUSALS)

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
    found, synthetic, training = shared.engine.surfaces(synthetic_id, _plain(training_id))
    spacing = shared.engine.required_index().index.preparation.spacing
    if of == "synthetic":
        content = vtp(in_file_space(found.first, spacing, synthetic.affine), found.first_to_second)
    else:
        content = vtp(in_file_space(found.second, spacing, training.affine), found.second_to_first)
    return Response(content, media_type="application/vnd.vtk")


@router.get(
    "/surfaces/{synthetic_id}/{training_id}/statistics",
    summary="Distances between the surfaces in mm",
    dependencies=[heavy],
)
def get_surface_statistics(shared: Shared, synthetic_id: CaseId, training_id: CaseId) -> SurfaceReply:
    """Each place is in mm RAS+ of the file of the image whose surface it lies on; `symmetric`: the farther one's."""
    found, synthetic, training = shared.engine.surfaces(synthetic_id, _plain(training_id))
    spacing = shared.engine.required_index().index.preparation.spacing
    forth = _statistics(found.forth, spacing, synthetic.affine)
    back = _statistics(found.back, spacing, training.affine)
    worse = training.affine if found.back.maximum > found.forth.maximum else synthetic.affine
    return SurfaceReply(forth, back, _statistics(found.symmetric, spacing, worse))


@router.get(
    "/difference/{synthetic_id}/{training_id}",
    summary="Synthetic minus training image in mapped intensity, -1 to 1 (.nii.gz)",
    dependencies=[heavy],
    response_class=Response,
    responses=_NIFTI,
)
def get_difference(shared: Shared, synthetic_id: CaseId, training_id: CaseId) -> Response:
    case = shared.engine.case(synthetic_id)
    training = shared.engine.required_index().stored(_plain(training_id))
    synthetic = shared.engine.prepared(case)
    return Response(nifti(difference(synthetic, training), synthetic.affine), media_type="application/gzip")


@router.get(
    "/aligned/{synthetic_id}/{training_id}",
    summary="The training image moved onto the synthetic one (.nii.gz)",
    dependencies=[heavy],
    response_class=Response,
    responses=_NIFTI,
)
def get_aligned(shared: Shared, synthetic_id: CaseId, training_id: CaseId) -> Response:
    """In mapped intensity on the grid of the comparison, over the synthetic image; 0 where nothing comes to lie."""
    synthetic, training = shared.engine.aligned(synthetic_id, _plain(training_id))
    return Response(nifti(training.image, synthetic.affine), media_type="application/gzip")


def _plain(training_id: str) -> str:
    """The id in the index; clients may give it as they give it elsewhere, with its prefix."""
    return training_id.removeprefix(TRAINING)


def _statistics(found: Statistics, spacing: tuple[float, ...], affine: np.ndarray) -> SurfaceStatistics:
    at = positions_in_file(found.position[None], spacing, affine)[0]
    return SurfaceStatistics(
        float(found.mean), float(found.percentile_95), float(found.maximum), (float(at[0]), float(at[1]), float(at[2]))
    )
