"""Dependencies of routes: the reader who sends a request, and the services of the server."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request

from replica_detection_server.access.identity import having, reader_of
from replica_detection_server.computing.services import Services

# Roles as MONAI Label names them; without authentication everybody has all.
USER, ANNOTATOR, TRAINER, ADMIN = having("user"), having("annotator"), having("trainer"), having("admin")


def _services(request: Request) -> Services:
    found: Services = request.app.state.replica
    return found


def _reader(
    request: Request,
    reader: Annotated[str, Query(max_length=500, description="Who asks; a key or token says so itself.")] = "",
) -> str:
    return reader_of(request) or reader


Shared = Annotated[Services, Depends(_services)]
Reader = Annotated[str, Depends(_reader)]
