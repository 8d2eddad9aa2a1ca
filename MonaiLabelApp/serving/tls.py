"""The certificate with which the server answers HTTPS, and its key."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from replica_detection.errors import InputError
from replica_detection_server.access.keys import readable_by_others
from replica_detection_server.util.named_files import read_named_file

if TYPE_CHECKING:
    from cryptography import x509

SOON = timedelta(days=30)


def context(certificate: Path, key: Path) -> ssl.SSLContext:
    """For connections that clients make.

    Raises:
        InputError: a file is a pipe or device, cannot be read or is no PEM, the key belongs to another certificate, or
            is encrypted: nobody is there to be asked for a password when the machine starts.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(made, certificate, key)
    return made


def renew(used: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Reads both again for a context in use: later connections get them. Raises as `context`; the old ones stay."""
    context(certificate, key)
    _load(used, certificate, key)


def checked(certificate: Path, key: Path) -> list[str]:
    """Warnings about faults that clients reject or attackers could use. Raises as `context`."""
    context(certificate, key)
    leaf, now, said = _chain(certificate)[0], datetime.now(UTC), []
    until = f"{leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    if leaf.not_valid_after_utc < now:
        said.append(f"{certificate} expired on {until}: clients will refuse it.")
    elif leaf.not_valid_after_utc < now + SOON:
        said.append(f"{certificate} expires on {until}.")
    if leaf.not_valid_before_utc > now:
        said.append(f"{certificate} is valid from {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on, not yet.")
    if readable_by_others(key):
        said.append(f"{key} can be read by other users of this machine: chmod 600 it.")
    return said


def _load(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    def refuse() -> str:
        decrypt = f"openssl pkey -in {key.name} -out server.key && chmod 600 server.key"
        raise InputError(key, "is encrypted, and the server asks for no password", f"Decrypt it: {decrypt}")

    for path in (certificate, key):
        _bytes(path)
    try:
        context.load_cert_chain(certificate, key, refuse)
    except ssl.SSLError as error:
        _chain(certificate)
        if error.reason == "KEY_VALUES_MISMATCH":
            found, advice = f"does not belong to {certificate.name}", "Give the key that the certificate was made with"
        else:
            found = f"cannot be used as a key ({error.reason or 'no PEM'})"
            advice = "Give the private key as a PEM file"
        raise InputError(key, found, advice) from None


def _chain(certificate: Path) -> list[x509.Certificate]:
    """The server's own certificate first."""
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(_bytes(certificate))
    except ValueError:
        raise InputError(certificate, "is no certificate in a PEM file", "Give one, or a chain of them") from None


def _bytes(path: Path) -> bytes:
    return read_named_file(path, "Give the certificate and its key as PEM files")
