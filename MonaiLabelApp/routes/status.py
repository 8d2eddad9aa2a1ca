"""The server at a glance, the worklist, the histograms and the report."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, HTTPException, Query, Request, Response
from monailabel.config import settings

from replica_detection.errors import ReplicaDetectionError
from replica_detection.readers.worklist import Filter, Rated, Sort, filtered, next_unrated, ordered
from replica_detection.report.page import pictured
from replica_detection.results.schema import (
    API_VERSION,
    Histogram,
    IndexDescription,
    LeftOut,
    Status,
    Worklist,
    WorklistItem,
)
from replica_detection.version import __version__
from replica_detection_server.access.identity import reader_of, sees_all, visible
from replica_detection_server.computing.services import Services
from replica_detection_server.records.recorded_replies import shows
from replica_detection_server.routes.callers import Reader, Shared
from replica_detection_server.routes.error_route import REFUSALS, ErrorRoute
from replica_detection_server.routes.received_files import MAX_UPLOAD_BYTES

Verdict = Literal["replica", "suspicious", "undecided", "novel", "undefined", ""]
router = APIRouter(tags=["Replica"], route_class=ErrorRoute, responses=REFUSALS)


@router.get("/status", summary="The server at a glance")
def get_status(request: Request, shared: Shared) -> Status:
    state = request.app.state
    index, problem = _index(shared)
    scored = shared.engine.scored()
    studies = shared.engine.studies().ids
    null = shared.workers.null_job()
    return Status(
        API_VERSION,
        __version__,
        len(studies),
        0 if scored is None else sum(id in scored.rows for id in studies),
        0 if index is None else index.cases,
        getattr(state, "authentication", "token" if settings.MONAI_LABEL_AUTH_ENABLE else "none"),
        reader_of(request),
        getattr(state, "max_upload_bytes", MAX_UPLOAD_BYTES),
        index,
        (*(() if null is None else (null,)), *(j for j in shared.jobs.all() if j.state in ("queued", "running"))),
        problem,
        tuple(LeftOut(reason, count) for reason, count in shared.engine.found.now().reasons.items()),
        shared.engine.index_words() if index is None else "",
        sees_all(request),
    )


def _index(shared: Services) -> tuple[IndexDescription | None, str]:
    """The index, and the reason why it cannot be used."""
    try:
        found = shared.engine.describe_index()
    except ReplicaDetectionError as error:
        return None, str(error)
    failure = "" if found is not None else shared.jobs.failure("index")
    return found, f"the index could not be made: {failure}" if failure else ""


@router.get("/worklist", summary="Synthetic images, the most replica-like first")
def get_worklist(
    request: Request,
    shared: Shared,
    reader: Reader,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    sort: Sort = "score",
    descending: bool = True,
    verdict: Annotated[list[Verdict], Query()] = [],  # noqa: B006
    rated: Rated = "any",
    search: Annotated[str, Query(max_length=200)] = "",
) -> Worklist:
    items = shared.worklist(reader, visible(shared.ratings.all(), request))
    chosen = Filter(tuple(verdict), rated, search)
    found = ordered(filtered(items, chosen, reader), sort, descending=descending)
    scored = shared.engine.scored()
    version = "" if scored is None else scored.index_version
    return Worklist(len(found), offset, tuple(found[offset : offset + limit]), version)


@router.get("/next", summary="The most replica-like case that the reader has not rated")
def get_next(
    request: Request,
    shared: Shared,
    reader: Reader,
    after: Annotated[str, Query(max_length=500, description="Go on behind this case.")] = "",
) -> WorklistItem:
    """Without a reader's name: one that nobody has rated."""
    found = next_unrated(shared.worklist(reader, visible(shared.ratings.all(), request)), reader, after)
    if found is None:
        raise HTTPException(404, f"no case is left that {'this reader' if reader else 'nobody'} has not rated")
    return found


@router.get("/histograms", summary="Ratios of the scored set and of the null, for plots")
def get_histograms(shared: Shared) -> list[Histogram]:
    return shared.engine.required_scores().histograms()


@router.get(
    "/report",
    summary="The HTML report of the scored set",
    response_class=Response,
    responses={200: {"content": {"text/html": {}}}},
)
def get_report(request: Request, shared: Shared) -> Response:
    pairs = pictured(shared.engine.required_scores().result)
    shows(request, (c.synthetic_id for c in pairs), (c.nearest_training_id for c in pairs))
    path = shared.configuration.scored / "report" / "index.html"
    try:
        return Response(path.read_bytes(), media_type="text/html")
    except OSError:
        raise HTTPException(404, "the scored set has no report; score it again") from None
