"""Embedders inside an index folder: fitted when it is built, read back with their checksums when it is opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.embedding import Embedder, Encoders, make_embedder, restore_embedder
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
ENCODED = OF_IMAGES + OF_SLICES


def make_encoders(images: str | None = None, slices: str | None = None) -> Encoders:
    """From the names that the user typed; None: the default embedder. Raises as `make_embedder`."""
    return Encoders(make_embedder(images or DEFAULT), make_embedder(slices or DEFAULT))


def fit_encoders(
    encoders: Encoders,
    needed: Sequence[str],
    folder: Path,
    cohort: Cohort,
    preparation: Preparation,
    progress: Progress,
) -> Encoders:
    """The embedders that the `needed` features are made with, fitted to a sample of the cohort; None for the others.

    What is fitted is written into `folder` at once, so that a build that was interrupted goes on with the same.
    """

    def images() -> Iterator[tuple[str, np.ndarray]]:
        return _sample(cohort, preparation)

    def slices() -> Iterator[tuple[str, np.ndarray]]:
        for number, (case, image) in enumerate(_sample(cohort, preparation)):
            stack = slices_of(image, preparation)
            # Another depth from case to case, the ends left out.
            yield case, stack[round(len(stack) * (0.2 + 0.6 * (number * 0.618 % 1)))]

    spacing = preparation.spacing
    return Encoders(
        _fitted(encoders.images, "images", folder, images, spacing, progress) if set(OF_IMAGES) & set(needed) else None,
        _fitted(encoders.slices, "slices", folder, slices, slice_spacing(preparation), progress)
        if set(OF_SLICES) & set(needed)
        else None,
    )


def settings_of(encoders: Encoders) -> dict[str, Any]:
    """What `index.json` says of them, as it reads back."""
    found = {part: getattr(encoders, part) for part in PARTS}
    return {part: None if e is None else json.loads(json.dumps(e.settings())) for part, e in found.items()}


def restore_encoders(folder: Path, settings: dict[str, Any]) -> Encoders:
    """The embedders of an index folder.

    Raises:
        IndexFormatError: a state that is gone or damaged.
        InputError: weights outside the index that are gone or others.
    """
    made: dict[str, Embedder | None] = {}
    for part in PARTS:
        stored = settings.get(part)
        path = folder / _file(part)
        state = path.read_bytes() if stored and path.is_file() else None
        if stored and state is not None and hashlib.sha256(state).hexdigest() != stored["sha256"]:
            raise IndexFormatError(path, "is not the file that the index was made with", "Build the index again")
        made[part] = restore_embedder(stored, state, folder) if stored else None
    return Encoders(made["images"], made["slices"])


def same_encoders(settings: dict[str, Any], encoders: Encoders) -> bool:
    """Whether an index with these settings was made with these embedders, as far as they are in it; what an embedder
    learns from the cohort does not count."""
    for part in PARTS:
        stored, wanted = settings.get(part), getattr(encoders, part)
        if stored is None or wanted is None:
            continue
        pair = [without_path(stored), without_path(wanted.settings())]
        if not wanted.fitted:
            pair = [{**settings, "sha256": ""} for settings in pair]
        if pair[0] != pair[1]:
            return False
    return True


def slice_axis(preparation: Preparation) -> int:
    """Along which a volume is cut into slices: that of the largest spacing, the last of several."""
    spacing = np.array(preparation.spacing)
    return int(np.flatnonzero(spacing >= spacing.max() * 0.99)[-1])


def slice_spacing(preparation: Preparation) -> tuple[float, ...]:
    """(2,) mm of a slice's pixels."""
    return tuple(s for axis, s in enumerate(preparation.spacing) if axis != slice_axis(preparation))


def slices_of(image: np.ndarray, preparation: Preparation) -> np.ndarray:
    """(S, A, B): the slices of a prepared volume (X, Y, Z), in order."""
    return np.ascontiguousarray(np.moveaxis(image, slice_axis(preparation), 0))


def _sample(cohort: Cohort, preparation: Preparation) -> Iterator[tuple[str, np.ndarray]]:
    """Ids and prepared images spread evenly over the cohort, at most FIT_SAMPLE; unreadable ones are passed over."""
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
