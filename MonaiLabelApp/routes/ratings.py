"""Ratings of readers: stored at once, append-only, given out as a list or a table."""

from __future__ import annotations

import tempfile
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request, Response
from pydantic import ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from replica_detection.errors import RatingConflictError
from replica_detection.readers.rating_tables import write_ratings
from replica_detection.readers.ratings import Rating, checked, latest
from replica_detection.results.schema import AgreementReport, RatingReceipt
from replica_detection_server.access.identity import reader_of, sees_all, visible
from replica_detection_server.computing.queue import heavy
from replica_detection_server.computing.services import Services
from replica_detection_server.incoming.request_faults import OURS
from replica_detection_server.records.recorded_replies import shows
from replica_detection_server.routes.callers import Shared
from replica_detection_server.routes.error_route import REFUSALS, ErrorRoute
from replica_detection_server.settings.case_ids import TRAINING

router = APIRouter(tags=["Replica"], route_class=ErrorRoute, responses=REFUSALS)

_ANYBODY = "without a name"
_TYPES = {
    "rating": ((int,), "a whole number"),
    "blinded": ((bool,), "true or false"),
    "seconds": ((int, float), "a number"),
}


def _of_its_types(value: Any, validated: ValidatorFunctionWrapHandler) -> Rating:
    """Refuses values of another type: pydantic reads true and "1" as 1, and 1 as true."""
    rating: Rating = validated(value)
    for name, (types, words) in _TYPES.items() if isinstance(value, dict) else ():
        # A bool is an int to isinstance.
        if name in value and type(value[name]) not in types:
            raise PydanticCustomError(OURS, f"{name} must be {words}")
    return rating


Sent = Annotated[Rating, WrapValidator(_of_its_types)]


@router.post(
    "/ratings",
    summary="Store a rating",
    status_code=201,
    responses={200: {"model": RatingReceipt, "description": "was stored before"}},
)
def post_rating(request: Request, response: Response, shared: Shared, rating: Sent) -> RatingReceipt:
    """Answers once the rating is on the disk. The owner of a key or token is the reader, not the name in the rating."""
    rating = replace(
        rating,
        rating_id=rating.rating_id or str(uuid.uuid4()),
        reader=reader_of(request) or rating.reader.strip() or _ANYBODY,
        training_id=rating.training_id.removeprefix(TRAINING),
        created=rating.created or datetime.now(UTC).isoformat(),
    )
    rating = checked(rating, "the request")
    shows(request, [rating.synthetic_id], [rating.training_id])
    _require_known(shared, rating)
    try:
        is_new = shared.ratings.add(rating)
    except RatingConflictError as error:
        raise HTTPException(409, f"rating_id {rating.rating_id} belongs to another rating") from error
    if not is_new:
        response.status_code = 200
        rating = shared.ratings.find(rating.rating_id) or rating
    return RatingReceipt(rating.rating_id, rating.reader, rating.created)


@router.get(
    "/ratings",
    summary="The latest rating of each pair by each reader",
    response_model=list[Rating],
    responses={200: {"content": {"text/csv": {}}}},
)
def get_ratings(
    request: Request,
    shared: Shared,
    reader: Annotated[str, Query(max_length=500, description="Only this reader's.")] = "",
    synthetic_id: Annotated[str, Query(max_length=500)] = "",
    format: Literal["json", "csv"] = "json",
    all: Annotated[bool, Query(description="Also those that a later rating replaced.")] = False,
):
    """A reader sees all ratings or only the own ones, as the server was started; from reviewer on, all."""
    stored = visible(shared.ratings.all(), request)
    chosen = [
        r
        for r in (stored if all else latest(stored))
        if (not reader or r.reader == reader) and (not synthetic_id or r.synthetic_id == synthetic_id)
    ]
    if format == "json":
        return chosen
    with tempfile.TemporaryDirectory(prefix="replica-") as folder:
        path = Path(folder) / "ratings.csv"
        write_ratings(chosen, path)
        return Response(path.read_bytes(), media_type="text/csv")


@router.get("/agreement", summary="Agreement of the readers, and thresholds by their consensus", dependencies=[heavy])
def get_agreement(request: Request, shared: Shared) -> AgreementReport:
    """Thresholds need a scored set; without one there is the agreement alone."""
    if not sees_all(request):
        raise HTTPException(403, "readers see their own ratings alone on this server: ask a reviewer for the agreement")
    return shared.agreement()


def _require_known(shared: Services, rating: Rating) -> None:
    """Refuses (422) a rating of a pair that this server never showed."""
    if rating.synthetic_id not in shared.engine.studies().ids:
        raise HTTPException(422, f"there is no synthetic image '{rating.synthetic_id}'")
    # The index may have been rebuilt while the reader looked at the pair, or be missing at the moment.
    scored = shared.engine.scored()
    if scored is not None and rating.training_id in scored.result.neighbors.training_ids:
        return
    if rating.training_id not in shared.engine.required_index().positions:
        raise HTTPException(422, f"there is no training case '{rating.training_id}'")
