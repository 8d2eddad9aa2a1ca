"""Archives that climb, link, lie about their size, or are damaged leave nothing outside their folder."""

import gzip
import io
import shutil
import struct
import tarfile
import tracemalloc
import zipfile
from contextlib import nullcontext, suppress

import pytest

from replica_detection.errors import InputError
from replica_detection_server.uploads.archives import MAX_MEMBERS, unpack

LIMIT = 1 << 20


def _zip(path, members, **how):
    with zipfile.ZipFile(path, "w", **how) as z:
        for name, content in members:
            z.writestr(name, content)
    return path


def _tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as t:
        for member, content in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(content)
            t.addfile(info, io.BytesIO(content))
    return path


def _files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def place(tmp_path):
    """An empty folder to unpack into, deep inside one that must stay as it is."""
    (tmp_path / "canary").write_bytes(b"alive")
    inner = tmp_path / "a" / "b" / "unpacked"
    inner.mkdir(parents=True)
    return inner


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_ordinary_tar_files_are_unpacked(tmp_path, place, mode):
    archive = _tar(tmp_path / "x", [("series/1.dcm", b"one"), ("./series/2.dcm", b"two")], mode)
    assert unpack(archive, place, LIMIT) == 2
    assert _files(place) == {"series/1.dcm": b"one", "series/2.dcm": b"two"}


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_ordinary_zip_files_are_unpacked(tmp_path, place, kind):
    archive = _zip(tmp_path / "x", [("series/", b""), ("series/1.dcm", b"one" * 1000)], compression=kind)
    assert unpack(archive, place, LIMIT) == 1
    assert _files(place) == {"series/1.dcm": b"one" * 1000}


CLIMBING = [
    "../canary",
    "a/../../canary",
    "/tmp/replica-canary",
    "..\\canary",
    "C:\\canary",
    "C:canary",
    "a:b",
    "a\nb",
    "..",
]


@pytest.mark.parametrize("name", CLIMBING)
@pytest.mark.parametrize("make", [_zip, _tar])
def test_members_outside_the_folder_are_refused(tmp_path, place, make, name):
    archive = make(tmp_path / "x", [("good.dcm", b"x"), (name, b"dead")])
    before = _files(tmp_path)
    with pytest.raises(InputError, match="path that cannot be used"):
        unpack(archive, place, LIMIT)
    assert {k: v for k, v in _files(tmp_path).items() if not k.startswith("a/b/unpacked")} == before
    assert (tmp_path / "canary").read_bytes() == b"alive"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_links_and_devices_are_refused(tmp_path, place, kind):
    link = tarfile.TarInfo("link")
    link.type, link.linkname = kind, "../../../canary"
    archive = tmp_path / "x"
    with tarfile.open(archive, "w") as t:
        t.addfile(link)
    with pytest.raises(InputError, match="link or device"):
        unpack(archive, place, LIMIT)
    assert not list(place.iterdir())


def test_links_in_zip_files_are_refused(tmp_path, place):
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with pytest.raises(InputError, match="link or device"):
        unpack(_zip(tmp_path / "x", [(link, b"/etc")]), place, LIMIT)


@pytest.mark.parametrize("make", [_zip, _tar])
def test_what_is_written_counts_not_what_the_header_claims(tmp_path, place, make):
    archive = make(tmp_path / "x", [(f"{n}.dcm", bytes(300_000)) for n in range(5)])
    with pytest.raises(InputError, match="unpacks to more than"):
        unpack(archive, place, LIMIT)
    assert sum(len(content) for content in _files(place).values()) <= LIMIT


def test_a_zip_bomb_that_lies_about_its_size_is_stopped(tmp_path, place):
    archive = _zip(tmp_path / "x", [("bomb", bytes(50 << 20))], compression=zipfile.ZIP_DEFLATED)
    data = bytearray(archive.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = struct.pack("<I", 100)  # "100 bytes"
    archive.write_bytes(data)
    with pytest.raises(InputError):
        unpack(archive, place, LIMIT)
    assert sum(len(content) for content in _files(place).values()) <= LIMIT


def test_a_header_that_claims_a_long_name_takes_no_memory(tmp_path, place):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 300 << 20
    archive = tmp_path / "x"
    with gzip.open(archive, "wb", compresslevel=1) as f:
        f.write(info.tobuf(tarfile.GNU_FORMAT))
        for _ in range(300):
            f.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(InputError):
        unpack(archive, place, LIMIT)
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


def test_too_many_members_are_refused(tmp_path, place):
    with pytest.raises(InputError, match="more than"):
        unpack(_zip(tmp_path / "x", [(str(n), b"") for n in range(MAX_MEMBERS + 1)]), place, LIMIT)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_folders_count_as_members_and_take_no_memory(tmp_path, place, mode):
    folder = tarfile.TarInfo("a")
    folder.type = tarfile.DIRTYPE
    archive = _tar(tmp_path / "few", [(folder, b"")] * (MAX_MEMBERS - 1) + [("a/1.dcm", b"x")], mode)
    tracemalloc.start()
    assert unpack(archive, place, LIMIT) == 1
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
    shutil.rmtree(place)
    place.mkdir()
    with pytest.raises(InputError, match="more than"):
        unpack(_tar(tmp_path / "many", [(folder, b"")] * MAX_MEMBERS + [("a/1.dcm", b"x")], mode), place, LIMIT)


def test_folders_of_zip_files_count_as_members(tmp_path, place):
    folders = [(f"{n}/", b"") for n in range(MAX_MEMBERS)]
    with pytest.raises(InputError, match="more than"):
        unpack(_zip(tmp_path / "x", [*folders, ("a", b"x")]), place, LIMIT)


@pytest.mark.parametrize("make", [_zip, _tar])
def test_a_name_that_comes_twice_is_refused(tmp_path, place, make):
    with pytest.warns(UserWarning) if make is _zip else nullcontext():
        archive = make(tmp_path / "x", [("1.dcm", b"a"), ("1.dcm", b"b")])
    with pytest.raises(InputError, match="twice"):
        unpack(archive, place, LIMIT)


@pytest.mark.parametrize("make", [_zip, _tar])
def test_a_file_where_a_folder_must_be_is_refused(tmp_path, place, make):
    with pytest.raises(InputError, match="twice"):
        unpack(make(tmp_path / "x", [("a", b"a"), ("a/b", b"b")]), place, LIMIT)


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"\x1f\x8b", b"hello", bytes(1024), b"PK\x03\x04" + bytes(100)]
)
def test_what_is_no_archive_is_refused(tmp_path, place, content):
    archive = tmp_path / "x"
    archive.write_bytes(content)
    with pytest.raises(InputError):
        unpack(archive, place, LIMIT)


@pytest.mark.parametrize("make", [_zip, _tar])
def test_a_damaged_archive_is_refused_or_whole(tmp_path, place, make):
    """Every bit of a small archive flipped in turn: either an InputError, or files inside the folder."""
    data = make(tmp_path / "x", [("series/1.dcm", b"one" * 50)]).read_bytes()
    archive = tmp_path / "y"
    for at in range(0, len(data), 3):
        broken = bytearray(data)
        broken[at] ^= 0xFF
        archive.write_bytes(broken)
        with suppress(InputError):
            unpack(archive, place, LIMIT)
        shutil.rmtree(place)
        place.mkdir()
    assert (tmp_path / "canary").read_bytes() == b"alive"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "canary", "x", "y"]
