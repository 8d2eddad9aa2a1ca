"""Set-level figures of finished runs: computed again from index and cohorts, with and without vectors, 3D and 2D."""

import csv
import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from Core.made_runs import COPIES, NEW, planted_folders, planted_run
from Core.made_up import volume
from replica_detection import cli
from replica_detection.audit.distribution_metrics import frechet
from replica_detection.audit.memorization import _null, set_figures
from replica_detection.detection.queries import CohortQueries
from replica_detection.errors import ConfigurationError, InputError
from replica_detection.index.build import build_index
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort
from replica_detection.progress import silent

SMALL = (10, 12, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return planted_folders(tmp_path_factory.mktemp("memorization"))


@pytest.fixture(scope="module")
def run(folder):
    return planted_run(folder)


def figures_of(folder, index, holdout=True, **options):
    unseen = Cohort.read(folder / "validation") if holdout else None
    found, _ = set_figures(index, Cohort.read(folder / "synthetic"), unseen, **options)
    return {(row.basis, row.figure.name, row.figure.variant): row.figure for row in found}


def test_an_index_without_embedding_is_assessed_by_voxels(folder, run):
    figures = figures_of(folder, TrainingIndex.open(folder / "result" / "index.rdindex"))
    share = COPIES / (COPIES + NEW)
    for name in ("mae", "rmse", "ssim"):
        assert figures[name, "N_copies", "size-matched"].estimate.value == pytest.approx(share, abs=0.06)
        assert figures[name, "AuthPct", ""].estimate.value <= 100 * (1 - share)
        assert figures[name, "AuthPct of unseen", ""].cases == 20
        assert figures[name, "N_mem", "size-matched"].estimate.value > 0.2
    assert figures["vectors: coarse voxels", "FID", "as-published"].estimate.value > 0
    assert "no cell has more than 20" in figures["vectors: coarse voxels", "CT", ""].note  # 18 cases
    assert figures["images", "MS-SSIM of training", ""].estimate.value < 0.9


def test_distances_are_those_of_all_pairs(folder, run):
    index = TrainingIndex.open(folder / "result" / "index.rdindex")
    figures = figures_of(folder, index, measures=["rmse"])
    images = index.features(range(len(index)), ["image"])["image"].reshape(len(index), -1).astype(float)
    real = cdist(images, images)
    np.fill_diagonal(real, np.inf)
    from replica_detection.preparation.loading import load_prepared

    made = np.stack(
        [
            p.image.ravel()
            for _, p in load_prepared(Cohort.read(folder / "synthetic").cases, index.preparation, with_masks=False)
        ]
    )
    table = cdist(made, images)
    by_hand = 100 * np.mean(real.min(1)[table.argmin(1)] < table.min(1))
    assert figures["rmse", "AuthPct", ""].estimate.value == pytest.approx(by_hand)


def test_vectors_of_the_feature_level_are_used_where_there_are_some(folder, tmp_path):
    measures = ["mae", "embedding_cosine", "memorization_index"]
    index = build_index(Cohort.read(folder / "training"), tmp_path / "x.rdindex", measures=measures)
    figures = figures_of(folder, index)
    vectors = "vectors: embedding invariants"
    assert {basis for basis, _, _ in figures} == {"embedding_cosine", "memorization_index", vectors, "images"}
    index_of = {name: figures["memorization_index", name, ""].estimate.value for name in ("MI", "ONI")}
    assert index_of["MI"] > 1 > 0 > index_of["ONI"]
    assert figures[vectors, "FID of unseen", "size-matched"].cases == 20
    # Of the vectors as they are compared, not of what the index stores.
    stored = index.features(range(len(index)), ["embedding"])["embedding"]
    compared = index.embedders.images.project(stored)
    unseen = CohortQueries(Cohort.read(folder / "validation"), index)
    blocks = unseen.blocks(index.measures(["embedding_cosine"]))
    described = np.concatenate([block.features["embedding"] for block in blocks])
    expected = frechet(index.embedders.images.project(described), compared, "FID of unseen", size=18)
    found = figures[vectors, "FID of unseen", "size-matched"]
    assert expected.estimate.value == pytest.approx(found.estimate.value, rel=0.05)


def test_without_a_holdout_the_training_cases_are_the_null_and_the_rest_is_undefined(folder, run):
    figures = figures_of(folder, TrainingIndex.open(folder / "result" / "index.rdindex"), holdout=False)
    assert figures["mae", "N_copies", "size-matched"].estimate.value == pytest.approx(COPIES / (COPIES + NEW), abs=0.06)
    assert figures["mae", "N_mem", "size-matched"].note == "no hold-out to compare with"
    assert figures["vectors: coarse voxels", "CT", ""].note == "no hold-out"
    assert not any("unseen" in name or variant == "as-published" for _, name, variant in figures)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An index of 24 small training images, and 20 unseen images."""
    training = Cohort.from_arrays({f"t{n}": volume(n, SMALL) for n in range(24)}, spacing=1)
    index = build_index(training, tmp_path_factory.mktemp("leaks") / "x.rdindex", measures=["mae"])
    return index, {f"u{n}": volume(1000 + n, SMALL) for n in range(20)}


def test_leaked_unseen_images_are_left_out(small):
    """Two of the unseen images are training images: with them, no copy would lie below the threshold of N_copies."""
    index, unseen = small
    measures = index.measures(["mae"])
    whole, holdout, _ = _null(index, Cohort.from_arrays(unseen, spacing=1), measures, silent)
    leaks = {"leak 1": volume(3, SMALL), "leak 2": volume(7, SMALL)}
    null, kept, warnings = _null(index, Cohort.from_arrays({**leaks, **unseen}, spacing=1), measures, silent)
    assert null.removed == tuple(leaks) and kept.ids == holdout.ids == tuple(unseen)
    assert (null.rows["mae"] == whole.rows["mae"]).all()
    assert "2 of 22 validation cases" in warnings[0] and "leak 1, leak 2" in warnings[0]


def test_a_holdout_that_mostly_leaked_is_none(small):
    index, unseen = small
    measures = index.measures(["mae"])
    among, none, _ = _null(index, None, measures, silent)
    leaks = {f"leak {n}": volume(n, SMALL) for n in range(4)}
    few = {id: unseen[id] for id in list(unseen)[:3]}
    null, kept, warnings = _null(index, Cohort.from_arrays({**leaks, **few}, spacing=1), measures, silent)
    assert kept is None and none is None and null.ids == among.ids
    assert "THE VALIDATION SCANS ARE NOT USED" in warnings[0]


def test_two_runs_are_equal(folder, run):
    index = TrainingIndex.open(folder / "result" / "index.rdindex")
    first, again = (figures_of(folder, index, measures=["ssim"]) for _ in range(2))
    assert repr(first) == repr(again)


def test_what_cannot_be_assessed_is_said(folder, run, tmp_path):
    index = TrainingIndex.open(folder / "result" / "index.rdindex")
    with pytest.raises(ConfigurationError, match="was not built for measure 'dice'"):
        figures_of(folder, index, measures=["dice"])
    (tmp_path / "bad.nii.gz").write_bytes(b"nothing")
    with pytest.raises(InputError, match="no image that can be used"):
        set_figures(index, Cohort.read(tmp_path), None)


def test_2d_images_and_curves_on_the_command_line(tmp_path, monkeypatch, capsys):
    flat = planted_folders(tmp_path / "flat", flat=True)
    planted_run(flat)

    def invoke(*arguments):
        monkeypatch.setattr("sys.argv", ["replica-detection", "memorization", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code

    result = flat / "result"
    assert invoke(result, result, "--at", "20,10", "--output", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert "N_copies" in shown and "1 - 0" not in shown
    rows = list(csv.DictReader((tmp_path / "out" / "memorization.csv").open(encoding="utf-8")))
    assert {r["at"] for r in rows} == {"20", "10"} and {r["variant"] for r in rows} == {
        "",
        "size-matched",
        "as-published",
    }
    copied = [r for r in rows if (r["basis"], r["figure"], r["variant"]) == ("ssim", "N_copies", "size-matched")]
    assert len(copied) == 2 and float(copied[0]["value"]) == pytest.approx(COPIES / (COPIES + NEW), abs=0.06)
    assert float(copied[0]["value_low"]) <= float(copied[0]["value"]) and float(copied[0]["expected"]) == pytest.approx(
        1 / 21
    )
    assert (tmp_path / "out" / "memorization.png").read_bytes()[:4] == b"\x89PNG"
    assert invoke(result, "--null", "as-published", "--output", tmp_path / "published") == 0
    assert invoke(result, "--at", "1,2", "--output", tmp_path / "no") == 2
    assert "2 numbers for 1 results" in capsys.readouterr().err
    assert invoke(result, "--at", "soon", "--output", tmp_path / "no") == 2
    assert invoke(result, "--null", "none", "--output", tmp_path / "no") == 2
    assert not (tmp_path / "no").exists() and not math.isnan(float(copied[0]["value"]))
