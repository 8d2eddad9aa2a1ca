"""Network addresses of clients and hosts.

uvicorn takes the address of a client only from the header of a trusted proxy.
"""

from __future__ import annotations

import ipaddress

from starlette.types import Scope

UNKNOWN = "-"


def address_of(scope: Scope) -> str:
    """The client's IP address in its usual form; UNKNOWN without a valid one, which a proxy may pass on."""
    client = scope.get("client")
    try:
        found = ipaddress.ip_address((client or ("",))[0])
    except ValueError:
        return UNKNOWN
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


def neighbourhood(address: str) -> str:
    """The key of a client's count: an IPv4 address, or 64 bits of an IPv6 one, whose rest its user chooses."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return address if found.version == 4 else str(ipaddress.ip_network((found, 64), strict=False))


def is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """True if a server bound to `host` can be reached from this machine only; a name counts only if it is localhost."""
    if host.lower().rstrip(".") == "localhost":
        return True
    return is_address(host) and ipaddress.ip_address(host).is_loopback
