"""A part of the damaged and hostile uploads of `fuzz_uploads.py`, always the same ones."""

from __future__ import annotations

import shutil

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

from Server.fuzz_uploads import watched


@pytest.mark.skipif(shutil.which("strace") is None, reason="what ITK and GDCM open is seen by strace alone")
def test_nothing_but_the_upload_is_opened_whatever_it_holds(tmp_path):
    result, opened, seen = watched(150, 7, tmp_path)
    assert result["failed"] == [] and opened == []
    assert seen > 500 and result["passed"] >= result["read"] >= 10 and result["InputError"] >= 60
    assert result["more_memory_mib"] < 150
