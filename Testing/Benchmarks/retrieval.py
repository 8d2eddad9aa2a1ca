"""Retrieval for alignment at scale: are planted copies among the proposed cases, and what does a query cost.

1. Recall. TOF-MRA phantoms of 5,000 patients at a small grid, and changed copies of some. The recall of a kind of
   change is the share of the copies whose source is proposed, of those that the search among all cases finds. The first
   copy of each kind is searched both ways. Of the others, only those whose source is not proposed are searched among
   all: a source that is proposed meets fewer competitors there.
2. Cost. CPU time of a query at 5,000 and at 100,000 training cases (smooth random images), one thread. It needs 4.1 GB
   of disk for a while.
3. The other constants of docs/scale.md: CPU time of one thread and bytes for a case, at a grid of 96 x 96 x 64.

The phantoms are made once (about 15 minutes of CPU) and kept in `CACHE`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from replica_detection.embedding import Embedders
from replica_detection.embedding.invariants import Invariants, moments
from replica_detection.index.similar import SimilarCases
from replica_detection.kernels import mae, rmse, ssim
from replica_detection.measures import features_of, make_measures
from replica_detection.phantom import tof_mra
from replica_detection.phantom.base import Grid
from replica_detection.preparation.prepare import PreparedImage
from replica_detection.preparation.profiles import Intensity, Native, Preparation
from replica_detection.registration import EXHAUSTIVE, SIMILAR
from replica_detection.registration.local import Neighbourhoods, resample_level
from replica_detection.registration.pyramid import levels, pyramid
from replica_detection.registration.retrieval import TrainingPyramids
from replica_detection.util.cores import one_core

CACHE = Path(tempfile.gettempdir()) / "replica_detection_retrieval"
CASES, COPIES, FITTED, VECTOR = 5_000, 20, 125, 920
GRID = (96, 96, 64)
# Copies of each kind that are searched both ways.
SEARCHED = 1
# Recall of the planted copies, in all and of the worst kind; cost of a query at LARGE cases against one at CASES.
LEAST, LEAST_OF_A_KIND, LARGE, MOST_COST = 0.995, 0.98, 100_000, 3.0
# Voxels of a phantom, over the field of view of the full grid.
SHAPE, SPACING = (40, 48, 34), (3.4, 3.5, 1.65)
CHAIN = levels(SHAPE, SPACING)


def scan_of(seed: int) -> np.ndarray:
    """The phantom of a patient, (X, Y, Z) float32 from 0 to 1."""
    found = tof_mra._random_grid
    tof_mra._random_grid = _small(found)
    try:
        image = tof_mra.make_tof_mra(seed).image
    finally:
        tof_mra._random_grid = found
    low, high = np.percentile(image, (1, 99))
    return np.clip((image - low) / (high - low), 0, 1).astype(np.float32)


def _small(grid_of: Callable[[np.random.Generator], Grid]) -> Callable[[np.random.Generator], Grid]:
    def small(rng: np.random.Generator) -> Grid:
        grid = grid_of(rng)
        spacing = np.array(grid.shape) * grid.spacing_mm / SHAPE
        x, y, z = (np.array(grid.origin_mm) + (spacing - grid.spacing_mm) / 2).tolist()
        a, b, c = spacing.tolist()
        return Grid(SHAPE, (a, b, c), (x, y, z))

    return small


def described(image: np.ndarray) -> dict[str, np.ndarray]:
    """The coarse and middle level of an image, and what the embedding is computed from."""
    coarse, middle, _ = pyramid(image, CHAIN)
    return {"coarse": coarse, "middle": middle, "embedding": moments(image, SPACING)}


def make_part(part: int = 0, parts: int = 1) -> None:
    """Writes every `parts`-th portion of 100 phantoms to `CACHE`, where it is not there."""
    CACHE.mkdir(exist_ok=True)
    for start in range(100 * part, CASES, 100 * parts):
        path = CACHE / f"{start:06d}.npz"
        if path.is_file():
            continue
        rows = [described(scan_of(seed)) for seed in range(start, start + 100)]
        unfinished = path.with_suffix(".part")
        with unfinished.open("wb") as f:
            np.savez(f, **{name: np.stack([row[name] for row in rows]) for name in rows[0]})
        unfinished.replace(path)


Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _noise(sigma: float) -> Change:
    return lambda image, rng: image + rng.normal(0, sigma, image.shape)


def _flip(axis: int) -> Change:
    return lambda image, rng: np.flip(image, axis)


def _rotation(degrees: float) -> Change:
    """About all three axes, in voxels, as `scipy.ndimage.rotate` does."""

    def change(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for axes in ((0, 1), (0, 2), (1, 2)):
            angle = rng.choice([-1, 1]) * rng.uniform(0.7, 1.0) * degrees
            image = ndimage.rotate(image, angle, axes, reshape=False, order=1, mode="nearest")
        return image

    return change


def _shift(share: float) -> Change:
    """By this share of each side."""
    return lambda image, rng: ndimage.shift(
        image, rng.choice([-1, 1], 3) * np.array(image.shape) * share, order=1, mode="nearest"
    )


def _zoom(factor: float) -> Change:
    def change(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        centre = (np.array(image.shape) - 1) / 2
        return ndimage.affine_transform(image, np.eye(3) / factor, centre - centre / factor, order=1, mode="nearest")

    return change


def _elastic(share: float) -> Change:
    """A smooth warp of at most this share of the mean side."""

    def change(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        grid = np.indices(image.shape).astype(float)
        for axis in range(3):
            field = ndimage.gaussian_filter(rng.standard_normal(image.shape), 5)
            grid[axis] += field / np.abs(field).max() * share * float(np.mean(image.shape))
        return ndimage.map_coordinates(image, grid, order=1, mode="nearest")

    return change


def _lost(share: float) -> Change:
    """A block in one corner, lost to the background."""

    def change(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        image = image.copy()
        sides = [round(n * share ** (1 / 3)) for n in image.shape]
        starts = [0 if rng.random() < 0.5 else n - side for n, side in zip(image.shape, sides, strict=True)]
        image[tuple(slice(a, a + side) for a, side in zip(starts, sides, strict=True))] = 0
        return image

    return change


def _bias(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    field = ndimage.gaussian_filter(rng.standard_normal(image.shape), 10)
    return image * np.exp(0.5 * field / np.abs(field).max())


def _several(*changes: Change) -> Change:
    def change(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for one in changes:
            image = one(image, rng)
        return image

    return change


KINDS: dict[str, Change] = {
    "exact": lambda image, rng: image,
    "rescaled": lambda image, rng: 0.6 * image + 0.25,
    "gamma": lambda image, rng: np.clip(image, 0, None) ** rng.choice([0.6, 1.6]),
    "bias field": _bias,
    "noise 0.05": _noise(0.05),
    "noise 0.15": _noise(0.15),
    "blur": lambda image, rng: ndimage.gaussian_filter(image, 0.7),
    "strong blur": lambda image, rng: ndimage.gaussian_filter(image, 1.4),
    "mirrored, first axis": _flip(0),
    "mirrored, second axis": _flip(1),
    "mirrored, third axis": _flip(2),
    "rotated 5 degrees": _rotation(5),
    "rotated 12 degrees": _rotation(12),
    "rotated 20 degrees": _rotation(20),
    "shifted 5 %": _shift(0.05),
    "shifted 12 %": _shift(0.12),
    "scaled 110 %": _zoom(1.1),
    "scaled 90 %": _zoom(0.9),
    "elastic 4 %": _elastic(0.04),
    "elastic 8 %": _elastic(0.08),
    "a quarter lost": _lost(0.25),
    "rotated, mirrored, noise": _several(_rotation(8), _flip(0), _noise(0.05)),
    "shifted, rotated": _several(_shift(0.08), _rotation(10)),
    "a quarter lost, rotated": _several(_lost(0.25), _rotation(5)),
}


@dataclass(frozen=True)
class _Cohort:
    pyramids: TrainingPyramids
    similar: SimilarCases


def _cohort() -> _Cohort:
    make_part()
    parts = [np.load(CACHE / f"{start:06d}.npz") for start in range(0, CASES, 100)]
    coarse, middle, embedding = (np.concatenate([p[name] for p in parts]) for name in ("coarse", "middle", "embedding"))
    state = CACHE / "embedder.safetensors"
    if not state.is_file():
        seeds = range(0, CASES, CASES // FITTED)
        state.write_bytes(Invariants().fit(((str(s), scan_of(s)) for s in seeds), SPACING).state or b"")
    embedder = Invariants.restore({}, state.read_bytes(), CACHE)
    similar = SimilarCases(CACHE / "similar.faiss", CASES, embedder, lambda: [embedding])
    fine = np.zeros((1, *CHAIN[2].shape), np.float32)
    return _Cohort(TrainingPyramids(CHAIN, coarse, middle, lambda positions: fine[[0] * len(positions)]), similar)


def _copies() -> Iterator[tuple[str, int, np.ndarray]]:
    """(kind, source, image); all kinds of the same sources."""
    for source in np.linspace(0, CASES - 1, COPIES).round().astype(int).tolist():
        image = scan_of(source)
        for number, (kind, change) in enumerate(KINDS.items()):
            copy = np.asarray(change(image, np.random.default_rng([source, number])), np.float32)
            low, high = np.percentile(copy, (1, 99))
            yield kind, source, np.clip((copy - low) / (high - low), 0, 1).astype(np.float32)


def _named(cohort: _Cohort, query: list[np.ndarray], similar: np.ndarray | None) -> list[int]:
    return [p.training for p in cohort.pyramids.candidates(query, np.ones(CASES, bool), similar=similar)]


def _recall(table: Table) -> bool:
    """Adds a row for each kind of change; True where the recall is as high as it must be."""
    cohort, everything = _cohort(), np.ones(CASES, bool)
    proposed: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    ranks: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for kind, source, image in _copies():
        query = pyramid(image, CHAIN)
        nearest = cohort.similar.nearest(moments(image, SPACING), everything, CASES)
        ranks[kind].append(int(np.flatnonzero(nearest == source)[0]))
        in_place = cohort.pyramids._proposed_in_place(query, np.arange(CASES))
        found = ranks[kind][-1] < SIMILAR or source in in_place
        searched = len(ranks[kind]) <= SEARCHED
        if searched:
            found = source in _named(cohort, query, nearest[:SIMILAR])
        # A copy that no search finds does not count.
        if (found and not searched) or source in _named(cohort, query, None):
            proposed[kind].append(found)
    for kind, found in proposed.items():
        worst = f"{np.mean(found):.3f} of {len(found)}", f"{np.median(ranks[kind]):.0f}, {max(ranks[kind])}"
        table.add_row(kind, *worst)
    total = float(np.mean([found for kind in proposed.values() for found in kind]))
    table.add_row("all", f"{total:.4f}", "")
    return total >= LEAST and min(float(np.mean(found)) for found in proposed.values() if found) >= LEAST_OF_A_KIND


def _simulated(folder: Path, count: int) -> _Cohort:
    """Smooth random images, mapped from files as an index maps them, and random vectors."""
    rng = np.random.default_rng(count)
    levels_of_cases = []
    for level in CHAIN[:2]:
        path = folder / f"{level.shape[0]}.npy"
        array = np.lib.format.open_memmap(path, "w+", np.float32, (count, *level.shape))
        for start in range(0, count, 1000):
            part = rng.standard_normal((min(1000, count - start), *level.shape), np.float32)
            array[start : start + 1000] = 4 * ndimage.gaussian_filter(part, (0, 1, 1, 1))
        del array
        levels_of_cases.append(np.asarray(np.load(path, mmap_mode="r")))

    def described() -> Iterator[np.ndarray]:
        for start in range(0, count, 1000):
            yield rng.standard_normal((min(1000, count - start), VECTOR), np.float32)

    fine = np.zeros((1, *CHAIN[2].shape), np.float32)
    pyramids = TrainingPyramids(CHAIN, *levels_of_cases, lambda positions: fine[[0] * len(positions)])
    return _Cohort(pyramids, SimilarCases(folder / "similar.faiss", count, _AsTheyAre(), described))


class _AsTheyAre(Invariants):
    """Vectors that stay what they are."""

    def project(self, described: np.ndarray) -> np.ndarray:
        return described


def _seconds(cohort: _Cohort, count: int, query: list[np.ndarray], similar: bool) -> list[float]:
    """CPU seconds of three queries by the parts: embedding, candidates; the least of each part."""
    allowed = np.ones(count, bool)
    described = np.random.default_rng(1).standard_normal(VECTOR).astype(np.float32)
    spent = []
    for _ in range(4):
        start = time.process_time()
        nearest = cohort.similar.nearest(described, allowed, SIMILAR) if similar else None
        middle = time.process_time()
        cohort.pyramids.candidates(query, allowed, similar=nearest)
        spent.append((middle - start, time.process_time() - middle))
    return np.min(spent[1:], 0).tolist()


def _cost(table: Table) -> bool:
    query = pyramid(scan_of(0), CHAIN)
    total = {}
    for count, similar in ((EXHAUSTIVE, False), (EXHAUSTIVE, True), (LARGE, True)):
        with tempfile.TemporaryDirectory() as name:
            parts = _seconds(_simulated(Path(name), count), count, query, similar)
        total[count, similar] = sum(parts)
        how = "proposed" if similar else "all searched"
        table.add_row(f"{count:,} cases, {how}", f"{sum(parts):.3f}", f"{parts[0]:.3f}")
    ratio = total[LARGE, True] / total[EXHAUSTIVE, True]
    table.add_row(f"{LARGE:,} against {EXHAUSTIVE:,} cases", f"{ratio:.2f}", f"at most {MOST_COST:g}")
    return ratio <= MOST_COST


def _constants(table: Table) -> None:
    rng = np.random.default_rng(0)
    x, y, z = GRID
    preparation = Preparation(
        "generic", 3, (2, 2, 2), (x, y, z), Intensity((0, 1)), Native(GRID, (2, 2, 2), GRID, "RAS")
    )
    images = [ndimage.gaussian_filter(rng.random(GRID, np.float32), 2) for _ in range(8)]
    embedder = Invariants.restore({}, (CACHE / "embedder.safetensors").read_bytes(), CACHE)
    for names in (("ncc_aligned",), ("embedding_cosine",)):
        measures = make_measures(names, preparation, embedders=Embedders(embedder))
        cases = [PreparedImage(image, None) for image in images[:3]]
        seconds = _least(lambda cases=cases, measures=measures: features_of(cases[0], measures))
        size = sum(array.nbytes for array in features_of(cases[0], measures).values())
        table.add_row(f"features of a case, {names[0]}", f"{1000 * seconds:.1f}", f"{size:,}")
    table.add_row("the image itself", "", f"{images[0].nbytes:,}")
    packed = sum(4 * int(np.prod(level.shape)) for level in CHAIN[:2]) + 4 * VECTOR
    table.add_row("packed levels and vector", "", f"{packed:,}")
    block = np.stack(images)
    for kernel in (mae, rmse, ssim):
        seconds = _least(lambda kernel=kernel: kernel(block, block)) / len(block) ** 2
        table.add_row(f"a pair, {kernel.__name__}", f"{1000 * seconds:.3f}", "")
    query, training = pyramid(images[0], CHAIN)[2], np.stack([pyramid(image, CHAIN)[2] for image in images])
    placements = [(_turned(n), np.full(3, 2.0)) for n in range(len(images))]
    near = Neighbourhoods(query)
    seconds = _least(
        lambda: [near.correlation(resample_level(t, *p, CHAIN[2])) for t, p in zip(training, placements, strict=True)]
    )
    table.add_row("lncc_aligned, 10 candidates", f"{1000 * seconds / len(images) * 20:.0f}", "")


def _turned(number: int) -> np.ndarray:
    angle = np.deg2rad(2 + number)
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])


def _least(call: Callable[[], Any]) -> float:
    """The least CPU seconds of three calls, after one that does not count."""
    seconds = []
    for _ in range(4):
        start = time.process_time()
        call()
        seconds.append(time.process_time() - start)
    return min(seconds[1:])


def report() -> bool:
    """Prints recall and cost; False where a copy of some kind is lost too often, or the cost is not flat."""
    recall = Table("planted copy", "recall", f"rank of the source by embedding: median, largest (of {CASES:,})")
    cost = Table("a query", "CPU seconds", "of these the embedding")
    constants = Table("constant", "CPU milliseconds", "bytes")
    with one_core():
        right = _recall(recall) & _cost(cost)
        _constants(constants)
    for table in (recall, cost, constants):
        Console(width=120).print(table)
    return right
