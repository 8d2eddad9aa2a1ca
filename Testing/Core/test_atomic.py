"""A file is either whole or not there."""

import os
import stat

import pytest

from replica_detection.atomic import atomic_write


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
