"""Made-up masks for tests: blobs, tubes, single voxels and the other shapes that surface code gets wrong."""

import numpy as np
from scipy import ndimage


def blobs(seed: int, cases: int, grid: tuple[int, ...], share: float = 0.15) -> np.ndarray:
    """(cases, grid) uint8: smooth random shapes of several parts that also touch the border; `share` is inside."""
    rng = np.random.default_rng(seed)
    fields = [ndimage.gaussian_filter(rng.standard_normal(grid), rng.uniform(1.2, 3.0)) for _ in range(cases)]
    return np.stack([f > np.quantile(f, 1 - share) for f in fields]).astype(np.uint8)


def odd_shapes(grid: tuple[int, ...] = (14, 17, 12)) -> np.ndarray:
    """(9, grid) uint8, none empty: voxels, corners, tubes, slabs, a shell, a chequerboard and a full mask."""
    masks = np.zeros((9, *grid), np.uint8)
    middle = tuple(n // 2 for n in grid)
    masks[0][middle] = 1
    masks[1][0, 0] = 1
    masks[2][tuple(-1 for _ in grid)] = masks[2][tuple(0 for _ in grid)] = 1
    for i in range(min(grid)):
        masks[3][(i,) * len(grid)] = 1
    masks[4][:, middle[1]] = 1
    masks[5][tuple(slice(3, n - 2) for n in grid)] = 1
    masks[5][tuple(slice(5, n - 4) for n in grid)] = 0
    masks[6] = np.indices(grid).sum(axis=0) % 2
    masks[7][tuple(slice(2, 4) for _ in grid)] = masks[7][tuple(slice(7, 10) for _ in grid)] = 1
    masks[8] = 1
    return masks
