"""The feature level: vectors compared as SciPy compares them, and the whole pipeline on copies that moved."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist

from Core.made_up import cohort, volume, write
from replica_detection.detection.detector import detect
from replica_detection.detection.options import DetectionOptions
from replica_detection.embedding import Embedder, Embedders, register
from replica_detection.embedding import base as registry
from replica_detection.embedding.stored import make_embedders
from replica_detection.errors import ConfigurationError, IndexFormatError, InputError
from replica_detection.index.build import append_cases, build_index, serves
from replica_detection.index.options import IndexOptions
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort
from replica_detection.measures import make_measures
from replica_detection.measures.feature import EmbeddingCosine, EmbeddingPearson, EmbeddingRmse
from replica_detection.preparation.profiles import Intensity, Native, Preparation
from replica_detection.report import write_report
from replica_detection.report.pair_loader import PairLoader
from replica_detection.results import wording
from replica_detection.results.result import DetectionResult

PREPARATION = Preparation(
    "generic", 3, (1, 1, 1), (4, 4, 4), Intensity((0, 1)), Native((4, 4, 4), (1, 1, 1), (4, 4, 4), "RAS")
)
FEATURE = ("embedding_cosine", "embedding_rmse", "embedding_pearson")


class Plain(Embedder):
    """The voxels themselves."""

    kind, version = "plain", 1

    def describe(self, images, spacing_mm):
        return images.reshape(len(images), -1).astype(np.float32)

    @classmethod
    def make(cls, argument):
        return cls()

    @classmethod
    def restore(cls, settings, state, folder):
        return cls()


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Embedders:
    monkeypatch.setitem(registry.EMBEDDERS, "plain", Plain)
    return Embedders(Plain())


def test_a_new_embedder_is_a_class_with_register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "EMBEDDERS", dict(registry.EMBEDDERS))
    register(Plain)
    assert registry.make_embedder("plain").name == "plain"


@pytest.mark.parametrize(
    ("measure", "reference"),
    [
        (EmbeddingCosine, lambda q, n: cdist(q, n, "cosine")),
        (EmbeddingPearson, lambda q, n: cdist(q, n, "correlation")),
        (EmbeddingRmse, lambda q, n: cdist(q, n) / np.sqrt(q.shape[1])),
    ],
)
def test_distances_are_those_of_scipy(plain: Embedders, measure, reference) -> None:
    rng = np.random.default_rng(0)
    q, n = rng.standard_normal((7, 300)).astype("f4"), rng.standard_normal((11, 300)).astype("f4") + 0.3
    n[4] = q[2]
    n[9] = q[2] * np.float32(1 + 1e-6)
    found = measure(PREPARATION, embedders=plain).distances({"embedding": q}, {"embedding": n})
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, reference(q.astype(float), n.astype(float)), atol=1e-7)
    assert found[2, 4] == 0
    assert np.count_nonzero(found == 0) == 1 or measure is not EmbeddingRmse
    assert (found >= 0).all()


@pytest.mark.parametrize("measure", [EmbeddingCosine, EmbeddingPearson, EmbeddingRmse])
def test_vectors_of_zeros_are_far_from_all_but_their_like(plain: Embedders, measure) -> None:
    zero, other = np.zeros((1, 5), np.float32), np.arange(5, dtype=np.float32)[None]
    made = measure(PREPARATION, embedders=plain)
    assert made.distances({"embedding": zero}, {"embedding": zero}) == 0
    assert made.distances({"embedding": zero}, {"embedding": other}) >= 1


def test_without_an_embedding_the_measures_stay_away() -> None:
    assert "feature" not in {m.level for m in make_measures(None, PREPARATION)}
    with pytest.raises(ConfigurationError, match="`embedding`"):
        make_measures(["embedding_rmse"], PREPARATION)
    default = [m.name for m in make_measures(None, PREPARATION, embedders=make_embedders())]
    assert set(FEATURE) <= set(default)
    assert not {"memorization_index", "slice_votes"} & set(default)


# ----------------------------------------------------------------------------------------------- the whole pipeline


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainingIndex]:
    """30 training, 24 validation and 12 new cases, and copies that were mirrored, turned, and shifted."""
    folder = tmp_path_factory.mktemp("moved")
    cohort(folder / "training", 30, 0)
    cohort(folder / "validation", 24, 1000, "unseen")
    cohort(folder / "synthetic", 12, 2000, "new")
    for n in range(4):
        array = volume(n)
        write(folder / "synthetic" / f"exact_{n:03d}.nii.gz", array)
        write(folder / "synthetic" / f"mirrored_{n:03d}.nii.gz", np.flip(array, n % 3).copy())
        turned = ndimage.rotate(array, 8, (0, 1), reshape=False, order=1, mode="nearest")
        write(folder / "synthetic" / f"turned_{n:03d}.nii.gz", turned)
    index = build_index(Cohort.read(folder / "training"), folder / "x.rdindex")
    return folder, index


@pytest.mark.parametrize("validation", [True, False])
def test_mirrored_and_turned_copies_are_found(moved: tuple[Path, TrainingIndex], validation: bool) -> None:
    folder, index = moved
    unseen = Cohort.read(folder / "validation") if validation else None
    result = detect(Cohort.read(folder / "synthetic"), index, validation=unseen)
    for case in result.summary:
        kind, number = case.synthetic_id.split("_")
        if kind != "new":
            assert case.verdict == "replica", case
            assert case.nearest_training_id == f"case_{number}"
            assert "feature" in case.levels_flagged
    exact = [m for m in result.matches if m.synthetic_id.startswith("exact") and m.measure in FEATURE]
    assert len(exact) == 12
    assert all(m.distance == 0 and m.ratio == 0 for m in exact)
    assert all(m.value == (0 if m.measure == "embedding_rmse" else 1) for m in exact)
    flagged = [c for c in result.summary if c.synthetic_id.startswith("new") and c.verdict != "novel"]
    assert len(flagged) <= 3  # 12 new images; more than 3 has a probability of 0.2 % at the nominal rate
    assert not [w for w in result.run.warnings if "embedding" in w]


def test_the_definition_names_embedding_and_weights(moved: tuple[Path, TrainingIndex]) -> None:
    _, index = moved
    sha256 = index.embedder_settings["images"]["sha256"]
    assert (index.folder / "encoder_images.safetensors").is_file()
    assert all(f"invariants (weights {sha256[:12]})" in m.definition for m in index.measures(FEATURE))
    assert index.embedder_settings["slices"] is None


def test_queries_are_embedded_as_the_index_was(moved: tuple[Path, TrainingIndex]) -> None:
    folder, index = moved
    again = TrainingIndex.open(index.folder)
    stored = again.features(range(3), ["embedding"])["embedding"]
    from replica_detection.preparation.loading import load_prepared

    cases = Cohort.read(folder / "training").cases[:3]
    fresh = [
        again.embedders.images.describe(p.image[None], again.preparation.spacing)[0]
        for _, p in load_prepared(cases, again.preparation, with_masks=False)
    ]
    assert np.array_equal(stored, np.stack(fresh)), "bit by bit"


def test_an_index_with_another_encoder_file_is_refused(tmp_path: Path) -> None:
    cohort(tmp_path / "training", 6)
    index = build_index(Cohort.read(tmp_path / "training"), tmp_path / "x.rdindex", measures=["embedding_cosine"])
    path = index.folder / "encoder_images.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-4] + b"\0\0\0\1")
    with pytest.raises(IndexFormatError, match=r"encoder_images\.safetensors: is not the file"):
        TrainingIndex.open(index.folder).measures(None)
    path.unlink()
    with pytest.raises(InputError, match="damaged"):
        TrainingIndex.open(index.folder).measures(None)


def test_an_index_whose_weights_are_gone_still_serves_the_other_measures(tmp_path: Path) -> None:
    cohort(tmp_path / "training", 6)
    index = build_index(Cohort.read(tmp_path / "training"), tmp_path / "x.rdindex", measures=["mae", *FEATURE])
    (index.folder / "encoder_images.safetensors").unlink()
    assert [m.name for m in TrainingIndex.open(index.folder).measures(["mae"])] == ["mae"]


def test_append_keeps_the_embedding_and_resume_does_not_fit_again(tmp_path: Path) -> None:
    cohort(tmp_path / "training", 6)
    first = Cohort.read(tmp_path / "training")
    stages: list[str] = []

    def stop(stage: str, done: int, total: int) -> None:
        stages.append(stage)
        if (stage, done) == ("preparing", 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(first, tmp_path / "x.rdindex", measures=FEATURE, progress=stop)
    assert "fitting" in stages
    stages.clear()
    index = build_index(
        first, tmp_path / "x.rdindex", measures=FEATURE, progress=lambda stage, *_: stages.append(stage)
    )
    assert "fitting" not in stages
    cohort(tmp_path / "training", 2, 300, "later")
    longer = append_cases(index, Cohort.read(tmp_path / "training"))
    assert len(longer) == 8
    assert longer.embedder_settings == index.embedder_settings
    assert serves(longer, Cohort.read(tmp_path / "training"), IndexOptions(measures=FEATURE))
    # Pictures need the images, which no measure of this index does.
    assert PairLoader(longer, None)(longer.ids[0], longer.ids[1]) is not None


def test_an_index_serves_only_its_own_embedding(moved: tuple[Path, TrainingIndex], plain: Embedders) -> None:
    folder, index = moved
    training = Cohort.read(folder / "training")
    assert serves(index, training, IndexOptions())
    assert not serves(index, training, IndexOptions(embedding=plain.images))


def test_details_are_kept_with_the_result(moved: tuple[Path, TrainingIndex], tmp_path: Path) -> None:
    folder, _ = moved
    measures = ("embedding_cosine", "memorization_index", "slice_votes")
    index = build_index(Cohort.read(folder / "training"), tmp_path / "x.rdindex", measures=measures)
    result = detect(
        Cohort.read(folder / "synthetic"),
        index,
        validation=Cohort.read(folder / "validation"),
        options=DetectionOptions(measures=measures),
    )
    result.write(tmp_path / "result")
    again = DetectionResult.read(tmp_path / "result")
    assert json.dumps(again.run.details) == json.dumps(result.run.details)
    said = again.details_of("exact_002")
    assert set(said) == {"memorization_index", "slice_votes"}
    assert said["memorization_index"]["similarity"] == 1
    assert said["memorization_index"]["layers_agreeing"] == "4 of 4"
    assert said["memorization_index"]["nearest_layer_1"] == "case_002"
    assert said["memorization_index"]["ONI"] == pytest.approx(-np.tanh(said["memorization_index"]["MI"]))
    largest = max(result.run.details["memorization_index"]["MI"])
    assert said["memorization_index"]["MI"] == pytest.approx(largest)
    assert said["slice_votes"] == {"votes": 1, "offset_slices": 0}
    exact = [m for m in result.matches if m.synthetic_id.startswith("exact")]
    assert all(m.distance == 0 for m in exact)
    page = write_report(again, tmp_path / "report", lambda *_: None).read_text("utf-8")
    mi = wording.number(said["memorization_index"]["MI"])
    assert f"<strong>memorization_index</strong>: similarity 1, MI {mi}, ONI" in page
    assert "layers agreeing 4 of 4" in page


# -------------------------------------------------------------------------------------------- p values of clean sets


@pytest.mark.parametrize("kind", ["validation", "cross-fitted"])
def test_p_values_of_new_cases_are_uniform(tmp_path: Path, kind: str) -> None:
    """160 new cases against 60 training ones: the shares below 0.05, 0.2 and 0.5 within wide binomial limits."""
    cohort(tmp_path / "training", 60)
    cohort(tmp_path / "new", 160, 5000, "new")
    measures = ("embedding_cosine", "memorization_index")
    index = build_index(Cohort.read(tmp_path / "training"), tmp_path / "x.rdindex", measures=measures)
    unseen = None
    if kind == "validation":
        cohort(tmp_path / "validation", 80, 1000, "unseen")
        unseen = Cohort.read(tmp_path / "validation")
    result = detect(Cohort.read(tmp_path / "new"), index, validation=unseen)
    for measure in measures:
        p = np.array([m.p_value for m in result.matches if m.measure == measure])
        null = len(result.run.null.case_ids)
        for level in (0.05, 0.2, 0.5):
            # Both the new cases and the null are samples.
            spread = np.sqrt(level * (1 - level) * (1 / len(p) + 1 / null))
            assert abs(np.mean(p <= level) - level) < 3.3 * spread + 1 / (null + 1), (measure, level)


def test_two_dimensional_images_go_through(tmp_path: Path) -> None:
    from PIL import Image

    def picture(seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        x = ndimage.gaussian_filter(rng.standard_normal((96, 80)), 4)
        return ((x - x.min()) / np.ptp(x) * 255).astype(np.uint8)

    for name, seeds in (("training", range(24)), ("validation", range(100, 124)), ("synthetic", range(200, 204))):
        (tmp_path / name).mkdir()
        for seed in seeds:
            Image.fromarray(picture(seed)).save(tmp_path / name / f"x{seed}.png")
    Image.fromarray(picture(5)[:, ::-1].copy()).save(tmp_path / "synthetic" / "mirrored.jpg", quality=90)
    index = build_index(Cohort.read(tmp_path / "training"), tmp_path / "x.rdindex")
    result = detect(Cohort.read(tmp_path / "synthetic"), index, validation=Cohort.read(tmp_path / "validation"))
    found = {c.synthetic_id: c for c in result.summary}["mirrored"]
    assert (found.verdict, found.nearest_training_id) == ("replica", "x5")
    with pytest.raises(ConfigurationError, match="2D"):
        build_index(Cohort.read(tmp_path / "training"), tmp_path / "y.rdindex", measures=["slice_votes"])
