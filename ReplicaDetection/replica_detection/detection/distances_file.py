"""Distances in a file, without pickle: arrays as they are, all else as JSON. Imports with numpy alone."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from replica_detection.detection.distances import Distances, MeasureDistances
from replica_detection.io.case import Problem
from replica_detection.registration.placement import Placement
from replica_detection.statistics.distance_ratio import Nearest
from replica_detection.util.files import atomic_write

_ARRAYS = ("matrix", "shift", "mirroring")
_NUMBERS = ("training", "correlation", "overlap", "merit", "correlation_before")


def write_distances(path: Path, distances: Distances) -> None:
    """Writes the file whole or not at all; its folder is made if it is missing."""
    arrays = {"choices": distances.choices, "affines": np.array(distances.affines, np.float64).reshape(-1, 4, 4)}
    text: dict[str, Any] = {
        "ids": distances.ids,
        "voxels": distances.voxels,
        "left_out": distances.left_out,
        "problems": [(p.path, p.message) for p in distances.problems],
        "warnings": distances.warnings,
        "kind": distances.kind,
        "seconds_aligning": distances.seconds_aligning,
        "measures": list(distances.by_measure),
        "columns": {name: of_measure.columns for name, of_measure in distances.by_measure.items()},
    }
    for name, of_measure in distances.by_measure.items():
        for key, array in _arrays_of(of_measure).items():
            arrays[f"{name}/{key}"] = array
    arrays["text"] = np.frombuffer(json.dumps(text).encode(), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, "wb") as f:
        np.savez_compressed(f, allow_pickle=False, **arrays)


def read_distances(path: Path) -> Distances | None:
    """Distances as they were written; None where the file is missing, damaged or of another version."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        text = json.loads(arrays["text"].tobytes())
        return Distances(
            tuple(text["ids"]),
            {name: _measure_from(arrays, name, text["columns"][name]) for name in text["measures"]},
            tuple(text["voxels"]),
            tuple(text["left_out"]),
            arrays["choices"],
            tuple(Problem(path, message) for path, message in text["problems"]),
            tuple((case, words) for case, words in text["warnings"]),
            text["kind"],
            tuple(arrays["affines"]),
            text["seconds_aligning"],
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error):
        return None


def _arrays_of(of_measure: MeasureDistances) -> dict[str, np.ndarray]:
    arrays = {f.name: getattr(of_measure.near, f.name) for f in fields(Nearest)}
    arrays["chosen"] = of_measure.chosen
    arrays["exact_counts"], arrays["exact"] = _flat(of_measure.exact)
    if of_measure.rows is not None:
        arrays["rows"] = of_measure.rows
    if of_measure.placements:
        every = [p for candidates in of_measure.placements for p in candidates]
        arrays["candidates"] = np.array([len(candidates) for candidates in of_measure.placements], np.int64)
        for name in _ARRAYS:
            shape = (-1, 3, 3) if name == "matrix" else (-1, 3)
            arrays[name] = np.array([getattr(p, name) for p in every], np.float64).reshape(shape)
        for name in _NUMBERS:
            arrays[name] = np.array([getattr(p, name) for p in every])
    return arrays


def _measure_from(arrays: dict[str, np.ndarray], measure: str, columns: dict[str, list[Any]]) -> MeasureDistances:
    def stored(name: str) -> np.ndarray:
        return arrays[f"{measure}/{name}"]

    placements: list[tuple[Placement, ...]] = []
    if f"{measure}/candidates" in arrays:
        arrays_of = zip(*(stored(name) for name in _ARRAYS), strict=True)
        numbers_of = zip(*(stored(name).tolist() for name in _NUMBERS), strict=True)
        every = [
            Placement(training, *matrices, *numbers)
            for matrices, (training, *numbers) in zip(arrays_of, numbers_of, strict=True)
        ]
        for part in _cut(stored("candidates")):
            placements.append(tuple(every[part]))
    exact = stored("exact").tolist()
    return MeasureDistances(
        Nearest(*(stored(f.name) for f in fields(Nearest))),
        tuple(tuple(exact[part]) for part in _cut(stored("exact_counts"))),
        stored("chosen"),
        columns,
        tuple(placements),
        stored("rows") if f"{measure}/rows" in arrays else None,
    )


def _flat(groups: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    counts = np.array([len(group) for group in groups], np.int64)
    return counts, np.array([value for group in groups for value in group], np.int64)


def _cut(counts: np.ndarray) -> list[slice]:
    ends = np.cumsum(counts).tolist()
    return [slice(end - count, end) for end, count in zip(ends, counts.tolist(), strict=True)]
