"""A file is either whole or not there."""

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from replica_detection.errors import InputError
from replica_detection.io.volume import write_volume
from replica_detection.util.files import atomic_write, is_temporary, write_advice


@pytest.mark.parametrize(("mode", "content"), [("w", "ü\n"), ("wb", b"\x00\xff")])
def test_whole_file_replaces_the_old_one(tmp_path, mode, content):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with atomic_write(path, mode) as f:
        f.write(content)
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == (content if mode == "wb" else content.encode())
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def write_half():
        with atomic_write(path) as f:
            f.write("half")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_result_can_be_read_by_others_as_the_umask_allows(tmp_path):
    before = os.umask(0o022)
    try:
        with atomic_write(tmp_path / "a") as f:
            f.write("x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_files_of_other_threads_are_never_open_to_everyone(tmp_path):
    """The umask is the process's: one thread that changes it for a moment opens what the others make meanwhile."""
    before, made = os.umask(0o077), 3000
    (tmp_path / "others").mkdir()
    enough = threading.Event()

    def write_results(name):
        while not enough.is_set():
            with atomic_write(tmp_path / name) as f:
                f.write("x")

    threads = [threading.Thread(target=write_results, args=(name,)) for name in "ab"]
    try:
        for thread in threads:
            thread.start()
        for n in range(made):
            os.close(os.open(tmp_path / "others" / str(n), os.O_CREAT | os.O_WRONLY, 0o666))
    finally:
        enough.set()
        for thread in threads:
            thread.join()
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "others").iterdir()]
    assert len(modes) == made and set(modes) == {0o600}
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_what_a_killed_process_left_is_known_by_its_name(tmp_path):
    script = "import os, sys; from pathlib import Path; from replica_detection.util.files import atomic_write\n"
    script += "with atomic_write(Path(sys.argv[1])) as f: f.write('half'); os._exit(9)"
    for name in ("index.json", "ü" * 60, "a\nb"):
        assert subprocess.run([sys.executable, "-c", script, str(tmp_path / name)]).returncode == 9
    assert len(list(tmp_path.iterdir())) == 3 and all(is_temporary(path.name) for path in tmp_path.iterdir())
    for name in ("a.tmp", ".a.tmp", "index.json", ".serve.lock", ".0123456789abcdef.nii.gz", ".tmp"):
        assert not is_temporary(name)
    assert is_temporary(".0123456789abcdef.tmp.nii.gz")


@pytest.mark.skipif(os.name != "posix", reason="other limits")
@pytest.mark.parametrize("length", [252, 256, 300])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_a_name_that_is_too_long_is_to_be_shortened(tmp_path: Path, length: int, suffix: str):
    """An id of 252 bytes is a valid name of a folder, and too long with an extension."""
    path = tmp_path / ("ä" * (length // 2) + "x" * (length % 2) + suffix)
    with pytest.raises(InputError, match="shorter name") as refused:
        write_volume(path, np.arange(8.0).reshape(2, 2, 2), np.eye(4))
    assert "disk" not in refused.value.advice and len(refused.value.found) < 60
    assert list(tmp_path.iterdir()) == []


def test_advice_fits_the_error_of_the_system():
    assert "room" in write_advice(OSError(errno.ENOSPC, "full"))
    assert "right to write" in write_advice(PermissionError(errno.EACCES, "denied"))
    assert write_advice(RuntimeError("?"), "Wait") == "Wait"
