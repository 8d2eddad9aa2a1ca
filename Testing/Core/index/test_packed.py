"""Features packed into one mapped file: written once, by one of many, whole or not at all, and never stale."""

import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time

import numpy as np
import pytest

from Core.made_up import cohort
from replica_detection.index.build import append_cases, build_index
from replica_detection.index.packed import packed
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort

NAME = "image_coarse"
KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from replica_detection.index.packed import packed
def blocks():
    yield np.zeros((2, 3), np.float32)
    print("half", flush=True)
    time.sleep(60)
packed(Path(sys.argv[1]), (4, 3), np.dtype(np.float32), blocks)
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    return build_index(Cohort.read(cohort(folder / "training", 5)), folder / "x.rdindex", measures=["ncc_aligned"])


def files(folder):
    return sorted(p.name for p in folder.iterdir() if p.name != ".lock")


def write(path, calls):
    """The array 0 ... 11 as (4, 3), in two parts."""
    values = np.arange(12, dtype=np.float32).reshape(4, 3)

    def blocks():
        with calls.open("a", encoding="utf-8") as f:
            f.write("x")
        time.sleep(0.05)
        yield values[:2]
        yield values[2:]

    array = packed(path, (4, 3), np.dtype(np.float32), blocks)
    assert (array == values).all()
    return array


def test_a_feature_of_all_cases_in_the_order_of_the_index(built):
    index = TrainingIndex.open(built.folder)
    array = index.packed(NAME)
    np.testing.assert_array_equal(array, index.features(range(5), [NAME])[NAME])
    assert not array.flags.writeable and isinstance(array.base, np.memmap)
    assert array.dtype == np.float32 and index.packed(NAME) is array
    (path,) = (built.folder / "packed").glob(f"{NAME}-*.npy")
    before = path.stat().st_mtime_ns
    TrainingIndex.open(built.folder).packed(NAME)
    assert path.stat().st_mtime_ns == before
    assert index.verify() == []


def test_verify_names_a_packed_file_that_differs(built):
    array = built.packed(NAME)
    (path,) = (built.folder / "packed").glob(f"{NAME}-*.npy")
    content = path.read_bytes()
    path.write_bytes(content[:-4] + b"\1\2\3\4")
    try:
        (fault,) = TrainingIndex.open(built.folder).verify()
        assert NAME in fault and "packed" in fault and built.ids[-1] in fault
    finally:
        path.write_bytes(content)
    assert len(array) == 5


def test_of_many_processes_one_writes(tmp_path):
    calls = tmp_path / "calls"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write, args=(tmp_path / "packed" / "a.npy", calls)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [w.exitcode for w in writers] == [0, 0, 0]
    assert calls.read_text(encoding="utf-8") == "x"
    assert files(tmp_path / "packed") == ["a.npy"]


def test_a_killed_writer_leaves_no_file_of_that_name(tmp_path):
    path = tmp_path / "packed" / "a.npy"
    writer = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None and writer.stdout.readline() == "half\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert not path.exists() and len(files(path.parent)) == 1
    write(path, tmp_path / "calls")
    assert files(path.parent) == ["a.npy"]


def test_a_damaged_file_is_written_again(tmp_path):
    path, calls = tmp_path / "packed" / "a.npy", tmp_path / "calls"
    for damage in (lambda: None, lambda: path.write_bytes(path.read_bytes()[:-5]), lambda: path.write_bytes(b"no")):
        damage()
        write(path, calls)
    np.save(path, np.zeros((2, 3), np.float32))
    write(path, calls)
    assert calls.read_text(encoding="utf-8") == "xxxx"


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="every folder can be written")
def test_a_folder_that_cannot_be_written_serves_from_memory(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        values = np.arange(6.0).reshape(3, 2)
        array = packed(tmp_path / "packed" / "a.npy", (3, 2), values.dtype, lambda: [values[:2], values[2:]])
    finally:
        tmp_path.chmod(stat.S_IRWXU)
    np.testing.assert_array_equal(array, values)
    assert not array.flags.writeable and not (tmp_path / "packed").exists()


def test_a_place_that_cannot_be_made_serves_from_memory(tmp_path):
    (tmp_path / "packed").write_text("a file", encoding="utf-8")
    array = packed(tmp_path / "packed" / "a.npy", (1, 2), np.dtype(float), lambda: [np.ones((1, 2))])
    np.testing.assert_array_equal(array, np.ones((1, 2)))


def test_after_an_append_the_new_cases_are_there(tmp_path):
    scans = np.random.default_rng(0).random((6, 12, 14, 10)).astype(np.float32)
    first = Cohort.from_arrays({f"a{n}": scans[n] for n in range(4)}, spacing=1)
    index = build_index(first, tmp_path / "x.rdindex", measures=["ncc_aligned"])
    before = index.packed(NAME)
    grown = append_cases(index, Cohort.from_arrays({f"b{n}": scans[n] for n in (4, 5)}, spacing=1))
    array = grown.packed(NAME)
    assert array.shape == (6, *before.shape[1:])
    np.testing.assert_array_equal(array[:4], before)
    np.testing.assert_array_equal(array, grown.features(range(6), [NAME])[NAME])
    assert len(list((grown.folder / "packed").glob(f"{NAME}-*.npy"))) == 1
