"""HTTPS by `serve` itself: certificates that cannot be used are told before anything starts, and never asked about."""

from __future__ import annotations

import os
import shutil
import ssl
import stat
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

import psutil
import requests

from Core import made_up
from replica_detection.client import ReplicaClient
from replica_detection.errors import InputError, UnreachableError
from replica_detection.readers.rating_store import RatingStore
from replica_detection.readers.ratings import Rating
from replica_detection_server.serving import tls
from replica_detection_server.serving.serve_options import ServeOptions
from replica_detection_server.settings.configuration import Configuration
from Server.certificates import certificate
from Server.conftest import until
from Server.started import started, url_of

KEY = "a-long-key-for-these-tests"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where `serve` is started from; its arguments name what lies here without saying where it is."""
    made = tmp_path_factory.mktemp("from here")
    made_up.cohort(made / "training", 6, prefix="trn")
    made_up.cohort(made / "studies", 2, 200, "syn")
    (made / "patients.csv").write_text(
        "id,patient\n" + "".join(f"trn_{n:03d},p{n}\n" for n in range(6)), encoding="utf-8"
    )
    certificate(made, "127.0.0.1")
    (made / "keys").write_text(f"anna:{KEY} role=admin\n", encoding="utf-8")
    (made / "keys").chmod(0o600)
    _used_before(made / "data", made / "elsewhere")
    return made


def _used_before(data: Path, elsewhere: Path) -> None:
    """A data folder that everyone can read, with what a killed server leaves."""
    for name in ("uploads/upload-a", "tmp/session-b", "scored.partial/report", "volumes", "models", "jobs"):
        (data / name).mkdir(parents=True)
    for name in (
        "uploads/upload-a/file.nii.gz",
        "tmp/session-b/image.nii.gz",
        "tmp/replica-c.nii.gz",
        "scored.partial/report/report.html",
        "volumes/.0123456789abcdef.tmp.nii.gz",
        "jobs/.jobs.json.0123456789abcdef.tmp",
        "models/segmentation.safetensors",
        "models/notes.partial",
    ):
        (data / name).write_bytes(b"a patient's voxels")
    RatingStore(data / "ratings.sqlite").add(Rating("1", "anna", "syn_000", "trn_000", 2))
    elsewhere.mkdir()
    (elsewhere / "scan.nii.gz").write_bytes(b"not the server's")
    (data / "scan.nii.gz").symlink_to(elsewhere / "scan.nii.gz")
    (data / "scans").symlink_to(elsewhere)
    for path in (data, elsewhere, *data.rglob("*"), *elsewhere.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.fixture(scope="module")
def server(folder):
    """`serve` with relative paths alone, over a folder that was used before."""
    given = ["--studies", "studies", "--training", "training", "--patients", "patients.csv", "--data", "data"]
    given += [
        "--api-key-file",
        "keys",
        "--tls-certificate",
        "server.pem",
        "--tls-key",
        "server.key",
        "--measures",
        "ssim",
    ]
    with started(given, folder, folder / "log") as process:
        yield process


@pytest.fixture(scope="module")
def client(folder, server) -> ReplicaClient:
    return ReplicaClient(url_of(server, folder / "log"), key=KEY, ca_file=folder / "authority.pem")


# ------------------------------------------------------------------------------------------------------ a real server


@pytest.mark.slow
def test_certificates_and_all_other_paths_may_be_relative(folder, client):
    assert client.url.startswith("https://127.0.0.1:")
    assert client.status().reader == "anna" and client.status().studies == 2
    for job in client.jobs():
        assert client.wait(job.id, every=0.1).state == "done"
    assert client.comparison("syn_000").nearest_training_id.startswith("trn_")
    reply = requests.get(
        client.url + "/info/",
        headers={"Authorization": f"Bearer {KEY}"},
        verify=folder / "authority.pem",
        timeout=30,
    )
    assert reply.json()["name"] == "Replica Detection"


@pytest.mark.slow
def test_who_does_not_know_the_authority_does_not_trust_the_server(client):
    with pytest.raises(UnreachableError, match="cannot be trusted"):
        ReplicaClient(client.url, key=KEY, retries=0).status()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_a_folder_that_everyone_could_read_is_closed(folder, client):
    client.rate("syn_001", "trn_001", 3)
    assert len(client.ratings(all=True)) == 2
    for job in client.jobs():
        client.wait(job.id, every=0.1)
    data = folder / "data"
    made = [path for path in data.rglob("*") if not path.is_symlink()]
    assert {"ratings.sqlite", "index.json", "server.log", "jobs.json", ".serve.lock"} <= {path.name for path in made}
    open_to_others = [path for path in (data, *made) if path.stat().st_mode & 0o077]
    assert not open_to_others
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder / "elsewhere", folder / "elsewhere/scan.nii.gz")]
    assert modes == [0o755, 0o644], "a link was followed"


@pytest.mark.slow
def test_what_a_killed_server_left_is_swept(folder, client):
    client.status()
    left = {path.name for path in (folder / "data").rglob("*")}
    gone = {"upload-a", "session-b", "replica-c.nii.gz", "scored.partial", ".0123456789abcdef.tmp.nii.gz"}
    assert not left & {*gone, ".jobs.json.0123456789abcdef.tmp"}
    assert {"segmentation.safetensors", "notes.partial", "scan.nii.gz"} <= left
    assert (folder / "elsewhere" / "scan.nii.gz").exists()


@pytest.mark.slow
def test_its_jobs_end_when_it_is_killed(folder, server, client):
    """The last one here: it kills the server, in the middle of a job of MONAI Label and of one of its own."""
    asked = {"headers": {"Authorization": f"Bearer {KEY}"}, "verify": folder / "authority.pem", "timeout": 60}
    url = client.url + "/train/encoder"
    assert requests.post(url, json={"kind": "contrastive", "epochs": 10_000}, **asked).status_code == 200
    client.start_scoring()
    process = psutil.Process(server.pid)

    def both_run():
        words = " ".join(word for child in process.children() for word in child.cmdline())
        return "monailabel.interfaces.utils.app" in words and "replica_detection_server.computing.jobs" in words

    until(both_run, "the jobs do not start", seconds=60)
    children = process.children(recursive=True)
    server.kill()
    server.wait()
    for child in children:
        until(lambda c=child: not c.is_running() or c.status() == psutil.STATUS_ZOMBIE, f"{child} lives", seconds=30)


# ----------------------------------------------------------------------------------------- what it does not start with


@pytest.fixture
def pem(tmp_path):
    return certificate(tmp_path, "127.0.0.1")


def _encrypted(pem, *how: str) -> Path:
    path = pem.key.with_name("encrypted.key")
    command = ["openssl", *how, "-in", str(pem.key), "-out", str(path), "-aes256", "-passout", "pass:secret"]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.mark.skipif(shutil.which("openssl") is None, reason="encrypts the key of this test")
@pytest.mark.parametrize("how", [("pkey",), ("ec",)])
def test_an_encrypted_key_is_refused_with_the_way_out_and_nobody_is_asked(tmp_path, pem, folder, how):
    key = _encrypted(pem, *how)
    given = ["--studies", "studies", "--training", "training", "--data", str(tmp_path / "data")]
    given += ["--tls-certificate", str(pem.server), "--tls-key", str(key)]
    with started(given, folder, tmp_path / "log") as process:
        assert process.wait(90) == 1
    said = " ".join((tmp_path / "log").read_text(encoding="utf-8").split())
    assert "encrypted.key: is encrypted, and the server asks for no password" in said and "Traceback" not in said
    assert not (tmp_path / "data").exists()
    way_out = said.split("Decrypt it: ")[1].rstrip(".")
    command = [*way_out.split(" && ")[0].split(), "-passin", "pass:secret"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    tls.context(pem.server, tmp_path / "server.key")


def test_pairs_that_cannot_be(tmp_path, pem):
    (tmp_path / "other").mkdir()
    other = certificate(tmp_path / "other", "127.0.0.1")
    text = tmp_path / "text.pem"
    text.write_text("no certificate", encoding="utf-8")
    for given, words in (
        ((pem.server, other.key), "server.key: does not belong to server.pem"),
        ((text, pem.key), "text.pem: is no certificate"),
        ((pem.key, pem.key), "server.key: is no certificate"),
        ((pem.server, text), "text.pem: cannot be used as a key"),
        ((pem.server, pem.authority), "authority.pem: cannot be used as a key"),
        ((tmp_path, pem.key), "cannot be read"),
        ((pem.server, tmp_path / "none"), "none: cannot be read"),
    ):
        with pytest.raises(InputError, match=words):
            tls.context(*given)


def test_times_and_rights_that_are_worth_a_warning(tmp_path):
    for days, words in ((-1, ["expired on"]), (5, ["expires on"]), (100, [])):
        made = certificate(tmp_path, "127.0.0.1", days)
        said = tls.checked(made.server, made.key)
        assert len(said) == len(words) and all(word in text for word, text in zip(words, said, strict=True))
    if os.name == "posix":
        made.key.chmod(0o640)
        assert "chmod 600" in tls.checked(made.server, made.key)[0]


def test_a_renewed_certificate_takes_effect_in_the_context_that_is_in_use(tmp_path):
    """What a reload needs, and that a pair that does not fit leaves the old one in use."""
    made = [certificate(folder, "127.0.0.1") for folder in (tmp_path / "a", tmp_path / "b") if not folder.mkdir()]
    context = tls.context(made[0].server, made[0].key)
    with pytest.raises(InputError):
        tls.renew(context, made[1].server, made[0].key)
    assert _handshake(context, made[0].authority)
    tls.renew(context, made[1].server, made[1].key)
    assert _handshake(context, made[1].authority) and not _handshake(context, made[0].authority)


def _handshake(context: ssl.SSLContext, authority: Path) -> bool:
    """Whether a client that trusts the authority comes to terms with the server's context."""
    trusting = ssl.create_default_context(cafile=authority)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                return False
    return True


# --------------------------------------------------------------------------------------------------------------- paths


def test_every_path_of_the_launch_is_whole_before_the_working_folder_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "versions" / "keys"
    target.parent.mkdir()
    target.write_text("", encoding="utf-8")
    Path("keys").symlink_to(target)
    listening = ServeOptions(api_key_file=Path("keys"), tls_certificate=Path("c.pem"), tls_key=Path("sub/../k.pem"))
    # A link stays one: the next key file or certificate is another target of it.
    assert listening.api_key_file == tmp_path / "keys"
    assert all(path.is_absolute() for path in vars(listening).values() if isinstance(path, Path))

    made_up.cohort(tmp_path / "training", 1)
    made_up.cohort(tmp_path / "studies", 1)
    monkeypatch.setenv("XDG_DATA_HOME", "share")
    monkeypatch.setenv("LOCALAPPDATA", "share")
    given = Configuration.of("studies", {"training": "training", "segment": "network:net.safetensors"})
    assert given.segment == f"network:{(tmp_path / 'net.safetensors').resolve()}"
    assert all(path.is_absolute() for path in vars(given).values() if isinstance(path, Path))
