"""Votes of slices: against a count by hand, against exact search, and in the order in which the slices lie."""

import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replica_detection.embedding import Embedder, Embedders
from replica_detection.errors import ConfigurationError
from replica_detection.measures import make_measures
from replica_detection.measures.slice_votes import (
    SliceVotes,
    SliceVotesHnsw,
    flat_index,
    hnsw_index,
    in_order,
    recall,
    to_bytes,
)
from replica_detection.preparation.prepare import PreparedImage
from replica_detection.preparation.profiles import Intensity, Native, Preparation

SHAPE = (8, 8, 12)
PREPARATION = Preparation(
    "generic", 3, (1, 1, 3), SHAPE, Intensity((0, 1)), Native(SHAPE, (1, 1, 3), (8, 8, 36), "RAS")
)


class Pixels(Embedder):
    """The pixels of a slice, without their mean."""

    kind, version = "pixels", 1

    def describe(self, images, spacing_mm):
        assert images.ndim == 3
        assert tuple(spacing_mm) == (1, 1)
        flat = images.reshape(len(images), -1)
        return flat - flat.mean(1, keepdims=True)

    @classmethod
    def make(cls, argument):
        return cls()

    @classmethod
    def restore(cls, settings, state, folder):
        return cls()


EMBEDDERS = Embedders(slices=Pixels())


class Rows:
    def __init__(self, slices: np.ndarray, patients: np.ndarray | None = None):
        self.slices = slices
        self.patients = np.arange(len(slices)) if patients is None else patients
        self.ids = tuple(f"case_{n}" for n in range(len(slices)))

    def __len__(self) -> int:
        return len(self.slices)

    def blocks(self, names):
        for start in range(0, len(self), 5):
            yield start, {"slices": self.slices[start : start + 5]}


def volumes(seed: int, count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).random((count, *SHAPE), np.float32))


def features(measure: SliceVotes, images: list[np.ndarray]) -> np.ndarray:
    return np.stack([measure.features(PreparedImage(image, None))["slices"] for image in images])


def made(images: list[np.ndarray], kind: type[SliceVotes] = SliceVotes, patients: np.ndarray | None = None):
    measure = kind(PREPARATION, embedders=EMBEDDERS)
    stored = features(measure, images)
    measure.use(measure.fit(Rows(stored, patients)))
    return measure, stored


def none(queries: np.ndarray, training: int) -> np.ndarray:
    return np.zeros((len(queries), training), bool)


def test_copies_mirrored_and_cropped_along_the_slices_are_told_apart() -> None:
    training = volumes(0, 15)
    measure, _ = made(training)
    copy, backwards = training[4], training[4][:, :, ::-1]
    cropped = np.concatenate([training[7][:, :, 3:], volumes(9, 1)[0][:, :, :3]], 2)
    queries = features(measure, [copy, backwards, cropped, *volumes(5, 3)])
    found = measure.search({"slices": queries}, none(queries, 15))
    assert found.distances[0, 4] == 0
    assert found.distances[1, 4] == 0
    assert found.distances[2, 7] == pytest.approx(1 - 9 / 12, abs=0.09)
    assert (found.distances[3:].min(1) > 0.7).all()
    said = measure.describe(found, [f"case_{n}" for n in range(15)])
    assert said["votes"][:2] == [1, 1]
    assert said["offset_slices"][0] == 0
    assert said["offset_slices"][2] == 3


def test_votes_are_those_of_a_count_by_hand() -> None:
    training = volumes(0, 9)
    measure, stored = made(training)
    mixed = [0.6 * a + 0.4 * b for a, b in zip(volumes(1, 6), volumes(0, 9)[:6], strict=True)]
    queries = features(measure, mixed)
    found = measure.search({"slices": queries}, none(queries, 9))
    for q, query in enumerate(queries):
        votes: dict[int, list[int]] = {}
        for vector in query:
            similarity = stored @ vector
            case, z = np.unravel_index(similarity.argmax(), similarity.shape)
            if similarity.max() >= measure.floor:
                votes.setdefault(int(case), []).append(int(z))
        expected = np.ones(9)
        for case, places in votes.items():
            expected[case] = 1 - in_order(places) / 12
            assert found.details["votes"][q, case] == pytest.approx(len(places) / 12)
        np.testing.assert_allclose(found.distances[q], expected)


def test_votes_below_the_floor_do_not_count() -> None:
    """The floor is the median best match between different patients, so half of strangers' slices stay silent."""
    training = volumes(0, 20)
    measure, stored = made(training)
    best = []
    for case in range(20):
        others = np.delete(stored, case, 0).reshape(-1, 64)
        best += (stored[case] @ others.T).max(1).tolist()
    assert measure.floor == pytest.approx(np.median(best), abs=1e-5)
    queries = features(measure, volumes(3, 40))
    found = measure.search({"slices": queries}, none(queries, 20))
    assert 0.35 < found.details["votes"].sum(1).mean() < 0.65


def test_a_pair_that_is_left_out_gets_no_vote() -> None:
    training = volumes(0, 10)
    for kind in (SliceVotes, SliceVotesHnsw):
        measure, stored = made(training, kind)
        left_out = none(stored, 10)
        left_out[np.arange(10), np.arange(10)] = True
        left_out[3, 5] = True
        found = measure.search({"slices": stored}, left_out)
        assert (found.distances[left_out] == 1).all()
        assert (measure.search({"slices": stored}, none(stored, 10)).distances.diagonal() == 0).all()


def test_blank_and_repeated_slices_stay_out() -> None:
    training = volumes(0, 8)
    training[0][:, :, :5] = 0.01
    training[1][:, :, 9:] = training[1][:, :, 8:9]
    training[2][:] = 0
    measure, stored = made(training)
    assert np.flatnonzero(~stored[0].any(1)).tolist() == [0, 1, 2, 3, 4]
    assert np.flatnonzero(~stored[1].any(1)).tolist() == [9, 10, 11]
    assert not stored[2].any()
    found = measure.search({"slices": stored}, none(stored, 8))
    assert found.distances[0, 0] == found.distances[1, 1] == 0
    assert np.isinf(found.distances[2]).all(), "nothing to be compared"
    assert np.linalg.norm(stored[3], axis=1) == pytest.approx(np.ones(12), abs=1e-6)


def test_long_volumes_are_sampled_evenly() -> None:
    long = Preparation(
        "generic", 3, (1, 1, 3), (8, 8, 200), Intensity((0, 1)), Native((8, 8, 200), (1, 1, 3), (8, 8, 600), "RAS")
    )
    image = np.random.default_rng(0).random((8, 8, 200), np.float32)
    assert SliceVotes(long, embedders=EMBEDDERS).features(PreparedImage(image, None))["slices"].shape == (64, 64)


@given(st.lists(st.integers(0, 6), max_size=9))
@settings(max_examples=200, deadline=None)
def test_order_is_the_longest_strict_run(places: list[int]) -> None:
    longest = 0
    for size in range(len(places), 0, -1):
        for chosen in combinations(places, size):
            steps = np.diff(chosen)
            if (steps > 0).all() or (steps < 0).all():
                longest = max(longest, size)
        if longest:
            break
    assert in_order(places) == longest


def test_hnsw_finds_the_same_nearest_slice_almost_always() -> None:
    training = volumes(0, 60)
    exact, stored = made(training)
    measure, _ = made(training, SliceVotesHnsw)
    assert measure.recall >= 0.99
    assert f"recall {measure.recall:.3f}" in measure.definition
    queries = features(exact, volumes(1, 30))
    vectors = queries.reshape(-1, 64)
    index = hnsw_index(stored.reshape(-1, 64))
    assert np.mean(index.search(vectors, 1)[1] == flat_index(stored.reshape(-1, 64)).search(vectors, 1)[1]) >= 0.99
    a, b = (m.search({"slices": queries}, none(queries, 60)).distances for m in (exact, measure))
    assert np.mean(a == b) > 0.99


def test_hnsw_is_built_the_same_each_time() -> None:
    vectors = features(SliceVotes(PREPARATION, embedders=EMBEDDERS), volumes(0, 40)).reshape(-1, 64)
    import faiss

    first, second = (faiss.serialize_index(hnsw_index(vectors)) for _ in range(2))
    assert np.array_equal(first, second) and np.array_equal(first, to_bytes(hnsw_index(vectors)))
    assert recall(flat_index(vectors), vectors) == 1


def test_a_stored_index_is_read_after_simpleitk_was_imported() -> None:
    """FAISS's own functions fail then. A process of its own, since the order of the imports decides."""
    code = """
import numpy as np
from replica_detection.measures.slice_votes import from_bytes, hnsw_index, to_bytes
vectors = np.eye(8, dtype=np.float32)
index = hnsw_index(vectors)
import SimpleITK
assert from_bytes(to_bytes(index)).search(vectors, 1)[1].ravel().tolist() == list(range(8))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_needs_volumes_and_an_embedding() -> None:
    with pytest.raises(ConfigurationError, match="`slice_embedding`"):
        make_measures(["slice_votes"], PREPARATION)
    flat = Preparation("chest-xray", 2, (1, 1), (8, 8), Intensity((0, 1)), Native((8, 8), (1, 1), (8, 8), "RA"))
    with pytest.raises(ConfigurationError, match="2D"):
        make_measures(["slice_votes"], flat, embedders=EMBEDDERS)
