"""Refusal of requests for other servers: the Host check stops DNS rebinding, the Origin check other web pages.

A browser lets any page send requests to a server on the loopback, "simple" ones without a preflight request. It names
the page in Origin (Fetch standard, 3.2) and its relation in Sec-Fetch-Site; clients that are no browser send neither.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from replica_detection_server.util.addresses import is_address
from replica_detection_server.util.json_replies import header_values, refuse

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class TrustedHosts:
    """Refuses a Host that is not this server's name and what a page of another origin sends.

    Args:
        hosts: further names than the loopback's.
        any_address: take every literal IP address as Host. An address cannot be rebound, a name can.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...] = (), any_address: bool = False):
        self.app, self.any_address = app, any_address
        self.hosts = {name.lower().rstrip(".") for name in (*LOOPBACK, *hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = header_values(scope, b"host")
        host = host_name(given[0]) if len(given) == 1 else ""
        if not self._is_ours(host):
            await refuse(
                scope, receive, send, 421, "The Host header does not name this server. Start it with --allow-host NAME."
            )
        elif not self._same_origin(scope, given[0]):
            await refuse(scope, receive, send, 403, "Requests from web pages of other origins are refused.")
        else:
            await self.app(scope, receive, send)

    def _is_ours(self, host: str) -> bool:
        return bool(host) and (host in self.hosts or (self.any_address and is_address(host)))

    def _same_origin(self, scope: Scope, host: str) -> bool:
        for origin in header_values(scope, b"origin"):
            # Behind a proxy that ends TLS the scheme differs, the authority does not.
            if urlsplit(origin).scheme not in ("http", "https") or urlsplit(origin).netloc.lower() != host.lower():
                return False
        site = header_values(scope, b"sec-fetch-site")
        if not site or site[-1] in ("same-origin", "none"):
            return True
        # A link from elsewhere to a page of ours: the other page cannot read it, and GET changes nothing.
        return scope["method"] == "GET" and header_values(scope, b"sec-fetch-mode") == ["navigate"]


def host_name(header: str) -> str:
    """The name or address in a Host header, in lower case without port and brackets; "" where it is malformed."""
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port
    except ValueError:
        return ""
    if parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        return ""
    return (parts.hostname or "").rstrip(".")
