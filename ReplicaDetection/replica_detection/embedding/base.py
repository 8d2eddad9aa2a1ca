"""The base class of embedders, and their registry."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from replica_detection.errors import ConfigurationError, IndexFormatError
from replica_detection.progress import Progress, silent

E = TypeVar("E", bound="type[Embedder]")


class Embedder(ABC):
    """Turns prepared images into vectors; the same image always gives the same bits.

    Images are prepared as for the index: (B, X, Y) or (B, X, Y, Z) float32 in [0, 1] on one grid. `settings` hold all
    that decides the vector beside the image. An embedder that this program fitted or trained also has a `state`, which
    the index keeps.
    """

    kind: ClassVar[str]
    version: ClassVar[int]

    @property
    def name(self) -> str:
        """Name on the command line, without the path."""
        return self.kind

    @property
    def sha256(self) -> str:
        """Checksum of the state, or of the file that the weights come from; "" without weights."""
        state = self.state
        return "" if state is None else hashlib.sha256(state).hexdigest()

    @property
    def state(self) -> bytes | None:
        """Fitted or trained numbers as the bytes of a safetensors file; None where there are none."""
        return None

    @abstractmethod
    def describe(self, images: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
        """Features (B, F) float32 that the index stores, of (B, grid) images with voxels of `spacing_mm`.

        Raises:
            ConfigurationError: images of another number of dimensions, or weights that give NaN.
        """

    def project(self, described: np.ndarray) -> np.ndarray:
        """Vectors (B, D) from the features of `describe`; the same numbers where no projection is fitted."""
        return described

    def embed(self, images: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
        """Vectors (B, D) of (B, grid) images."""
        return self.project(self.describe(images, spacing_mm))

    @property
    def is_fitted_on_training(self) -> bool:
        """True where its projection is fitted to the training cohort, so that `refit_without` changes it."""
        return False

    def refit_without(self, cases: Collection[str]) -> Embedder:
        """This embedder, fitted without these cases."""
        return self

    @property
    def saw_training(self) -> bool:
        """True where it was trained on the training cohort and cannot be refitted without a case.

        Its training images then lie farther apart than new ones, so that a null from them is biased.
        """
        return False

    def layers(self, images: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, ...]:
        """Features of several depths, each (B, D_l) float32, for `memorization_index`; by default the vector alone."""
        return (self.describe(images, spacing_mm),)

    @property
    def fitted(self) -> bool:
        """False where `fit` must be called before `project`."""
        return True

    def fit(
        self, images: Iterable[tuple[str, np.ndarray]], spacing_mm: Sequence[float], progress: Progress = silent
    ) -> Embedder:
        """A copy fitted to images of the training cohort; itself where there is nothing to fit.

        Args:
            images: ids of some cases, and their prepared images (grid).
            spacing_mm: voxel size.
            progress: `fitting` per image.
        """
        return self

    def settings(self) -> dict[str, Any]:
        """Everything that decides the vectors, ready for JSON."""
        return {"name": self.name, "version": self.version, "sha256": self.sha256}

    @property
    def definition(self) -> str:
        """Name and checksum of the weights, as a part of a measure's definition."""
        return self.name + (f" (weights {self.sha256[:12]})" if self.sha256 else "")

    @classmethod
    @abstractmethod
    def make(cls, argument: str) -> Embedder:
        """The embedder for the text after the colon in its name, "" without one.

        Raises:
            ConfigurationError: a file where none is taken, or none where one is needed.
            InputError: a file that cannot be used.
        """

    @classmethod
    @abstractmethod
    def restore(cls, settings: dict[str, Any], state: bytes | None, folder: Path) -> Embedder:
        """The embedder that `settings` and `state` came from.

        A weights file that is not at its path in `settings` is looked for in `folder`, the index folder. Raises
        InputError where it is in neither place, or has changed.
        """


EMBEDDERS: dict[str, type[Embedder]] = {}


def register(embedder: E) -> E:
    """Class decorator: makes an embedder known by its kind."""
    EMBEDDERS[embedder.kind] = embedder
    return embedder


def make_embedder(name: str) -> Embedder:
    """The embedder of a name; what follows a colon, as in `network:FILE`, is the file that it needs.

    Raises:
        ConfigurationError: an unknown name, a file where none is taken, or none where one is needed.
        InputError: a file that cannot be used.
    """
    kind, _, argument = name.partition(":")
    return _known(kind).make(argument)


def restore_embedder(settings: dict[str, Any], state: bytes | None, folder: Path) -> Embedder:
    """The embedder of an index in `folder`, exactly the one that its vectors were made with.

    Raises:
        InputError: its weights are missing or have changed, or this version of the program makes other vectors.
    """
    embedder = _known(str(settings["name"])).restore(settings, state, folder)
    if without_path(embedder.settings()) != without_path(settings):
        reason = f"holds vectors of another version or other weights of the embedding '{embedder.name}'"
        raise IndexFormatError(folder, reason, "Build the index again, or put its weights back")
    return embedder


def without_path(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they read back from JSON, without the path of the weights: the checksum identifies them."""
    return {k: v for k, v in json.loads(json.dumps(settings)).items() if k != "path"}


def no_file(kind: str, argument: str) -> None:
    """Raises ConfigurationError where a file was given to an embedder that takes none."""
    if argument:
        raise ConfigurationError(f"embedding '{kind}' takes no file, found '{kind}:{argument}'")


def _known(kind: str) -> type[Embedder]:
    if kind not in EMBEDDERS:
        raise ConfigurationError(f"unknown embedding '{kind}'; known: {', '.join(EMBEDDERS)}")
    return EMBEDDERS[kind]
