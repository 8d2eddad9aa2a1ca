"""`python Testing/Benchmarks/relict.py FOLDER [--workers N]`: a run of the size of RELICT, beside the published way.

RELICT (arXiv 2502.17360) compares 50 synthetic head CT scans with 774 training scans; here 100 unseen scans are the
null as well. The scans are phantoms with their masks; FOLDER keeps them for the next run. `index` and `detect` run with
their defaults. The published way compares pair by pair, without alignment: scikit-image for SSIM, numpy for MAE, RMSE
and Dice, MONAI for surface distances. It is timed on some pairs, and its time for all pairs is computed.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--training", type=int, default=774)
    parser.add_argument("--validation", type=int, default=100)
    parser.add_argument("--novel", type=int, default=36)
    parser.add_argument("--per-kind", type=int, default=2)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--pairs", type=int, default=200, help="pairs of the published way that are timed")
    asked = parser.parse_args()
    data = asked.folder / "data"
    if not (data / "truth.csv").is_file():
        _told("phantoms", lambda: _phantoms(asked, data))
    places = [] if asked.workers is None else ["--workers", str(asked.workers)]
    index, result = asked.folder / "training.rdindex", asked.folder / "result"
    patients = ["--patients", str(data / "patients.csv")]
    head = ["--profile", "head-ct"]
    _told(
        "index",
        lambda: _command("index", data / "training", "--output", index, "--masks", data / "training_masks", *head,
                         *patients, *places),
    )  # fmt: skip
    _told(
        "detect",
        lambda: _command(
            "detect", data / "synthetic", "--index", index, "--validation", data / "validation", "--output", result,
            "--masks", data / "synthetic_masks", "--validation-masks", data / "validation_masks", "--device",
            asked.device, *patients, *places,
        ),
    )  # fmt: skip
    _found(data, result)
    _published(data, index, asked.pairs)


def _phantoms(asked: argparse.Namespace, data: Path) -> None:
    from replica_detection.phantom import make_demo_cohort

    sizes = {name: getattr(asked, name) for name in ("training", "validation", "novel", "per_kind")}
    make_demo_cohort("head_ct", data, **sizes)


def _command(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "replica_detection", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def _told(what: str, work: Callable[[], None]) -> None:
    before, start = _cpu(), time.perf_counter()
    work()
    print(f"{what}: {time.perf_counter() - start:.0f} s wall, {_cpu() - before:.0f} s of CPU", flush=True)


def _cpu() -> float:
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def _found(data: Path, result: Path) -> None:
    import csv

    from replica_detection.results.result import FLAGGED, DetectionResult

    with (data / "truth.csv").open(newline="", encoding="utf-8") as f:
        truth = {row["synthetic_id"]: row for row in csv.DictReader(f)}
    read = DetectionResult.read(result)
    flagged = {kind: [c.verdict in FLAGGED for c in read.summary if truth[c.synthetic_id]["kind"] == kind]
               for kind in ("replica", "novel")}  # fmt: skip
    for kind, verdicts in flagged.items():
        print(f"{kind}: {sum(verdicts)} of {len(verdicts)} flagged")
    print(dict(read.run.timings))


def _published(data: Path, index: Path, pairs: int) -> None:
    from replica_detection.index.training_index import TrainingIndex

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    opened = TrainingIndex.open(index)
    rng = np.random.default_rng(0)
    some = rng.choice(len(opened), min(20, len(opened)), replace=False)
    cases = [opened.features([int(i)], ["image", "mask"]) for i in some]
    spacing = opened.preparation.spacing
    seconds = []
    for _ in range(pairs):
        a, b = (cases[int(i)] for i in rng.choice(len(cases), 2, replace=False))
        start = time.perf_counter()
        _one_pair(a["image"][0], b["image"][0], a["mask"][0] > 0, b["mask"][0] > 0, spacing)
        seconds.append(time.perf_counter() - start)
    queries = sum(len(list((data / part).glob("*.nii.gz"))) for part in ("synthetic", "validation"))
    whole = float(np.mean(seconds)) * queries * len(opened)
    print(
        f"published way: {np.mean(seconds) * 1e3:.0f} ms a pair over {pairs} pairs, so {whole / 3600:.1f} h for "
        f"{queries} x {len(opened)} pairs (computed), without alignment and features"
    )


def _one_pair(a: np.ndarray, b: np.ndarray, x: np.ndarray, y: np.ndarray, spacing: tuple[float, ...]) -> list[float]:
    import torch
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
    from skimage.metrics import structural_similarity

    found = [
        float(np.abs(a - b).mean()),
        float(np.sqrt(((a - b) ** 2).mean())),
        float(structural_similarity(a, b, data_range=1.0, gaussian_weights=True, use_sample_covariance=False)),
        2 * float((x & y).sum()) / max(float(x.sum() + y.sum()), 1.0),
    ]  # fmt: skip
    if x.any() and y.any():
        one, other = (torch.as_tensor(m[None, None].astype(np.float32)) for m in (x, y))
        how = {"include_background": True, "spacing": list(spacing)}
        found.append(float(compute_average_surface_distance(one, other, symmetric=True, **how)))
        found.append(float(compute_hausdorff_distance(one, other, percentile=95, **how)))
    return found


if __name__ == "__main__":
    main()
