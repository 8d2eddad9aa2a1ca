"""How long a reader in Slicer waits for the next case: 96^3 voxels, masks and surfaces, eight off-screen views.

Wanted: under 1 s where the case was read ahead, under 3 s where it was not. Needs slicer-core, and says so without it.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

SIZE = 96
PROJECT = Path(__file__).resolve().parents[2]


def report() -> bool:
    """Prints the waiting times. True: a time is never wrong."""
    os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
    sys.path[:0] = [str(PROJECT / "ReplicaDetection"), str(PROJECT / "Testing" / "SlicerModule")]
    try:
        import slicer  # noqa: F401
    except ImportError:
        print("reading: slicer-core is not installed, nothing was measured")
        return True
    with tempfile.TemporaryDirectory() as folder:
        _measure(Path(folder))
    return True


def _measure(root: Path) -> None:
    from bench.application import BenchApplication
    from bench.errors import ErrorLog
    from bench.layouts import LayoutManager
    from ReplicaDetectionLib.FolderSource import FolderSource
    from ReplicaDetectionLib.Logic import ReplicaDetectionLogic
    from ReplicaDetectionLib.Sources import PairCache

    _collection(root)
    log = ErrorLog(root / "vtk.log")
    log.start()
    start = time.perf_counter()
    app = BenchApplication(root / "cache")
    layouts = LayoutManager(app)
    logic = ReplicaDetectionLogic(app.scene, app.appLogic)
    logic.layout.set("rows")
    opened = time.perf_counter() - start
    source = FolderSource(root / "result")
    ids = [item.synthetic_id for item in source.worklist().items]
    cache = PairCache(source, size=len(ids))

    def wait(case: str) -> float:
        begun = time.perf_counter()
        logic.showPair(cache.get(case))
        layouts.picture()
        return time.perf_counter() - begun

    first = wait(ids[0])
    fresh = [wait(case) for case in ids[1:]]
    ready = [wait(case) for case in ids]
    surface = logic.pair.surfaces.synthetic
    print(
        f"reading: {SIZE}^3 voxels, about {len(surface.points)} surface points, 8 views of {layouts.size[0]} x "
        f"{layouts.size[1]} pixels in all\n"
        f"  empty scene and views {opened:.2f} s, first case {first:.2f} s\n"
        f"  next case, read ahead  {np.median(ready):.2f} s (largest {max(ready):.2f}), wanted 1\n"
        f"  next case, from disk   {np.median(fresh):.2f} s (largest {max(fresh):.2f}), wanted 3"
    )
    logic.clear()
    layouts.close()
    app.end()
    log.stop()


def _collection(root: Path) -> None:
    """Six cases, each near one of four training cases, judged by two measures."""
    from replica_detection.detection.detector import detect
    from replica_detection.index.build import build_index
    from replica_detection.io.cohort import Cohort

    for name, count, first in (("training", 4, 0), ("validation", 4, 50), ("synthetic", 6, 0)):
        for n in range(count):
            rng = np.random.default_rng(1000 + first + n + 10 * len(name))
            mask = _tree(first + n % 4 if name == "synthetic" else first + n)
            if name == "synthetic":
                mask = np.roll(mask, rng.integers(-2, 3, 3), axis=(0, 1, 2))
            smooth = ndimage.gaussian_filter(mask.astype(float), 1)
            grey = (200 + 600 * smooth + rng.normal(0, 20, mask.shape)).astype(np.int16)
            for folder, array in ((name, grey), (f"{name}_masks", mask)):
                (root / folder).mkdir(exist_ok=True)
                nib.save(nib.Nifti1Image(array, np.eye(4)), root / folder / f"{name}_{n}.nii.gz")
    cohorts = {n: Cohort.read(root / n, masks=root / f"{n}_masks") for n in ("training", "validation", "synthetic")}
    index = build_index(cohorts["training"], root / "x.rdindex", measures=["mae", "dice"])
    found = detect(cohorts["synthetic"], index, validation=cohorts["validation"], masks=root / "synthetic_masks")
    found.write(root / "result")


def _tree(seed: int) -> np.ndarray:
    """A branching structure of some thousand voxels: more surface than a ball has."""
    rng = np.random.default_rng(seed)
    at = np.array([SIZE / 2, SIZE / 2, 12.0])
    mask = np.zeros((SIZE,) * 3, bool)
    for _ in range(14):
        start, step = at.copy(), rng.normal(size=3) * [1, 1, 0.6] + [0, 0, 0.5]
        for _ in range(45):
            start = np.clip(start + step / np.linalg.norm(step) + rng.normal(size=3) * 0.2, 4, SIZE - 5)
            mask[tuple(start.astype(int))] = True
            at = start if rng.random() < 0.03 else at
    return ndimage.binary_dilation(mask, iterations=2).astype(np.uint8)
