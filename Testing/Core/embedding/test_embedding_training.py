"""Embedders trained on a cohort: they learn, they survive being killed, and an index keeps what it was made with."""

import csv
import json
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from Core.made_up import cohort, volume
from replica_detection.detection.detector import detect
from replica_detection.embedding import make_embedder
from replica_detection.embedding.training import (
    EncoderReport,
    nt_xent,
    similarity_error,
    train_encoder,
)
from replica_detection.embedding.training_options import EncoderOptions
from replica_detection.embedding.views import Views
from replica_detection.errors import ConfigurationError, InputError
from replica_detection.index.build import build_index, serves
from replica_detection.index.options import IndexOptions
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Case, Cohort
from replica_detection.kernels import ssim
from replica_detection.progress import Progress, silent

SMALL = {"epochs": 4, "batch": 4, "max_size": 16, "device": "cpu"}


def train(training: Cohort, output: Path, *, progress: Progress = silent, **options) -> EncoderReport:
    return train_encoder(training, output, options=EncoderOptions(**{**SMALL, **options}), progress=progress)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """12 volumes; 2n and 2n + 1 are of one patient."""
    folder = tmp_path_factory.mktemp("encoder")
    read = Cohort.read(cohort(folder / "training", 12))
    cases = tuple(Case(c.id, c.files, None, f"patient {n // 2}") for n, c in enumerate(read.cases))
    return Cohort(read.source, cases)


@pytest.fixture(scope="module")
def whole(images: Cohort, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EncoderReport]:
    """A training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(images, folder)


# --------------------------------------------------------------------------------------------------------- losses


def test_nt_xent_is_the_sum_in_the_paper() -> None:
    """Every term written out: 2 K vectors, each with one partner and 2 (K - 1) negatives."""
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 5, 7))
    vectors = np.concatenate([first, second])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    terms = []
    for i in range(10):
        similar = np.exp(vectors @ vectors[i] / 0.07)
        terms.append(-math.log(similar[(i + 5) % 10] / (similar.sum() - similar[i])))
    found = nt_xent(torch.from_numpy(first), torch.from_numpy(second))
    assert float(found) == pytest.approx(np.mean(terms), rel=1e-6)
    assert float(nt_xent(torch.eye(4), torch.eye(4))) < 1e-4
    assert float(nt_xent(torch.eye(4), torch.eye(4).roll(1, 0))) > 5


def test_similarity_error_is_zero_where_cosines_are_the_ssim() -> None:
    x = np.stack([volume(n) for n in range(4)]) / 1000
    target = torch.from_numpy(ssim(x, x).astype(np.float32))
    reference = structural_similarity(
        x[1], x[2], gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
    )
    assert float(target[1, 2]) == pytest.approx(reference, abs=1e-4)
    root = torch.linalg.cholesky(target + 1e-6 * torch.eye(4))
    assert float(similarity_error(root, root, target)) == pytest.approx(0, abs=1e-6)
    assert float(similarity_error(torch.eye(4), torch.eye(4), target)) > 1e-3


# ------------------------------------------------------------------------------------------------- course of a training


def test_a_contrastive_encoder_learns_to_tell_images_apart(tmp_path: Path) -> None:
    training = Cohort.read(cohort(tmp_path / "training", 40))
    report = train(training, tmp_path / "encoder", epochs=40, batch=16, seed=1, patience=40)
    losses = [loss for _, loss, _ in report.history]
    assert losses[-1] < 0.5 * math.log(31), "less than half of what chance gives"
    assert report.best_loss == min(v for _, _, v in report.history)
    embedder = make_embedder(f"contrastive:{tmp_path / 'encoder'}")
    x = np.stack([volume(500 + n) for n in range(20)]) / np.float32(1000)
    views = Views(rotation_degrees=5, flips=(0, 1, 2), gamma=0.5)
    altered = np.stack([views.of(image, np.random.default_rng(n)) for n, image in enumerate(x)])
    a, b = (embedder.embed(side, (1, 1, 1.2)) for side in (x, altered))
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (a, b))
    found = np.mean((b @ a.T).argmax(1) == np.arange(20))
    assert found >= 0.4, "of unseen images, 0.05 by chance"


def test_a_deepssim_encoder_learns_the_ssim(tmp_path: Path) -> None:
    training = Cohort.read(cohort(tmp_path / "training", 24))
    report = train(training, tmp_path / "encoder", kind="deepssim", epochs=20, batch=8, flips=(), contrast=0.3)
    validation = [v for _, _, v in report.history]
    assert min(validation) < 0.5 * validation[0]
    described = json.loads((tmp_path / "encoder" / "network.json").read_text(encoding="utf-8"))
    assert described["training"] == "deepssim"
    assert described["architecture"]["arguments"]["dimensions"] == 256
    assert not described["architecture"]["arguments"]["normalized"]


def test_what_is_written_is_what_is_reported(images: Cohort, whole: tuple[Path, EncoderReport]) -> None:
    folder, report = whole
    assert sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")) == [
        "best.safetensors",
        "history.csv",
        "history.png",
        "last.pt",
        "network.json",
    ]
    with (folder / "history.csv").open(encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert [float(r["validation_loss"]) for r in rows] == pytest.approx([v for _, _, v in report.history], abs=1e-6)
    assert report.best_epoch == 1 + int(np.argmin([v for _, _, v in report.history]))
    assert (folder / "history.png").stat().st_size > 1000
    patient = {case.id: case.patient for case in images.cases}
    assert not {patient[i] for i in report.training} & {patient[i] for i in report.validation}
    assert sorted(report.training + report.validation) == sorted(images.ids)


def test_the_seed_decides_everything(images: Cohort, whole: tuple[Path, EncoderReport], tmp_path: Path) -> None:
    assert train(images, tmp_path / "a").history == whole[1].history
    assert (tmp_path / "a" / "best.safetensors").read_bytes() == (whole[0] / "best.safetensors").read_bytes()
    assert train(images, tmp_path / "b", seed=1, epochs=1).history[0] != whole[1].history[0]


def test_a_killed_training_goes_on_as_if_nothing_had_been(
    images: Cohort, whole: tuple[Path, EncoderReport], tmp_path: Path
) -> None:
    """Killed in the middle of the third epoch."""
    code = (
        "import os, signal, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from Core.embedding.test_embedding_training import train, Cohort, Case\n"
        "read = Cohort.read(Path(sys.argv[2]))\n"
        "cases = tuple(Case(c.id, c.files, None, f'patient {n // 2}') for n, c in enumerate(read.cases))\n"
        "def killed(stage, done, total):\n"
        "    if stage == 'training' and done > total // 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "train(Cohort(read.source, cases), Path(sys.argv[3]), progress=killed)\n"
    )
    words = [sys.executable, "-c", code, str(Path(__file__).parents[2]), str(images.source), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr
    report = train(images, tmp_path)
    assert report.resumed_from == 2
    assert report.history == whole[1].history
    assert (tmp_path / "best.safetensors").read_bytes() == (whole[0] / "best.safetensors").read_bytes()
    assert train(images, tmp_path).finished_before


def test_another_run_in_the_folder_is_not_continued(images: Cohort, tmp_path: Path) -> None:
    train(images, tmp_path, epochs=1)
    with pytest.raises(ConfigurationError, match="other options"):
        train(images, tmp_path, epochs=1, flips=(0,))
    with pytest.raises(ConfigurationError, match="other options or other files"):
        train(Cohort(images.source, images.cases[:-2]), tmp_path, epochs=1)
    assert train(images, tmp_path, epochs=1, flips=(0,), resume=False).resumed_from == 0


def test_training_ends_where_nothing_gets_better(images: Cohort, tmp_path: Path) -> None:
    report = train(images, tmp_path, learning_rate=1e-12, epochs=60, patience=2, contrast=0.0, rotation_degrees=0.0)
    assert report.stopped_early
    assert len(report.history) < 60


@pytest.mark.parametrize("network", ["resnet18"])
def test_other_networks_train_and_can_be_used(images: Cohort, tmp_path: Path, network: str) -> None:
    train(images, tmp_path, network=network, epochs=1)
    embedder = make_embedder(f"contrastive:{tmp_path}")
    assert embedder.embed(volume(0)[None] / 1000, (1, 1, 1)).shape == (1, 32)


def test_two_dimensional_images_can_be_trained_on(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "x").mkdir()
    for n in range(8):
        slice_ = volume(n)[:, :, 9]
        Image.fromarray((slice_ / slice_.max() * 255).astype(np.uint8)).save(tmp_path / "x" / f"{n}.png")
    report = train(Cohort.read(tmp_path / "x"), tmp_path / "encoder", epochs=1)
    assert len(report.history) == 1
    assert make_embedder(f"contrastive:{tmp_path / 'encoder'}").size == (16, 16)


# ----------------------------------------------------------------------------------------------------- in an index


def test_the_index_keeps_its_encoder(images: Cohort, whole: tuple[Path, EncoderReport], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(whole[0], tmp_path / "encoder")
    encoder = make_embedder(f"contrastive:{tmp_path / 'encoder'}")
    index = build_index(images, tmp_path / "x.rdindex", measures=["embedding_pearson"], embedding=encoder)
    shutil.rmtree(tmp_path / "encoder")
    again = TrainingIndex.open(index.folder)
    result = detect(Cohort.read(images.source), again)
    assert all(m.distance == 0 for m in result.matches)
    assert any("trained on the training cohort" in w for w in result.run.warnings)
    assert serves(again, images, IndexOptions(measures=["embedding_pearson"], embedding=encoder))
    train(images, tmp_path / "other", seed=7, epochs=1)
    other = make_embedder(f"contrastive:{tmp_path / 'other'}")
    assert not serves(again, images, IndexOptions(measures=["embedding_pearson"], embedding=other))


def test_an_encoder_of_the_other_kind_is_refused(whole: tuple[Path, EncoderReport], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="trained as 'contrastive', not one of embedding 'deepssim'"):
        make_embedder(f"deepssim:{whole[0]}")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="neither"):
        make_embedder(f"contrastive:{tmp_path / 'empty'}")


# ------------------------------------------------------------------------------------------------- what cannot be


def test_cohorts_that_are_too_small(images: Cohort, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leaves 1 images for training"):
        train(Cohort(images.source, images.cases[:5:2]), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    bad = Case("bad", (tmp_path / "bad.nii.gz",))
    report = train(Cohort(images.source, (*images.cases, bad)), tmp_path / "b", epochs=1)
    assert [Path(p.path).name for p in report.problems] == ["bad.nii.gz"]


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "telepathic"},
        {"network": "transformer"},
        {"epochs": 0},
        {"epochs": 1.5},
        {"batch": 1},
        {"max_size": 4},
        {"learning_rate": 0.0},
        {"contrast": -1.0},
        {"flips": (3,)},
        {"profile": "unknown"},
        {"device": "tpu"},
    ],
)
def test_options_that_cannot_be(options: dict) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        EncoderOptions(**options)


def test_defaults_depend_on_the_kind() -> None:
    published = EncoderOptions(as_published=True)
    assert (published.initial_rate, published.largest_rotation) == (1e-4, 5)
    other = EncoderOptions(kind="deepssim", as_published=True)
    assert (other.initial_rate, other.largest_rotation) == (1e-3, 10)
    assert EncoderOptions(learning_rate=0.01, rotation_degrees=3).views.rotation_degrees == 3
    assert EncoderOptions().schedule.learning_rate(1) == pytest.approx(1e-3)
    assert EncoderOptions(epochs=50).schedule.learning_rate(51) == pytest.approx(0.5e-3)
