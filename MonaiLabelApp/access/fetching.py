"""Small JSON documents from a server that is trusted to some degree: bounded in size and time, never from elsewhere."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import requests

from replica_detection_server.incoming.trusted_hosts import is_loopback

TIMEOUT_SECONDS = 10.0
MAX_BYTES = 1 << 20


class NotFetchedError(Exception):
    """There was no answer, or none that can be used; the message names no address."""


def is_secure(address: str) -> bool:
    """Whether an address is https, or http to this machine alone, and carries no name or password."""
    try:
        parts = urlsplit(address)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        return False
    if not host or "@" in parts.netloc or any(c.isspace() or not c.isprintable() for c in address):
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))


def fetched_json(address: str, form: Mapping[str, str] | None = None) -> tuple[int, Any]:
    """Status and JSON of an answer to a GET, or to a POST of a form; None for what is no JSON. Follows no redirect.

    Raises:
        NotFetchedError: no answer in TIMEOUT_SECONDS, or one that is larger than MAX_BYTES.
    """
    found: list[tuple[int, Any] | BaseException] = []

    def fetch() -> None:
        try:
            found.append(_fetched(address, form))
        except BaseException as error:
            found.append(error)

    # The time limits of `requests` count the silence, not the whole: a server that sends a byte now and then would hold
    # the caller for hours. In a thread of its own it holds nobody.
    thread = threading.Thread(target=fetch, name="fetching", daemon=True)
    thread.start()
    thread.join(TIMEOUT_SECONDS)
    if not found:
        raise NotFetchedError("no whole answer in time")
    if isinstance(found[0], NotFetchedError):
        raise found[0]
    if isinstance(found[0], BaseException):
        raise NotFetchedError(type(found[0]).__name__) from found[0]
    return found[0]


def _fetched(address: str, form: Mapping[str, str] | None) -> tuple[int, Any]:
    if not is_secure(address):
        raise NotFetchedError("the address is not https")
    method = "GET" if form is None else "POST"
    headers = {"Accept": "application/json"}
    with requests.request(
        method, address, data=form, headers=headers, timeout=TIMEOUT_SECONDS / 2, allow_redirects=False, stream=True
    ) as reply:
        body = b""
        for part in reply.iter_content(1 << 14):
            body += part
            if len(body) > MAX_BYTES:
                raise NotFetchedError(f"the answer is larger than {MAX_BYTES >> 20} MiB")
    try:
        return reply.status_code, json.loads(body)
    except (ValueError, RecursionError):
        return reply.status_code, None
