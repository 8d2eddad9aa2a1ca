"""The GPU against the CPU (equal results), against MONAI and the bandwidth of the card, and against all cores.

`python Testing/Benchmarks gpu` needs an NVIDIA card and takes a few minutes; every part has a share of them and stops
there. Without a card, `--device torch-cpu` runs the same code on the CPU and only checks that the results are equal.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage
from timing import Row, grid_name, in_milliseconds

from replica_detection.kernels import mae, rmse, ssim, torch_device

TAKES_DEVICE = True
# Seconds after which no further part begins.
LIMIT = 300
GRIDS = ((96, 96, 64), (33, 47, 21), (128, 128))
TIMED_GRID, TIMED_QUERIES, TIMED_TRAINING = (136, 168, 56), 48, 128


def report(device: str) -> bool:
    """Prints whether results are equal on a device and the CPU; false if they are not."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        print("gpu: torch sees no CUDA device here, so nothing was compared; `gpu --device torch-cpu` checks the code.")
        return True
    start = time.perf_counter()
    on_card = device != "torch-cpu"
    name = torch.cuda.get_device_name(device) if on_card else "the CPU, by the code of a GPU"
    print(f"gpu: {name}, torch {torch.__version__}")
    right = True
    for grid in GRIDS if on_card else GRIDS[1:]:
        right &= _equal_kernels(device, grid)
    if on_card:
        right &= _timed(device)
    if time.perf_counter() - start < LIMIT:
        right &= _equal_runs(device, on_card)
    else:
        print("  whole runs: left out, the time is up")
    print(f"  {time.perf_counter() - start:.0f} s in all")
    return right


def _equal_kernels(device: str, grid: tuple[int, ...]) -> bool:
    rng = np.random.default_rng(0)
    training = rng.random((9, *grid), np.float32)
    queries = np.concatenate([rng.random((4, *grid), np.float32), training[:1], training[1:2] + np.float32(1e-4)])
    right = True
    for measure, copy in ((mae, 0.0), (rmse, 0.0), (ssim, 1.0)):
        found, expected = measure(queries, training, device=device), measure(queries, training)
        difference = float(np.abs(found - expected).max())
        exact = found[4, 0] == copy
        right &= exact and difference < 1e-6
        said = "exact" if exact else "NOT EXACT"
        print(
            f"  {measure.__name__:4} {grid_name(grid):13} largest difference {difference:.1e}, an exact copy is {said}"
        )
    return right


def _timed(device: str) -> bool:
    """The table of the kernels; all arrays are on the card, ours since the first call."""
    import torch

    rng = np.random.default_rng(0)
    queries = rng.random((TIMED_QUERIES, *TIMED_GRID), np.float32)
    training = rng.random((TIMED_TRAINING, *TIMED_GRID), np.float32)
    training.flags.writeable = queries.flags.writeable = False
    there = [torch.tensor(block, device=torch_device(device)) for block in (training, queries)]
    pairs = TIMED_QUERIES * TIMED_TRAINING
    once = _seconds(lambda: mae(queries, training, device=device), device, 1, warm=False)
    print(f"  first call of mae, from host memory: {in_milliseconds(once / pairs)} a pair")
    rows = list(_rows(device, queries, training, *there))
    for row in rows:
        print(
            f"  {row.what:5} {row.data}: {row.ours}; {row.against}: {row.reference}; {row.ratio:.3g}x "
            f"(at least {row.budget:.3g}x), largest difference {row.difference:.1e}"
        )
    return all(row.equal for row in rows)


def _rows(device: str, queries: np.ndarray, training: np.ndarray, y: Any, x: Any) -> Iterator[Row]:
    import torch
    from monai.metrics import SSIMMetric

    pairs = len(queries) * len(training)

    def row(what: str, against: str, ours: Callable, one: Callable[[int], Any], count: int, budget: float) -> Row:
        """`one` returns the reference's values of `count` pairs of a query."""
        mine = _seconds(lambda: ours(queries, training, device=device), device, 3) / pairs
        theirs = _seconds(lambda: one(0), device, 3) / count
        found, expected = ours(queries[:2], training, device=device)[:, :count], [one(q) for q in range(2)]
        difference = max(
            float(np.abs(f - np.ravel(e.double().cpu())).max()) for f, e in zip(found, expected, strict=True)
        )
        data = f"{len(queries)} x {len(training)} of {grid_name(TIMED_GRID)}"
        mine_said, theirs_said = in_milliseconds(mine) + " a pair", in_milliseconds(theirs) + " a pair"
        return Row(what, against, data, mine_said, theirs_said, theirs / mine, budget, difference, tolerance=1e-4)

    with torch.inference_mode():
        for ours, of in ((mae, lambda d: d.abs()), (rmse, lambda d: d.square())):
            root = (lambda v: v.sqrt()) if ours is rmse else (lambda v: v)
            yield row(
                ours.__name__, "one batched pass over resident data", ours,
                lambda q, of=of, root=root: root(of(y - x[q]).mean((1, 2, 3))), len(training), 1 / 1.5,
            )  # fmt: skip
        metric = SSIMMetric(3, data_range=1.0, win_size=11)
        yield row(
            "ssim", "MONAI SSIMMetric, resident", ssim,
            lambda q: torch.cat([metric(x[q][None, None], y[n][None, None]).flatten() for n in range(8)]), 8, 100,
        )  # fmt: skip


def _seconds(call: Callable[[], Any], device: str, repeats: int, warm: bool = True) -> float:
    import torch

    if warm:
        call()
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / repeats


def _equal_runs(device: str, on_card: bool) -> bool:
    """`detect` with alignment on the device and on all cores: the same verdicts and nearest cases, and both times."""
    from replica_detection.detection.detector import detect
    from replica_detection.detection.options import DetectionOptions
    from replica_detection.index.build import build_index
    from replica_detection.io.cohort import Cohort

    shape, training, new = ((72, 80, 64), 120, 20) if on_card else ((20, 22, 18), 10, 2)
    images = [_scan(seed, shape) for seed in range(training)]
    synthetic = [copy for n in range(4 if on_card else 1) for copy in _copies(images[3 * n])]
    synthetic += [_scan(10_000 + n, shape) for n in range(new)]
    unseen = [_scan(20_000 + n, shape) for n in range(training // 3 if on_card else 8)]
    spacing = (1.0, 1.0, 1.0)
    results, seconds = [], []
    measures = None if on_card else ("mae", "ssim", "ncc_aligned", "lncc_aligned")
    with tempfile.TemporaryDirectory() as folder:
        made = Cohort.from_arrays(images, spacing=spacing)
        index = build_index(made, Path(folder) / "t.rdindex", measures=measures)
        for used in ("cpu", device):
            start = time.perf_counter()
            cohorts = Cohort.from_arrays(synthetic, spacing=spacing), Cohort.from_arrays(unseen, spacing=spacing)
            results.append(detect(cohorts[0], index, validation=cohorts[1], options=DetectionOptions(device=used)))
            seconds.append(time.perf_counter() - start)
    a, b = results
    same = [x.verdict == y.verdict for x, y in zip(a.summary, b.summary, strict=True)]
    nearest = [x.nearest_training_id == y.nearest_training_id for x, y in zip(a.matches, b.matches, strict=True)]
    difference = max(abs(x.distance - y.distance) for x, y in zip(a.matches, b.matches, strict=True))
    print(
        f"  detect, {len(synthetic)} cases against {training} of {grid_name(shape)}: {np.mean(same):.1%} of verdicts "
        f"and {np.mean(nearest):.1%} of nearest cases are the same, largest difference {difference:.1e}"
    )
    if on_card:
        print(f"  all cores {seconds[0]:.1f} s, GPU {seconds[1]:.1f} s: {seconds[0] / seconds[1]:.2g}x (at least 5x)")
    return min(np.mean(same), np.mean(nearest)) >= 0.995 and difference < 1e-3


def _scan(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """A body with inner structure in an empty border."""
    rng = np.random.default_rng(seed)
    fine, coarse = (ndimage.gaussian_filter(rng.standard_normal(shape), s) for s in (1.6, 5))
    body = np.zeros(shape)
    body[tuple(slice(n // 7, n - n // 7) for n in shape)] = 1
    texture = 0.6 + 0.3 * fine / np.abs(fine).max() + 0.3 * coarse / np.abs(coarse).max()
    return (ndimage.gaussian_filter(body, 1.5) * texture).astype(np.float32)


def _copies(image: np.ndarray) -> list[np.ndarray]:
    """Exact, mirrored, turned, moved, and with a half lost."""
    turned = ndimage.rotate(image, 9, axes=(0, 1), reshape=False, order=1)
    lost = image.copy()
    lost[: len(image) // 2] = 0
    return [image, np.ascontiguousarray(image[::-1]), turned, np.roll(image, 2, 1), lost]
