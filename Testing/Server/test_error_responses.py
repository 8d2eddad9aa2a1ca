"""Errors of the server and of the core as HTTP answers."""

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

from replica_detection.errors import (
    ConfigurationError,
    FullDiskError,
    IndexFormatError,
    InputError,
    StorageError,
)
from replica_detection_server import errors
from replica_detection_server.computing.workers import KINDS
from replica_detection_server.incoming.error_responses import STATUS, answer_of, kind_of, refusal

OURS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.RefusedError) and kind is not errors.RefusedError
]


@pytest.mark.parametrize("kind", OURS)
def test_every_refusal_has_a_status_and_comes_back_from_a_worker(kind):
    error = kind("why", 7)
    assert refusal(error) is error
    again = KINDS[kind_of(error).__name__](error.detail, error.retry_after)
    for answer in (answer_of(error), answer_of(again)):
        assert (answer.status_code, answer.detail) == (STATUS[kind_of(error)], "why")
        assert answer.headers == {"Retry-After": "7"}
    assert answer_of(kind("why")).headers is None


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (InputError, 422),
        (IndexFormatError, 409),
        (StorageError, 503),
        (FullDiskError, 507),
        (errors.UploadTooLargeError, 413),
    ],
)
def test_errors_of_files_are_answered_without_their_folders(kind, status):
    answer = answer_of(refusal(kind("/secret/scan.nii.gz", "is damaged", "Send it again")))
    assert answer.status_code == status
    assert answer.detail.startswith("scan.nii.gz: is damaged. Send it again.") and "/secret" not in answer.detail


def test_options_that_cannot_be_are_a_fault_of_the_request():
    answer = answer_of(refusal(ConfigurationError("unknown measure")))
    assert (answer.status_code, answer.detail) == (422, "unknown measure")
