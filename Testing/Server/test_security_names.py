"""Names, JSON, addresses, hosts and keys: the checks that need no running server."""

import asyncio
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason="the server's packages are not installed: pip install '.[server]'")

from fastapi import HTTPException
from pydantic import TypeAdapter, ValidationError

from replica_detection.errors import InputError
from replica_detection.io.paths import composed
from replica_detection_server.access.keys import ApiKeys, readable_by_others
from replica_detection_server.incoming.names import (
    ARCHIVES,
    KnownId,
    NewId,
    SessionId,
    Tag,
    TaskName,
    extension,
    json_object,
)
from replica_detection_server.incoming.request_limits import url_fault
from replica_detection_server.incoming.trusted_hosts import TrustedHosts, host_name
from replica_detection_server.records.redaction import Scrub, WithoutPatients, where
from replica_detection_server.util.addresses import is_loopback

TRAVERSAL = ["../x", "..", ".", "a/b", "a\\b", "/etc/passwd", "a\x00b", "a\nb", "", "x" * 300]
KEY = "a" * 32


@pytest.mark.parametrize("kind", [KnownId, NewId, Tag, TaskName, SessionId])
@pytest.mark.parametrize("name", TRAVERSAL)
def test_no_kind_of_name_takes_a_path(kind, name):
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(name)


@pytest.mark.parametrize("name", ["a..b", "con", "NUL.nii", "com1", "a.", "train:x", "a b", "ä", ".hidden", "-option"])
def test_new_images_get_names_that_every_file_system_takes(name):
    with pytest.raises(ValidationError):
        TypeAdapter(NewId).validate_python(name)


@pytest.mark.parametrize("name", ["sub-01_ses.2", "train:Müller (2)", "病例 7", "a..b"])
def test_known_cases_may_be_named_as_their_files(name):
    assert TypeAdapter(KnownId).validate_python(name) == name


@given(st.text())
def test_only_the_extension_of_a_file_name_is_used(name):
    try:
        found = extension(name, ARCHIVES)
    except HTTPException as error:
        assert error.status_code == 422
    else:
        assert found in ARCHIVES and name.lower().endswith(found)


def test_the_longest_extension_wins():
    assert extension("C:\\x\\scan.TAR.GZ", ARCHIVES) == ".tar.gz"


UNWRITABLE = [
    *("[1]", "NaN", '{"a": NaN}', '{"a": -Infinity}', '{"a": "\\ud800"}', '{"a": "\\u0000"}', "{", '"x"', "null"),
    '{"e\\u0301": 1, "\\u00e9": 2}',
    *('{"a":' * 5000, "[" * 100_000, '{"a":' * 20 + "1" + "}" * 20, '{"a": "' + "x" * 70_000 + '"}', "1" * 5000),
]


@pytest.mark.parametrize("text", UNWRITABLE)
def test_json_that_could_not_be_written_out_again_is_refused(text):
    with pytest.raises(HTTPException) as error:
        json_object(text, "params")
    assert error.value.status_code == 422


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).map(composed),
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    )
)
def test_clean_json_passes_unchanged(value):
    assert json_object(json.dumps(value), "params") == value


@pytest.mark.parametrize(
    ("path", "query"),
    [
        (b"/datastore/..%2f..%2fetc", b""),
        (b"/a/../b", b""),
        (b"/a/%2e%2e/b", b""),
        (b"/a/./b", b""),
        (b"/a\\b", b""),
        (b"/a%5Cb", b""),
        (b"//etc/passwd", b""),
        (b"/a%00", b""),
        (b"/a%ff", b""),
        (b"/a", b"image=%00"),
        (b"/a", b"image=a%0ab"),
        (b"/a", b"image=%ff"),
        (b"/a", b"x=" + b"y" * 9000),
    ],
)
def test_addresses_that_climb_or_hide_something_are_refused(path, query):
    assert url_fault(path, query)


def test_ordinary_addresses_pass():
    assert not url_fault(b"/datastore/image", b"image=train%3AM%C3%BCller+2")
    assert not url_fault(b"/", b"")


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("localhost:8000", "localhost"),
        ("[::1]:8000", "::1"),
        ("Gpu.Hospital.Example.", "gpu.hospital.example"),
        ("user@localhost", ""),
        ("localhost/evil", ""),
        ("localhost:port", ""),
        ("", ""),
    ],
)
def test_host_headers(header, host):
    assert host_name(header) == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "LOCALHOST"])
def test_addresses_of_this_machine_alone(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "localhost.evil.example", "gpu", ""])
def test_addresses_that_others_reach(host):
    assert not is_loopback(host)


def _status(headers: dict[str, str], method: str = "POST", any_address: bool = False) -> int:
    """What the Host and Origin check says, 200 where it lets the request through."""

    async def application(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    seen: list[int] = []

    async def send(message):
        if message["type"] == "http.response.start":
            seen.append(message["status"])

    scope = {
        "type": "http",
        "method": method,
        "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
    }
    checked = TrustedHosts(application, ("gpu.example",), any_address)
    asyncio.run(checked(scope, None, send))
    return seen[0]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:8000"}, 200),
        ({"Host": "gpu.example"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "192.168.0.7:8000"}, 421),
        ({}, 421),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200),
        ({"Host": "localhost:8000", "Origin": "http://localhost:3000"}, 403),
        ({"Host": "localhost:8000", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost:8000", "Origin": "null"}, 403),
        ({"Host": "localhost:8000", "Origin": "file://localhost:8000"}, 403),
        ({"Host": "localhost:8000", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Host": "localhost:8000", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "localhost:8000", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 403),
    ],
)
def test_who_may_post(headers, status):
    assert _status(headers) == status


def test_a_link_from_elsewhere_may_open_a_page():
    headers = {"Host": "localhost", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert _status(headers, "GET") == 200
    assert _status({**headers, "Sec-Fetch-Mode": "no-cors"}, "GET") == 403


def test_an_address_cannot_be_rebound_but_a_name_can():
    assert _status({"Host": "192.168.0.7:8000"}, any_address=True) == 200
    assert _status({"Host": "evil.example"}, any_address=True) == 421


def test_keys_give_their_reader(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# readers\n\nDr. Müller: {KEY}\nr2:{'b' * 20}:{'c' * 9}\n", encoding="utf-8")
    keys = ApiKeys.read(path)
    assert keys.reader(KEY) == "Dr. Müller"
    assert keys.reader(f"{'b' * 20}:{'c' * 9}") == "r2"
    assert keys.reader(KEY[:-1]) is None
    assert keys.reader("") is None
    assert keys.reader("\udcff") is None


def test_keys_are_kept_nowhere(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"r1:{KEY}\n", encoding="utf-8")
    keys = ApiKeys.read(path)
    assert KEY not in repr(keys) and KEY not in str(vars(keys))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "holds no key"),
        ("# nobody\n", "holds no key"),
        ("r1\n", "line 1"),
        (f"a/b:{KEY}\n", "line 1"),
        (f"r1:{KEY[:10]}\n", "shorter"),
        (f"r1:{KEY}ä\n", "plain"),
        (f"r1:{KEY}\nr1:{'b' * 32}\n", "line 2"),
        (f"r1:{KEY}\nr2:{KEY}\n", "line 2"),
    ],
)
def test_bad_key_files_are_named_and_no_key_is_shown(tmp_path, text, found):
    path = tmp_path / "keys"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=found) as error:
        ApiKeys.read(path)
    assert str(path) in str(error.value) and KEY[:10] not in str(error.value)


def test_missing_or_binary_key_files(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        ApiKeys.read(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        ApiKeys.read(tmp_path / "binary")


def test_a_key_file_that_others_can_read_is_known(tmp_path):
    path = tmp_path / "keys"
    path.write_text("x", encoding="utf-8")
    path.chmod(0o600)
    assert not readable_by_others(path)
    path.chmod(0o640)
    assert readable_by_others(path)


def test_folders_are_taken_out_of_text_at_their_borders():
    scrub = Scrub([("/data", "<data>"), ("/data/studies/", "<studies>"), ("/", "<root>")])
    assert scrub.text('{"path": "/data/studies/a.nii"}') == '{"path": "<studies>/a.nii"}'
    assert scrub.text("/data: full; /database stays") == "<data>: full; /database stays"
    assert scrub.body(b"\xff/data/x") == b"\xff<data>/x"


def test_windows_folders_are_taken_out_of_json_too():
    scrub = Scrub([("C:\\studies", "<studies>")])
    assert scrub.text(json.dumps({"path": "C:\\studies\\a.nii"})) == '{"path": "<studies>\\\\a.nii"}'


def test_a_failure_is_described_without_its_message():
    try:
        raise ValueError("patient Smith")
    except ValueError as error:
        text = where(error)
    assert "ValueError" in text and "test_security_names.py" in text and "Smith" not in text


@pytest.mark.parametrize(
    ("name", "level", "message", "args", "kept"),
    [
        ("monailabel.datastore", logging.INFO, "Adding Smith", (), None),
        ("monailabel.datastore", logging.ERROR, "Failed for Smith", (), "said something (line 7)"),
        ("py.warnings", logging.WARNING, "/data/Smith.nii", (), "said something (line 7)"),
        (
            "replica_detection_server.computing.jobs",
            logging.WARNING,
            "not used: %s",
            (ValueError("Smith"),),
            "not used: ValueError",
        ),
        ("replica_detection_server.computing.jobs", logging.INFO, "in /data/x: %d", (3,), "in <data>/x: 3"),
        ("uvicorn.error", logging.ERROR, "Traceback (most recent call last):\n Smith", (), "a traceback"),
        ("uvicorn.error", logging.INFO, "Started", (), "Started"),
    ],
)
def test_log_records_keep_what_names_nobody(name, level, message, args, kept):
    record = logging.LogRecord(name, level, "x.py", 7, message, args, (ValueError, ValueError("Smith"), None))
    passed = WithoutPatients(Scrub([("/data", "<data>")])).filter(record)
    assert bool(passed) == (kept is not None)
    if passed:
        text = logging.Formatter("%(message)s").format(record)
        assert text.startswith(kept) and "ValueError" in text and "Smith" not in text
