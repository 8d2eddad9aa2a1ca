"""Which files are studies, and what MONAI Label's file of notes may do: without a server."""

from __future__ import annotations

import json
import os
import sys
import threading
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

from monailabel.datastore.local import LocalDatastore

from Core import made_up
from Core.made_dicom import write_series
from replica_detection.errors import ConfigurationError, InputError
from replica_detection.io.cohort import Cohort
from replica_detection.io.volume import read_volume
from replica_detection_server.collection import studies as rule
from replica_detection_server.collection.datastore import StudiesAndTraining
from replica_detection_server.collection.series import one_case
from replica_detection_server.collection.studies import Studies
from replica_detection_server.comparison.engine import Engine
from replica_detection_server.errors import RefusedError
from replica_detection_server.incoming.error_responses import answer_of
from replica_detection_server.settings.configuration import Configuration

NOTES = "datastore_v2.json"
# Pipes, names that are no Unicode, and names that differ in case alone.
linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not have such files")


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"content")
    return folder


def series(folder: Path, seed: int = 0, **elements) -> Path:
    stack = np.random.default_rng(seed).integers(0, 100, (4, 8, 7)).astype(np.int16)
    write_series(folder, stack, [(1.0, 2.0, 3.0 * n) for n in range(4)], **elements)
    return folder


def ours(folder: Path, *, watch: bool = True, found: Studies | None = None) -> StudiesAndTraining:
    return StudiesAndTraining(folder, folder.parent / "volumes", lambda: None, watch=watch, found=found)


def reasons(found: Studies) -> dict[str, str]:
    return {item.name: item.reason for item in found.now().left_out}


def engine(folder: Path, **options: object) -> Engine:
    training = made_up.cohort(folder.parent / "training", 1)
    given = {"training": training, "data": folder.parent / "data", **options}
    return Engine(Configuration.of(folder, {key: str(value) for key, value in given.items()}))


# ------------------------------------------------------------------------------------------------------------ the rule


@linux
def test_every_list_has_the_same_studies_and_says_what_it_left_out(tmp_path):
    folder = fill(
        tmp_path / "studies", "plain.nii.gz", "UPPER.NII.GZ", "a.nrrd", "a.nii.gz", ".hidden.nii.gz", "notes.txt"
    )
    fill(folder, unicodedata.normalize("NFD", "Müller.nii.gz"), "train:x.nii.gz", " space.nii.gz", "line\nfeed.nii.gz")
    fill(folder, "half.mhd", f"{'long' * 60}.nii.gz")
    fill(folder / "below", "deep.nii.gz")
    (folder / "empty.nii.gz").touch()
    (folder / os.fsdecode(b"bytes\xff.nii.gz")).write_bytes(b"content")
    os.mkfifo(folder / "pipe.nii.gz")
    served, store = engine(folder), ours(folder)
    kept = {"plain", "UPPER", "a", "Müller"}
    assert set(served.studies().ids) == set(store.list_images()) == set(store.json()["objects"]) == kept
    for study in kept:
        assert Path(store.get_image_uri(study)).read_bytes() == b"content" and served.case(study).id == study
    assert store.get_image_uri(unicodedata.normalize("NFD", "Müller")), "a client on macOS may ask in its own form"
    assert store.get_image_uri("a").endswith("a.nii.gz"), "the first of two files with one id"
    assert json.loads(json.dumps(store.json(), ensure_ascii=True)) and store.status()["total"] == len(kept)
    assert reasons(served.found) == {
        "train:x.nii.gz": rule.RESERVED,
        " space.nii.gz": rule.SPACE,
        "line\nfeed.nii.gz": rule.NO_TEXT,
        "half.mhd": rule.IN_TWO,
        f"{'long' * 60}.nii.gz": rule.LONG,
        "below/deep.nii.gz": rule.BELOW,
        "empty.nii.gz": rule.EMPTY,
        os.fsdecode(b"bytes\xff.nii.gz"): rule.NO_TEXT,
        "pipe.nii.gz": rule.NO_FILE,
        "a.nrrd": rule.TAKEN,
        "notes.txt": rule.NO_IMAGE,
    }
    said = "\n".join(served.found.now().words())
    assert "4 studies" in said and "'pipe.nii.gz'" in said and r"bytes\udcff" in said and "\x1b" not in said
    assert said.isascii() or said.encode("utf-8"), "it can be printed"


def test_what_is_said_is_bounded(tmp_path):
    folder = fill(tmp_path / "studies", *(f"{n}.txt" for n in range(500)), "\x1b[31mred.nii.gz")
    said = "\n".join(Studies(folder).now().words())
    assert len(said) < 600 and "497 more" in said and "\x1b" not in said


@linux
def test_ids_that_differ_in_case_alone_are_both_studies_and_said(tmp_path):
    folder = fill(tmp_path / "studies", "Case.nii.gz", "case.nii.gz")
    store = ours(folder)
    assert set(store.list_images()) == {"Case", "case"}
    assert any("'Case', 'case'" in said for said in Studies(folder).now().words())
    with pytest.raises(RefusedError) as refused:
        store.add_image("CASE", str(folder / "case.nii.gz"), {})
    assert answer_of(refused.value).status_code == 409


def test_links_are_followed_inside_the_folder_and_into_named_ones_alone(tmp_path):
    secret = fill(tmp_path / "elsewhere", "secret.nii.gz") / "secret.nii.gz"
    named = fill(tmp_path / "named", "scan.nii.gz")
    series(named / "series")
    folder = fill(tmp_path / "studies", "own.nii.gz")
    (folder / "same.nii.gz").symlink_to(folder / "own.nii.gz")
    (folder / "out.nii.gz").symlink_to(secret)
    (folder / "relative.nii.gz").symlink_to("../elsewhere/secret.nii.gz")
    (folder / "nothing.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    (folder / "folder").symlink_to(secret.parent)
    (folder / "scan.nii.gz").symlink_to(named / "scan.nii.gz")
    (folder / "dicom").symlink_to(named / "series")
    (folder / "loop").symlink_to(folder)
    assert set(ours(folder).list_images()) == {"own", "same"} == set(engine(folder).studies().ids)
    found = Studies(folder, links=(named,))
    store = ours(folder, found=found)
    assert set(store.list_images()) == {"own", "same", "scan", "dicom"}
    assert Path(store.get_image_uri("scan")).read_bytes() == b"content" and store.get_image_uri("dicom")
    assert reasons(found) == {
        "out.nii.gz": rule.LINK,
        "relative.nii.gz": rule.LINK,
        "folder": rule.LINK,
        "nothing.nii.gz": rule.NOWHERE,
        "loop": rule.AGAIN,
    }
    store.remove_image("dicom")
    assert not (folder / "dicom").is_symlink() and len(list((named / "series").iterdir())) == 4


def test_a_link_into_the_servers_own_folder_is_not_followed(tmp_path):
    folder = fill(tmp_path / "studies", "own.nii.gz")
    data = fill(folder / "data", "ratings.sqlite")
    (folder / "x.nii.gz").symlink_to(data / "ratings.sqlite")
    served = engine(folder, data=data)
    assert served.studies().ids == ("own",) and reasons(served.found) == {"x.nii.gz": rule.LINK}


@linux
def test_a_file_that_becomes_a_link_or_a_device_after_it_was_listed_is_not_opened(tmp_path):
    """Also where the folder keeps its time: a link inside the folder to a place that nobody looks at."""
    secret = fill(tmp_path / "elsewhere", "secret.nii.gz") / "secret.nii.gz"
    folder = fill(tmp_path / "studies", "b.nii.gz")
    hidden = fill(folder / ".hidden", "a.nii.gz")
    (folder / "a.nii.gz").symlink_to(hidden / "a.nii.gz")
    served, store = engine(folder), ours(folder)
    assert served.case("a") and store.get_image_uri("a")
    (hidden / "a.nii.gz").unlink()
    (hidden / "a.nii.gz").symlink_to(secret)
    assert store.get_image_uri("a") == "" and not store.has_image("a")
    with pytest.raises(RefusedError) as refused:
        served.case("a")
    assert answer_of(refused.value).status_code == 404
    (folder / "b.nii.gz").unlink()
    os.mkfifo(folder / "b.nii.gz")
    assert store.get_image_uri("b") == "" and "b" not in served.studies().ids


def test_labels_and_masks_are_no_links_to_elsewhere_either(tmp_path):
    secret = fill(tmp_path / "elsewhere", "secret.nii.gz") / "secret.nii.gz"
    folder = fill(tmp_path / "studies", "s.nii.gz", "t.nii.gz", "u.nii.gz")
    (fill(folder / "labels" / "final", "t.NII.GZ") / "s.nii.gz").symlink_to(secret)
    (folder / "labels" / "final" / "u.nii.gz").touch()
    (folder / "labels" / "linked").symlink_to(secret.parent)
    (fill(tmp_path / "masks", "t.nii.gz") / "s.nii.gz").symlink_to(secret)
    store = ours(folder)
    assert store.get_labeled_images() == ["t"] and store.status()["label_tags"] == {"final": 1}
    assert store.get_label_uri("s", "final") == store.get_label_uri("u", "final") == ""
    assert Path(store.get_label_uri("t", "final")).read_bytes() == b"content"
    (folder / "labels" / "final" / "u.nii.gz").write_bytes(b"drawn")
    assert Path(store.get_label_uri("u", "final")).read_bytes() == b"drawn"
    with pytest.raises(RefusedError) as refused:
        store.save_label("s", str(folder / "s.nii.gz"), "linked", {})
    assert answer_of(refused.value).status_code == 409 and [p.name for p in secret.parent.iterdir()] == [
        "secret.nii.gz"
    ]
    cases = {case.id: case.mask for case in engine(folder, masks=tmp_path / "masks").studies().cases}
    assert cases["s"] is None and cases["t"] == tmp_path / "masks" / "t.nii.gz"


def test_what_changes_is_seen_at_once_and_nothing_else_is_looked_at_again(tmp_path):
    folder = fill(tmp_path / "studies", "a.nii.gz")
    (folder / "growing.nii.gz").touch()
    found = Studies(folder)
    store = ours(folder, found=found)
    assert store.list_images() == ["a"]
    (folder / "growing.nii.gz").write_bytes(b"content")
    assert set(store.list_images()) == {"a", "growing"}
    for _ in range(20):  # faster than the clock of the file system
        (folder / "b.nii.gz").write_bytes(b"content")
        assert "b" in store.list_images()
        (folder / "b.nii.gz").unlink()
        assert "b" not in store.list_images()
    series(folder / "deep" / "deeper")
    assert "deeper" in store.list_images()
    before = found.now()
    store.update_image_info("a", {"note": 1})
    assert found.now() is before, "notes are no reason to look at all images again"


def test_allowed_links_are_named_by_folders_that_exist(tmp_path):
    folder = fill(tmp_path / "studies", "own.nii.gz")
    one, two = fill(tmp_path / "one", "s.nii.gz"), fill(tmp_path / "two", "t.nii.gz")
    (folder / "s.nii.gz").symlink_to(one / "s.nii.gz")
    (folder / "t.nii.gz").symlink_to(two / "t.nii.gz")
    served = engine(folder, allow_links_to=f"{one}{os.pathsep}{two}")
    assert set(served.studies().ids) == {"own", "s", "t"}
    assert Configuration.from_json(served.configuration.to_json()).link_folders == (one, two)
    with pytest.raises((InputError, ConfigurationError), match="gone"):
        engine(folder, allow_links_to=tmp_path / "gone")


# --------------------------------------------------------------------------------------------------------------- DICOM


def test_series_are_studies_wherever_they_lie(tmp_path):
    folder = tmp_path / "studies"
    series(folder / "by_folder", SeriesInstanceUID="1.1")
    series(folder / "patient" / "study" / "deep", SeriesInstanceUID="1.2")
    bare = series(folder / "bare", SeriesInstanceUID="1.3")
    for n, path in enumerate(sorted(bare.iterdir())):
        path.rename(bare / f"IM{n:04d}")
    both = series(folder / "both", SeriesInstanceUID="1.4", SeriesNumber=4)
    for path in sorted(series(tmp_path / "other", SeriesInstanceUID="1.5", SeriesNumber=5).iterdir()):
        path.rename(both / f"other_{path.name}")
    series(folder, SeriesInstanceUID="1.6")
    (folder / "broken.dcm").write_bytes(b"no DICOM")
    fill(folder / "by_folder", "README.txt")
    served, store = engine(folder), ours(folder)
    kept = {"by_folder", "deep", "bare", "both_4", "both_5", "studies"}
    assert set(served.studies().ids) == set(store.list_images()) == kept
    assert set(Cohort.read(folder).ids) == kept, "the ids are those of the command line"
    assert reasons(served.found) == {"broken.dcm": rule.UNREADABLE, "by_folder/README.txt": rule.NO_IMAGE}
    assert "6 of them DICOM series" in served.found.now().words()[0]
    for case in served.studies().cases:
        assert case.patient is None, "a copied patient number would keep an image from being compared with its original"
        sent, read = read_volume(store.get_image_uri(case.id)), read_volume(case)
        assert np.array_equal(sent.array, read.array) and np.allclose(sent.affine, read.affine)
        assert Path(store.get_image_uri(case.id)).name == f"{case.id}.nii.gz"


def test_a_series_is_converted_once_and_again_when_it_changed(tmp_path):
    folder = tmp_path / "studies"
    files = sorted(series(folder / "s").iterdir())
    store = ours(folder)
    assert store.has_image("s") and store.get_image_info("s") and not (tmp_path / "volumes").exists()
    first = Path(store.get_image_uri("s"))
    written = first.stat().st_mtime_ns
    assert store.get_image_uri("s") == str(first) and first.stat().st_mtime_ns == written
    series(folder / "s", seed=1)
    second = Path(store.get_image_uri("s"))
    assert second != first and not first.exists() and second.is_file()
    files[0].write_bytes(files[0].read_bytes()[:-20])
    with pytest.raises(RefusedError) as refused:
        store.get_image_uri("s")
    assert store.has_image("s") and store.list_images() == ["s"]
    assert answer_of(refused.value).status_code == 422 and str(tmp_path) not in refused.value.detail


def test_a_full_disk_is_no_fault_of_the_series(tmp_path, monkeypatch):
    series(tmp_path / "studies" / "s")
    store = ours(tmp_path / "studies")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("replica_detection.io.volume._write_nifti", full)
    with pytest.raises(OSError, match="No space"):
        store.get_image_uri("s")
    monkeypatch.undo()
    assert Path(store.get_image_uri("s")).is_file()


def test_labels_of_a_series_are_kept_and_the_series_can_be_removed(tmp_path):
    folder = tmp_path / "studies"
    series(folder / "patient" / "s")
    fill(folder, "label.nii.gz")
    store = ours(folder)
    assert store.save_label("s", str(folder / "label.nii.gz"), "final", {"who": "anna"}) == "s"
    assert Path(store.get_label_uri("s", "final")) == folder / "labels" / "final" / "s.nii.gz"
    assert store.get_labeled_images() == ["s"] == ours(folder).get_labeled_images()
    assert store.get_label_info("s", "final")["who"] == "anna"
    (pair,) = store.datalist()
    assert Path(pair["label"]).is_file() and Path(pair["image"]).name == "s.nii.gz"
    archive = Path(store.get_dataset_archive(None))
    with zipfile.ZipFile(archive) as packed:
        assert {"image/s.nii.gz", "label/s.nii.gz"} <= set(packed.namelist())
    archive.unlink()
    volume = Path(store.get_image_uri("s"))
    store.remove_image("s")
    assert store.list_images() == ["label"] and not (folder / "patient").exists() and not volume.exists()
    assert not (folder / "labels" / "final" / "s.nii.gz").exists()


def test_headers_are_read_once(tmp_path, monkeypatch):
    from replica_detection.io import dicom

    folder = tmp_path / "studies"
    series(folder / "s")
    found, read = Studies(folder), []
    real = dicom.read_header
    monkeypatch.setattr(dicom, "read_header", lambda path: read.append(path) or real(path))
    found.now()
    series(folder / "t", SeriesInstanceUID="2")
    assert set(found.now().cohort.ids) == {"s", "t"} and len(read) == 8


def test_an_upload_is_one_series_and_lists_of_other_files_in_it_are_not_followed(tmp_path):
    secret = made_up.write(tmp_path / "elsewhere" / "secret.nii.gz", made_up.volume(0))
    folder = tmp_path / "upload"
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps({"training": [{"image": str(secret)}]}), encoding="utf-8")
    with pytest.raises(InputError, match="no image"):
        one_case(folder, "x")
    series(folder / "imagesTr" / "s")
    assert [p.parent.name for p in one_case(folder, "x").files] == ["s"] * 4
    series(folder / "t", SeriesInstanceUID="2")
    with pytest.raises(InputError, match="2 images or DICOM series instead of one"):
        one_case(folder, "x")


# ----------------------------------------------------------------------------------------------------------- the notes

DAMAGE: dict[str, bytes | None] = {
    "truncated": b'{"name": "new-dataset", "objects": {"s": {"im',
    "empty": b"",
    "no JSON": b"<html>full disk</html>",
    "wrong types": b'{"name": "x", "description": "", "objects": [1, 2]}',
    "no object": b"[]",
    "NUL bytes": bytes(4096),
    "no text": b"\xff\xfe\x00{",
    "deep": b"[" * 100_000,
    "folder": None,
}


def damage(path: Path, content: bytes | None) -> None:
    path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_file_of_notes_keeps_nothing_from_starting(tmp_path, kind):
    folder = fill(tmp_path / "studies", "s.nii.gz", "t.nii.gz")
    fill(folder / "labels" / "final", "s.nii.gz")
    content = DAMAGE[kind]
    damage(folder / NOTES, content)
    if kind == "truncated":
        with pytest.raises(ValueError, match="JSON"):
            LocalDatastore(str(folder))
    job = ours(folder, watch=False)
    assert set(job.list_images()) == {"s", "t"} and not list(folder.glob("*damaged*")), "a job only reads"
    store = ours(folder)
    assert set(store.list_images()) == {"s", "t"} and store.get_labeled_images() == ["s"]
    (aside,) = folder.glob(f"{NOTES}.damaged-*")
    assert aside.is_dir() if content is None else aside.read_bytes() == content
    assert len(store.notices) == 1 and aside.name in store.notices[0]
    assert set(json.loads((folder / NOTES).read_text(encoding="utf-8"))["objects"]) == {"s", "t"}
    again = ours(folder)
    assert (
        again.notices == []
        and set(again.list_images()) == {"s", "t"}
        and "damaged" not in str(reasons(Studies(folder)))
    )


@linux
def test_a_pipe_in_the_place_of_the_notes_is_not_opened(tmp_path):
    folder = fill(tmp_path / "studies", "s.nii.gz")
    os.mkfifo(folder / NOTES)
    made: list[StudiesAndTraining] = []
    waiting = threading.Thread(target=lambda: made.append(ours(folder)), daemon=True)
    waiting.start()
    waiting.join(20)
    assert made and made[0].list_images() == ["s"]


def test_notes_that_are_damaged_while_the_server_runs_are_kept(tmp_path):
    folder = fill(tmp_path / "studies", "s.nii.gz")
    store = ours(folder)
    store.update_image_info("s", {"note": "first"})
    damage(folder / NOTES, b'{"name')
    store.update_image_info("s", {"more": "second"})
    kept = json.loads((folder / NOTES).read_text(encoding="utf-8"))["objects"]["s"]["image"]["info"]
    assert (kept["note"], kept["more"]) == ("first", "second") and len(list(folder.glob("*.damaged-*"))) == 1


def test_notes_do_not_decide_which_file_is_opened(tmp_path):
    fill(tmp_path / "elsewhere", "secret.nii.gz")
    folder = fill(tmp_path / "studies", "s.nii.gz")
    evil = {"image": {"ext": "/../../elsewhere/secret.nii.gz"}, "labels": {"../../elsewhere": {"ext": ".nii.gz"}}}
    objects = {"s": evil, "../elsewhere/secret": {"image": {"ext": ".nii.gz"}, "labels": {}}}
    given = {"name": "n", "description": "", "images_dir": "/", "labels_dir": "/etc", "objects": objects}
    (folder / NOTES).write_text(json.dumps(given), encoding="utf-8")
    store = ours(folder)
    assert store.list_images() == ["s"] and store.get_image_uri("s") == str(folder / "s.nii.gz")
    assert store.get_image_uri("../elsewhere/secret") == "" and store.status()["label_tags"] == {}


def test_notes_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """A disk that is full when the file is half written: MONAI Label has cut its old one by then."""
    folder = fill(tmp_path / "studies", "s.nii.gz")
    store = ours(folder)
    store.update_image_info("s", {"note": "old"})
    before = (folder / NOTES).read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.update_image_info("s", {"note": "new"})
    assert (folder / NOTES).read_bytes() == before and store.get_image_info("s")["note"] == "old"
    (folder / "t.nii.gz").write_bytes(b"content")
    assert set(store.list_images()) == {"s", "t"} == set(ours(folder).list_images()), "lists need no room on the disk"
    with pytest.raises(OSError, match="No space"):
        store.add_image("new", str(folder / "s.nii.gz"), {})
    with pytest.raises(OSError, match="No space"):
        store.save_label("s", str(folder / "s.nii.gz"), "final", {})
    monkeypatch.undo()
    left = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert left == {NOTES, ".lock", "s.nii.gz", "t.nii.gz"}, left


def test_a_refused_image_or_label_leaves_no_file(tmp_path):
    folder = fill(tmp_path / "studies", "s.nii.gz")
    empty = tmp_path / "tmp.nii.gz"
    empty.touch()
    store = ours(folder)
    for write in (
        lambda: store.add_image("new", str(empty), {}),
        lambda: store.save_label("s", str(empty), "final", {}),
    ):
        with pytest.raises(RefusedError) as refused:
            write()
        assert answer_of(refused.value).status_code == 422
    with pytest.raises(OSError, match="gone"):
        store.add_image("new", str(tmp_path / "gone.nii.gz"), {})
    assert store.list_images() == ["s"] and store.get_labeled_images() == []
    assert {p.name for p in folder.rglob("*") if p.is_file()} == {NOTES, ".lock", "s.nii.gz"}
    (folder / "left.nii.gz").touch()
    full = fill(tmp_path / "sent", "tmp.nii.gz") / "tmp.nii.gz"
    (folder / "out.nii.gz").symlink_to(full)
    for id in ("left", "out"):
        with pytest.raises(RefusedError) as refused:
            store.add_image(id, str(full), {})
        assert answer_of(refused.value).status_code == 409 and store.list_images() == ["s"]
    assert (folder / "out.nii.gz").is_symlink() and not (folder / "left.nii.gz").stat().st_size


def test_what_a_killed_server_left_half_written_is_swept(tmp_path):
    folder = fill(tmp_path / "studies", "s.nii.gz", f".{NOTES}.abc.tmp")
    ours(folder)
    assert not (folder / f".{NOTES}.abc.tmp").exists()


def test_a_label_of_another_format_takes_the_place_of_the_old_one(tmp_path):
    folder = fill(tmp_path / "studies", "s.nii.gz")
    new = fill(tmp_path / "sent", "new.nrrd") / "new.nrrd"
    new.write_bytes(b"new")
    store = ours(folder)
    store.save_label("s", str(folder / "s.nii.gz"), "final", {})
    store.save_label("s", str(new), "final", {})
    assert Path(store.get_label_uri("s", "final")).read_bytes() == b"new"
    assert Path(ours(folder).get_label_uri("s", "final")).read_bytes() == b"new"
    store.remove_label("s", "final")
    assert store.get_label_uri("s", "final") == "" and not list((folder / "labels" / "final").iterdir())
