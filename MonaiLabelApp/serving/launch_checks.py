"""Checks of the options about tokens and proxies, before anything starts."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from replica_detection.errors import ConfigurationError
from replica_detection_server.access.identity import ROLES
from replica_detection_server.access.oauth import is_secure


def check_tokens(issuer: str, roles: Iterable[str], *others: str) -> None:
    """Raises ConfigurationError for an unusable issuer, an unknown role, or options without an issuer."""
    if issuer and not issuer.startswith(("http://", "https://")):
        raise ConfigurationError(f"the issuer {issuer} must begin with https://")
    if issuer and not is_secure(issuer):
        raise ConfigurationError(
            f"the issuer {issuer} must be reached by https://, without a name or password: "
            "over http:// anyone on the way could let himself in. Only one on this machine may be http://"
        )
    role_names(roles)
    if not issuer and (tuple(roles) or any(others)):
        raise ConfigurationError("--oidc-audience, --oidc-role and the claims of --oidc need --oidc-issuer")


def role_names(given: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """`ROLE=NAME` as pairs. Raises ConfigurationError for another form, an unknown role, or one that is named twice."""
    pairs: list[tuple[str, str]] = []
    for text in given:
        role, _, name = text.partition("=")
        if role not in ROLES or not name or role in dict(pairs):
            raise ConfigurationError(f"--oidc-role {text}: write ROLE=NAME once for each role, of {', '.join(ROLES)}")
        pairs.append((role, name))
    return tuple(pairs)


def check_proxies(addresses: Iterable[str]) -> None:
    """Raises ConfigurationError for anything but an IP address or network: the address of a name may change."""
    for address in addresses:
        try:
            network = ipaddress.ip_network(address)
        except ValueError:
            raise ConfigurationError(f"--trusted-proxy {address} is no IP address or network") from None
        if network.prefixlen == 0:
            raise ConfigurationError(f"--trusted-proxy {address} would trust everyone")


def both_families(addresses: Iterable[str]) -> list[str]:
    """The networks, those of IPv4 also in the form in which a server on IPv6 sees them."""
    found = [ipaddress.ip_network(address) for address in addresses]
    mapped = [f"::ffff:{n.network_address}/{96 + n.prefixlen}" for n in found if n.version == 4]
    return [*map(str, found), *mapped]
