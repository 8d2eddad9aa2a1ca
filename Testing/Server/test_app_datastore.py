"""The datastore without a server, beside MONAI Label's own: what that one loses, and that ours does not."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

from fastapi import BackgroundTasks
from monailabel.datastore.local import LocalDatastore
from monailabel.endpoints.infer import send_response
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from Core import made_up
from Core.made_dicom import write_series
from replica_detection.errors import InputError
from replica_detection.index.build import build_index
from replica_detection.index.entries import Entry
from replica_detection.io.cohort import Cohort
from replica_detection.io.volume import read_volume
from replica_detection_server.collection.datastore import StudiesAndTraining
from replica_detection_server.collection.studies import Studies
from replica_detection_server.errors import RefusedError
from replica_detection_server.incoming.error_responses import answer_of
from replica_detection_server.lib.batch import BatchInfer


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(name.encode())
    return folder


def ours(folder: Path, training=None, *, watch: bool = True, links: tuple[Path, ...] = ()) -> StudiesAndTraining:
    found = Studies(folder, links=links)
    return StudiesAndTraining(folder, folder.parent / "volumes", lambda: training, watch=watch, found=found)


def stock(folder: Path) -> LocalDatastore:
    return LocalDatastore(str(folder), extensions=("*.nii.gz", "*.nii", "*.png"))


def test_ids_are_names_without_their_extension(tmp_path):
    fill(tmp_path / "ours", "sub.01.nii.gz", "a.nii.gz.b.nii.gz", "x.png_2.png", ".hidden.nii.gz", "notes.txt")
    fill(tmp_path / "stock", "a.nii.gz.b.nii.gz", "x.png_2.png")
    assert stock(tmp_path / "stock").list_images() == [], "MONAI Label finds images of such names now"
    store = ours(tmp_path / "ours")
    assert set(store.list_images()) == {"sub.01", "a.nii.gz.b", "x.png_2"}
    for image in store.list_images():
        assert Path(store.get_image_uri(image)).is_file()


def test_a_second_upload_does_not_take_the_place_of_the_first(tmp_path):
    """MONAI Label's route makes `sub` of both names and hands the rest over as the extension."""
    first, second = (fill(tmp_path / n, f"tmp.0{n}.nii.gz") / f"tmp.0{n}.nii.gz" for n in ("1", "2"))
    lost = stock(tmp_path / "stock")
    lost.add_image("sub", str(first), {})
    lost.add_image("sub", str(second), {})
    assert lost.list_images() == ["sub"] and Path(lost.get_image_uri("sub")).read_bytes() == b"tmp.02.nii.gz"
    store = ours(tmp_path / "ours")
    store.add_image("sub", str(first), {})
    with pytest.raises(RefusedError) as refused:
        store.add_image("sub", str(second), {})
    assert answer_of(refused.value).status_code == 409
    assert Path(store.get_image_uri("sub")).read_bytes() == b"tmp.01.nii.gz"
    assert ours(tmp_path / "ours").list_images() == ["sub"], "a later start knows it by another id"


def test_removing_a_linked_study_leaves_the_scan_it_points_to(tmp_path):
    real = fill(tmp_path / "training", "scan.nii.gz") / "scan.nii.gz"
    for name, make in (("stock", stock), ("ours", lambda folder: ours(folder, links=(real.parent,)))):
        folder = fill(tmp_path / name)
        (folder / "linked.nii.gz").symlink_to(real)
        store = make(folder)
        assert store.list_images() == ["linked"]
        store.remove_image("linked")
        assert not (folder / "linked.nii.gz").is_symlink() or name == "stock"
        assert real.is_file() == (name == "ours"), "MONAI Label no longer deletes the scan itself"
        real.write_bytes(b"again")


def test_training_cases_are_read_where_they_lie_and_never_written(tmp_path):
    image, mask = (fill(tmp_path / part, "t.nii.gz") / "t.nii.gz" for part in ("training", "masks"))
    entries = (
        Entry("t", None, 0, (str(image), str(mask)), (), (), "", "file"),
        Entry("made", None, 1, (str(image),), (), (), "", "vessels"),
    )
    store = ours(fill(tmp_path / "studies", "s.nii.gz", "train:t.nii.gz"), SimpleNamespace(entries=entries))
    assert store.list_images() == ["s"] == list(store.json()["objects"])
    assert store.get_image_uri("train:t") == str(image) and store.get_label_uri("train:t", "final") == str(mask)
    assert store.get_label_uri("train:made", "final") == "" != store.get_image_uri("train:made")
    assert store.get_image_uri("train:none") == store.get_label_uri("train:none", "final") == ""
    for write in (
        lambda: store.add_image("train:t", str(image), {}),
        lambda: store.remove_image("train:t"),
        lambda: store.save_label("train:t", str(mask), "final", {}),
        lambda: store.remove_label("train:t", "final"),
        lambda: store.update_image_info("train:t", {}),
        lambda: store.update_label_info("train:t", "final", {}),
    ):
        with pytest.raises(RefusedError) as refused:
            write()
        assert answer_of(refused.value).status_code == 403
    assert {p.name for p in image.parent.iterdir()} == {p.name for p in mask.parent.iterdir()} == {"t.nii.gz"}


def test_a_training_series_is_sent_as_one_volume_that_is_kept_elsewhere(tmp_path):
    folder = tmp_path / "training" / "patient"
    stack = np.random.default_rng(0).integers(0, 100, (5, 8, 7)).astype(np.int16)
    write_series(folder, stack, [(1.0, 2.0, 3.0 * n) for n in range(5)])
    case = Cohort.read(tmp_path / "training").cases[0]
    before = sorted(p.name for p in folder.parent.rglob("*"))
    entry = Entry("patient", None, 0, tuple(str(f) for f in case.files), (), (), "ab12")
    store = ours(tmp_path / "studies", SimpleNamespace(entries=(entry,)))
    path = Path(store.get_image_uri("train:patient"))
    sent, series = read_volume(path), read_volume(case)
    assert np.array_equal(sent.array, series.array) and np.allclose(sent.affine, series.affine)
    assert path.parent == tmp_path / "volumes" and sorted(p.name for p in folder.parent.rglob("*")) == before
    written = path.stat().st_mtime_ns
    assert store.get_image_uri("train:patient") == str(path) and path.stat().st_mtime_ns == written


def test_notes_of_several_threads_are_all_kept(tmp_path):
    folder = fill(tmp_path / "studies", "s.nii.gz", "t.nii.gz")
    store = ours(folder)

    def note(n: int) -> None:
        for i in range(20):
            store.update_image_info("s", {f"{n}-{i}": i})
            store.refresh()

    threads = [threading.Thread(target=note, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stored = json.loads((folder / "datastore_v2.json").read_text(encoding="utf-8"))["objects"]["s"]["image"]["info"]
    assert {f"{n}-{i}" for n in range(4) for i in range(20)} <= set(stored)


class Slow(dict):
    """Takes its time between being emptied and filled, as with many studies."""

    def update(self, *others) -> None:
        time.sleep(0.02)
        super().update(*others)


def test_no_study_is_missing_while_the_folder_is_looked_through(tmp_path):
    for name, make in (("stock", stock), ("ours", ours)):
        store = make(fill(tmp_path / name, "s.nii.gz", "t.nii.gz"))
        store._datastore.objects = Slow(store._datastore.objects)
        seen, stop = set(), threading.Event()

        def look(store=store, seen=seen, stop=stop) -> None:
            while not stop.is_set():
                seen.add((len(store.list_images()), bool(store.get_image_uri("s"))))

        looking = threading.Thread(target=look)
        looking.start()
        for _ in range(5):
            store.refresh()
        stop.set()
        looking.join()
        assert (seen == {(2, True)}) == (name == "ours"), seen


def test_two_processes_do_not_undo_each_other(tmp_path):
    """As the server and a job of MONAI Label: each with a copy of the datastore in its memory."""
    for name, make in (("stock", stock), ("ours", ours)):
        folder = fill(tmp_path / name, "s.nii.gz", "t.nii.gz")
        server, job = make(folder), make(folder)
        server.update_image_info("s", {"rating": 4})
        job.update_image_info("t", {"score": 0.9})
        stored = json.loads((folder / "datastore_v2.json").read_text(encoding="utf-8"))["objects"]
        kept = "rating" in stored["s"]["image"]["info"]
        assert kept == (name == "ours"), "the trap is gone" if name == "stock" else "the rating is lost"


def test_a_job_writes_nothing_by_looking(tmp_path):
    folder = fill(tmp_path / "studies", "s.nii.gz")
    ours(folder)
    before = (folder / "datastore_v2.json").read_bytes()
    (folder / "new.nii.gz").write_bytes(b"new")
    ours(folder, watch=False)
    assert (folder / "datastore_v2.json").read_bytes() == before


def test_monai_label_deletes_what_a_task_returns(tmp_path):
    """Why every task of ours writes a fresh file; test_app.py shows that the training cases stay."""
    scan = fill(tmp_path, "scan.nii.gz") / "scan.nii.gz"
    after = BackgroundTasks()
    send_response(None, {"file": str(scan), "params": {}}, "json", after)
    for task in after.tasks:
        task.func(*task.args)
    assert not scan.exists()


def test_monai_label_cannot_infer_over_many_images_without_a_gpu(tmp_path):
    store = ours(fill(tmp_path / "studies", "a.nii.gz", "b.nii.gz"))
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ZeroDivisionError):
        BatchInferTask()({"model": "m", "images": "all"}, store, lambda request, datastore: {})
    seen = BatchInfer()({"model": "m", "images": "all"}, store, lambda request, datastore: {"label": request["image"]})
    assert {k: v["label"] for k, v in seen.items()} == {"a": "a", "b": "b"}


def test_a_training_image_whose_mask_no_measure_uses_is_handed_out_as_it_is(tmp_path):
    image = made_up.write(tmp_path / "training" / "a.nii.gz", made_up.volume(1))
    made_up.write(tmp_path / "masks" / "a.nii.gz", (made_up.volume(1) > 500).astype(np.uint8))
    cohort = Cohort.read(tmp_path / "training", masks=tmp_path / "masks")
    index = build_index(cohort, tmp_path / "x.rdindex", measures=["mae"])
    (tmp_path / "studies").mkdir()
    store = ours(tmp_path / "studies", index)
    assert Path(store.get_image_uri("train:a")) == image.resolve()
    assert store.get_label_uri("train:a", "final") == ""


def test_a_training_image_that_was_given_in_memory_is_said_to_be_in_no_file(tmp_path):
    arrays = {name: made_up.volume(n) for n, name in enumerate("ab")}
    index = build_index(Cohort.from_arrays(arrays, spacing=(1, 1, 1)), tmp_path / "x.rdindex", measures=["mae"])
    (tmp_path / "studies").mkdir()
    store = ours(tmp_path / "studies", index)
    assert store.get_image_info("train:a") == {"training": True}
    assert store.get_label_uri("train:a", "final") == ""
    with pytest.raises(InputError, match="given to the index in memory"):
        store.get_image_uri("train:a")
