"""The routes under /replica. A group is a file with a `router`, which is listed here."""

from __future__ import annotations

from fastapi import APIRouter, Depends, FastAPI

from replica_detection_server.computing.services import Services
from replica_detection_server.routes import cases, jobs, pairs, ratings, status
from replica_detection_server.routes.callers import USER

GROUPS = (status, cases, pairs, ratings, jobs)


def register(app: FastAPI, services: Services) -> None:
    """Adds the routes to a server, once."""
    if getattr(app.state, "replica", None) is None:
        router = APIRouter(prefix="/replica", dependencies=[Depends(USER)])
        for group in GROUPS:
            router.include_router(group.router)
        app.include_router(router)
    app.state.replica = services
