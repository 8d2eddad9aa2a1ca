"""Training on made-up spheres: it learns, it survives being killed, and it says what it cannot use."""

import csv
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from replica_detection.errors import ConfigurationError, InputError
from replica_detection.io.cohort import Case, Cohort
from replica_detection.io.volume import read_mask, read_volume, write_volume
from replica_detection.progress import Progress, silent
from replica_detection.segmentation import make_segmenter
from replica_detection.segmentation.training import SegmentationReport, train_segmentation
from replica_detection.segmentation.training_options import SegmentationOptions

LABEL = 3
SMALL = {"patch": (16, 16, 16), "batch": 2, "crops": 1, "epochs": 4, "validate_every": 2}


def write_spheres(folder: Path, count: int, seed: int, affine: np.ndarray, size: int = 32) -> Cohort:
    """Bright spheres in noise; cases 2n and 2n + 1 are of one patient."""
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), -1)
    masks = folder.with_name(f"{folder.name}_masks")
    for new in (folder, masks):
        new.mkdir(parents=True)
    cases = []
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        centre, radius = rng.uniform(0.3, 0.7, 3) * size, rng.uniform(0.15, 0.25) * size
        mask = np.linalg.norm(grid - centre, axis=-1) < radius
        image = (rng.normal(100, 30, mask.shape) + 60 * mask).astype(np.float32)
        write_volume(folder / f"{seed}_{i}.nii.gz", image, affine)
        write_volume(masks / f"{seed}_{i}.nii.gz", mask * np.uint8(LABEL), affine)
        name = f"{seed}_{i}"
        cases.append(Case(name, (folder / f"{name}.nii.gz",), masks / f"{name}.nii.gz", f"{seed} patient {i // 2}"))
    return Cohort(folder, tuple(cases))


def train(
    cohort: Cohort, output: Path, *, validation: Cohort | None = None, progress: Progress = silent, **options
) -> SegmentationReport:
    chosen = SegmentationOptions(**{**SMALL, "device": "cpu", **options})
    return train_segmentation(cohort, output, validation=validation, options=chosen, progress=progress)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Small ones, where only the course of a training matters."""
    return write_spheres(tmp_path_factory.mktemp("small") / "images", 6, 7, np.eye(4), size=16)


@pytest.fixture(scope="module")
def whole(small: Cohort, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SegmentationReport]:
    """A training that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(small, folder)


def test_spheres_are_learned_and_found_in_unseen_volumes(tmp_path: Path) -> None:
    training = write_spheres(tmp_path / "training", 10, 0, np.eye(4))
    # Seen by the network only after a turn: stored left to right, head to foot.
    unseen = write_spheres(tmp_path / "unseen", 5, 1, np.diag([-1.0, 1.0, -1.0, 1.0]))
    calls = []
    report = train_segmentation(
        training,
        tmp_path / "net",
        options=SegmentationOptions(
            epochs=8, patch=(32, 32, 32), batch=4, learning_rate=3e-3, validate_every=2, device="cpu"
        ),
        progress=lambda *call: calls.append(call),
    )
    assert report.best_dice >= 0.8
    assert report.dice == {"foreground": report.best_dice}
    assert len(report.history) == 8
    assert report.history[-1].loss < report.history[0].loss * 0.7
    assert calls[-1] == ("training", calls[-1][2], calls[-1][2])
    segmenter = make_segmenter(f"network:{tmp_path / 'net'}", device="cpu")
    assert segmenter.labels == {LABEL: "foreground"}
    dice = []
    for case in unseen.cases:
        volume = read_volume(case)
        truth, found = read_mask(case.mask, volume), segmenter.segment(volume)
        assert set(np.unique(found)) <= {0, LABEL}
        dice.append(2 * np.count_nonzero((truth > 0) & (found > 0)) / np.count_nonzero([truth, found]))
    assert np.mean(dice) >= 0.8
    assert (tmp_path / "net" / "history.png").stat().st_size > 1000


def test_validation_is_of_other_patients(small: Cohort, whole: tuple[Path, SegmentationReport]) -> None:
    report = whole[1]
    patient = {case.id: case.patient for case in small.cases}
    assert len(report.validation) == 2
    assert sorted(report.training + report.validation) == sorted(small.ids)
    assert not {patient[i] for i in report.training} & {patient[i] for i in report.validation}


def test_history_is_written_as_reported(whole: tuple[Path, SegmentationReport]) -> None:
    folder, report = whole
    with (folder / "history.csv").open(encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert [float(row["loss"]) for row in rows] == pytest.approx([e.loss for e in report.history], abs=1e-6)
    assert [bool(row["validation_dice"]) for row in rows] == [False, True, False, True]
    assert report.best_dice == max(e.dice for e in report.history if e.dice == e.dice)


def test_a_killed_training_goes_on_as_if_nothing_had_been(
    small: Cohort, whole: tuple[Path, SegmentationReport], tmp_path: Path
) -> None:
    """Killed in the middle of the third epoch: 2 steps per epoch, so at the fifth."""
    code = (
        "import os, signal, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1])\n"
        "from test_segmentation_training import train, Cohort, Case\n"
        "def stop(stage, done, total):\n"
        "    if stage == 'training' and done == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"cases = {[(c.id, str(c.files[0]), str(c.mask), c.patient) for c in small.cases]!r}\n"
        "cases = tuple(Case(i, (Path(f),), Path(m), p) for i, f, m, p in cases)\n"
        "train(Cohort(Path(sys.argv[2]), cases), Path(sys.argv[3]), progress=stop)\n"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(small.source), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    report = train(small, tmp_path)
    assert report.resumed_from == 2
    assert not report.finished_before
    assert repr(report.history) == repr(whole[1].history)
    assert report.best_dice == whole[1].best_dice
    assert (tmp_path / "best.safetensors").read_bytes() == (whole[0] / "best.safetensors").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_finished_training_says_so_and_more_epochs_go_on(small: Cohort, tmp_path: Path) -> None:
    train(small, tmp_path, epochs=1)
    best = (tmp_path / "best.safetensors").stat().st_mtime_ns
    calls: list[tuple] = []
    again = train(small, tmp_path, epochs=1, progress=lambda *call: calls.append(call))
    assert again.finished_before
    assert not calls, "nothing is read again"
    assert len(again.history) == 1
    assert (tmp_path / "best.safetensors").stat().st_mtime_ns == best
    longer = train(small, tmp_path, epochs=2)
    assert (longer.resumed_from, len(longer.history)) == (1, 2)
    assert longer.history[0] == again.history[0]
    afresh = train(small, tmp_path, epochs=1, resume=False)
    assert (afresh.resumed_from, len(afresh.history)) == (0, 1)


def test_cases_read_again_each_time_change_nothing(
    small: Cohort, whole: tuple[Path, SegmentationReport], tmp_path: Path
) -> None:
    assert repr(train(small, tmp_path, cache_mb=0).history) == repr(whole[1].history)


def test_the_seed_matters(small: Cohort, whole: tuple[Path, SegmentationReport], tmp_path: Path) -> None:
    assert train(small, tmp_path, seed=1, epochs=1).history[0].loss != whole[1].history[0].loss


def test_another_run_in_the_folder_is_not_continued(small: Cohort, tmp_path: Path) -> None:
    train(small, tmp_path, epochs=1)
    with pytest.raises(ConfigurationError, match="other options"):
        train(small, tmp_path, epochs=1, learning_rate=0.01)
    with pytest.raises(ConfigurationError, match="other options or other files"):
        train(Cohort(small.source, small.cases[:-1]), tmp_path, epochs=1)
    (tmp_path / "last.pt").write_bytes((tmp_path / "last.pt").read_bytes()[:-500])
    with pytest.raises(InputError, match=r"last\.pt"):
        train(small, tmp_path, epochs=1)


def test_training_ends_where_nothing_gets_better(small: Cohort, tmp_path: Path) -> None:
    options = {"learning_rate": 1e-12, "epochs": 50, "validate_every": 1, "patience": 2}
    report = train(small, tmp_path, **options)
    assert report.stopped_early
    assert len(report.history) == report.best_epoch + 2
    assert train(small, tmp_path, **options).finished_before


@pytest.mark.parametrize("network", ["segresnet", "dynunet", "basicunet"])
def test_other_networks_train_and_can_be_used(small: Cohort, tmp_path: Path, network: str) -> None:
    train(small, tmp_path, network=network, epochs=1, patch=(32, 32, 32))
    segmenter = make_segmenter(f"network:{tmp_path}", device="cpu")
    assert segmenter.settings()["architecture"]["class"].lower() == network
    assert segmenter.segment(read_volume(small.cases[0])).shape == (16, 16, 16)


def test_cohorts_that_cannot_be_trained_on(small: Cohort, tmp_path: Path) -> None:
    unmarked = Cohort(small.source, tuple(Case(c.id, c.files) for c in small.cases))
    with pytest.raises(InputError, match="no case with a mask"):
        train(unmarked, tmp_path / "a")
    one = Cohort(small.source, small.cases[:2])
    with pytest.raises(InputError, match="1 patient only"):
        train(one, tmp_path / "b")
    with pytest.raises(InputError, match=r"no voxel of the labels \[9\]"):
        train(small, tmp_path / "c", labels={9: "absent"})
    empty = tmp_path / "empty.nii.gz"
    write_volume(empty, np.zeros((16, 16, 16), np.uint8), np.eye(4))
    blank = Cohort(small.source, tuple(Case(c.id, c.files, empty, c.patient) for c in small.cases))
    with pytest.raises(InputError, match="empty everywhere"):
        train(blank, tmp_path / "d")
    with pytest.raises(ConfigurationError, match="validation case '7_1'"):
        train(Cohort(small.source, small.cases[2:] + small.cases[:1]), tmp_path / "e", validation=one_case(small, 1))
    assert not any((tmp_path / name).exists() for name in "abcde")


def test_two_trainings_in_one_folder_do_not_meet(small: Cohort, tmp_path: Path) -> None:
    met = []

    def again(stage: str, done: int, total: int) -> None:
        if stage == "training" and not met:
            met.append(True)
            with pytest.raises(InputError, match="another process"):
                train(small, tmp_path, epochs=1)

    assert len(train(small, tmp_path, epochs=1, progress=again).history) == 1
    assert met


def one_case(cohort: Cohort, index: int) -> Cohort:
    return Cohort(cohort.source, cohort.cases[index : index + 1])


def test_bad_files_are_left_out_and_listed(small: Cohort, tmp_path: Path) -> None:
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    bad = Case("bad", (tmp_path / "bad.nii.gz",), small.cases[0].mask, "x")
    without = Case("without", small.cases[0].files, None, "y")
    report = train(Cohort(small.source, (*small.cases, bad, without)), tmp_path / "net", epochs=1)
    assert sorted(Path(p.path).name for p in report.problems) == ["7_0.nii.gz", "bad.nii.gz"]
    assert sorted(report.training + report.validation) == sorted(small.ids)


@pytest.mark.parametrize(
    "options",
    [
        {"network": "transformer"},
        {"epochs": 0},
        {"patch": (16, 16, 20)},
        {"patch": (16, 16, 8)},
        {"patch": (16, 16, 16), "network": "basicunet"},
        {"learning_rate": 0.0},
        {"flips": (3,)},
        {"labels": {0: "background"}},
        {"spacing_mm": (1.0, 1.0)},
        {"spacing_mm": (1.0, 0.0, 1.0)},
        {"profile": "unknown"},
        {"device": "tpu"},
    ],
)
def test_options_that_cannot_be(options: dict) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        SegmentationOptions(**options)
