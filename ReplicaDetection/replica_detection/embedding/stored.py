"""Embedders inside an index folder: fitted when it is built, read back with their checksums when it is opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.embedding import Embedder, Embedders, make_embedder, restore_embedder
from replica_detection.embedding.base import without_path
from replica_detection.errors import IndexFormatError
from replica_detection.io.cohort import Cohort
from replica_detection.preparation.loading import load_prepared
from replica_detection.preparation.prepare import PreparedImage
from replica_detection.preparation.profiles import Preparation
from replica_detection.progress import Progress
from replica_detection.util.files import atomic_write

DEFAULT = "invariants"
# Files of the states, and the names under which `index.json` keeps the settings.
PARTS = ("images", "slices")
FIT_SAMPLE = 125
# Features that an embedder makes: of whole images, and of slices.
OF_IMAGES, OF_SLICES = ("embedding", "layers"), ("slices",)
EMBEDDED = OF_IMAGES + OF_SLICES


def make_embedders(images: str | None = None, slices: str | None = None) -> Embedders:
    """Embedders by name, e.g. `network:FILE`; None: the default embedder. Raises as `make_embedder`."""
    return Embedders(make_embedder(images or DEFAULT), make_embedder(slices or DEFAULT))


def fit_embedders(
    embedders: Embedders,
    needed: Sequence[str],
    folder: Path,
    cohort: Cohort,
    preparation: Preparation,
    progress: Progress,
) -> Embedders:
    """Embedders for the `needed` features, fitted to a sample of the cohort; None for features not needed.

    Each fit is written to `folder` at once, so that a build that was interrupted continues with the same one.
    """

    def images() -> Iterator[tuple[str, np.ndarray]]:
        return _sample(cohort, preparation)

    def slices() -> Iterator[tuple[str, np.ndarray]]:
        for number, (case, image) in enumerate(_sample(cohort, preparation)):
            stack = slices_of(image, preparation)
            # A different depth for each case, spread over the middle 60 % by the golden ratio.
            yield case, stack[round(len(stack) * (0.2 + 0.6 * (number * 0.618 % 1)))]

    of_images = embedders.images if set(OF_IMAGES) & set(needed) else None
    of_slices = embedders.slices if set(OF_SLICES) & set(needed) else None
    return Embedders(
        _fitted(of_images, "images", folder, images, preparation.spacing, progress),
        _fitted(of_slices, "slices", folder, slices, slice_spacing(preparation), progress),
    )


def settings_of(embedders: Embedders) -> dict[str, Any]:
    """Settings of the embedders for `index.json`, as they read back from it."""
    by_part = {part: getattr(embedders, part) for part in PARTS}
    return {part: None if e is None else json.loads(json.dumps(e.settings())) for part, e in by_part.items()}


def restore_embedders(folder: Path, settings: dict[str, Any]) -> Embedders:
    """The embedders of an index folder.

    Raises:
        IndexFormatError: a state is missing or damaged.
        InputError: weights outside the index are missing or have changed.
    """
    restored: dict[str, Embedder | None] = {}
    for part in PARTS:
        stored = settings.get(part)
        path = folder / _file(part)
        state = path.read_bytes() if stored and path.is_file() else None
        if stored and state is not None and hashlib.sha256(state).hexdigest() != stored["sha256"]:
            raise IndexFormatError(path, "is not the file that the index was made with", "Build the index again")
        restored[part] = restore_embedder(stored, state, folder) if stored else None
    return Embedders(restored["images"], restored["slices"])


def same_embedders(settings: dict[str, Any], embedders: Embedders) -> bool:
    """True where an index with these settings was made with these embedders.

    Embedders that the index lacks, or that are None, are not compared. A fit to the cohort does not count.
    """
    for part in PARTS:
        stored, embedder = settings.get(part), getattr(embedders, part)
        if stored is None or embedder is None:
            continue
        pair = [without_path(stored), without_path(embedder.settings())]
        if not embedder.fitted:
            pair = [{**settings, "sha256": ""} for settings in pair]
        if pair[0] != pair[1]:
            return False
    return True


def slice_axis(preparation: Preparation) -> int:
    """Axis along which a volume is cut into slices: the one with the largest spacing, the last of several."""
    spacing = np.array(preparation.spacing)
    return int(np.flatnonzero(spacing >= spacing.max() * 0.99)[-1])


def slice_spacing(preparation: Preparation) -> tuple[float, ...]:
    """(2,) pixel size of a slice in mm."""
    return tuple(s for axis, s in enumerate(preparation.spacing) if axis != slice_axis(preparation))


def slices_of(image: np.ndarray, preparation: Preparation) -> np.ndarray:
    """(S, A, B): the slices of a prepared volume (X, Y, Z), in order."""
    return np.ascontiguousarray(np.moveaxis(image, slice_axis(preparation), 0))


def _sample(cohort: Cohort, preparation: Preparation) -> Iterator[tuple[str, np.ndarray]]:
    """Ids and prepared images spread evenly over the cohort, at most FIT_SAMPLE; unreadable ones are skipped."""
    step = max(1, -(-len(cohort.cases) // FIT_SAMPLE))
    loaded = load_prepared(cohort.cases[::step], preparation, with_masks=False)
    return ((case.id, prepared.image) for case, prepared in loaded if isinstance(prepared, PreparedImage))


def _fitted(
    embedder: Embedder | None,
    part: str,
    folder: Path,
    images: Callable[[], Iterator[tuple[str, np.ndarray]]],
    spacing_mm: Sequence[float],
    progress: Progress,
) -> Embedder | None:
    """The embedder with its state in `folder`: read where an earlier call wrote it, else fitted and written."""
    path = folder / _file(part)
    if embedder is None:
        return None
    if not embedder.fitted:
        if path.is_file():
            return type(embedder).restore(embedder.settings(), path.read_bytes(), folder)
        embedder = embedder.fit(images(), spacing_mm, progress)
    if embedder.state is not None:
        with atomic_write(path, "wb") as f:
            f.write(embedder.state)
    return embedder


def _file(part: str) -> str:
    return f"encoder_{part}.safetensors"
