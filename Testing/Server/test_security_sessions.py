"""Sessions in their private folder: what survived a restart, strays, damaged notes, notes that point elsewhere."""

import json
import os
import stat
import threading
import time
import uuid
from pathlib import Path

import pytest

pytest.importorskip("monailabel", reason="the server's packages are not installed: pip install '.[server]'")

from monailabel.utils.sessions import Sessions

from replica_detection_server.uploads.sessions import UploadSessions


@pytest.fixture
def sessions(tmp_path):
    return UploadSessions(tmp_path / "sessions", 3600)


def _add(sessions, tmp_path, expiry=0) -> str:
    image = tmp_path / "image.nii.gz"
    image.write_bytes(b"image")
    return sessions.add_session(str(image), expiry, session_id=str(uuid.uuid4()))[0]


def _age(sessions, id, seconds):
    """Makes a session look as if it had last been used long ago, on the disk alone."""
    folder = Path(sessions.store_path) / id
    notes = json.loads((folder / "meta.info").read_text(encoding="utf-8"))
    notes["last_access_ts"] -= seconds
    (folder / "meta.info").write_text(json.dumps(notes), encoding="utf-8")
    os.utime(folder, (time.time() - seconds,) * 2)


def test_only_this_user_enters_the_folder(sessions):
    assert stat.S_IMODE(Path(sessions.store_path).stat().st_mode) == 0o700


def test_expired_sessions_of_an_earlier_process_are_swept(sessions, tmp_path):
    old, new = _add(sessions, tmp_path), _add(sessions, tmp_path)
    _age(sessions, old, 7200)
    later = UploadSessions(tmp_path / "sessions", 3600)
    assert later, "MONAI Label sweeps only where the table is true"
    assert later.remove_expired() == 1
    assert [p.name for p in Path(later.store_path).iterdir()] == [new]


def test_stray_folders_do_no_harm_and_stay(sessions, tmp_path):
    stray = tmp_path / "sessions" / "stray"
    stray.mkdir()
    (tmp_path / "sessions" / "file").write_text("x", encoding="utf-8")
    with pytest.raises(AttributeError):  # what the sweep of MONAI Label does
        Sessions(str(tmp_path / "sessions"), 3600).remove_expired()
    assert sessions.remove_expired() == 0
    assert stray.is_dir()


def test_an_expired_session_is_gone_before_it_is_swept(sessions, tmp_path):
    id = _add(sessions, tmp_path)
    assert sessions.get_session(id) is not None
    sessions[id].last_access_ts -= 7200
    assert sessions.get_session(id) is None


@pytest.mark.parametrize(
    "notes", ["", "{", "[]", "null", '{"image": 5}', '{"image": null}', '{"image": "/etc/passwd"}']
)
def test_damaged_notes_and_notes_that_point_elsewhere_give_no_session(sessions, tmp_path, notes):
    id = _add(sessions, tmp_path)
    (tmp_path / "sessions" / id / "meta.info").write_text(notes, encoding="utf-8")
    later = UploadSessions(tmp_path / "sessions", 3600)
    assert later.get_session(id) is None
    folder = tmp_path / "sessions" / id
    if folder.exists():
        os.utime(folder, (time.time() - 120,) * 2)
        assert later.remove_expired() == 1
    assert not folder.exists()


@pytest.mark.parametrize("id", ["..", "../x", ".", "", "stray", "/etc", "a" * 36])
def test_only_a_uuid_is_looked_up_or_removed(sessions, tmp_path, id):
    (tmp_path / "x").mkdir()
    (tmp_path / "sessions" / "stray").mkdir()
    assert sessions.get_session(id) is None
    sessions.remove_session(id)
    assert (tmp_path / "x").is_dir() and (tmp_path / "sessions" / "stray").is_dir()


def test_size_of_all_sessions(sessions, tmp_path):
    _add(sessions, tmp_path)
    _add(sessions, tmp_path)
    assert sessions.total_bytes() > 2 * len(b"image")


def test_sessions_that_end_while_their_size_is_asked_for_do_no_harm(sessions, tmp_path):
    """Uploads ask for it, and other clients end their sessions meanwhile."""
    going = threading.Event()

    def come_and_go():
        while not going.is_set():
            sessions.remove_session(_add(sessions, tmp_path))

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        for _ in range(3000):
            assert sessions.total_bytes() >= 0
    finally:
        going.set()
        other.join()
    assert sessions.total_bytes() == 0
