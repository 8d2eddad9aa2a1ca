"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real volumes; the test is skipped where there is none."""
    folder = Path(os.environ.get("REPLICA_DETECTION_TEST_DATA") or PROJECT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no real volumes: set REPLICA_DETECTION_TEST_DATA")
    return folder
