"""One made-up result and its page, shared by the tests that only look at them."""

import pytest
from made_up_result import make_result
from pages import render

from replica_detection.results.result import DetectionResult


@pytest.fixture(scope="session")
def result() -> DetectionResult:
    return make_result()


@pytest.fixture(scope="session")
def html(result, tmp_path_factory) -> str:
    return render(tmp_path_factory.mktemp("result"), result)
