"""Which ratings a caller may see: everybody's, or the own ones alone, as a blinded reading by several readers needs."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.requests import HTTPConnection

from replica_detection.readers.ratings import Rating
from replica_detection_server.access.identity import ROLES, identity_of
from replica_detection_server.settings.launch_settings import Settings

# From this role on a caller sees what every reader said, whatever readers see of each other.
SEES_ALL = "reviewer"


def sees_all(connection: HTTPConnection) -> bool:
    """Whether the caller sees the ratings of every reader. Without authentication all callers are one."""
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
