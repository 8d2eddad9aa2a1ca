"""The options of `serve` about network and access, checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from replica_detection.errors import ConfigurationError, InputError
from replica_detection_server.access.keys import ApiKeys, readable_by_others
from replica_detection_server.incoming.connections import (
    MAX_CONNECTIONS,
    PER_ADDRESS,
)
from replica_detection_server.serving.launch_checks import (
    check_proxies,
    check_tokens,
)
from replica_detection_server.settings.launch_settings import (
    MAX_UPLOAD_MB,
    WAITING,
)
from replica_detection_server.util.addresses import is_loopback


@dataclass(frozen=True)
class ServeOptions:
    """Address, authentication, limits of the server. At most one of `api_key_file`, `realm_uri` and `oidc_issuer`."""

    host: str = "127.0.0.1"
    port: int = 8000
    allow_hosts: tuple[str, ...] = ()
    api_key_file: Path | None = None
    realm_uri: str = ""
    oidc_issuer: str = ""
    oidc_audience: str = ""
    oidc_roles_claim: str = ""
    oidc_name_claim: str = ""
    oidc_roles: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    access_record: Path | None = None
    without_authentication: bool = False
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    max_upload_mb: int = MAX_UPLOAD_MB
    max_upload_voxels: int = 0
    waiting: int = WAITING
    compute_seconds: float = 600
    compute_memory_mb: int = 0
    ratings_visible: str = ""
    max_connections: int = MAX_CONNECTIONS
    connections_per_address: int = PER_ADDRESS

    def __post_init__(self) -> None:
        # The launch changes the working folder. Links are kept: a renewed certificate is a new target of its link.
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Path):
                object.__setattr__(self, field.name, value.expanduser().absolute())

    @property
    def issuer(self) -> str:
        """The issuer of the tokens that are taken; "" for none."""
        return self.oidc_issuer or self.realm_uri

    def check(self) -> list[str]:
        """Returns warnings. Raises ConfigurationError or InputError for options that cannot be used."""
        if bool(self.api_key_file) + bool(self.realm_uri) + bool(self.oidc_issuer) > 1:
            raise ConfigurationError("--api-key-file, --oidc-issuer and --realm-uri exclude each other")
        open_to_all = not self.api_key_file and not self.issuer
        if not open_to_all and self.without_authentication:
            raise ConfigurationError("--insecure-no-authentication contradicts --api-key-file and --oidc-issuer")
        if open_to_all and not is_loopback(self.host) and not self.without_authentication:
            raise ConfigurationError(
                f"--host {self.host} is reached from other machines: give --api-key-file FILE or --oidc-issuer URL, "
                "or say --insecure-no-authentication"
            )
        check_tokens(self.issuer, self.oidc_roles, self.oidc_audience, self.oidc_roles_claim, self.oidc_name_claim)
        check_proxies(self.trusted_proxies)
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ConfigurationError("--tls-certificate and --tls-key go together")
        for path in (self.tls_certificate, self.tls_key):
            if path is not None and not path.is_file():
                raise InputError(path, "does not exist", "Give the certificate and its key as PEM files")
        if self.ratings_visible not in ("", "all", "own"):
            raise ConfigurationError(f"--ratings-visible {self.ratings_visible} must be all or own")
        if self.ratings_visible == "own" and open_to_all:
            raise ConfigurationError("--ratings-visible own needs keys or tokens: without them all are one reader")
        said = []
        if self.api_key_file:
            ApiKeys.read(self.api_key_file)
            if readable_by_others(self.api_key_file):
                said.append(f"{self.api_key_file} can be read by other users of this machine: chmod 600 it.")
        if open_to_all and not is_loopback(self.host):
            said.append("Everyone who reaches this machine can use the server and see the patients' images.")
        if not is_loopback(self.host) and not self.tls_certificate:
            said.append("Images and keys travel unencrypted: give --tls-certificate, or use a proxy that ends TLS.")
        return said
