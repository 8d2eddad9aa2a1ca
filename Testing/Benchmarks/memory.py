"""Peak memory of `detect` for growing training cohorts: it must not grow with them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

SIZES = (100, 200, 400)
SHAPE = (96, 96, 64)
QUERIES = 8

DETECT = """
import resource, sys
from pathlib import Path
from replica_detection.io.cohort import Cohort
from replica_detection.detection.detector import detect
from replica_detection.detection.options import DetectionOptions
from replica_detection.index.training_index import TrainingIndex
folder = Path(sys.argv[1])
index = TrainingIndex.open(Path(sys.argv[2]))
detect(Cohort.read(folder / "synthetic"), index, validation=Cohort.read(folder / "validation"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def report() -> bool:
    """Prints cohort size in MiB beside peak memory; false if it grows by a tenth of what the cohort grows by."""
    from replica_detection.index.build import build_index
    from replica_detection.io.cohort import Cohort

    unit = 1 if sys.platform == "darwin" else 1024
    rng = np.random.default_rng(0)
    print(f"peak memory of detect, volumes of {' x '.join(map(str, SHAPE))} float32, {QUERIES} queries, all measures")
    peaks, sizes = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part, count in (("training", SIZES[-1]), ("synthetic", QUERIES), ("validation", QUERIES)):
            (folder / part).mkdir()
            for i in range(count):
                # 8-bit noise: quick to write, and as large as any volume once it is prepared.
                image = nib.Nifti1Image(rng.integers(0, 255, SHAPE, np.uint8), np.eye(4))
                nib.save(image, folder / part / f"{part}_{i:04d}.nii")
        whole = Cohort.read(folder / "training")
        for size in SIZES:
            cohort = Cohort(whole.source, whole.cases[:size], ())
            index = build_index(cohort, folder / f"{size}.rdindex")
            command = [sys.executable, "-c", DETECT, str(folder), str(index.folder)]
            done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
            peaks.append(int(done.stdout) * unit / 2**20)
            sizes.append(size * float(np.prod(index.preparation.grid)) * 4 / 2**20)
            print(f"  {size:4d} training volumes, {sizes[-1]:7.0f} MiB prepared: peak {peaks[-1]:6.0f} MiB")
    growth = (peaks[-1] - peaks[0]) / (sizes[-1] - sizes[0])
    print(f"  growth per MiB of training cohort: {growth:.3f} MiB (streamed: near 0; held in memory: 1 or more)")
    return growth <= 0.1
