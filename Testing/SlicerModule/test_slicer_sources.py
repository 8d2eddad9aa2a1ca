"""A result folder as a source: list, pairs on their common place, ratings beside the result; without torch."""

from __future__ import annotations

import json
import shutil
import threading
import uuid
from dataclasses import dataclass
from typing import ClassVar

import made_collection
import numpy as np
import pytest

from Core.slicer_python import BUNDLED, run
from replica_detection.errors import InputError, ReplicaDetectionError
from replica_detection.io.volume import Volume, write_volume
from replica_detection.readers.ratings import Rating
from replica_detection.report.pair_loader import loader_of_result
from replica_detection.results.result import DetectionResult
from replica_detection.segmentation import SEGMENTERS, Segmenter
from replica_detection.surfaces.distances import compare_surfaces
from replica_detection.surfaces.mesh import mesh_of_mask
from ReplicaDetectionLib.FolderSource import FolderSource
from ReplicaDetectionLib.Sources import LoadCancelled, PairCache, Source


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return made_collection.judge(made_collection.make_files(tmp_path_factory.mktemp("collection")))


@pytest.fixture
def source(collection, tmp_path) -> FolderSource:
    return FolderSource(collection.result, ratings=tmp_path / "ratings.sqlite")


def rating(synthetic_id: str, value: int, reader: str = "Dr A", **changes) -> Rating:
    return Rating(str(uuid.uuid4()), reader, synthetic_id, "train_2", value, **changes)


def test_the_list_is_that_of_the_result(source, collection):
    result = DetectionResult.read(collection.result)
    page = source.worklist()
    assert [i.synthetic_id for i in page.items] == [c.synthetic_id for c in result.worklist()]
    assert page.total == 5 and page.items[0].synthetic_id == "synthetic_0"
    assert page.items[0].verdict == "replica" and page.items[0].nearest_training_id == "train_2"
    assert [i.synthetic_id for i in source.worklist(offset=3, limit=1).items] == [page.items[3].synthetic_id]
    assert [i.synthetic_id for i in source.worklist(sort="synthetic_id", descending=False).items] == [
        f"synthetic_{n}" for n in range(5)
    ]
    assert {i.verdict for i in source.worklist(verdicts=("replica",)).items} == {"replica"}
    assert [i.synthetic_id for i in source.worklist(search="TIC_3").items] == ["synthetic_3"]
    assert source.worklist(sort="verdict").items[0].verdict == "replica"
    with pytest.raises(ReplicaDetectionError, match="known: score"):
        source.worklist(sort="colour")


def test_status_tells_what_was_compared(source):
    status = source.status()
    assert (status.studies, status.scored, status.training) == (5, 5, 7)
    assert status.problem == "" and status.authentication == "none"
    assert status.index.preparation.native.axcodes == "RAS" and status.index.preparation.grid == status.index.grid
    assert status.index.grid == made_collection.SHAPE and "dice" in [m.name for m in status.index.measures]
    assert not source.remote and not source.comparesImages
    with pytest.raises(ReplicaDetectionError, match="connect to a server"):
        source.compareImage("a.nii.gz")


def test_a_comparison_has_every_measure_with_its_neighbours(source, collection):
    found = source.comparison("synthetic_0", k=4)
    result = DetectionResult.read(collection.result)
    assert [m.measure for m in found.measures] == [m.measure for m in result.matches_of("synthetic_0")]
    for m in found.measures:
        assert len(m.neighbors) == 4 and m.neighbors[0].training_id == m.nearest_training_id == "train_2"
        assert m.neighbors[0].distance == pytest.approx(m.distance)
        assert m.neighbors[0].value == pytest.approx(m.value)
        distances = [n.distance for n in m.neighbors if n.distance is not None]
        assert distances == sorted(distances)
    with pytest.raises(InputError, match="no case 'nobody'"):
        source.comparison("nobody")


def test_a_copy_in_other_coordinates_lies_on_its_original(source):
    """The two files have no coordinate in common; put where the measures saw it, the copy fits voxel by voxel."""
    pair = source.pair("synthetic_0")
    assert pair.training.id == "train_2" and not pair.flat
    training_voxel = np.array([5, 7, 9, 1.0])
    at = pair.placement @ pair.training.affine @ training_voxel
    voxel = np.linalg.solve(pair.synthetic.affine, at)[:3]
    np.testing.assert_allclose(voxel, [39 - 5, 35 - 7, 9], atol=1e-5)
    np.testing.assert_array_equal(pair.synthetic.array, pair.training.array[::-1, ::-1])
    assert pair.surfaces is not None and pair.surfaces_problem == ""
    assert max(d.max() for d in pair.surfaces.compared) == pytest.approx(0, abs=1e-6)
    assert pair.synthetic.limits == pytest.approx(pair.training.limits)


def test_surfaces_are_those_of_the_tool_itself(source, collection):
    """The same numbers as the report gives, which prepares the images with MONAI."""
    pair = source.pair("synthetic_3", "train_5")
    prepared = loader_of_result(DetectionResult.read(collection.result))("synthetic_3", "train_5")
    expected = compare_surfaces(prepared.synthetic_mask, prepared.training_mask, np.diag([*prepared.spacing, 1.0]))
    found = pair.surfaces
    assert len(found.synthetic.points) == len(expected.first.points)
    np.testing.assert_allclose(np.sort(found.compared[0]), np.sort(expected.first_to_second), atol=1e-6)
    np.testing.assert_allclose(np.sort(found.compared[1]), np.sort(expected.second_to_first), atol=1e-6)
    assert found.synthetic.volume == pytest.approx(expected.first.volume)


@dataclass(frozen=True)
class Bright(Segmenter):
    """Everything above a threshold; registered by the tests that use it."""

    above: float = 850.0
    name = "bright"
    version = 1
    labels: ClassVar[dict[int, str]] = {1: "bright"}

    def segment(self, volume: Volume) -> np.ndarray:
        return (volume.array > self.above).astype(np.uint8)


def test_masks_that_the_run_made_are_made_again(tmp_path, monkeypatch):
    monkeypatch.setitem(SEGMENTERS, "bright", Bright)
    files = made_collection.make_files(tmp_path)
    judged = made_collection.judge(files, Bright(above=860.0))
    source = FolderSource(judged.result)
    pair = source.pair("synthetic_0")
    assert pair.surfaces is not None and pair.surfaces_problem == ""
    prepared = loader_of_result(source.result)("synthetic_0", "train_2")
    for found, mask in (
        (pair.surfaces.synthetic, prepared.synthetic_mask),
        (pair.surfaces.training, prepared.training_mask),
    ):
        expected = mesh_of_mask(mask, np.diag([*prepared.spacing, 1.0]))
        assert found.volume == pytest.approx(expected.volume) and len(found.points) == len(expected.points) > 100
    monkeypatch.setattr(Bright, "version", 2)
    again = FolderSource(judged.result).pair("synthetic_0")
    assert again.surfaces is None and "another version of segmenter 'bright'" in again.surfaces_problem
    np.testing.assert_array_equal(again.synthetic.array, pair.synthetic.array)


def test_masks_of_a_network_are_missed_in_plain_words(tmp_path, monkeypatch):
    def no_torch(self, volume: Volume) -> np.ndarray:
        raise ImportError("No module named 'torch'")

    monkeypatch.setitem(SEGMENTERS, "bright", Bright)
    judged = made_collection.judge(made_collection.make_files(tmp_path), Bright())
    monkeypatch.setattr(Bright, "segment", no_torch)
    pair = FolderSource(judged.result).pair("synthetic_0")
    assert pair.surfaces is None and "give them as files, or use a server" in pair.surfaces_problem


def test_a_training_cohort_in_memory_is_said_and_leaves_the_list(tmp_path):
    small = made_collection.make_files(tmp_path, training=4, validation=5, synthetic=2)
    judged = made_collection.judge(small, measures=("dice",))
    header = tmp_path / "training.rdindex" / "index.json"
    data = json.loads(header.read_text(encoding="utf-8"))
    for entry in data["entries"]:
        entry["files"] = []
    header.write_text(json.dumps(data), encoding="utf-8")
    source = FolderSource(judged.result)
    assert "in memory" in source.status().problem and source.worklist().total == 2
    with pytest.raises(InputError, match="in memory"):
        source.pair("synthetic_0")


@pytest.mark.parametrize("name", ["vessels", "hemorrhage"])
def test_the_tools_own_segmenters_run_on_what_slicer_bundles(tmp_path, name: str):
    shape = (40, 44, 24)
    r = sum(((i - n / 2) / (0.45 * n)) ** 2 for i, n in zip(np.indices(shape), shape, strict=True))
    head = np.where(r < 0.75, np.random.default_rng(0).normal(35, 4, shape), np.where(r < 1, 900, -1000))
    write_volume(tmp_path / "a.nii.gz", head.astype(np.int16), np.diag([4.0, 4.0, 6.0, 1.0]))
    code = f"""
from replica_detection.io.volume import read_volume
from replica_detection.segmentation import make_segmenter
make_segmenter({name!r}).segment(read_volume({str(tmp_path / "a.nii.gz")!r}))
"""
    run(code, *BUNDLED)


def test_nothing_is_needed_that_slicer_does_not_bundle(collection, tmp_path):
    code = f"""
from ReplicaDetectionLib.FolderSource import FolderSource
source = FolderSource({str(collection.result)!r}, ratings={str(tmp_path / "r.sqlite")!r})
assert source.status().problem == "" and source.worklist().total == 5 and source.histograms()
pair = source.pair("synthetic_0")
assert pair.surfaces is not None, pair.surfaces_problem
"""
    run(code, *BUNDLED)


def test_histograms_hold_the_set_and_the_null(source, collection):
    run = DetectionResult.read(collection.result).run
    found = {h.measure: h for h in source.histograms()}
    assert set(found) == {"", *(m.name for m in run.measures)}
    assert found[""].synthetic == run.evidence and found["dice"].null == run.null.ratios["dice"]
    assert found["dice"].synthetic_ids == tuple(f"synthetic_{n}" for n in range(5))


def test_feature_measures_are_measures_like_all_others(source, tmp_path):
    levels = {m.measure: m.level for m in source.comparison("synthetic_0").measures}
    assert [n for n, level in levels.items() if level == "feature"] == [
        "embedding_cosine",
        "embedding_rmse",
        "embedding_pearson",
    ]
    named = ("mae", "embedding_cosine", "memorization_index", "slice_votes")
    small = made_collection.make_files(tmp_path, training=5, validation=6, synthetic=2)
    searching = FolderSource(made_collection.judge(small, measures=named).result)
    assert [h.measure for h in searching.histograms()] == ["", *named]
    found = {m.measure: m for m in searching.comparison("synthetic_0").measures}
    assert list(found) == list(named) and {m.nearest_training_id for m in found.values()} == {"train_2"}
    said = {name: {d.name: d.text for d in m.details} for name, m in found.items()}
    assert said["slice_votes"]["votes"] == "1" and not said["mae"]
    assert said["memorization_index"]["layers agreeing"] == "4 of 4"
    assert [m.name for m in searching.status().index.measures if m.level == "feature"] == list(named[1:])


def test_ratings_stay_beside_the_result_and_are_resumed(collection, source):
    assert source.ratings() == [] and not source.ratingsFile.exists()
    receipt = source.saveRating(rating("synthetic_0", 4, comment="same", blinded=True, seconds=7.5))
    assert receipt.reader == "Dr A" and receipt.created
    source.saveRating(rating("synthetic_0", 2, created="2099-01-01T00:00:00"))
    source.saveRating(rating("synthetic_0", 3, created="2001-01-01T00:00:00"))
    source.saveRating(rating("synthetic_1", 1, reader="Dr B"))
    again = FolderSource(collection.result, ratings=source.ratingsFile)
    assert [(r.reader, r.synthetic_id, r.rating) for r in again.ratings()] == [
        ("Dr A", "synthetic_0", 3),
        ("Dr B", "synthetic_1", 1),
    ]
    assert [r.rating for r in again.ratings("Dr A")] == [3]
    assert again.ratings(syntheticId="synthetic_1")[0].reader == "Dr B"
    items = {i.synthetic_id: i for i in again.worklist(reader="Dr A").items}
    assert items["synthetic_0"].rating == 3 and items["synthetic_0"].readers == 1
    assert items["synthetic_1"].rating is None and items["synthetic_1"].readers == 1
    assert [i.synthetic_id for i in again.worklist(reader="Dr A", rated="yes").items] == ["synthetic_0"]
    assert again.worklist(rated="no").total == 3
    by_rating = again.worklist(reader="Dr A", sort="rating")
    assert by_rating.items[0].synthetic_id == "synthetic_0"


def test_the_next_case_is_the_most_suspicious_one_that_is_not_rated(source):
    order = [i.synthetic_id for i in source.worklist().items]
    assert source.next("Dr A").synthetic_id == order[0]
    source.saveRating(rating(order[0], 4))
    assert source.next("Dr A").synthetic_id == order[1]
    assert source.next("Dr B").synthetic_id == order[0]
    assert source.next("Dr A", after=order[2]).synthetic_id == order[3]
    assert source.next("Dr A", after=order[4]) is None


def test_a_faulty_rating_is_refused(source):
    with pytest.raises(InputError, match="Rate with a whole number"):
        source.saveRating(rating("synthetic_0", 7))


def test_agreement_of_two_readers(source):
    for n, (a, b) in enumerate([(4, 4), (1, 2), (3, 4), (1, 1)]):
        source.saveRating(rating(f"synthetic_{n}", a))
        source.saveRating(rating(f"synthetic_{n}", b, reader="Dr B"))
    report = source.agreement()
    assert report.readers == ("Dr A", "Dr B") and report.cases == 4
    assert report.pairs[0].percent_agreement == pytest.approx(0.5)


def test_what_has_moved_is_named_and_the_list_works_all_the_same(collection, tmp_path):
    shutil.copytree(collection.result, tmp_path / "result")
    path = tmp_path / "result" / "detection.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["synthetic"]["source"] = str(tmp_path / "gone")
    path.write_text(json.dumps(data), encoding="utf-8")
    source = FolderSource(tmp_path / "result")
    assert "gone: does not exist any more" in source.status().problem
    assert source.worklist().total == 5
    with pytest.raises(InputError, match="gone"):
        source.pair("synthetic_0")


def test_a_result_that_was_made_with_relative_paths_is_found_from_its_own_place(collection, tmp_path, monkeypatch):
    root = tmp_path / "moved"
    shutil.copytree(collection.root, root)
    path = root / "result" / "detection.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["synthetic"]["source"], data["options"]["masks"], data["index"] = (
        "synthetic",
        "synthetic_masks",
        "training.rdindex",
    )
    path.write_text(json.dumps(data), encoding="utf-8")
    monkeypatch.chdir("/")
    source = FolderSource(root / "result")
    assert source.status().problem == ""
    assert source.pair("synthetic_0").surfaces is not None


def test_a_folder_without_a_result_says_what_to_give(tmp_path):
    with pytest.raises(InputError, match="output folder of a finished"):
        FolderSource(tmp_path)


def test_a_damaged_image_is_named(collection, tmp_path):
    root = tmp_path / "damaged"
    shutil.copytree(collection.root, root)
    path = root / "result" / "detection.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["synthetic"]["source"], data["options"]["masks"] = str(root / "synthetic"), None
    path.write_text(json.dumps(data), encoding="utf-8")
    (root / "synthetic" / "synthetic_0.nii.gz").write_bytes(b"\x1f\x8bnonsense")
    source = FolderSource(root / "result")
    with pytest.raises(InputError, match=r"synthetic_0\.nii\.gz"):
        source.pair("synthetic_0")
    found = source.pair("synthetic_1")
    assert found.surfaces is None and found.surfaces_problem == "The synthetic image has no mask."


def test_reading_tells_its_progress_and_can_be_cancelled(source):
    told = []
    source.pair("synthetic_0", progress=lambda stage, done, total: told.append((done, total)))
    assert told[0] == (0, 3) and told[-1] == (3, 3) and told == sorted(told)
    stop = threading.Event()

    def progress(stage: str, done: int, total: int) -> None:
        if done == 1:
            stop.set()

    with pytest.raises(LoadCancelled):
        source.pair("synthetic_0", progress=progress, cancelled=stop.is_set)


def test_pairs_that_were_read_ahead_are_at_hand(source):
    cache = PairCache(source, size=2)
    assert cache.ready("synthetic_0") is None
    pairs = {n: cache.get(f"synthetic_{n}") for n in (0, 1)}
    assert cache.ready("synthetic_0") is pairs[0]
    cache.get("synthetic_2")
    # The one that was used longest ago went: get of 0 came first.
    assert cache.ready("synthetic_0") is None and cache.ready("synthetic_1") is pairs[1]
    assert cache.ready("synthetic_1", "train_0") is None


def test_large_pairs_are_not_hoarded(source):
    bytes_each = source.pair("synthetic_0").synthetic.array.nbytes * 2
    cache = PairCache(source, size=10, limit=2 * bytes_each)
    for n in (0, 1, 2):
        cache.get(f"synthetic_{n}")
    assert cache.ready("synthetic_0") is None and cache.ready("synthetic_1") is not None
    tiny = PairCache(source, size=10, limit=1)
    assert tiny.get("synthetic_0") is tiny.ready("synthetic_0")


def test_2d_collections_have_pairs_without_surfaces(tmp_path):
    from PIL import Image

    from replica_detection.detection.detector import detect
    from replica_detection.index.build import build_index
    from replica_detection.io.cohort import Cohort

    for name, count, first in (("training", 6, 0), ("validation", 20, 50), ("synthetic", 3, 0)):
        (tmp_path / name).mkdir()
        for n in range(count):
            rng = np.random.default_rng(first + n)
            pixels = np.kron(rng.integers(30, 220, (6, 5)), np.ones((8, 8))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{name}_{n}.png")
    index = build_index(Cohort.read(tmp_path / "training"), tmp_path / "x.rdindex")
    cohorts = (Cohort.read(tmp_path / name) for name in ("synthetic", "validation"))
    detect(next(cohorts), index, validation=next(cohorts)).write(tmp_path / "result")
    pair = FolderSource(tmp_path / "result").pair("synthetic_1")
    assert pair.flat and pair.training.id == "training_1" and pair.surfaces is None
    assert pair.synthetic.array.shape == (40, 48, 1)
    np.testing.assert_array_equal(pair.synthetic.array, pair.training.array)


def test_every_source_answers_the_whole_interface():
    from ReplicaDetectionLib.ServerSource import ServerSource

    for kind in (FolderSource, ServerSource):
        assert issubclass(kind, Source) and not kind.__abstractmethods__
