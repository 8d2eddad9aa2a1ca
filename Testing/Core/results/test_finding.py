"""A result finds its index and its images from any working folder, after a move, and never takes others for them."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import replica_detection as rd
from Core.made_up import volume, write
from replica_detection.detection.run_inputs import index_of, synthetic_of, validation_of
from replica_detection.errors import IndexFormatError, InputError
from replica_detection.index.entries import header_of_result
from replica_detection.io.volume import read_volume
from replica_detection.report.pair_loader import loader_of_result
from replica_detection.results.places import PLACES_FILE, FileState
from replica_detection.results.result import DetectionResult

SHAPE = (10, 9, 8)


def fill(folder: Path, seeds: range, prefix: str) -> None:
    """Uncompressed, so that all files have the same number of bytes."""
    for n, seed in enumerate(seeds):
        write(folder / f"{prefix}{n}.nii", volume(seed, SHAPE))


def run_in(folder: Path, *, training: int = 0, synthetic: int = 100) -> None:
    """train/, unseen/ and syn/ below the folder, and the result of a run whose paths were typed relatively."""
    fill(folder / "train", range(training, training + 6), "t")
    fill(folder / "unseen", range(50, 54), "u")
    fill(folder / "syn", range(synthetic, synthetic + 3), "s")
    write(folder / "syn" / "copy.nii", volume(training + 2, SHAPE))
    here = Path.cwd()
    os.chdir(folder)
    try:
        index = rd.build_index("train", "res/index.rdindex", measures=["mae"])
        rd.detect("syn", index, validation="unseen").write("res")
    finally:
        os.chdir(here)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    run_in(folder)
    return folder


@pytest.fixture
def work(made, tmp_path) -> Path:
    """The run in a folder of its own, moved there as `mv` does: with the times of its files. The old place is gone."""
    root = tmp_path / "work"
    shutil.copytree(made, root)
    hidden = made.with_name("hidden")
    made.rename(hidden)
    yield root
    shutil.rmtree(made, ignore_errors=True)
    hidden.rename(made)


def pictures(result: DetectionResult) -> tuple[np.ndarray, np.ndarray] | None:
    loader = loader_of_result(result)
    pair = None if loader is None else loader("copy", "t2")
    return None if pair is None else (pair.synthetic, pair.training)


def test_a_result_of_typed_paths_is_found_from_another_folder(made, tmp_path, monkeypatch):
    (tmp_path / "syn").mkdir()  # a folder of that name where the process works is another one
    monkeypatch.chdir(tmp_path)
    result = DetectionResult.read(made / "res")
    assert (
        Path(result.run.index) == made / "res" / "index.rdindex" and Path(result.run.synthetic.source) == made / "syn"
    )
    assert Path(result.run.training.source) == made / "train"
    assert synthetic_of(result).ids == ("copy", "s0", "s1", "s2") and len(validation_of(result)) == 4
    synthetic, training = pictures(result)
    assert np.array_equal(synthetic, training)


def test_a_result_moved_with_its_index_and_images_is_found(work):
    result = DetectionResult.read(work / "res")
    assert (
        index_of(result).folder == work / "res" / "index.rdindex"
        and header_of_result(result)[0] == index_of(result).folder
    )
    assert synthetic_of(result).source.samefile(work / "syn") and validation_of(result).source.samefile(work / "unseen")
    assert pictures(result) is not None
    index = index_of(result)
    assert index.verify() == [] and index.case(2).image.samefile(work / "train" / "t2.nii")
    assert np.array_equal(read_volume(index.case(2)).array, volume(2, SHAPE))


def test_a_result_moved_with_its_index_alone_finds_the_images_where_they_were(made, tmp_path):
    shutil.copytree(made / "res", tmp_path / "archive" / "res")
    result = DetectionResult.read(tmp_path / "archive" / "res")
    assert synthetic_of(result).source == made / "syn"
    assert index_of(result).case(0).image == made / "train" / "t0.nii"


def test_others_at_the_old_place_are_not_taken_for_those_of_the_result(made, work):
    """A later run at the same place, with files of the same names and sizes."""
    run_in(made, training=300, synthetic=400)
    moved, later = DetectionResult.read(work / "res"), DetectionResult.read(made / "res")
    assert synthetic_of(moved).source.samefile(work / "syn") and synthetic_of(later).source == made / "syn"
    assert validation_of(moved).source == made / "unseen", "the same unseen images lie at both places"
    assert index_of(moved).folder == work / "res" / "index.rdindex" != index_of(later).folder
    assert index_of(moved).case(1).image.samefile(work / "train" / "t1.nii")
    assert index_of(moved).verify() == [] == index_of(later).verify()


def test_a_result_whose_images_were_replaced_says_so(made, work):
    shutil.rmtree(work / "syn")
    fill(made / "syn", range(700, 704), "s")
    write(made / "syn" / "copy.nii", volume(800, SHAPE))
    result = DetectionResult.read(work / "res")
    with pytest.raises(InputError, match="holds none of the 4 images of this result as they were"):
        synthetic_of(result)
    assert pictures(result) is None
    write(made / "syn" / "s0.nii", volume(100, SHAPE))  # one of them again, copied without its time
    cohort = synthetic_of(result)
    assert "s0" in cohort.ids and "copy" not in cohort.ids
    assert [Path(p.path).name for p in cohort.problems] == ["copy.nii", "s1.nii", "s2.nii"]
    assert all("changed since the run compared it" in p.message for p in cohort.problems)


def test_an_index_of_other_images_is_not_taken(made, work):
    shutil.rmtree(work / "res" / "index.rdindex")
    result = DetectionResult.read(work / "res")
    with pytest.raises(InputError, match="does not exist any more; it is where the index"):
        index_of(result)
    fill(made / "others", range(3), "x")
    rd.build_index(made / "others", made / "res" / "index.rdindex", measures=["mae"])
    with pytest.raises(IndexFormatError, match="holds other training images than those of this result"):
        index_of(result)


def test_an_index_that_grew_is_still_that_of_the_result(work):
    result = DetectionResult.read(work / "res")
    write(work / "train" / "t9.nii", volume(9, SHAPE))
    rd.append_cases(index_of(result), work / "train")
    assert len(index_of(result)) == 7 and pictures(result) is not None
    grown = json.loads((work / "res" / "index.rdindex" / "index.json").read_text(encoding="utf-8"))
    assert [e["relative"] for e in grown["entries"][-2:]] == [["../../train/t5.nii"], ["../../train/t9.nii"]]


@pytest.mark.parametrize("typed", [True, False])
def test_results_of_earlier_versions_are_read(work, typed, monkeypatch, tmp_path):
    """They have no `places.json`, entries without relative paths, and perhaps paths as they were typed."""
    (work / "res" / PLACES_FILE).unlink()
    for path in (work / "res" / "detection.json", work / "res" / "index.rdindex" / "index.json"):
        data = json.loads(path.read_text(encoding="utf-8"))
        if "entries" in data:
            data["schema_version"] = 3
            for entry in data["entries"]:
                del entry["relative"]
        else:
            data["index"] = "res/index.rdindex" if typed else str(work / "res" / "index.rdindex")
            data["synthetic"]["source"] = "syn" if typed else str(work / "syn")
            data["validation"]["source"] = "unseen" if typed else str(work / "unseen")
        path.write_text(json.dumps(data), encoding="utf-8")
    (tmp_path / "elsewhere" / "syn").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = DetectionResult.read(work / "res")
    assert pictures(result) is not None and synthetic_of(result).source.samefile(work / "syn")
    assert validation_of(result).source.samefile(work / "unseen")


def test_a_result_that_moved_can_be_written_elsewhere(work, tmp_path):
    DetectionResult.read(work / "res").write(tmp_path / "again" / "res")
    assert pictures(DetectionResult.read(tmp_path / "again" / "res")) is not None


def test_a_file_is_known_again_by_its_time_or_its_content(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(bytes(100_000))
    state = FileState.of([path])
    assert state.holds_for([path])
    os.utime(path, ns=(1, 1))
    assert state.holds_for([path]), "copied without its time"
    path.write_bytes(bytes(99_999) + b"x")
    assert not state.holds_for([path])
    path.write_bytes(bytes(99_999))
    assert not state.holds_for([path]) and not state.holds_for([tmp_path / "gone"]) and not state.holds_for([])
