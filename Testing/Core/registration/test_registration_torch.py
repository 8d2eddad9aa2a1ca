"""Alignment by torch finds what alignment by numba finds, with the same distances. Here torch runs on the CPU, and on a
GPU where there is one."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from Core.made_up import write
from replica_detection.detection.detector import DetectionOptions, detect
from replica_detection.index.build import build_index
from replica_detection.io.cohort import Cohort
from replica_detection.io.volume import Volume
from replica_detection.measures import MEASURES
from replica_detection.preparation.prepare import PreparedImage, plan
from replica_detection.preparation.profiles import PROFILES
from replica_detection.registration import optimization, optimization_torch, search_torch
from replica_detection.registration.local import Neighbourhoods
from replica_detection.registration.local_torch import structure as structure_torch
from replica_detection.registration.local_torch import upper_quartiles
from replica_detection.registration.optimization_torch import Registration, TorchTemplate
from replica_detection.registration.pyramid import Level, levels, pyramid, structure
from replica_detection.registration.retrieval import TrainingPyramids
from replica_detection.registration.retrieval_torch import TorchPyramids

DEVICES = ["torch-cpu"] + ["cuda"] * torch.cuda.is_available()
# Shape and spacing: cubes, oblong voxels (also turned as if they were cubes), a slab, images, one slice in 3D.
GEOMETRIES = {
    "cubes": ((20, 22, 18), (1.0, 1.0, 1.0)),
    "oblong": ((24, 22, 10), (1.0, 1.0, 2.5)),
    "slab": ((26, 24, 3), (1.0, 1.0, 4.0)),
    "image": ((34, 40), (1.0, 1.3)),
    "one slice": ((34, 40, 1), (1.0, 1.0, 5.0)),
    "one sagittal slice": ((1, 34, 40), (5.0, 1.0, 1.0)),
}
NAMES = ("ncc_aligned", "lncc_aligned", "dice_aligned")
TRAINING = 8


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def scan(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """A body with inner structure in an empty border."""
    rng = np.random.default_rng(seed)
    sigma = [1.6 if n > 4 else 0.3 for n in shape]
    texture = ndimage.gaussian_filter(rng.standard_normal(shape), sigma)
    body = np.zeros(shape)
    body[tuple(slice(n // 7, n - n // 7) for n in shape)] = 1
    body = ndimage.gaussian_filter(body, sigma)
    return (body / body.max() * (0.6 + 0.4 * texture / np.abs(texture).max())).astype(np.float32)


def copies(image: np.ndarray, other: np.ndarray) -> dict[str, np.ndarray]:
    """Copies of an image, a new one, and an empty one."""
    wide = sorted(sorted(range(image.ndim), key=lambda a: -image.shape[a])[:2])
    turned = ndimage.rotate(image, 8, axes=wide, reshape=False, order=1)
    lost = image.copy()
    lost[tuple(slice(0, n // 2) if a == wide[0] else slice(None) for a, n in enumerate(image.shape))] = 0
    centre = (np.array(image.shape) - 1) / 2
    scale = np.where(np.array(image.shape) > 4, 1.09, 1.0)
    return {
        "exact": image,
        "mirrored": np.flip(image, wide[0]),
        "turned": turned,
        "moved": np.roll(image, 2, wide[1]),
        "scaled": ndimage.affine_transform(image, scale, centre - scale * centre, order=1),
        "mirrored and turned": np.flip(turned, wide[1]),
        "lost a part": lost,
        "new": other,
        "empty": np.zeros_like(image),
    }


def features(measures, image: np.ndarray) -> dict[str, np.ndarray]:
    case = PreparedImage(image, (image > 0.45).astype(np.uint8))
    return {name: values for m in measures for name, values in m.features(case).items()}


class Stored:
    """Features of a cohort in memory, as an index gives them."""

    def __init__(self, rows: list[dict[str, np.ndarray]]):
        self.by_name = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        for values in self.by_name.values():
            values.flags.writeable = False

    def __len__(self) -> int:
        return TRAINING

    def features(self, positions, names):
        return {name: self.by_name[name][list(positions)] for name in names}

    def packed(self, name):
        return self.by_name[name]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_nearest_case_and_distances_are_those_of_the_cpu(geometry, device):
    shape, spacing = GEOMETRIES[geometry]
    images = [scan(seed, shape) for seed in range(TRAINING)]
    preparation = plan(PROFILES["generic"], [Volume(images[0], np.diag([*(*spacing, 1.0)[:3], 1.0]), True)])
    by_cpu, by_torch = ([MEASURES[name](preparation, d) for name in NAMES] for d in ("cpu", device))
    index = Stored([features(by_cpu, image.reshape(preparation.grid)) for image in images])
    differing, compared = [], 0
    for kind, image in copies(images[4], scan(99, shape)).items():
        query = {k: v[None] for k, v in features(by_cpu, image.reshape(preparation.grid)).items()}
        allowed = np.ones(TRAINING, bool)
        allowed[6] = False
        for a, b in zip(by_cpu, by_torch, strict=True):
            if a.name != "lncc_aligned":  # which shares the search
                placed = [m.candidates(query, index, allowed) for m in (a, b)]
            expected, found = (m.compare(query, p, index) for m, p in zip((a, b), placed, strict=True))
            assert len(expected) == len(found) and bool(found) == (kind != "empty")
            if not found:
                continue
            compared += 1
            assert 6 not in [p.training for _, p in found]
            if kind == "exact":
                assert (found[0][0], found[0][1].training) == (0, 4)
            by_case = {p.training: distance for distance, p in expected}
            differences = [abs(by_case[p.training] - d) for d, p in found if p.training in by_case]
            same = found[0][1].training == expected[0][1].training and abs(found[0][0] - expected[0][0]) < 1e-3
            if not same or max(differences) > 1e-3 or len(differences) < len(found) - 1:
                differing.append((kind, a.name, found[0][:1], expected[0][:1], max(differences)))
    assert not differing, f"{len(differing)} of {compared}: {differing}"


@pytest.mark.parametrize("device", DEVICES)
def test_the_pipeline_gives_the_same_verdicts(tmp_path, device):
    shape = (20, 22, 18)
    for part, seeds in (("training", range(10)), ("unseen", range(100, 110)), ("synthetic", range(200, 203))):
        for seed in seeds:
            write(tmp_path / part / f"{part}_{seed}.nii.gz", scan(seed, shape))
    for kind, image in copies(scan(5, shape), scan(300, shape)).items():
        if kind != "empty":
            write(tmp_path / "synthetic" / f"{kind.replace(' ', '_')}.nii.gz", np.ascontiguousarray(image))
    measures = ("mae", "rmse", "ssim", "ncc_aligned", "lncc_aligned")
    index = build_index(Cohort.read(tmp_path / "training"), tmp_path / "t.rdindex", measures=measures)
    unseen, synthetic = Cohort.read(tmp_path / "unseen"), Cohort.read(tmp_path / "synthetic")
    by_cpu, by_torch = (
        detect(synthetic, index, validation=unseen, options=DetectionOptions(device=d)) for d in ("cpu", device)
    )
    for a, b in zip(by_cpu.summary, by_torch.summary, strict=True):
        assert (a.synthetic_id, a.verdict, a.nearest_training_id) == (b.synthetic_id, b.verdict, b.nearest_training_id)
    for a, b in zip(by_cpu.matches, by_torch.matches, strict=True):
        assert (a.synthetic_id, a.measure, a.nearest_training_id) == (b.synthetic_id, b.measure, b.nearest_training_id)
        assert a.distance == pytest.approx(b.distance, abs=1e-3)
    assert {c.verdict for c in by_torch.summary} >= {"replica", "novel"}


@pytest.fixture(scope="module")
def both() -> tuple[TrainingPyramids, TorchPyramids, tuple[np.ndarray, ...]]:
    """A cohort for numba and for torch, and a query."""
    shape = (20, 22, 18)
    chain = levels(shape, (1.0, 1.0, 2.0))
    coarse, middle, fine = (
        np.stack(part) for part in zip(*(pyramid(scan(s, shape), chain) for s in range(9)), strict=True)
    )
    coarse[3] = middle[3] = fine[3] = 0
    coarse.flags.writeable = middle.flags.writeable = False
    arguments = chain, coarse, middle, lambda positions: fine[list(positions)]
    query = pyramid(np.roll(np.flip(scan(5, shape), 1), 2, 0), chain)
    return TrainingPyramids(*arguments), TorchPyramids(*arguments, device="cpu"), query


def test_shifts_are_those_of_the_cpu_for_any_batch(both, monkeypatch):
    plain, torched, query = both
    positions = np.array([7, 0, 5, 8])
    score, shift = plain._shifts(query[0], positions)
    found = torched._shifts(query[0], positions)
    np.testing.assert_allclose(found[0], score, atol=1e-5)
    np.testing.assert_array_equal(found[1], shift)
    # In batches of one case, and with nothing kept on the device.
    monkeypatch.setattr(search_torch, "BATCH_BYTES", 1)
    monkeypatch.setattr(search_torch.TorchShiftSearch, "_kept", None)
    again = torched._shifts(query[0], positions)
    np.testing.assert_allclose(again[0], score, atol=1e-5)
    np.testing.assert_array_equal(again[1], shift)


def test_correlations_in_place_are_those_of_the_cpu(both):
    plain, torched, query = both
    positions = np.array([1, 3, 5])
    np.testing.assert_allclose(torched._in_place(query[1], positions), plain._in_place(query[1], positions), atol=1e-5)
    assert not torched._in_place(np.zeros_like(query[1]), positions).any()
    cases = plain.fine([1, 3, 5])
    np.testing.assert_allclose(torched._before(query[2], cases), plain._before(query[2], cases), atol=1e-12)
    assert torched._before(query[2], cases)[1] == 0
    assert not torched._before(np.zeros_like(query[2]), cases).any()


def test_structure_is_that_of_the_cpu(both):
    for image in both[2]:
        assert (structure_torch(torch.tensor(image)).numpy() != structure(image)).sum() <= 1
    assert not structure_torch(torch.zeros(4, 5, 6)).any()


@pytest.mark.parametrize("shape", [(20, 22, 18), (24, 26, 1), (1, 24, 26)], ids=str)
def test_starts_are_improved_as_on_the_cpu_in_batches_of_any_size(shape, monkeypatch):
    """Far starts as well: some stop at once, some at a limit, some leave the field of view."""
    rng = np.random.default_rng(0)
    level = Level(shape, (1.0, 1.2, 2.0))
    images = np.stack([pyramid(scan(s, shape), (level,))[0] for s in range(3)])
    starts = 30
    which, flips = rng.integers(0, 3, starts), np.ones((starts, 3))
    flips[::3, 1] = -1
    matrices, shifts = flips[:, :, None] * np.eye(3), rng.normal(0, 3, (starts, 3)) * (np.array(shape) > 1)
    shifts[-1] = 500.0
    limits = optimization.Limits(degrees=15, scale=1.1)
    template = optimization.template(images[1], level)
    expected = matrices.copy(), shifts.copy()
    merits = optimization.register(template, images, *expected, which, flips, iterations=12, limits=limits)
    assert merits[-1].tolist() == [-1, 0] and np.ptp(merits[:-1, 0]) > 0.2
    others = images[2], np.zeros(shape, np.float32), images[1]
    row = 64 * len(template.value) + 8 * images[0].size
    for batch in (optimization_torch.BATCH_BYTES, 40 * row, 7 * row):
        monkeypatch.setattr(optimization_torch, "BATCH_BYTES", batch)
        # Beside other queries: one with fewer starts, and one without structure.
        asked = [
            Registration(
                TorchTemplate(image, level, "cpu"), lambda rows: torch.tensor(images[rows]), matrices[:few].copy(),
                shifts[:few].copy(), which[:few], flips[:few], np.ones((few, 3)),
            )
            for image, few in zip(others, (11, 5, starts), strict=True)
        ]  # fmt: skip
        registered = optimization_torch.register(asked, iterations=12, limits=limits)
        assert [len(one) for one in registered] == [11, 5, starts] and not registered[1].any()
        np.testing.assert_allclose(registered[2], merits, atol=1e-3)
        np.testing.assert_allclose(asked[2].matrices, expected[0], atol=5e-3)
        # Nearly all stop at the same step.
        assert np.quantile(np.abs(asked[2].matrices - expected[0]).max((1, 2)), 0.9) < 1e-6
        np.testing.assert_allclose(asked[2].shifts, expected[1], atol=0.05)
        few = matrices[:11].copy(), shifts[:11].copy()
        of_other = optimization.register(
            optimization.template(images[2], level), images, *few, which[:11], flips[:11], iterations=12, limits=limits
        )
        np.testing.assert_allclose(registered[0], of_other, atol=1e-3)
        assert np.abs(asked[0].matrices - few[0]).max() < 1e-6


def test_a_query_with_nothing_in_common_has_no_local_correlation(both):
    plain, _, query = both
    training, far = plain.fine([5]), np.array([[0.0, 0, 0], [900, 0, 0]])
    matrices = np.tile(np.diag([1.0, -1, 1]), (2, 1, 1))
    found = upper_quartiles(query[2], training, np.array([0, 0]), matrices, far, plain.chain[2], "cpu")
    local = Neighbourhoods(query[2]).correlation(training[0][:, ::-1])
    assert found[0] == pytest.approx(np.quantile(local, 0.75), abs=1e-4)
    assert found[1] == -1
