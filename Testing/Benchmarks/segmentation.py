"""All-pairs Dice, clDice and surface distances against NumPy, MONAI and DeepMind, pair by pair on the same masks.

What is made once per case counts as ours: packed bits, surfaces, distance maps. Only skeletons are given to both
sides, because the index stores them. `python Testing/Benchmarks/segmentation.py FOLDER` times all pairs of the masks
in a folder of NIfTI files on one grid.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter
from timing import Row, grid_name, in_milliseconds, interleaved

from replica_detection.kernels import overlap, surface

CASES, GRID, SPACING = 100, (64, 64, 64), (0.8, 0.8, 1.5)


def measure() -> Iterator[Row]:
    import torch

    threads = torch.get_num_threads()
    # MONAI's masks are small: several threads would only wait for each other.
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield from _rows()
    finally:
        torch.set_num_threads(threads)


def main() -> int:
    """Prints the seconds that all pairs of a folder's masks take."""
    import nibabel as nib

    files = sorted(Path(sys.argv[1]).glob("*.nii*"))
    masks = np.stack([np.asarray(nib.load(file).dataobj) > 0 for file in files]).astype(np.uint8)
    print(f"{len(masks)} x {len(masks)} masks of {grid_name(masks.shape[1:])}, as two blocks")
    mm = (1.0,) * (masks.ndim - 1)
    for name, compare in (
        ("dice", overlap.dice),
        ("asd", lambda q, n: surface.asd(q, n, mm)),
        ("asd_surfel", lambda q, n: surface.asd_surfel(q, n, mm)),
        ("hd95", lambda q, n: surface.hd95(q, n, mm)),
    ):
        compare(masks[:2], masks[:2].copy())
        training = masks.copy()
        start = time.perf_counter()
        compare(masks, training)
        print(f"  {name:10s} {time.perf_counter() - start:7.2f} s")
    return 0


def _rows() -> Iterator[Row]:
    rng = np.random.default_rng(0)
    a, b = _cohort(rng), _cohort(rng)
    thin_a, thin_b = np.stack([overlap.skeleton(m) for m in a]), np.stack([overlap.skeleton(m) for m in b])
    yield _row(
        "dice", "numpy", 100, (40, 15),
        lambda: overlap.dice(a, b),
        lambda q, n: _numpy_dice(a[q], b[n]),
    )  # fmt: skip
    yield _row(
        "cldice, skeletons given", "numpy", 50, (40, 15),
        lambda: overlap.cldice(*map(overlap.pack, (a, thin_a, b, thin_b))),
        lambda q, n: _numpy_cldice(a[q], thin_a[q], b[n], thin_b[n]),
    )  # fmt: skip
    yield _row(
        "asd", "MONAI", 100, (8, 5),
        lambda: surface.asd(a, b, SPACING),
        lambda q, n: _monai_asd(a[q], b[n]),
    )  # fmt: skip
    yield _row(
        "hd95", "MONAI", 50, (8, 5),
        lambda: surface.hd95(a, b, SPACING),
        lambda q, n: _monai_hd95(a[q], b[n]),
        5e-5,  # MONAI interpolates in float32
    )  # fmt: skip
    yield _row(
        "asd_surfel", "DeepMind", 100, (4, 5),
        lambda: surface.asd_surfel(a, b, SPACING),
        lambda q, n: _deepmind_asd(a[q], b[n]),
    )  # fmt: skip


def _row(
    what: str,
    against: str,
    budget: float,
    times: tuple[int, int],
    ours: Callable[[], np.ndarray],
    theirs: Callable[[int, int], float],
    tolerance: float = 1e-5,
) -> Row:
    def one_pair(k: int) -> float:
        return theirs(k % CASES, (k * 7 + k // CASES) % CASES)

    all_pairs, pair = interleaved(ours, one_pair, *times)
    values = ours()
    some = ((0, 0), (3, 1), (CASES // 2, CASES // 3), (CASES - 1, CASES - 1))
    return Row(
        what,
        f"{against}, pair by pair",
        f"{CASES} x {CASES} of {grid_name(GRID)}",
        in_milliseconds(all_pairs / CASES**2) + " a pair",
        in_milliseconds(pair) + " a pair",
        pair * CASES**2 / all_pairs,
        budget,
        max(abs(theirs(q, n) - float(values[q, n])) for q, n in some),
        tolerance,
    )


def _cohort(rng: np.random.Generator) -> np.ndarray:
    """Smooth shapes of several parts: a twentieth of each volume, about 3,000 edge voxels."""
    fields = (gaussian_filter(rng.standard_normal(GRID), 4) for _ in range(CASES))
    return np.stack([field > np.quantile(field, 0.95) for field in fields]).astype(np.uint8)


def _numpy_dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.logical_and(a, b).sum() / (a.sum() + b.sum())


def _numpy_cldice(a: np.ndarray, thin_a: np.ndarray, b: np.ndarray, thin_b: np.ndarray) -> float:
    precision = np.logical_and(thin_a, b).sum() / thin_a.sum()
    sensitivity = np.logical_and(thin_b, a).sum() / thin_b.sum()
    total = precision + sensitivity
    return 2 * precision * sensitivity / total if total else 0.0


def _monai_asd(a: np.ndarray, b: np.ndarray) -> float:
    from monai.metrics import compute_average_surface_distance

    return compute_average_surface_distance(*_batch(a, b), True, symmetric=True, spacing=SPACING).item()


def _monai_hd95(a: np.ndarray, b: np.ndarray) -> float:
    from monai.metrics import compute_hausdorff_distance

    return compute_hausdorff_distance(*_batch(a, b), True, percentile=95, spacing=SPACING).item()


def _batch(*masks: np.ndarray) -> list:
    import torch

    return [torch.from_numpy(mask)[None, None] for mask in masks]


def _deepmind_asd(a: np.ndarray, b: np.ndarray) -> float:
    import surface_distance

    distances = surface_distance.compute_surface_distances(a > 0, b > 0, SPACING)
    return float(np.mean(surface_distance.compute_average_surface_distance(distances)))


if __name__ == "__main__":
    sys.exit(main())
