"""Certificates as a hospital's own authority makes them."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """An authority that signed one server's certificate; `server` holds it and its key, `key` the key alone."""

    authority: Path
    server: Path
    key: Path
    context: ssl.SSLContext


def certificate(folder: Path, address: str, days: float = 1) -> Certificate:
    """For a server at an address, valid for so many days from now on; negative: expired."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, n)]) for n in ("Test authority", "server")]
    now = datetime.now(UTC)

    def signed(which: int, *extensions: object) -> bytes:
        made = (
            x509.CertificateBuilder()
            .subject_name(names[which])
            .issuer_name(names[0])
            .public_key(keys[which].public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=9))
            .not_valid_after(now + timedelta(days=days))
            # Without these two, Python 3.13 and later trust no chain.
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(keys[which].public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()), critical=False)
        )
        for extension in extensions:
            made = made.add_extension(extension, critical=which == 0)
        return made.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    authority, server = folder / "authority.pem", folder / "server.pem"
    signs_only = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    authority.write_bytes(signed(0, x509.BasicConstraints(ca=True, path_length=None), signs_only))
    private = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key = folder / "server.key"
    key.write_bytes(private)
    key.chmod(0o600)
    server.write_bytes(private + signed(1, x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server)
    return Certificate(authority, server, key, context)
