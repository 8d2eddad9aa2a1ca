"""Certificates: an unknown or wrong one ends the call, the institution's own authority is trusted when it is given."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest

from replica_detection import schema
from replica_detection.client import ReplicaClient
from replica_detection.errors import InputError, UnreachableError
from Server.scripted import says, scripted

x509 = pytest.importorskip("cryptography.x509", reason="makes the certificates of this test")

STATUS = says(schema.to_json(schema.Status(schema.API_VERSION, "0.1.0", 3, 2, 5, "none", "", 1000)))


@dataclass(frozen=True)
class Certificate:
    """An authority that signed one server's certificate."""

    authority: Path
    context: ssl.SSLContext


def certificate(folder: Path, address: str) -> Certificate:
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
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
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
    server.write_bytes(private + signed(1, x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server)
    return Certificate(authority, context)


def test_own_authority_is_trusted_when_given_and_only_then(tmp_path):
    made = certificate(tmp_path, "127.0.0.1")
    with scripted(STATUS, tls=made.context) as server:
        assert ReplicaClient(server.url, key="k", ca_file=made.authority).status().studies == 3
        with pytest.raises(UnreachableError, match=r"cannot be trusted.*ca_file"):
            ReplicaClient(server.url, key="k").status()
        assert len(server.asked) == 1


def test_certificate_of_another_host_is_not_accepted(tmp_path):
    made = certificate(tmp_path, "127.0.0.2")
    with scripted(STATUS, tls=made.context) as server, pytest.raises(UnreachableError, match="cannot be trusted"):
        ReplicaClient(server.url, ca_file=made.authority).status()
    assert not server.asked


def test_upload_and_download_over_tls(tmp_path):
    made = certificate(tmp_path, "127.0.0.1")
    comparison = says(schema.to_json(schema.Comparison("file", "novel", 0.1, "t", (), (), (), "v")))
    image = tmp_path / "image.nii"
    image.write_bytes(bytes(range(256)) * 2**14)
    with scripted(comparison, says(image.read_bytes()), tls=made.context) as server:
        one = ReplicaClient(server.url, ca_file=made.authority)
        assert one.compare_file(image).verdict == "novel"
        assert image.read_bytes() in server.asked[0].body
        assert one.download_mask("s", tmp_path).read_bytes() == image.read_bytes()


def test_http_and_https_mixed_up_is_said(tmp_path):
    made = certificate(tmp_path, "127.0.0.1")
    with scripted(STATUS) as plain, pytest.raises(UnreachableError, match="over https"):
        ReplicaClient(plain.url.replace("http:", "https:"), ca_file=made.authority, retries=0).status()


def test_authorities_that_cannot_be_read(tmp_path):
    (tmp_path / "empty.pem").write_text("nothing")
    for name in ("empty.pem", "missing.pem"):
        with pytest.raises(InputError, match=name):
            ReplicaClient("https://127.0.0.1", ca_file=tmp_path / name)
