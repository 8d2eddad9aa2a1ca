"""Fixtures shared by all tests."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from replica_detection.embedding import invariants

# pytest-xdist sets it in its workers; the console would take it for good when it is made.
os.environ.pop("COLUMNS", None)

PROJECT = Path(__file__).resolve().parent.parent
# Holds sitecustomize.py, for the processes that tests start.
CHILDREN = Path(__file__).resolve().parent / "children"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real volumes; the test is skipped where there is none."""
    folder = Path(os.environ.get("REPLICA_DETECTION_TEST_DATA") or PROJECT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip("no real volumes: set REPLICA_DETECTION_TEST_DATA")
    return folder


@pytest.fixture(scope="session", autouse=True)
def few_views() -> Iterator[None]:
    """The default embedding is fitted in a second, in the processes that tests start as well; how good a whole fit is,
    the benchmark says."""
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(invariants, "TOTAL_VIEWS", 100)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(CHILDREN), *(str(Path(p).absolute()) for p in paths if p)]))
        yield
