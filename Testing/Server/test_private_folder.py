"""The data folder: rights that are taken from others, and what is swept. A server over one: test_serve_tls.py."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

from Core import made_up
from replica_detection.errors import InputError, ReplicaDetectionError
from replica_detection_server.data_folder import sweeping
from replica_detection_server.data_folder.private_folder import (
    make_private,
    private_folder,
    readable_index,
)
from replica_detection_server.settings.configuration import Configuration

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
NOBODY = 65534


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def data(tmp_path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


# -------------------------------------------------------------------------------------------------------------- rights


@posix
def test_only_the_owner_keeps_rights_and_links_are_not_followed(tmp_path, data):
    (data / "scored" / "report").mkdir(parents=True)
    outside = tmp_path / "outside"
    outside.write_text("", encoding="utf-8")
    outside.chmod(0o644)
    for name, mode in (("a", 0o644), ("b", 0o666), ("script", 0o755), ("read-only", 0o444), ("c", 0o600)):
        (data / "scored" / name).write_text("", encoding="utf-8")
        (data / "scored" / name).chmod(mode)
    os.mkfifo(data / "pipe", 0o644)
    (data / "link").symlink_to(outside)
    (data / "broken").symlink_to(tmp_path / "none")
    for folder in (data, data / "scored", data / "scored" / "report"):
        folder.chmod(0o2775)
    assert make_private(data) == []
    found = {path.name: _mode(path) for path in (data, *data.rglob("*")) if not path.is_symlink()}
    folders = dict.fromkeys(("data", "scored", "report"), 0o700)
    files = {"a": 0o600, "b": 0o600, "script": 0o700, "read-only": 0o400, "c": 0o600, "pipe": 0o600}
    assert found == folders | files
    assert _mode(outside) == 0o644


@posix
def test_a_folder_of_another_user_is_refused(data):
    foreign = data if os.geteuid() == 0 else Path("/usr")
    if os.geteuid() == 0:
        os.chown(data, NOBODY, NOBODY)
    with pytest.raises(InputError, match=r"belongs to another user.*chown -R"):
        make_private(foreign)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs a drive that keeps no rights")
def test_a_drive_that_keeps_no_rights_is_told_of():
    (said,) = make_private(Path("/proc/self").resolve())
    assert "Other users of this machine can enter" in said


@pytest.mark.skipif(os.name == "nt" or os.geteuid() != 0, reason="makes files of two users")
def test_files_of_another_user_in_it_are_told_of():
    script = (
        "import os, sys; from pathlib import Path\n"
        "from replica_detection_server.data_folder.private_folder import make_private\n"
        f"os.setuid({NOBODY}); print(make_private(Path(sys.argv[1])))"
    )
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        folder = Path(name) / "data"
        folder.mkdir()
        os.chown(folder, NOBODY, NOBODY)
        (folder / "ratings.sqlite").write_text("", encoding="utf-8")
        (folder / "ratings.sqlite").chmod(0o644)
        run = subprocess.run(
            [sys.executable, "-c", script, str(folder)], capture_output=True, encoding="utf-8", check=True
        )
        assert _mode(folder) == 0o700
    assert "rights of 1 files" in run.stdout and "such as ratings.sqlite" in run.stdout


@posix
def test_an_index_elsewhere_that_others_can_read_is_told_of(tmp_path, data):
    for folder in (tmp_path / "x.rdindex", data / "training.rdindex"):
        folder.mkdir()
        folder.chmod(0o755)
    assert "holds the training scans" in readable_index(tmp_path / "x.rdindex", data)[0]
    assert readable_index(data / "training.rdindex", data) == readable_index(tmp_path / "none", data) == []
    (tmp_path / "x.rdindex").chmod(0o700)
    assert readable_index(tmp_path / "x.rdindex", data) == []


@posix
def test_what_is_written_meanwhile_is_private_wherever_it_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made_up.cohort(tmp_path / "training", 1)
    made_up.cohort(tmp_path / "studies", 1)
    given = Configuration.of(tmp_path / "studies", {"training": "training", "data": "new"})
    before = os.umask(0o022)
    try:
        with private_folder(given) as said:
            assert said == []
            (tmp_path / "index").write_text("", encoding="utf-8")
            subprocess.run([sys.executable, "-c", "open('of_a_job', 'w')"], check=True, cwd=tmp_path)
            with pytest.raises(ReplicaDetectionError, match="another server uses"), private_folder(given):
                pass
        (tmp_path / "after").write_text("", encoding="utf-8")
    finally:
        os.umask(before)
    assert [_mode(tmp_path / name) for name in ("index", "of_a_job", "new", "after")] == [0o600, 0o600, 0o700, 0o644]


# ------------------------------------------------------------------------------------------------------------ sweeping


def _write(path: Path, hours: float = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a patient's voxels", encoding="utf-8")
    for made in (path, path.parent):
        os.utime(made, (time.time() - hours * 3600,) * 2)
    return path


def test_a_start_removes_what_is_unfinished_and_nothing_else(tmp_path, data):
    studies = tmp_path / "studies"
    random = "0123456789abcdef"
    unfinished = [
        _write(data / "uploads" / "upload-a" / "file.nii.gz"),
        _write(data / "tmp" / "b.nii.gz"),
        _write(data / "scored.partial" / "matches.csv"),
        _write(data / "models" / "encoder" / f".encoder.safetensors.{random}.tmp"),
        _write(data / "volumes" / f".{random}.tmp.nii.gz"),
        _write(data / "training.rdindex" / "features.zarr" / "image" / "c" / "0" / f"0.{random * 2}.partial"),
        _write(studies / f".datastore_v2.json.{random}.tmp", hours=2),
        _write(studies / "labels" / "final" / f".{random}.tmp.nii.gz", hours=2),
    ]
    kept = [
        _write(data / "training.rdindex.partial" / "plan.json"),  # goes on where it stopped
        _write(data / "training.rdindex" / "index.json"),
        _write(data / "sessions" / "notes" / "meta.info"),
        _write(data / "scored" / "summary.csv"),
        _write(studies / "syn_000.nii.gz", hours=2),
        _write(studies / "download.partial", hours=2),
        _write(studies / ".hidden.tmp", hours=2),
        _write(studies / f".datastore_v2.json.{random[::-1]}.tmp"),  # somebody may be writing it
    ]
    sweeping.clean(data, studies)
    assert not [path for path in unfinished if path.exists()]
    assert not [path for path in kept if not path.exists()]


@pytest.mark.parametrize("name", ["scored", "training.rdindex"])
def test_a_result_that_was_about_to_be_replaced_comes_back(tmp_path, data, name):
    _write(data / f"{name}.old" / "index.json")
    _write(data / "scored.partial" / "summary.csv")
    sweeping.clean(data, tmp_path)
    assert (data / name / "index.json").exists() and not list(data.glob("*.old"))
    _write(data / f"{name}.old" / "older")
    sweeping.clean(data, tmp_path)
    assert [path.name for path in (data / name).iterdir()] == ["index.json"] and not list(data.glob("*.old"))


def test_while_the_server_runs_what_is_old_goes(tmp_path, data, monkeypatch):
    outside = _write(tmp_path / "outside" / "scan.nii.gz", hours=2)
    old = _write(data / "uploads" / "upload-a" / "file.nii.gz", hours=2)
    new = _write(data / "uploads" / "upload-b" / "file.nii.gz")
    of_a_worker = _write(data / "tmp" / "worker-x" / "query.nii.gz", hours=2)
    of_a_job = _write(data / "tmp" / "of a job" / "part", hours=30)
    (data / "uploads" / "link").symlink_to(outside.parent)
    os.utime(data / "uploads" / "link", (0, 0), follow_symlinks=False)
    here = data / "tmp" / "cwd-x"
    here.mkdir()
    os.utime(here, (0, 0))
    monkeypatch.chdir(here)
    sweeping.sweep(data, jobs_run=True)
    assert of_a_job.exists() and new.exists() and not old.parent.exists()
    assert outside.exists() and not (data / "uploads" / "link").is_symlink()
    sweeping.sweep(data, jobs_run=False)
    assert not of_a_job.exists() and Path.cwd() == here and new.exists()
    assert not of_a_worker.exists() and of_a_worker.parent.exists()
    sweeping.sweep(tmp_path / "none", jobs_run=False)
