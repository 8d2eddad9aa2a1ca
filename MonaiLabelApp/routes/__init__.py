"""The routes under /replica. A group is a file with a `router`."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI


def register(app: FastAPI) -> None:
    """Adds the routes to a server, once."""
    if getattr(app.state, "replica", None) is not None:
        return
    router = APIRouter(prefix="/replica")
    app.include_router(router)
    app.state.replica = True
