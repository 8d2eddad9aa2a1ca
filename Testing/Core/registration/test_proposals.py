"""Proposed candidates in large cohorts: planted copies are among them, and the definition says how they were found."""

import numpy as np
import pytest
from scipy import ndimage

from replica_detection.detection.detector import detect
from replica_detection.embedding import invariants
from replica_detection.index import similar
from replica_detection.index.build import build_index
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort
from replica_detection.measures import aligned, features_of
from replica_detection.preparation.loading import load_prepared
from replica_detection.registration import retrieval
from replica_detection.registration.pyramid import levels
from replica_detection.registration.retrieval import TrainingPyramids
from replica_detection.registration.retrieval_torch import TorchPyramids

SHAPE, TRAINING = (20, 24, 18), 24


def scan(seed):
    rng = np.random.default_rng(seed)
    rough = sum(
        a * ndimage.gaussian_filter(rng.standard_normal(SHAPE), s) / s**-1.5 for s, a in ((1.5, 1.0), (3.0, 1.5))
    )
    return (rough - rough.min()).astype(np.float32)


def rotated(image):
    for axes, degrees in (((0, 1), 9), ((1, 2), -8)):
        image = ndimage.rotate(image, degrees, axes, reshape=False, order=1, mode="nearest")
    return image


def lost(image):
    image = image.copy()
    image[:10, :14, :10] = 0
    return image


COPIES = {
    "exact": lambda image: image,
    "mirrored": lambda image: image[:, ::-1],
    "rotated": rotated,
    "shifted": lambda image: ndimage.shift(image, (2, -2, 2), order=1, mode="nearest"),
    "noisy": lambda image: image + np.random.default_rng(1).normal(0, 0.1 * np.ptp(image), SHAPE).astype(np.float32),
    "lost in part": lost,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    scans = {f"case_{n:02d}": scan(n) for n in range(TRAINING)}
    path = tmp_path_factory.mktemp("proposals") / "x.rdindex"
    with pytest.MonkeyPatch.context() as quick:
        quick.setattr(invariants, "TOTAL_VIEWS", 100)
        return build_index(
            Cohort.from_arrays(scans, spacing=1), path, measures=["ncc_aligned", "embedding_cosine"]
        ).folder


@pytest.fixture
def few(monkeypatch):
    """Candidates are proposed from 10 cases on: two by the embedding, two in place."""
    for module in (aligned, retrieval):
        for name, value in {"EXHAUSTIVE": 10, "SIMILAR": 2, "IN_PLACE": 2}.items():
            monkeypatch.setattr(module, name, value, raising=False)
    monkeypatch.setattr(invariants, "TOTAL_VIEWS", 100)


def nearest_of_copies(index):
    """The best candidate of each copy of case 7, and its merit."""
    (measure,) = index.measures(["ncc_aligned"])
    copies = Cohort.from_arrays({kind: np.ascontiguousarray(c(scan(7))) for kind, c in COPIES.items()}, spacing=1)
    found = {}
    for case, prepared in load_prepared(copies.cases, index.preparation, with_masks=False):
        query = {name: values[None] for name, values in features_of(prepared, [measure]).items()}
        best = measure.candidates(query, index, np.ones(TRAINING, bool))[0]
        found[case.id] = best.training, best.merit
    return found


def test_planted_copies_are_proposed_and_aligned_as_in_the_search_among_all(folder, monkeypatch, few):
    some = nearest_of_copies(TrainingIndex.open(folder))
    monkeypatch.setattr(aligned, "EXHAUSTIVE", TRAINING)
    everything = nearest_of_copies(TrainingIndex.open(folder))
    assert list(some) == list(COPIES) and {training for training, _ in some.values()} == {7}
    for kind, (_, merit) in everything.items():
        assert some[kind][1] == pytest.approx(merit, abs=1e-6)


def test_the_search_is_confined_to_what_is_proposed(folder, few):
    index = TrainingIndex.open(folder)
    (measure,) = index.measures(["ncc_aligned"])
    query = index.features([3], measure.needs)
    allowed = np.arange(TRAINING) != 3
    found = [p.training for p in measure.candidates(query, index, allowed)]
    assert 2 <= len(found) <= 4 and 3 not in found
    assert set(index.similar.nearest(query["embedding"][0], allowed, 2)) <= set(found)


def test_torch_proposes_the_same_in_place(folder, few):
    index = TrainingIndex.open(folder)
    names = ["image_coarse", "image_middle", "image_fine"]
    chain = levels(index.preparation.grid, index.preparation.spacing)
    held = chain, index.packed(names[0]), index.packed(names[1]), None
    query = [index.features([5], [name])[name][0] for name in names]
    by_numpy = TrainingPyramids(*held)._proposed_in_place(query, np.arange(TRAINING))
    by_torch = TorchPyramids(*held, device="cpu")._proposed_in_place(query, np.arange(TRAINING))
    assert 5 in by_numpy and len(by_numpy) == 2
    np.testing.assert_array_equal(by_numpy, by_torch)


def test_the_definition_says_which_search(folder, few, monkeypatch):
    proposed = TrainingIndex.open(folder).measures(["ncc_aligned"])[0].definition
    assert "2 most similar by embedding invariants" in proposed and "exact search" in proposed
    monkeypatch.setattr(aligned, "EXHAUSTIVE", TRAINING)
    (measure,) = TrainingIndex.open(folder).measures(["ncc_aligned"])
    assert "among all training cases" in measure.definition and measure.caution is None
    assert "embedding" not in measure.needs


def test_without_an_embedding_all_cases_are_searched_and_it_is_said(tmp_path, few):
    scans = Cohort.from_arrays({f"case_{n}": scan(n) for n in range(12)}, spacing=1)
    index = build_index(scans, tmp_path / "x.rdindex", measures=["ncc_aligned"])
    (measure,) = index.measures(["ncc_aligned"])
    assert "among all training cases" in measure.definition
    new = Cohort.from_arrays({"new": scan(50)}, spacing=1)
    warnings = detect(new, index).run.warnings
    assert [w for w in warnings if w.startswith("ncc_aligned") and "12 training cases" in w and "embedding" in w]


def test_masks_are_searched_among_the_cases_of_similar_images(tmp_path, few):
    scans = {f"case_{n:02d}": scan(n) for n in range(14)}
    masks = [(image > np.quantile(image, 0.8)).astype(np.uint8) for image in scans.values()]
    cohort = Cohort.from_arrays(scans, spacing=1, masks=dict(zip(scans, masks, strict=True)))
    index = build_index(cohort, tmp_path / "x.rdindex", measures=["dice_aligned", "embedding_cosine"])
    (measure,) = index.measures(["dice_aligned"])
    assert "embedding of the image" in measure.definition
    query = index.features([5], measure.needs)
    assert measure.candidates(query, index, np.ones(14, bool))[0].training == 5


def test_the_most_similar_are_those_of_the_cosine(folder):
    index = TrainingIndex.open(folder)
    (cosine,) = index.measures(["embedding_cosine"])
    block = index.features(range(TRAINING), ["embedding"])
    allowed = np.random.default_rng(0).random(TRAINING) < 0.6
    expected = cosine.distances({"embedding": block["embedding"][4:5]}, block)[0]
    expected[~allowed] = np.inf
    found = index.similar.nearest(block["embedding"][4], allowed, 8)
    np.testing.assert_array_equal(found, np.argsort(expected)[:8])
    assert len(index.similar.nearest(block["embedding"][4], allowed, 99)) == allowed.sum()


def test_a_damaged_or_missing_file_is_made_again(folder):
    index, allowed = TrainingIndex.open(folder), np.ones(TRAINING, bool)
    described = index.features([4], ["embedding"])["embedding"][0]
    expected = index.similar.nearest(described, allowed, 5)
    (path,) = (folder / "packed").glob("similar-*.faiss")
    for damage in (lambda: path.write_bytes(b"no index"), path.unlink, path.with_suffix(".json").unlink):
        damage()
        del index.similar  # opened anew
        np.testing.assert_array_equal(index.similar.nearest(described, allowed, 5), expected)
        assert path.stat().st_size > TRAINING * 100 and path.with_suffix(".json").is_file()


def test_lists_beyond_the_exact_search_state_the_recall_that_they_have(folder, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    described = rng.standard_normal((600, 6)).astype(np.float32)
    for name, value in {"EXACT": 100, "CASES_A_LIST": 20, "PROBED": 6, "RECALL_NEAREST": 10}.items():
        monkeypatch.setattr(similar, name, value)
    monkeypatch.setattr(similar.SimilarCases, "_vectors", lambda self, x: x / np.linalg.norm(x, axis=1, keepdims=True))

    def made():
        return similar.SimilarCases(tmp_path / "a" / "lists.faiss", 600, None, lambda: np.split(described, 4))

    search = made()
    vectors = search._vectors(described)
    allowed = rng.random(600) < 0.9
    exact = [np.argsort(-(vectors @ v))[:10] for v in vectors]
    everything = np.ones(600, bool)
    shares = [np.isin(e, search.nearest(d, everything, 10)).mean() for e, d in zip(exact, described, strict=True)]
    assert 0.5 < search.recall < 1 and search.recall == pytest.approx(np.mean(shares), abs=0.05)
    assert f"recall {search.recall:.3f}" in search.definition
    assert allowed[search.nearest(described[0], allowed, 50)].all()
    again = made()
    assert again.recall == search.recall
    np.testing.assert_array_equal(again.nearest(described[0], allowed, 9), search.nearest(described[0], allowed, 9))
