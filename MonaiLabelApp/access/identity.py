"""The sender of a request. `authentication` writes it into the request's state; routes ask here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from fastapi import HTTPException, Request
from starlette.requests import HTTPConnection
from starlette.types import Scope

from replica_detection.io.paths import composed
from replica_detection.readers.ratings import Rating
from replica_detection_server.settings.launch_settings import Settings, current

# In rising order: each role may do what those before it may. MONAI Label itself refuses the routes of a user to an
# admin, and has no trainer, who may start and end trainings and other long jobs.
ROLES = ("user", "annotator", "reviewer", "trainer", "admin")


@dataclass(frozen=True)
class Identity:
    """`reader` is "" without authentication; `rank` is the index of the highest role in ROLES."""

    reader: str = ""
    rank: int = len(ROLES) - 1


NOBODY = Identity()


def identify(scope: Scope, identity: Identity) -> None:
    """Notes the sender of the request, with accents of the name in composed form."""
    scope.setdefault("state", {})["identity"] = replace(identity, reader=composed(identity.reader))


def identity_of(connection: HTTPConnection) -> Identity:
    found: Identity = getattr(connection.state, "identity", NOBODY)
    return found


def reader_of(connection: HTTPConnection) -> str:
    """The reader's name by key or token; "" without authentication, where the request itself may name one."""
    return identity_of(connection).reader


def having(role: str) -> Any:
    """A dependency of routes, for `Depends`: refuses with 403 a caller with less than a role.

    Without authentication everyone has all roles, as in MONAI Label. Under MONAI Label's own launch, its own check is
    used.
    """
    if current() is None:
        from monailabel.config import settings
        from monailabel.endpoints.user.auth import RBAC

        stock = "admin" if role == "trainer" else role
        return RBAC(getattr(settings, f"MONAI_LABEL_AUTH_ROLE_{stock.upper()}"))
    least = ROLES.index(role)

    async def check(request: Request) -> Identity:
        identity = identity_of(request)
        if identity.rank < least:
            raise HTTPException(403, f"This needs the role of {role}.")
        return identity

    return check


# From this role on, a caller sees the ratings of every reader.
SEES_ALL = "reviewer"


def sees_all(connection: HTTPConnection) -> bool:
    """True if the caller sees the ratings of every reader. Without authentication all callers are one."""
    settings: Settings | None = getattr(connection.app.state, "settings", None)
    if settings is None or not settings.ratings_apart:
        return True
    return identity_of(connection).rank >= ROLES.index(SEES_ALL)


def visible(ratings: Iterable[Rating], connection: HTTPConnection) -> list[Rating]:
    """Those ratings that the caller may see, in their order."""
    if sees_all(connection):
        return list(ratings)
    own = identity_of(connection).reader
    return [r for r in ratings if r.reader == own]
