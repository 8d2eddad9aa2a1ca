"""Background jobs: building the index and scoring the collection, with progress; they can be cancelled."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Path, Request

from replica_detection.results.schema import Job
from replica_detection_server.access.identity import ROLES, identity_of, reader_of
from replica_detection_server.routes.callers import ANNOTATOR, TRAINER, Shared
from replica_detection_server.routes.error_route import REFUSALS, ErrorRoute

logger = logging.getLogger(__name__)
router = APIRouter(prefix="/jobs", tags=["Replica"], route_class=ErrorRoute, responses=REFUSALS)

JobId = Annotated[str, Path(max_length=64)]


async def takes_nothing(request: Request) -> None:
    """Raises HTTPException 422 for options: none exist, and a client that sends some expects an effect."""
    if (await request.body()).strip() not in (b"", b"{}", b"null"):
        raise HTTPException(422, "this job has no options: send no body")


Plain = Depends(takes_nothing)


@router.post("/score", summary="Score all synthetic images", status_code=202, dependencies=[Depends(ANNOTATOR), Plain])
def post_score(request: Request, shared: Shared) -> Job:
    return _begun(request, shared.jobs.start("score"))


@router.post("/index", summary="Make or extend the index", status_code=202, dependencies=[Depends(TRAINER), Plain])
def post_index(request: Request, shared: Shared) -> Job:
    return _begun(request, shared.jobs.start("index"))


@router.get("", summary="Jobs, the oldest first")
def get_jobs(shared: Shared) -> list[Job]:
    return shared.jobs.all()


@router.get("/{job_id}", summary="How far a job is")
def get_job(shared: Shared, job_id: JobId) -> Job:
    return _found(shared.jobs.get(job_id))


@router.delete("/{job_id}", summary="End a job", dependencies=[Depends(ANNOTATOR)])
def delete_job(request: Request, shared: Shared, job_id: JobId) -> Job:
    """Cancels a job. Its work so far is kept where it can be: an index goes on where it stopped."""
    job = _found(shared.jobs.get(job_id))
    if job.kind != "score" and identity_of(request).rank < ROLES.index("trainer"):
        # A caller that may not start it may not end it.
        raise HTTPException(403, "This needs the role of trainer.")
    ended = _found(shared.jobs.cancel(job_id))
    logger.info("job %s cancelled by %r", job.kind, reader_of(request))
    return ended


def _begun(request: Request, job: Job) -> Job:
    logger.info("job %s asked for by %r", job.kind, reader_of(request))
    return job


def _found(job: Job | None) -> Job:
    if job is None:
        raise HTTPException(404, "there is no such job")
    return job
