"""Routes for the server's tasks, the next case of a strategy, and tokens."""

from __future__ import annotations

from html import escape
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import HTMLResponse
from fastapi.security import OAuth2PasswordRequestForm
from starlette.concurrency import run_in_threadpool

from replica_detection.io.paths import composed
from replica_detection_server.access.authentication import Authentication, Keyring
from replica_detection_server.access.hashing_queue import BusyError
from replica_detection_server.access.identity import ROLES, Identity
from replica_detection_server.access.oauth import Realm, RealmUnreachableError
from replica_detection_server.collection.client_notes import RESERVED
from replica_detection_server.incoming.names import TaskName
from replica_detection_server.stock.lookup import USER, app, known_task, options
from replica_detection_server.util.json_values import plain

router = APIRouter()


@router.get("/", include_in_schema=False)
def routes(request: Request) -> HTMLResponse:
    """All routes on one page. No script: MONAI Label's page loads one from another host into this origin."""
    rows = [
        f"<tr><td>{method.upper()}</td><td>{escape(path)}</td><td>{escape(route.get('summary', ''))}</td></tr>"
        for path, methods in request.app.openapi()["paths"].items()
        for method, route in methods.items()
    ]
    title = escape(request.app.title)
    return HTMLResponse(
        f"<!doctype html><title>{title}</title><h1>{title}</h1><p>Machine-readable: /openapi.json</p>"
        f"<table>{''.join(rows)}</table>"
    )


@router.get("/info/", tags=["MONAI Label"], summary="Models, strategies, scoring methods and trainers")
def info(who: Annotated[Identity, USER]) -> dict[str, Any]:
    return dict(plain(app().info()))


@router.post("/activelearning/{strategy}", tags=["MONAI Label"], summary="The next image by a strategy")
def next_sample(
    strategy: TaskName, who: Annotated[Identity, USER], params: dict[str, Any] | None = None
) -> dict[str, Any]:
    """`{}` when no image is left. `client_id` names the reader where there is no authentication.

    Notes of readers on the image are under `notes`, so that none can be mistaken for the server's own information.
    """
    asked = options(params or {}, known_task("strategies", strategy))
    if who.reader:
        asked["client_id"] = who.reader
    found = app().next_sample({**asked, "strategy": strategy})
    if not found:
        return {}
    known = app().datastore().get_image_info(found["id"])
    server = {k: known[k] for k in ("ts", "name") if k in known}
    notes = {k: v for k, v in known.items() if k not in RESERVED}
    return {k: v for k, v in plain({**server, **found, "notes": notes}).items() if k != "path"}


@router.get("/auth/", tags=["MONAI Label"], summary="Whether a token is needed, and which realm gives it")
def authentication(request: Request) -> dict[str, Any]:
    """MONAI Label's module for Slicer asks for a name and a password where it is `enabled`: for keys, the reader's name
    and the key."""
    realm: Realm | None = request.app.state.realm
    return {
        "enabled": realm is not None or request.app.state.keyring is not None,
        "client_id": realm.client_id if realm else None,
        "realm": realm.uri if realm else None,
    }


@router.post("/auth/token", tags=["MONAI Label"], summary="A token for a name and a password")
async def token(request: Request, form: Annotated[OAuth2PasswordRequestForm, Depends()]) -> dict[str, Any]:
    realm: Realm | None = request.app.state.realm
    keyring: Keyring | None = request.app.state.keyring
    if keyring is not None:
        gate: Authentication = request.app.state.gate
        try:
            owner = await gate.owner(request.scope, form.password, keyring)
        except BusyError as error:
            raise HTTPException(503, str(error), {"Retry-After": "10"}) from error
        if owner is None or owner.has_expired or owner.name != composed(form.username):
            raise HTTPException(401, "The name must be that of the key file, and the password its key.")
        return {"access_token": form.password, "token_type": "Bearer"}
    if realm is None:
        raise HTTPException(404, "This server gives no tokens.")
    try:
        given = await run_in_threadpool(realm.token, form.username, form.password)
    except RealmUnreachableError as error:
        raise HTTPException(503, str(error), {"Retry-After": "10"}) from error
    if given is None or "access_token" not in given:
        raise HTTPException(401, "The realm refuses this name and password.")
    return {"access_token": given["access_token"], "token_type": given.get("token_type", "Bearer")}


@router.get("/auth/token/valid", tags=["MONAI Label"], summary="Who the sent token names")
def valid(who: Annotated[Identity, USER]) -> dict[str, Any]:
    return {"username": who.reader, "roles": list(ROLES[: who.rank + 1])}
