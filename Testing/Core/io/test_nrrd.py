"""NRRD files against pynrrd (values) and ITK (geometry), over encodings, types, spaces and kinds of axes."""

import gzip
import sys
from pathlib import Path

import nrrd
import numpy as np
import pytest
import SimpleITK

from replica_detection.errors import InputError
from replica_detection.io.formats import itk_affine
from replica_detection.io.nrrd_files import read_nrrd, read_nrrd_header
from replica_detection.io.volume import Volume, read_mask, read_volume, voxel_files

SHAPE = (5, 4, 3)
ENCODINGS = ("raw", "gzip", "bzip2", "ascii")
TURNED = [[0.0, -2.0, 0.3], [1.5, 0.0, 0.0], [0.1, 0.2, 3.0]]


def values(dtype: str = "int16", shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 120, shape).astype(dtype)


@pytest.fixture(params=["pynrrd", "ITK alone"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of reading; 3D Slicer bundles no pynrrd."""
    if request.param != "pynrrd":
        monkeypatch.setitem(sys.modules, "nrrd", None)
    return str(request.param)


def written(path: Path, array: np.ndarray, header: dict, **options) -> Path:
    kept, sys.modules["nrrd"] = sys.modules["nrrd"], nrrd
    try:
        nrrd.write(str(path), array, header, **options)
    finally:
        sys.modules["nrrd"] = kept
    return path


def affine_by_itk(path: Path) -> np.ndarray:
    image = SimpleITK.ReadImage(str(path))
    return itk_affine(image.GetDirection(), image.GetSpacing(), image.GetOrigin())


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i2", "<u2", "<i4", "<u4", "<i8", "<f4", ">f4", "<f8"])
@pytest.mark.parametrize("detached", [False, True])
def test_values_are_those_that_pynrrd_reads(tmp_path: Path, encoding: str, dtype: str, detached: bool):
    path = tmp_path / ("a.nhdr" if detached else "a.nrrd")
    nrrd.write(str(path), values(dtype), {"encoding": encoding, "spacings": [1, 1, 2]}, relative_data_path=True)
    volume = read_volume(path)
    assert np.array_equal(volume.array, nrrd.read(str(path))[0]) and np.array_equal(volume.array, values(dtype))
    assert volume.trusted and len(voxel_files(path)) == 1 + detached


SPACES = (
    "left-posterior-superior",
    "right-anterior-superior",
    "left-anterior-superior",
    "LPS",
    "RAS",
    "LAS",
    "scanner-xyz",
)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("origin", [None, [5.0, -7.0, 11.0]])
def test_the_geometry_is_that_of_itk(tmp_path: Path, space: str, origin: list | None, reader: str):
    header = {"space": space, "space directions": TURNED, "kinds": ["domain"] * 3}
    header |= {} if origin is None else {"space origin": origin}
    path = written(tmp_path / "a.nrrd", values(), header)
    decoded = read_nrrd(path)
    np.testing.assert_allclose(decoded.affine, affine_by_itk(path), atol=1e-6)
    assert decoded.trusted and np.array_equal(decoded.array, values())


@pytest.mark.parametrize(
    ("header", "trusted"),
    [
        ({"spacings": [1.5, 2.0, 0.5]}, True),
        ({}, False),
        ({"space dimension": 3, "space directions": TURNED, "space origin": [1.0, 2.0, 3.0]}, True),
        ({"content": "a: b", "Segment0_Name": "x: y", "spacings": [1, 1, 2], "centerings": ["cell"] * 3}, True),
    ],
)
def test_sparse_headers_are_read_as_by_itk(tmp_path: Path, header: dict, trusted: bool, reader: str):
    path = written(tmp_path / "a.nrrd", values(), dict(header))
    decoded = read_nrrd(path)
    np.testing.assert_allclose(decoded.affine, affine_by_itk(path), atol=1e-6)
    assert decoded.trusted == trusted and np.array_equal(decoded.array, values())


def test_a_single_slice_is_2d(tmp_path: Path, reader: str):
    for name, shape, header in (
        ("flat.nrrd", (6, 5), {"spacings": [1.5, 2.0]}),
        ("one.nrrd", (6, 5, 1), {"space": "RAS", "space directions": np.diag([1.0, 2, 3])}),
    ):
        path = written(tmp_path / name, values(shape=shape), header)
        decoded = read_nrrd(path)
        assert np.array_equal(decoded.array, values(shape=shape).reshape(6, 5))
        np.testing.assert_allclose(decoded.affine, affine_by_itk(path), atol=1e-6)


def test_several_values_in_a_voxel_are_refused_but_layers_of_segments_count_once(tmp_path: Path, reader: str):
    array = values("u1", (2, *SHAPE))
    directions = [[np.nan] * 3, [1.0, 0, 0], [0, 1.0, 0], [0, 0, 2.0]]
    header = {"space": "LPS", "space directions": directions, "space origin": [0, 0, 0.0]}
    layered = written(tmp_path / "l.seg.nrrd", array, header | {"kinds": ["list"] + ["domain"] * 3})
    assert np.array_equal(read_nrrd(layered, layers=True).array, array.max(0))
    vectors = written(tmp_path / "v.nrrd", array, header | {"kinds": ["vector"] + ["domain"] * 3})
    for path, layers in ((layered, False), (vectors, True), (vectors, False)):
        with pytest.raises(InputError, match="2 values in each voxel"):
            read_nrrd(path, layers=layers)
    one = written(tmp_path / "one.seg.nrrd", array[:1], header | {"kinds": ["list"] + ["domain"] * 3})
    assert reader != "pynrrd" or np.array_equal(read_nrrd(one).array, array[0])


def test_a_segmentation_of_slicer_is_a_mask(tmp_path: Path, reader: str):
    labels = (values("u1") > 60).astype(np.uint8)
    header = {"space": "left-posterior-superior", "space directions": np.diag([-1.0, -1, 2]), "kinds": ["domain"] * 3}
    header |= {"Segment0_ID": "Segment_1", "Segment0_Name": "bleed", "Segment0_LabelValue": "1"}
    path = written(tmp_path / "a.seg.nrrd", labels, header)
    like = Volume(values("f4"), read_nrrd(path).affine, True)
    assert np.array_equal(read_mask(path, like), labels)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("detached", [False, True])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_voxels_that_are_cut_short_are_told(tmp_path: Path, encoding: str, detached: bool, share: float):
    path = tmp_path / ("a.nhdr" if detached else "a.nrrd")
    nrrd.write(str(path), values(shape=(20, 20, 20)), {"encoding": encoding}, relative_data_path=True)
    payload = voxel_files(path)[-1]
    header = read_nrrd_header(path)
    assert header is not None
    start = 0 if detached else header.end
    content = payload.read_bytes()
    payload.write_bytes(content[: start + int(share * (len(content) - start))])
    with pytest.raises(InputError, match=r"is truncated, .* holds \d+ of \d+ (bytes|numbers)"):
        read_volume(path)


@pytest.mark.parametrize("encoding", ["gzip", "bzip2"])
def test_damage_inside_a_stream_is_told(tmp_path: Path, encoding: str):
    path = tmp_path / "a.nrrd"
    nrrd.write(str(path), values(shape=(30, 30, 30)), {"encoding": encoding})
    content = bytearray(path.read_bytes())
    content[-150] ^= 0x55
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged|truncated"):
        read_volume(path)


def test_a_checksum_that_does_not_fit_is_told(tmp_path: Path):
    path = tmp_path / "a.nrrd"
    nrrd.write(str(path), values(), {"encoding": "gzip"})
    path.write_bytes(path.read_bytes()[:-8] + bytes(4) + path.read_bytes()[-4:])
    with pytest.raises(InputError, match="damaged compressed stream"):
        read_volume(path)


@pytest.mark.parametrize(
    "fields", ["line skip: 2\n", "byte skip: 7\n", "line skip: 1\nbyte skip: 3\n", "byte skip: -1\n"]
)
def test_lines_and_bytes_before_the_voxels_are_skipped_as_by_pynrrd(tmp_path: Path, fields: str):
    text = f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 5 4 3\nencoding: raw\n{fields}data file: a.raw\n\n"
    lines, skipped = fields.count("line skip: 2") * 2 + fields.count("line skip: 1"), 7 * ("7" in fields)
    skipped += 3 * ("3" in fields) + 9 * ("-1" in fields)
    (tmp_path / "a.nhdr").write_text(text, encoding="utf-8")
    (tmp_path / "a.raw").write_bytes(b"a line\n" * lines + b"x" * skipped + values("u1").tobytes(order="F"))
    volume = read_volume(tmp_path / "a.nhdr")
    assert np.array_equal(volume.array, values("u1"))
    assert np.array_equal(volume.array, nrrd.read(str(tmp_path / "a.nhdr"))[0])


def test_names_of_files_keep_their_letters(tmp_path: Path):
    nrrd.write(str(tmp_path / "a.nhdr"), values(), {"encoding": "raw"}, relative_data_path=True)
    (tmp_path / "a.raw").rename(tmp_path / "Schädel.raw")
    text = (tmp_path / "a.nhdr").read_text(encoding="utf-8").replace("a.raw", "Schädel.raw")
    (tmp_path / "a.nhdr").write_text(text, encoding="utf-8")
    assert np.array_equal(read_volume(tmp_path / "a.nhdr").array, values())


@pytest.mark.parametrize("name", ["data file", "datafile", "Data File", "DATA_FILE", "x\rdata-file"])
def test_without_pynrrd_no_other_file_is_ever_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    (tmp_path / "a.raw").write_bytes(values("u1").tobytes())
    text = f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: 5 4 3\nencoding: raw\n{name}: a.raw\n\n"
    (tmp_path / "a.nrrd").write_bytes(text.encode() + bytes(range(60)))
    monkeypatch.setitem(sys.modules, "nrrd", None)
    with pytest.raises(InputError, match="keeps its voxels in another file"):
        read_volume(tmp_path / "a.nrrd")


def test_text_that_is_no_number_and_unknown_encodings_are_explained(tmp_path: Path):
    head = "NRRD0004\ntype: {}\ndimension: 2\nsizes: 3 2\nendian: little\nencoding: {}\n\n"
    for kind, encoding, data, expect in (
        ("short", "ascii", b"1 2 three 4 5 6", "no number"),
        ("short", "hex", bytes(12), "encoding"),
        ("block", "raw", bytes(12), "type and byte order"),
        ("float", "raw", gzip.compress(bytes(24))[:20], "truncated"),
    ):
        (tmp_path / "a.nrrd").write_bytes(head.format(kind, encoding).encode() + data)
        with pytest.raises(InputError, match=expect):
            read_volume(tmp_path / "a.nrrd")
    (tmp_path / "a.nrrd").write_bytes(head.format("uchar", "ascii").encode() + b"1, 2, 300, 4\n5 6")
    assert read_volume(tmp_path / "a.nrrd").array.T.ravel().tolist() == [1, 2, 300, 4, 5, 6]
