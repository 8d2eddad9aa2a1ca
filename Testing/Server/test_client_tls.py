"""Certificates: an unknown or wrong one ends the call, the institution's own authority is trusted when it is given."""

from __future__ import annotations

import pytest

from replica_detection.client import ReplicaClient
from replica_detection.errors import InputError, UnreachableError
from replica_detection.results import schema
from Server.certificates import certificate
from Server.scripted import says, scripted

pytest.importorskip("cryptography", reason="makes the certificates of this test")

STATUS = says(schema.to_json(schema.Status(schema.API_VERSION, "0.1.0", 3, 2, 5, "none", "", 1000)))


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
    (tmp_path / "empty.pem").write_text("nothing", encoding="utf-8")
    for name in ("empty.pem", "missing.pem"):
        with pytest.raises(InputError, match=name):
            ReplicaClient("https://127.0.0.1", ca_file=tmp_path / name)
