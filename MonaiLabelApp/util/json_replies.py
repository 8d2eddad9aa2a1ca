"""Refusals of a middleware: always JSON with a `detail`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send


async def refuse(
    scope: Scope, receive: Receive, send: Send, status: int, detail: str, headers: Mapping[str, str] | None = None
) -> None:
    await JSONResponse({"detail": detail}, status, headers)(scope, receive, send)


def header_values(scope: Scope, name: bytes) -> list[str]:
    """All values of a header, in order; ASGI gives names in lower case."""
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return [value.decode("latin-1") for key, value in headers if key == name]
