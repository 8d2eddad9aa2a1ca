"""Example: a small simulated collection with planted replicas, made on this computer. Nothing is downloaded.

Head CTs with bleeds from the core's phantoms, compared by plain numpy with two of the core's measures and judged by the
core itself. It is for trying the module, and for its tests: the tool proper is `replica-detection detect`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from replica_detection.phantom.base import Phantom, generator
from replica_detection.phantom.head_ct import make_head_ct
from replica_detection.phantom.replicas import make_replica
from replica_detection.preparation.grids import grid_affine
from replica_detection.preparation.profiles import Intensity, Native, Preparation
from replica_detection.results.result import CohortInfo, DetectionResult, RunInfo
from ReplicaDetectionLib.Translation import _

TRAINING, REAL = 8, 12
# Kind of replica, and the training case that it copies.
PLANTED = (("anatomy", 2), ("noise", 5), ("elastic", 0))
NOVEL = 3
GRID, SPACING = (104, 120, 34), (1.8, 1.8, 4.5)
INTENSITY = Intensity(window=(0.0, 80.0))
ALPHA = 0.1
TOTAL = TRAINING + REAL + len(PLANTED) + NOVEL
MEASURES = ("mae", "dice")


def writeExample(folder: Path, step: Callable[[str], None]) -> Path:
    """Writes training and synthetic images with masks, and the result of their comparison.

    Args:
        folder: empty, or missing.
        step: called with what is done next, TOTAL times; it may raise to give up.

    Returns:
        The result folder.
    """
    prepared: dict[str, list[tuple[str, np.ndarray, np.ndarray]]] = {"training": [], "real": [], "synthetic": []}
    for group, name, phantom in _phantoms():
        step(_("Making the example"))
        if group != "real":  # they only say what is usual
            _writeImage(phantom.image.astype(np.int16), phantom.affine, folder / group / f"{name}.nii.gz")
            _writeImage(phantom.mask, phantom.affine, folder / f"{group}_masks" / f"{name}.nii.gz")
        prepared[group].append((name, *_prepared(phantom)))
    _writeIndex(folder, [name for name, *arrays in prepared["training"]])
    _judged(folder, prepared).write(folder / "result")
    return folder / "result"


def _phantoms() -> Iterator[tuple[str, str, Phantom]]:
    """Yields (group, name, phantom). The groups have seeds of their own: they share no patient."""
    training = [make_head_ct(seed) for seed in range(TRAINING)]
    for i, phantom in enumerate(training):
        yield "training", f"train_{i + 1:02d}", phantom
    for i in range(REAL):
        yield "real", f"real_{i + 1:02d}", make_head_ct(1000 + i)
    for i, (kind, source) in enumerate(PLANTED):
        copied = make_replica(kind, training[source], generator(i, 7), training[source - 1])
        yield "synthetic", f"syn_{2 * i + 1:02d}", copied
    for i in range(NOVEL):
        yield "synthetic", f"syn_{2 * i + 2:02d}", make_head_ct(2000 + i)


def _prepared(phantom: Phantom) -> tuple[np.ndarray, np.ndarray]:
    """Image in [0, 1] and mask on the common grid."""
    from scipy import ndimage

    grid = grid_affine(phantom.image.shape, phantom.affine, GRID, SPACING)
    step = np.linalg.inv(phantom.affine) @ grid
    image = ndimage.affine_transform(phantom.image, step[:3, :3], step[:3, 3], GRID, order=1, mode="nearest")
    mask = ndimage.affine_transform(phantom.mask, step[:3, :3], step[:3, 3], GRID, order=0)
    low, high = INTENSITY.window
    return np.clip((image - low) / (high - low), 0, 1).astype(np.float32), mask > 0


def _distances(queries: list, training: list) -> dict[str, np.ndarray]:
    """(Q, N) for each of MEASURES, by their definitions in the core."""
    mae = [[float(np.abs(a - b).mean()) for _n, b, _m in training] for _n, a, _m in queries]
    dice = [[_dice(a, b) for _n, _i, b in training] for _n, _i, a in queries]
    return {"mae": np.array(mae), "dice": 1 - np.array(dice)}


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


def _judged(folder: Path, prepared: dict[str, list]) -> DetectionResult:
    from replica_detection.detection.distances import Distances
    from replica_detection.detection.null_pool import NullPool
    from replica_detection.detection.verdicts import assign_verdicts
    from replica_detection.measures import MEASURES as CLASSES

    training = prepared["training"]
    ids = tuple(name for name, *arrays in training)
    found, null = (
        Distances.reduced(
            tuple(name for name, *arrays in group),
            _distances(group, training),
            k=TRAINING,
            patients=np.arange(len(ids)),
            exact_of=["mae"],
            kind="validation",
        )
        for group in (prepared["synthetic"], prepared["real"])
    )
    index: Any = SimpleNamespace(
        ids=ids,
        patients=np.arange(len(ids)),
        voxels=("",) * len(ids),
        entries=[SimpleNamespace(patient=name) for name in ids],
    )
    measures = [CLASSES[name](_preparation()) for name in MEASURES]
    pool = NullPool.of([null], measures, index, alpha=ALPHA)
    judged = assign_verdicts(found, pool, measures, index, alpha=ALPHA)
    run = RunInfo(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        alpha=ALPHA,
        k=TRAINING,
        device="cpu",
        profile={**_preparation().to_json(), "description": _preparation().describe()},
        synthetic=CohortInfo(str(folder / "synthetic"), len(found.ids)),
        training=CohortInfo(str(folder / "training"), len(ids)),
        validation=CohortInfo("invented", REAL),
        index=str(folder / "index.rdindex"),
        measures=judged.measures,
        null=judged.null,
        evidence=judged.evidence,
        evidence_threshold=judged.evidence_threshold,
        timings={},
        versions={},
        warnings=(_("Simulated images: an example to try the module."),),
        options={"masks": str(folder / "synthetic_masks")},
    )
    return DetectionResult(judged.summary, judged.matches, judged.neighbors, run)


def _preparation() -> Preparation:
    native = Native(GRID, SPACING, tuple(n * s for n, s in zip(GRID, SPACING, strict=True)), "RAS")
    return Preparation("head-ct", 3, SPACING, GRID, INTENSITY, native)


def _writeIndex(folder: Path, names: list[str]) -> None:
    """The header of a training index, which is all that a viewer reads of it: the files of the cases, and the grid."""
    from replica_detection.index.entries import HEADER_FILE, Entry, IndexHeader
    from replica_detection.io.case import checksum

    entries = []
    for row, name in enumerate(names):
        files = [folder / part / f"{name}.nii.gz" for part in ("training", "training_masks")]
        stats = [file.stat() for file in files]
        sizes, times = tuple(s.st_size for s in stats), tuple(s.st_mtime_ns for s in stats)
        entry = Entry(name, None, row, tuple(map(str, files)), sizes, times, checksum(files), "file", image_count=1)
        entries.append(entry)
    header = IndexHeader(_preparation(), MEASURES, None, None, {}, str(folder / "training"), tuple(entries))
    (folder / "index.rdindex").mkdir()
    (folder / "index.rdindex" / HEADER_FILE).write_text(json.dumps(header.to_json()), encoding="utf-8")


def _writeImage(array: np.ndarray, affine: np.ndarray, path: Path) -> None:
    """Writes NIfTI by SimpleITK, which Slicer bundles; `affine` to mm RAS+ without rotation or shear."""
    import SimpleITK

    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.T))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    # ITK counts towards left and back where RAS counts towards right and front.
    turn = np.diag([-1.0, -1.0, 1.0])
    image.SetSpacing(spacing.tolist())
    image.SetOrigin((turn @ affine[:3, 3]).tolist())
    image.SetDirection((turn @ affine[:3, :3] / spacing).ravel().tolist())
    SimpleITK.WriteImage(image, str(path), True)
