"""Files that hold fewer voxels than their header promises, and labels that are no masks of their image."""

from __future__ import annotations

import gzip
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

import requests
from PIL import Image

from Core import made_up
from Core.made_dicom import write_series
from replica_detection.errors import InputError
from replica_detection.io.paths import is_dicom_name
from replica_detection_server.uploads.checks import check_series, check_upload
from replica_detection_server.uploads.limits import UploadLimits
from Server.collections_on_disk import ANNA
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
    png,
    voxels,
)
from Server.running import Server, running_server

LIMITS = UploadLimits.of(1 << 20)
DATA = voxels().tobytes()
SHORT = DATA[:100]
WORDS = " ".join(map(str, voxels().ravel(order="F").tolist())).encode()
NUMBERS = re.compile(r"is truncated: the header promises (\d+) (bytes|numbers) of voxels, the file holds (\d+)")


def interlaced(cut: int = 0) -> bytes:
    """A grey picture in seven passes, 9 by 5: 45 values and 11 beginnings of lines."""
    whole = bytearray(bare_png((9, 5), zlib.compress(bytes(45 + 11 - cut))))
    whole[28] = 1
    return bytes(whole)


def without_pixels(content: bytes) -> bytes:
    return content[: content.rindex(b"\xe0\x7f\x10\x00")]


def short_dicom() -> bytes:
    start = without_pixels(dicom())
    return start + b"\xe0\x7f\x10\x00OW\0\0" + (100).to_bytes(4, "little") + bytes(100)


CUT: dict[str, Callable[[], bytes]] = {
    "a.nii": lambda: nifti(data=SHORT),
    "a.nii.gz": lambda: nifti(data=SHORT, pack=True),
    "header.nii.gz": lambda: nifti(data=b"", pack=True),
    "one.nii": lambda: nifti(data=DATA[:-1]),
    "a.mha": lambda: metaimage(data=SHORT),
    "packed.mha": lambda: packed_metaimage(zlib.compress(SHORT)),
    "stated.mha": lambda: metaimage(
        "CompressedData = True\nCompressedDataSize = 50\n", data=zlib.compress(DATA)
    ),
    "a.nrrd": lambda: nrrd(data=SHORT),
    "packed.nrrd": lambda: nrrd(encoding="gzip", data=gzip.compress(SHORT)),
    "stream.nrrd": lambda: nrrd(encoding="gzip", data=gzip.compress(DATA)[:1000]),
    "text.nrrd": lambda: nrrd(encoding="ascii", data=WORDS.rpartition(b" ")[0]),
    "a.dcm": short_dicom,
    "none.dcm": lambda: without_pixels(dicom()),
    "frames.dcm": lambda: dicom(NumberOfFrames=2),
    "a.png": lambda: bare_png((40, 30), zlib.compress(bytes(41 * 29))),
    "seven.png": lambda: interlaced(cut=1),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(CUT))
def test_what_is_cut_short_is_refused_with_both_numbers(tmp_path, name):
    (tmp_path / name).write_bytes(CUT[name]())
    with pytest.raises(InputError) as refused:
        check_upload(tmp_path / name, LIMITS)
    found = NUMBERS.fullmatch(refused.value.found)
    assert found is not None and int(found[1]) > int(found[3]) >= 0, refused.value.found
    with pytest.raises(InputError):
        check_series(tmp_path, LIMITS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jpg", lambda: jpeg()[:-2]),
        ("a.jpg", lambda: jpeg()[:-200]),
        ("a.dcm", lambda: deflated_dicom()[:-20]),
        ("a.dcm", lambda: dicom()[:-1]),
        ("a.dcm", lambda: compressed_dicom("JPEG").replace(b"\xff\xd9", b"\0\0")),
    ],
)
def test_compressed_pixels_without_an_end_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content())
    with pytest.raises(InputError, match=r"truncated|cut short"):
        check_upload(tmp_path / name, LIMITS)


WHOLE: dict[str, Callable[[], bytes]] = {
    "more.nii": lambda: nifti() + bytes(100),
    "more.mha": lambda: metaimage() + bytes(100),
    "more.nrrd": lambda: nrrd() + bytes(100),
    "text.nrrd": lambda: nrrd(encoding="ascii", data=WORDS + b"\n"),
    "lines.nrrd": lambda: nrrd(encoding="text", data=WORDS.replace(b" ", b",\n")),
    "seven.png": interlaced,
    "one.png": lambda: png(mode="I;16"),
    "more.jpg": lambda: jpeg() + bytes(100),
}


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_what_is_whole_passes_also_with_more_behind_it(tmp_path, name):
    (tmp_path / name).write_bytes(WHOLE[name]())
    check_upload(tmp_path / name, LIMITS)


def test_pictures_of_one_bit_and_in_colour_pass(tmp_path):
    for mode in ("1", "P", "RGB", "RGBA", "LA"):
        Image.new(mode, (13, 7)).save(tmp_path / "a.png")
        check_upload(tmp_path / "a.png", LIMITS)


def test_numbers_that_lie_across_blocks_count_once(tmp_path):
    """A block is 1 MiB."""
    size = (200, 150, 20)
    (tmp_path / "a.nrrd").write_bytes(nrrd(size=size, encoding="ascii", data=b" 12" * (200 * 150 * 20)))
    check_upload(tmp_path / "a.nrrd", LIMITS)
    (tmp_path / "a.nrrd").write_bytes(nrrd(size=size, encoding="ascii", data=b"123 " * (200 * 150 * 20 - 1)))
    with pytest.raises(InputError, match="holds 599999"):
        check_upload(tmp_path / "a.nrrd", LIMITS)


# ------------------------------------------------------------------------------------------------- a running server


SHAPE = (20, 16, 12)
AFFINE = np.diag([1.0, 1.0, 1.2, 1.0])


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("truncated")
    made_up.write(folder / "training" / "t.nii.gz", made_up.volume(0, SHAPE))
    made_up.write(folder / "studies" / "volume.nii.gz", made_up.volume(1, SHAPE))
    (folder / "studies" / "empty.nii.gz").touch()
    (folder / "studies" / "picture.png").write_bytes(png())
    (folder / "studies" / "series").mkdir()
    stack = np.random.default_rng(0).integers(0, 99, (6, 12, 10)).astype(np.int16)
    write_series(folder / "studies" / "series", stack, [(0.0, 0.0, 2.0 * z) for z in range(6)])
    keys = folder / "keys"
    keys.write_text(f"anna:{ANNA}\n", encoding="utf-8")
    keys.chmod(0o600)
    conf = {"measures": "mae", "api_key_file": keys}
    with running_server(folder / "studies", work=folder, training=folder / "training", conf=conf, hardened=True) as one:
        yield one


def ask(server: Server, method: str, path: str, **how) -> requests.Response:
    return requests.request(method, server.url + path, timeout=120, headers={"X-API-Key": ANNA}, **how)


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
        archive.writestr("IM0001.dcm", dicom())
    return file.getvalue()


UNPROTECTED: dict[str, Callable[[Server, str, bytes], requests.Response]] = {
    "image": lambda s, n, c: ask(s, "PUT", "/datastore/image?image=new", files={"file": (n, c)}),
    "label": lambda s, n, c: ask(s, "PUT", "/datastore/label?image=volume", files={"label": (n, c)}),
    "session": lambda s, n, c: ask(s, "PUT", "/session/", files={"files": (n, c)}),
    "archive": lambda s, n, c: ask(s, "PUT", "/session/?uncompress=true", files={"files": ("a.zip", zipped(n, c))}),
    "compare": lambda s, n, c: ask(s, "POST", "/replica/compare", files={"file": (n, c)}),
    "mask": lambda s, n, c: ask(s, "POST", "/replica/compare", files={"file": ("a.nii", nifti()), "mask": (n, c)}),
    "infer": lambda s, n, c: ask(s, "POST", "/infer/vessels?output=json", files={"file": (n, c)}),
}


def kept(server: Server) -> SimpleNamespace:
    files = sorted(str(p) for p in server.studies.rglob("*") if p.is_file() and "datastore" not in p.name)
    return SimpleNamespace(files=files, counts=ask(server, "GET", "/datastore/").json())


@pytest.mark.slow
@pytest.mark.parametrize("door", sorted(UNPROTECTED))
def test_every_door_refuses_it_and_keeps_nothing(server, door):
    before = kept(server)
    for name in ("a.nii", "a.nii.gz", "a.mha", "a.nrrd", "packed.nrrd", "text.nrrd", "a.png", "a.dcm"):
        if door in ("image", "label") and is_dicom_name(Path(name)):
            continue  # these take no single DICOM file
        reply = UNPROTECTED[door](server, name, CUT[name]())
        assert reply.status_code == 422 and NUMBERS.search(reply.json()["detail"]), (name, reply.text)
    assert kept(server) == before


@pytest.mark.slow
def test_a_file_of_the_administrator_is_not_written_over(server):
    reply = ask(server, "PUT", "/datastore/image?image=empty", files={"file": ("a.nii.gz", nifti(pack=True))})
    assert reply.status_code == 409, reply.text
    assert (server.studies / "empty.nii.gz").stat().st_size == 0


def label_of(shape: tuple[int, ...], affine: np.ndarray = AFFINE, value: float = 1) -> bytes:
    array = np.zeros(shape, np.float32)
    array[2:4, 2:4] = value
    return gzip.compress(nib.Nifti1Image(array, affine).to_bytes())


def save(server: Server, study: str, name: str, content: bytes) -> requests.Response:
    params = {"params": '{"label_info": [], "client_id": "reader"}'}
    return ask(
        server, "PUT", f"/datastore/label?image={study}&tag=tried", files={"label": (name, content)}, data=params
    )


MOVED = AFFINE + np.array([[0, 0, 0, 0.1], [0] * 4, [0] * 4, [0] * 4])
NO_LABELS = {
    "another shape": (lambda: ("x.nii.gz", label_of((20, 16, 13))), "20 × 16 × 13 voxels, its image 20 × 16 × 12"),
    "another place": (lambda: ("x.nii.gz", label_of(SHAPE, MOVED)), "on another grid than its image"),
    "no whole numbers": (lambda: ("x.nii.gz", label_of(SHAPE, value=0.5)), "no labels"),
    "a picture": (lambda: ("x.png", png()), "voxels, its image"),
    "colours": (lambda: ("x.nrrd", layered(3, "RGB-color")), "values in each voxel"),
    "layers on another grid": (lambda: ("x.seg.nrrd", layered(2, shape=(20, 16, 11))), "voxels, its image"),
}


def layered(layers: int, kind: str = "list", shape: tuple[int, ...] = SHAPE) -> bytes:
    """Overlapping segments as 3D Slicer writes them, on the grid of the study `volume`."""
    array = np.zeros((*shape[::-1], layers), np.uint8)
    array[2:4, 2:6, 2:6, 0] = 1
    array[2:4, 4:9, 4:9, -1] = 2
    text = "NRRD0004\n# Complete NRRD file format specification at:\ntype: unsigned char\ndimension: 4\n"
    text += f"space: left-posterior-superior\nsizes: {layers} {' '.join(map(str, shape))}\n"
    text += f"space directions: none (-1,0,0) (0,-1,0) (0,0,1.2)\nkinds: {kind} domain domain domain\n"
    text += "encoding: gzip\nspace origin: (0,0,0)\nSegment0_ID:=Segment_1\nSegment0_Layer:=0\n"
    return f"{text}\n".encode() + gzip.compress(array.tobytes())


@pytest.mark.slow
@pytest.mark.parametrize("fault", NO_LABELS)
def test_a_label_that_is_no_mask_of_its_image(server, fault):
    before = kept(server)
    made, words = NO_LABELS[fault]
    reply = save(server, "volume", *made())
    assert reply.status_code == 422 and words in reply.json()["detail"], reply.text
    assert kept(server) == before


@pytest.mark.slow
@pytest.mark.parametrize("value", [0, 1, 3])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".seg.nrrd", ".mha"])
@pytest.mark.parametrize("study", ["volume", "series", "picture"])
def test_labels_as_viewers_save_them(server, tmp_path, study, suffix, value):
    """Read, and written again on the grid of the image as the server gives it."""
    import SimpleITK

    reply = ask(server, "GET", f"/datastore/image?image={study}")
    path = tmp_path / f"a.{'png' if study == 'picture' else 'nii.gz'}"
    path.write_bytes(reply.content)
    image = SimpleITK.ReadImage(str(path))
    label = SimpleITK.Cast(image, SimpleITK.sitkUInt8) * 0
    label[(2, 3, 2)[: label.GetDimension()]] = value
    if study == "picture":  # viewers make a volume of it
        label = SimpleITK.JoinSeries(label)
    SimpleITK.WriteImage(label, str(tmp_path / f"l{suffix}"), True)
    saved = save(server, study, f"l{suffix}", (tmp_path / f"l{suffix}").read_bytes())
    assert saved.status_code == 200, saved.text


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_segments_that_overlap_are_saved(server, layers):
    content = layered(layers)
    saved = save(server, "volume", "l.seg.nrrd", content)
    assert saved.status_code == 200, saved.text
    assert ask(server, "GET", "/datastore/label?label=volume&tag=tried").content == content
