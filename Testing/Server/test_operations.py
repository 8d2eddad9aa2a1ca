"""What docs/operations.md and deploy/ promise: the commands of the page are run as they stand, over a real server."""

from __future__ import annotations

import getpass
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import typer

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

import requests

from Core import made_up
from replica_detection.cli import app
from replica_detection.client import ReplicaClient
from replica_detection.errors import UnreachableError
from replica_detection_server.comparison import tasks
from replica_detection_server.settings.configuration import Configuration
from Server.started import started, url_of

PROJECT = Path(__file__).resolve().parents[2]
PAGE = PROJECT / "docs" / "operations.md"
UNIT, LOGROTATE = PROJECT / "deploy" / "replica-detection.service", PROJECT / "deploy" / "replica-detection.logrotate"
KEY = "a-long-key-for-these-tests"


def _commands(title: str) -> str:
    """The block of the page that begins with this comment."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (found,) = [block for block in blocks if block.startswith(f"# {title}\n")]
    return found


# --------------------------------------------------------------------------------------------------- backup and restore


def _run(title: str, places: dict[str, str]) -> str:
    command = ["bash", "-c", _commands(title)]
    run = subprocess.run(command, env=os.environ | places, capture_output=True, encoding="utf-8", timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout


def _rate(client: ReplicaClient, acknowledged: list[str], enough: threading.Event) -> None:
    while not enough.is_set():
        rating_id = f"rating-{len(acknowledged)}"
        try:
            client.rate("syn_000", "trn_001", 1 + len(acknowledged) % 4, rating_id=rating_id)
        except UnreachableError:
            return
        acknowledged.append(rating_id)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("sqlite3") or not shutil.which("bash"), reason="the page asks for sqlite3")
def test_backup_amid_work_and_restore_after_everything_is_lost(tmp_path):
    made_up.cohort(tmp_path / "training", 4, prefix="trn")
    made_up.cohort(tmp_path / "studies", 2, 200, "syn")
    (tmp_path / "keys").write_text(f"anna:{KEY}\n", encoding="utf-8")
    (tmp_path / "keys").chmod(0o600)
    conf = {"training": str(tmp_path / "training"), "data": str(tmp_path / "data"), "measures": "mae"}
    tasks.build_index(Configuration.of(tmp_path / "studies", conf))
    places = {"DATA": "data", "STUDIES": "studies", "KEYS": "keys", "LOGS": "logs", "BACKUP": "the backups/today"}
    places = {name: str(tmp_path / place) for name, place in places.items()} | {"OWNER": getpass.getuser()}
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "access.jsonl").write_text("{}\n", encoding="utf-8")
    given = ["--studies", "studies", "--training", "training", "--data", "data", "--measures", "mae"]
    given += ["--api-key-file", "keys"]
    asked = {"headers": {"Authorization": f"Bearer {KEY}"}, "timeout": 60}
    label = made_up.write(tmp_path / "label.nii.gz", np.zeros(made_up.SHAPE, np.uint8)).read_bytes()
    with started(given, tmp_path, tmp_path / "log") as server:
        url = url_of(server, tmp_path / "log")
        client = ReplicaClient(url, key=KEY)
        sent = {"label": ("label.nii.gz", label)}
        assert requests.put(url + "/datastore/label?image=syn_001&tag=final", files=sent, **asked).ok
        (tmp_path / "data" / "models").mkdir(exist_ok=True)
        (tmp_path / "data" / "models" / "trained.safetensors").write_bytes(b"weights")
        acknowledged: list[str] = []
        enough = threading.Event()
        thread = threading.Thread(target=_rate, args=(client, acknowledged, enough))
        thread.start()
        while len(acknowledged) < 20 and thread.is_alive():
            enough.wait(0.05)
        before = list(acknowledged)
        _run("Back up", places)
        enough.set()
        thread.join()
        assert len(before) >= 20
        server.kill()
        server.wait()
    assert re.fullmatch(r"ok\n\d+ ratings\n", _run("Check", places))
    if os.name == "posix":
        assert not [p for p in (tmp_path / "the backups").rglob("*") if p.stat().st_mode & 0o077]

    secret = (tmp_path / "data" / "case-codes.secret").read_bytes()
    (tmp_path / "data" / "case-codes.secret").unlink()
    shutil.rmtree(tmp_path / "data" / "models")
    shutil.rmtree(tmp_path / "studies" / "labels")
    shutil.rmtree(tmp_path / "logs")
    (tmp_path / "studies" / "datastore_v2.json").unlink()
    (tmp_path / "keys").unlink()
    for path in (tmp_path / "data").glob("ratings.sqlite*"):
        path.write_bytes(b"damaged")  # the write-ahead log of another file among them
    (tmp_path / "data" / "ratings.sqlite-wal").write_bytes(b"damaged")
    _run("Restore", places)
    with started(given, tmp_path, tmp_path / "again") as server:
        url = url_of(server, tmp_path / "again")
        stored = [rating.rating_id for rating in ReplicaClient(url, key=KEY).ratings(all=True)]
        assert stored[: len(before)] == before and stored == acknowledged[: len(stored)]
        reply = requests.get(url + "/datastore/label?label=syn_001&tag=final", **asked)
        assert reply.status_code == 200 and reply.content == label
    assert (tmp_path / "data" / "models" / "trained.safetensors").read_bytes() == b"weights"
    assert (tmp_path / "logs" / "access.jsonl").read_text(encoding="utf-8") == "{}\n"
    assert (tmp_path / "data" / "case-codes.secret").read_bytes() == secret

    (tmp_path / "logs" / "access.jsonl").write_text("{}\nlater\n", encoding="utf-8")
    _run("Restore", places)
    assert (tmp_path / "logs" / "access.jsonl").read_text(encoding="utf-8") == "{}\nlater\n", "the record of now stays"


@pytest.mark.skipif(os.name == "nt", reason="commands of a POSIX shell")
def test_a_version_is_changed_by_a_link(tmp_path):
    """The command that changes it, and back again; what starts the server is checked with the unit."""
    link = _commands("Change the version").splitlines()[1].replace("/opt/", f"{shlex.quote(str(tmp_path))}/")
    for version in ("0.1.0", "0.2.0", "0.1.0"):
        new = tmp_path / f"replica-detection-{version}"
        new.mkdir(exist_ok=True)
        subprocess.run(["bash", "-c", link], env=os.environ | {"NEW": str(new)}, check=True)
        assert (tmp_path / "replica-detection").resolve() == new and not any(new.iterdir())
    assert "/opt/replica-detection/bin/replica-detection serve" in UNIT.read_text(encoding="utf-8")
    shown = re.search(r"^export NEW=(.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)[1]
    run = subprocess.run(
        ["bash", "-c", f"echo {shown}"], cwd=PROJECT, capture_output=True, encoding="utf-8", check=True
    )
    from replica_detection.version import __version__

    assert run.stdout.strip() == f"/opt/replica-detection-{__version__}"


# ---------------------------------------------------------------------------------------------------------------- unit


@pytest.fixture(scope="module")
def service() -> dict[str, list[str]]:
    """What the unit says under [Service]; an option may come more than once."""

    lines = re.findall(r"^([A-Z]\w+)=(.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE)
    found: dict[str, list[str]] = {}
    for name, value in lines:
        found.setdefault(name, []).append(value)
    return found


def test_the_unit_starts_the_server_with_options_it_knows_and_few_rights(service):
    words = shlex.split(service["ExecStart"][0])
    assert words[1] == "serve" and "--insecure-no-authentication" not in words
    known = {option for p in typer.main.get_command(app).commands["serve"].params for option in p.opts}
    assert {word for word in words if word.startswith("--")} <= known
    given = dict(zip(words[2::2], words[3::2], strict=True))
    # What it writes is what it may write to; the scans are only read.
    assert given["--data"] == f"/var/lib/{service['StateDirectory'][0]}"
    assert service["ReadWritePaths"] == [given["--studies"]] and service["ReadOnlyPaths"] == [given["--training"]]
    assert service["User"] != ["root"] and service["UMask"] == ["0077"] and service["CapabilityBoundingSet"] == [""]
    for name in ("NoNewPrivileges", "PrivateTmp", "PrivateDevices", "ProtectHome", "RestrictSUIDSGID"):
        assert service[name] == ["true"]
    assert service["ProtectSystem"] == ["strict"] and service["KillMode"] == ["mixed"]


def test_systemd_has_nothing_to_say(tmp_path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is part of systemd")
    unit = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8")
    # It looks whether the program is there.
    unit.write_text(text.replace("/opt/replica-detection/bin/replica-detection", sys.executable), encoding="utf-8")
    run = subprocess.run([analyze, "verify", str(unit)], capture_output=True, encoding="utf-8")
    assert run.returncode == 0 and not run.stderr, run.stderr
    command = [analyze, "security", "--offline=true", "--threshold=20", "--no-pager", str(unit)]
    run = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stdout[-300:]


def test_the_access_record_is_moved_and_never_cut(tmp_path):
    logrotate = shutil.which("logrotate", path=os.environ.get("PATH", "") + ":/usr/sbin")
    if logrotate is None:
        pytest.skip("logrotate is a package of its own")
    text = LOGROTATE.read_text(encoding="utf-8")
    assert "--access-record /var/log/replica-detection/access.jsonl" in PAGE.read_text(encoding="utf-8")
    record, config = tmp_path / "logs" / "access.jsonl", tmp_path / "config"
    record.parent.mkdir(mode=0o700)
    record.write_text("line\n", encoding="utf-8")
    beside = record.with_name("access.jsonl.end")
    beside.write_text("1", encoding="utf-8")
    inode = record.stat().st_ino
    text = text.replace("/var/log/replica-detection", str(record.parent)).replace(
        "su replica-detection replica-detection", f"su {getpass.getuser()} {_group()}"
    )
    # Nothing is started here that systemd could reload.
    config.write_text(text.replace("if systemctl", f"echo told > {tmp_path / 'told'}; if systemctl"), encoding="utf-8")
    config.chmod(0o644)
    command = [logrotate, "--force", "--state", str(tmp_path / "state"), str(config)]
    run = subprocess.run(command, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    (moved,) = record.parent.glob("access.jsonl-*")
    assert moved.stat().st_ino == inode and moved.read_text(encoding="utf-8") == "line\n"
    assert not record.exists() and beside.exists() and (tmp_path / "told").exists()


def _group() -> str:
    import grp

    return grp.getgrgid(os.getgid()).gr_name
