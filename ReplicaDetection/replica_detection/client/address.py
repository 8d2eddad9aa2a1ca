"""The address of a server, and the check that a key may be sent there."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from replica_detection.errors import ConfigurationError, InputError


class Address:
    """The address of a server, the verification of its certificate, and the key that is sent to no other.

    Args:
        url: http:// or https://, with a path where the server stands behind a gateway.
        key: sent as a bearer token.
        ca_file: PEM file with the certificate authorities to trust in place of the machine's.
        allow_insecure: sends the key over plain http to another machine.

    Raises:
        ConfigurationError: an address that cannot be used, or a key that would travel unprotected.
        InputError: `ca_file` cannot be used.
    """

    def __init__(self, url: str, key: str | None, *, ca_file: Path | None, allow_insecure: bool):
        self._parts = _checked_url(url.strip())
        self.tls = _tls(ca_file) if self._parts.scheme == "https" else None
        self.authorization = {} if key is None else {"Authorization": f"Bearer {_checked_key(key)}"}
        if key is not None and self.tls is None and not _is_loopback(self.host) and not allow_insecure:
            raise ConfigurationError(
                f"{self.url}: the key would travel unprotected over http. Use an https:// address"
                " (or allow_insecure=True inside a protected network)"
            )

    @property
    def url(self) -> str:
        return self._parts.geturl()

    @property
    def origin(self) -> str:
        return f"{self._parts.scheme}://{self._parts.netloc}"

    @property
    def host(self) -> str:
        return self._parts.hostname or ""

    @property
    def port(self) -> int | None:
        return self._parts.port

    @property
    def path(self) -> str:
        return self._parts.path

    def is_at(self, other: SplitResult) -> bool:
        """True if another address leads to this server. Raises ValueError for one whose port is no number."""
        here = self._parts
        return (other.scheme, other.hostname, other.port) == (here.scheme, here.hostname, here.port)


def _checked_url(url: str) -> SplitResult:
    advice = "Give an address such as https://server:8000"
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError as error:
        raise ConfigurationError(f"{url!r} is no address of a server ({error}). {advice}") from error
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError("The address of a server holds a name or password. Leave them out and give a key")
    if not usable or parts.query or parts.fragment or not (url.isascii() and url.isprintable()) or " " in url:
        raise ConfigurationError(f"{url!r} is no address of a server. {advice}")
    return parts._replace(path=parts.path.rstrip("/"))


def _checked_key(key: str) -> str:
    if not (key and key.isascii() and key.isprintable()) or " " in key:
        raise ConfigurationError("The key holds characters that no key has, such as spaces or line ends; copy it again")
    return key


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _tls(ca_file: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except OSError as error:  # ssl.SSLError is one
        found = f"cannot be used as a list of certificate authorities ({error.strerror or error})"
        raise InputError(str(ca_file), found, "Give the authority's certificate as a PEM file") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
