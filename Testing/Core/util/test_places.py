"""Stored paths are found again after a move, through links, and on Windows, where a path may have another drive."""

import ntpath
import os
from pathlib import Path

import pytest

from replica_detection.util.places import absolute, candidates, existing, relative_path


@pytest.mark.parametrize(
    ("path", "folder", "relative"),
    [
        (r"C:\study\scans", r"C:\study\result", "../scans"),
        (r"C:\study\result\index.rdindex", r"C:\study\result", "index.rdindex"),
        (r"D:\scans", r"C:\study\result", ""),
        (r"\\server\share\scans", r"C:\study\result", ""),
        (r"\\server\share\scans", r"\\server\share\result", "../scans"),
    ],
)
def test_paths_of_windows_have_slashes_and_end_at_the_drive(path, folder, relative):
    assert relative_path(path, folder, ntpath) == relative


def test_a_path_is_found_again_after_a_move(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "a b" / "scans").mkdir(parents=True)
    (old / "result").mkdir()
    stated, relative = str(old / "a b" / "scans"), relative_path(old / "a b" / "scans", old / "result")
    assert relative == "../a b/scans" == Path(os.path.relpath(stated, old / "result")).as_posix()
    assert candidates(stated, relative, old / "result") == [Path(stated)]
    old.rename(new)
    assert candidates(stated, relative, new / "result") == [new / "a b" / "scans"]
    (old / "a b" / "scans").mkdir(parents=True)  # another cohort at the old place: both are told, the stated one first
    assert candidates(stated, relative, new / "result") == [Path(stated), new / "a b" / "scans"]


@pytest.mark.skipif(os.name == "nt", reason="links need a right on Windows")
def test_links_are_followed_and_a_place_counts_once(tmp_path):
    (tmp_path / "disk" / "result").mkdir(parents=True)
    (tmp_path / "disk" / "scans").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "result").symlink_to(tmp_path / "disk" / "result")
    (tmp_path / "home" / "scans").symlink_to(tmp_path / "disk" / "scans")
    relative = relative_path(tmp_path / "home" / "scans", tmp_path / "home" / "result")
    assert relative == "../scans"
    assert len(candidates("/nowhere/scans", relative, tmp_path / "home" / "result")) == 1
    assert existing([tmp_path / "home" / "scans", tmp_path / "disk" / "scans"]) == [tmp_path / "home" / "scans"]
    assert absolute(tmp_path / "home" / "x" / ".." / "scans") == str(tmp_path / "home" / "scans")


def test_names_that_no_file_system_takes_do_not_exist(tmp_path):
    assert existing([Path("a\0b"), Path("x" * 5000), tmp_path]) == [tmp_path]
