"""Which files may be opened at all: what is decided before any reader, without a server."""

from __future__ import annotations

import gzip
import os
import signal
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")


from Core.bad_files import image_faults
from replica_detection.errors import InputError
from replica_detection.io.paths import is_dicom_name, is_image_name
from replica_detection.io.volume import read_volume
from replica_detection_server.errors import UploadTooLargeError
from replica_detection_server.incoming.error_responses import answer_of
from replica_detection_server.incoming.error_responses import refusal as refusal_of
from replica_detection_server.uploads.checks import check_series, check_upload
from replica_detection_server.uploads.codestreams import (
    MAX_MARKERS,
    MAX_SCANS,
    UnfitStreamError,
    jpeg2000_size,
    jpeg_size,
)
from replica_detection_server.uploads.limits import UploadLimits
from Server.made_uploads import (
    bare_png,
    compressed_dicom,
    deflated_dicom,
    dicom,
    jpeg,
    metaimage,
    nifti,
    nrrd,
    packed_metaimage,
    packed_zeros,
    png,
    voxels,
    whole_files,
    with_element,
    with_syntax,
)

LIMITS = UploadLimits.of(1 << 20)
REFERENCE = "does not hold its voxels itself"


def check(path: Path, content: bytes, limits: UploadLimits = LIMITS) -> None:
    path.write_bytes(content)
    check_upload(path, limits)


def refusal(path: Path, content: bytes, limits: UploadLimits = LIMITS) -> str:
    with pytest.raises(InputError) as refused:
        check(path, content, limits)
    return refused.value.found


def too_large(path: Path, content: bytes, limits: UploadLimits = LIMITS) -> None:
    with pytest.raises(UploadTooLargeError) as refused:
        check(path, content, limits)
    answer = answer_of(refusal_of(refused.value))
    assert answer.status_code == 413 and str(path.parent) not in answer.detail


# ------------------------------------------------------------------------------------------------------ what passes


@pytest.mark.parametrize("name", sorted(whole_files()))
def test_whole_files_pass_and_are_read(tmp_path, name):
    check(tmp_path / name, whole_files()[name])
    assert read_volume(tmp_path / name).array.size


def test_every_single_file_of_the_real_collections_passes(real_data):
    limits = UploadLimits.of(1 << 24)
    files = [p for p in sorted(real_data.rglob("*")) if p.is_file() and (is_image_name(p) or is_dicom_name(p))]
    by_kind = {}
    for path in files:  # every format and maker, a few of the hundreds that are alike
        by_kind.setdefault((path.parent, path.name[-6:-4], path.suffix), path)
    for path in by_kind.values():
        check_upload(path, limits)
    assert len(by_kind) > 50


def test_what_common_writers_add_to_a_header_passes(tmp_path):
    check(tmp_path / "a.mha", metaimage("0008|0060 = MR\nITK_InputFilterName = MetaImageIO\nComment = made = by: me\n"))
    fields = '# a comment: x\ncontent: a b\n0008|0060:=MR\nSegment0_Name:=left: right\nspace units: "mm" "mm" "mm"\n'
    check(tmp_path / "a.nrrd", nrrd("space: left-posterior-superior\n" + fields))
    check(tmp_path / "b.nrrd", nrrd("byte skip: -1\nline skip: 0\n"))


# ------------------------------------------------------------------------------------------- references to other files


META_REFERENCES = [
    ("", "{0}"), ("", "../../{1}"), ("", "LIST\n{0}"), ("", "LIST 2\n{0}"), ("", "{0}%d 1 3 1"), ("", "local.raw"),
    ("HeaderSize = 100\n", "LOCAL"), ("HeaderSize = -1\n", "LOCAL"), ("HeaderSize = -1\n", "{0}"), ("", "Local"),
    ("", "LOCAL.raw"), ("ElementDataFile = {0}\n", "LOCAL"), ("elementdatafile = {0}\n", "LOCAL"),
    ("Element Data File = {0}\n", "LOCAL"), (" ElementDataFile = {0}\n", "LOCAL"), ("ElementDataFile: {0}\n", "LOCAL"),
    ("ElementDataFile={0}\n", "LOCAL"), ("Comment = a\rElementDataFile = {0}\n", "LOCAL"),
    ("Comment =\nElementDataFile = {0}\n", "LOCAL"), ("Comment = {2}\n", "{0}"), ("A = b\0\n", "LOCAL"),
    ("ElementSpacing = 1 1\nElementDataFile = {0}\n", "LOCAL"), ("Offset = 1 1\nElementDataFile = {0}\n", "LOCAL"),
    ("Foo = {0}\n", "LOCAL"), ("ElementDataFile\t=\t{0}\n", "LOCAL"), ("ElementDataFile =\v{0}\n", "LOCAL"),
    ("Color = 1 1\nElementDataFile = {0}\n", "LOCAL"), ("{2}{2} = 1\n", "LOCAL"), ("BinaryData = False\n", "LOCAL"),
    ("CompressedData = T\n", "LOCAL"), ("CompressedDataSize = 99999999999\n", "LOCAL"), ("", "LOCAL {0}"),
]  # fmt: skip
NRRD_REFERENCES = [
    "data file: {0}\n", "datafile: {0}\n", "Data File: {0}\n", "DATA FILE: ../../{1}\n", "data_file: {0}\n",
    "data  file: {0}\n", " data file: {0}\n", "data file:{0}\n", "data file:={0}\n", "data file: LIST\n{0}\n",
    "data file: LIST 2\n{0}\n", "data file: {0}%03d 1 3 1\n", "# x\rdata file: {0}\n", "x:=y\rdata file: {0}\n",
    "content: x\ndata file: {0}\n", "data file: LOCAL\n", "data file:\t{0}\n", "byte skip: 100\n", "line skip: 1\n",
    "byte skip: -2\n", "byteskip: 10\n", "lineskip: 2\n", "x:=\0\n", "block size: 4\n type: block\n", "type: block\n",
    "encoding: raw\ndata file: {0}\n", "unknown: {0}\n",
]  # fmt: skip


@pytest.fixture
def secret(tmp_path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(voxels().tobytes())
    return path


@pytest.mark.parametrize(("fields", "file"), META_REFERENCES)
def test_metaimage_with_a_reference(tmp_path, secret, fields, file):
    (tmp_path / "in").mkdir()
    words = (str(secret), "secret", "x" * 490)
    found = refusal(tmp_path / "in" / "a.mha", metaimage(fields.format(*words), file.format(*words)))
    assert "secret" not in found and str(tmp_path) not in found


@pytest.mark.parametrize("fields", NRRD_REFERENCES)
def test_nrrd_with_a_reference(tmp_path, secret, fields):
    (tmp_path / "in").mkdir()
    found = refusal(tmp_path / "in" / "a.nrrd", nrrd(fields.format(str(secret), "secret")))
    assert "secret" not in found and str(tmp_path) not in found


def test_the_words_do_not_tell_what_exists(tmp_path, secret):
    said = {
        refusal(tmp_path / "a.mha", metaimage(file=name))
        for name in (str(secret), f"{secret}-not-there", "/etc/shadow", "/dev/ptmx", "/nowhere/at/all", "LIST")
    }
    assert said == {REFERENCE}
    named = (str(secret), f"{secret}-not-there", "/dev/zero")
    assert {refusal(tmp_path / "a.nrrd", nrrd(f"data file: {name}\n")) for name in named} == {REFERENCE}


def test_nothing_but_the_upload_is_opened(tmp_path, secret):
    opened = []
    watching = [True]

    def hook(event, arguments):
        if watching[0] and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(hook)  # stays for good: there is no way to take it out
    try:
        for fields, file in META_REFERENCES:
            refusal(tmp_path / "a.mha", metaimage(fields.format(secret, "", "x"), file.format(secret, "", "x")))
        for fields in NRRD_REFERENCES:
            refusal(tmp_path / "a.nrrd", nrrd(fields.format(secret, "")))
    finally:
        watching[0] = False
    assert {name for name in opened if name.startswith(str(tmp_path))} == {
        str(tmp_path / n) for n in ("a.mha", "a.nrrd")
    }


def test_a_compressed_metaimage_without_its_length_is_refused(tmp_path):
    """ITK reads zeros from it, in silence."""
    content = metaimage("CompressedData = True\n", data=zlib.compress(voxels().tobytes()))
    assert "compressed bytes" in refusal(tmp_path / "a.mha", content)


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
def test_detached_headers_are_refused_whatever_they_say(tmp_path, suffix):
    assert refusal(tmp_path / f"a{suffix}", metaimage() if suffix == ".mhd" else nrrd()) == REFERENCE


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("magic", [b"ni1\0", b"ni2\0"])
def test_pairs_of_nifti_files(tmp_path, pack, magic):
    content = nifti(magic=magic) if magic == b"ni1\0" else struct.pack("<i", 540) + magic + bytes(600)
    path = tmp_path / ("a.nii.gz" if pack else "a.nii")
    assert refusal(path, gzip.compress(content) if pack else content) == REFERENCE


NESTED = struct.pack("<HHI", 0xFFFE, 0xE000, 16) + struct.pack("<HH2sH", 4, 0x1500, b"CS", 8) + b"PASSWD  "


@pytest.mark.parametrize(
    "content",
    [
        lambda: with_element(dicom(), 0x00041500, b"CS", b"PASSWD  "),
        lambda: with_element(dicom(), 0x00287FE0, b"UR", b"file:///etc/passwd"),
        lambda: with_element(dicom(), 0x00081140, b"SQ", NESTED),
        lambda: dicom(SOPClassUID="1.2.840.10008.1.3.10"),
        lambda: with_syntax(dicom(), b"1.2.840.10008.1.2.4.94"),  # pixels by JPIP
        lambda: with_syntax(dicom(), b"1.2.840.10008.1.2.4.95"),
        lambda: with_syntax(dicom(), b"1.2.840.10008.1.2.4.50"),  # not compressed at all
        lambda: with_syntax(dicom(), b"1.2.840.10008.1.2.4.102"),  # a film
        lambda: with_element(dicom(), 0x00280010, b"US", b"\1\0"),  # Rows twice
        lambda: with_element(dicom(), 0x00100001, b"??", b"12"),
        lambda: dicom()[:400],
    ],
)  # fmt: skip
def test_dicom_that_names_other_files_or_can_be_read_in_two_ways(tmp_path, content):
    found = refusal(tmp_path / "a.dcm", content())
    assert "passwd" not in found.lower()


def test_links_and_devices_are_no_uploads(tmp_path, secret):
    os.mkfifo(tmp_path / "a.mha")
    with pytest.raises(InputError):
        check_upload(tmp_path / "a.mha", LIMITS)


def test_whatever_no_reader_may_accept_is_refused_without_python_s_own_words(tmp_path):
    said = []
    for name, suffix, _, content in image_faults(np.random.default_rng(0)):
        path = tmp_path / f"{name}{suffix}"
        if callable(content):
            content(path)
        else:
            path.write_bytes(content)
        try:
            check_upload(path, LIMITS)
        except UploadTooLargeError:
            pass
        except InputError as error:
            said.append(error.found)
    assert len(said) > 100
    assert not [words for words in said if "b'" in words or "Error" in words or "/" in words.replace("/=", "")]


# ------------------------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.nii", lambda: nifti(size=(600, 600, 600))),
        ("a.nii.gz", lambda: nifti(size=(600, 600, 600), pack=True)),
        ("a.mha", lambda: metaimage(size=(600, 600, 600))),
        ("a.nrrd", lambda: nrrd(size=(600, 600, 600))),
        ("a.mha", lambda: metaimage("ElementNumberOfChannels = 500\n")),
        ("a.nrrd", lambda: nrrd(size=(100, 600, 600))),
        ("a.png", lambda: bare_png((20000, 20000), packed_zeros(1))),
        ("a.jpg", lambda: jpeg().replace(struct.pack(">HH", 30, 40), struct.pack(">HH", 60000, 60000))),
        ("a.dcm", lambda: dicom(NumberOfFrames=30000)),
        ("a.dcm", lambda: dicom(Rows=60000, Columns=60000)),
        ("a.dcm", lambda: dicom(SamplesPerPixel=60000)),
        ("a.dcm", lambda: deflated_dicom((2000, 2000))),
    ],
)
def test_more_voxels_than_the_limit(tmp_path, name, content):
    too_large(tmp_path / name, content())


def test_the_limit_itself_passes_and_one_voxel_more_does_not(tmp_path):
    content, count = nifti(), voxels().size
    check(tmp_path / "a.nii", content, UploadLimits.of(count))
    too_large(tmp_path / "a.nii", content, UploadLimits.of(count - 1))


def test_more_bytes_than_the_limit(tmp_path):
    too_large(tmp_path / "a.nii", nifti(), UploadLimits(1 << 20, 5000))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.nii.gz", lambda: nifti(pack=True) + packed_zeros(64, 31)),
        ("a.nii.gz", lambda: gzip.compress(nifti() + bytes(8 << 20))),
        ("a.mha", lambda: packed_metaimage(packed_zeros(64))),
        ("a.nrrd", lambda: nrrd(encoding="gzip", data=packed_zeros(64, 31))),
        ("a.png", lambda: bare_png((40, 30), packed_zeros(64))),
        ("a.png", lambda: png(chunks=[(b"zTXt", b"a\0\0" + packed_zeros(64))])),
        ("a.png", lambda: png(chunks=[(b"iCCP", b"a\0\0" + packed_zeros(64))])),
        ("a.png", lambda: png(chunks=[(b"iTXt", b"a\0\1\0\0\0" + packed_zeros(64))])),
        ("a.png", lambda: png(chunks=[(b"acTL", bytes(8))])),
        ("a.dcm", lambda: deflated_dicom(more=64 << 20)),
    ],
)
def test_streams_that_go_on_after_the_last_voxel(tmp_path, name, content):
    assert "more" in (found := refusal(tmp_path / name, content())) or "after" in found or "part" in found


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_notes_of_a_picture_count_together(tmp_path, kind):
    def note(size: int) -> tuple[bytes, bytes]:
        return kind, (b"a\0\1\0\0\0" if kind == b"iTXt" else b"a\0\0") + zlib.compress(bytes(size))

    check(tmp_path / "a.png", png(chunks=[note(200_000)] * 5))
    assert "unfolds" in refusal(tmp_path / "a.png", png(chunks=[note(200_000)] * 6))
    check(tmp_path / "a.png", png(chunks=[note(10)] * 100))
    assert "notes" in refusal(tmp_path / "a.png", png(chunks=[note(10)] * 101))


def test_a_long_header_in_front_of_the_voxels(tmp_path):
    content = bytearray(nifti())
    content[108:112] = struct.pack("<f", 1e9)
    assert "impossible" in refusal(tmp_path / "a.nii.gz", gzip.compress(bytes(content)))


@pytest.mark.parametrize(
    ("compressor", "stated", "other"),
    [("JPEG2000", struct.pack(">II", 24, 20), (25, 20)), ("JPEG", struct.pack(">HH", 20, 24), (20, 60000))],
)
def test_compressed_pixels_of_another_size_than_the_header(tmp_path, compressor, stated, other):
    content = compressed_dicom(compressor)
    at = content.index(stated, content.index(b"\xff\x4f" if compressor == "JPEG2000" else b"\xff\xd8"))
    packed = struct.pack(">II" if compressor == "JPEG2000" else ">HH", *other)
    found = refusal(tmp_path / "a.dcm", content[:at] + packed + content[at + len(packed) :])
    assert "another size" in found


def test_more_elements_than_an_image_has(tmp_path):
    items = struct.pack("<HHI", 0xFFFE, 0xE000, 0) * 400_000
    assert "more elements" in refusal(
        tmp_path / "a.dcm", with_element(dicom(), 0x00081140, b"SQ", items), UploadLimits.of(1 << 24)
    )


def test_sequences_nested_without_end(tmp_path):
    begin = struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
    content = dicom()
    at = content.index(b"\x08\x00\x60\x00")
    assert "nested" in refusal(tmp_path / "a.dcm", content[:at] + begin * 2000)


def test_a_jpeg_that_goes_over_its_image_again_and_again():
    content = jpeg()
    assert jpeg_size(content) == (40, 30)
    with pytest.raises(UnfitStreamError):
        jpeg_size(content + b"\xff\xda\0\2" * (MAX_SCANS + 1))


def test_a_jpeg_2000_image_in_countless_parts():
    content = compressed_dicom()
    stream = bytearray(content[content.index(b"\xff\x4f\xff\x51") :])
    assert jpeg2000_size(bytes(stream)) == (24, 20)
    for at, value in ((24, struct.pack(">II", 1, 1)), (8, struct.pack(">II", 60000, 60000))):
        changed = bytearray(stream)
        changed[8:16] = struct.pack(">II", 6000, 6000)
        changed[at : at + 8] = value
        changed[24:32] = struct.pack(">II", 1, 1)
        with pytest.raises(UnfitStreamError, match="tiles"):
            jpeg2000_size(bytes(changed))
    coding = stream.index(b"\xff\x52")
    fine = bytearray(stream)
    fine[coding + 2 : coding + 4] = struct.pack(">H", int.from_bytes(fine[coding + 2 : coding + 4], "big") + 7)
    fine[coding + 4] |= 1
    fine[coding + 9] = 6
    fine[coding + 14 : coding + 14] = bytes([0x00] * 7)
    with pytest.raises(UnfitStreamError, match="finely"):
        jpeg2000_size(bytes(fine))


@pytest.fixture
def at_once():
    """Ends what would go on for ever, or for hours."""

    def ended(number, frame):
        raise AssertionError("still at it")

    before = signal.signal(signal.SIGALRM, ended)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


PART = b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 14, 0, 1)


@pytest.mark.skipif(os.name != "posix", reason="alarms")
@pytest.mark.parametrize("parts", [PART + b"\xff\x93" * 2, PART + b"\xff\x93" + PART[:6] + PART[6:] * 2, b"\xff\x93"])
def test_a_jpeg_2000_image_whose_parts_end_where_they_began(at_once, parts):
    size = struct.pack(">8IH", 16, 16, 0, 0, 16, 16, 0, 0, 1) + b"\x07\x01\x01"
    start = b"\xff\x4f\xff\x51" + struct.pack(">HH", 4 + len(size), 0) + size
    with pytest.raises(UnfitStreamError, match="followed"):
        jpeg2000_size(start + parts + bytes(8))


def test_streams_in_more_parts_than_any_image():
    size = struct.pack(">8IH", 16, 16, 0, 0, 16, 16, 0, 0, 1) + b"\x07\x01\x01"
    start = b"\xff\x4f\xff\x51" + struct.pack(">HH", 4 + len(size), 0) + size
    with pytest.raises(UnfitStreamError, match="many parts"):
        jpeg2000_size(start + b"\xff\x64\0\2" * (MAX_MARKERS + 1))
    with pytest.raises(UnfitStreamError, match="many parts"):
        jpeg_size(b"\xff\xd8" + b"\xff\xfe\0\2" * MAX_MARKERS + jpeg()[2:])


def test_a_jpeg_filled_up_at_length_costs_no_loop():
    content = jpeg()
    steps = 0

    def count(frame, event, argument):
        nonlocal steps
        steps += event == "line"
        return count

    sys.settrace(count)
    try:
        assert jpeg_size(content[:2] + b"\xff" * 100_000 + content[2:]) == (40, 30)
    finally:
        sys.settrace(None)
    assert steps < 1000


@pytest.mark.skipif(os.name != "posix", reason="alarms")
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.mha", b"A = b" + b" \t" * 100_000 + b"=c"),
        ("b.mha", metaimage("Comment = x" + " " * 250_000 + "\x85y\n")),
        ("c.mha", b"ObjectType = Image\nNDims = 9\nTransformMatrix = " + b"11 " * 80 + b"x\n"),
        ("a.nrrd", nrrd("a:" + ":" * 200_000 + "\n")),
        ("b.nrrd", nrrd("space " * 30_000 + "\n")),
        ("c.nrrd", nrrd("x:=" + "y" * 100_000 + "\n")),
    ],
)
def test_headers_that_keep_patterns_busy(tmp_path, at_once, name, content):
    assert "a header with" in refusal(tmp_path / name, content)


# ------------------------------------------------------------------------------------------------------------ series


def test_a_series_is_checked_as_a_whole(tmp_path):
    for number in range(4):
        (tmp_path / f"{number}.dcm").write_bytes(dicom(number=number))
    check_series(tmp_path, UploadLimits.of(4 * 480))
    with pytest.raises(UploadTooLargeError):
        check_series(tmp_path, UploadLimits.of(4 * 480 - 1))


def test_what_is_no_image_is_taken_out_of_a_series(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "IM1").write_bytes(dicom())
    (tmp_path / "DICOMDIR").write_bytes(dicom(SOPClassUID="1.2.840.10008.1.3.10"))
    (tmp_path / "a" / "b" / "autorun.inf").write_bytes(b"run")
    (tmp_path / ".hidden.raw").write_bytes(b"x")
    check_series(tmp_path, LIMITS)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["IM1"]


@pytest.mark.parametrize("name", ["x.mhd", "x.nhdr", "x.mha", "sub/x.nrrd"])
def test_a_series_with_a_reference(tmp_path, name):
    (tmp_path / "1.dcm").write_bytes(dicom())
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(nrrd("data file: x.raw\n") if "nrrd" in name or "nhdr" in name else metaimage(file="x.raw"))
    with pytest.raises(InputError, match=REFERENCE):
        check_series(tmp_path, LIMITS)


def test_a_series_with_a_link(tmp_path, secret):
    folder = tmp_path / "series"
    folder.mkdir()
    (folder / "1.dcm").symlink_to(secret)
    with pytest.raises(InputError, match="link"):
        check_series(folder, LIMITS)
