"""What an embedder is, and the registry of all of them."""

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

    Images come as the index prepared them: (B, X, Y) or (B, X, Y, Z) float32 in [0, 1] on one grid. What decides the
    vector beside the image is in `settings`; where an embedder was fitted or trained by this program, that part is its
    `state`, which the index keeps.
    """

    kind: ClassVar[str]
    version: ClassVar[int]

    @property
    def name(self) -> str:
        """As the user types it, without the path."""
        return self.kind

    @property
    def sha256(self) -> str:
        """Of the weights: of the state, or of the file that they come from; "" where there are none."""
        state = self.state
        return "" if state is None else hashlib.sha256(state).hexdigest()

    @property
    def state(self) -> bytes | None:
        """What was fitted or trained, as the bytes of a safetensors file; None where nothing was."""
        return None

    @abstractmethod
    def describe(self, images: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
        """(B, F) float32: what the index stores of (B, grid) images with voxels of `spacing_mm`.

        Raises:
            ConfigurationError: images that this embedder does not take.
        """

    def project(self, described: np.ndarray) -> np.ndarray:
        """(B, D): the vectors, from what `describe` gave; the same unless the embedder learnt a projection."""
        return described

    def embed(self, images: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
        """(B, D): the vectors of (B, grid) images."""
        return self.project(self.describe(images, spacing_mm))

    @property
    def is_fitted_on_training(self) -> bool:
        """Whether it learns its projection from the training cohort, and can do so `without` some cases."""
        return False

    def refit_without(self, cases: Collection[str]) -> Embedder:
        """The embedder as it were had it not learnt from these cases."""
        return self

    @property
    def saw_training(self) -> bool:
        """Whether it learnt from the training cohort and cannot tell how it were without a case. Training images are
        then apart as unseen ones are not, and a null made of them errs."""
        return False

    def layers(self, images: np.ndarray, spacing_mm: Sequence[float]) -> tuple[np.ndarray, ...]:
        """Features of several depths, each (B, D_l) float32, for `memorization_index`; by default the vector alone."""
        return (self.describe(images, spacing_mm),)

    @property
    def fitted(self) -> bool:
        """Whether it can embed; else `fit` comes first."""
        return True

    def fit(
        self, images: Iterable[tuple[str, np.ndarray]], spacing_mm: Sequence[float], progress: Progress = silent
    ) -> Embedder:
        """A copy that was fitted to images of the training cohort; itself where there is nothing to fit.

        Args:
            images: some cases' ids and prepared images (grid).
            spacing_mm: of their voxels.
            progress: `fitting` per image.
        """
        return self

    def settings(self) -> dict[str, Any]:
        """Everything that decides the vectors, ready for JSON."""
        return {"name": self.name, "version": self.version, "sha256": self.sha256}

    @property
    def definition(self) -> str:
        """For people, as a part of a measure's definition."""
        return self.name + (f" (weights {self.sha256[:12]})" if self.sha256 else "")

    @classmethod
    @abstractmethod
    def make(cls, argument: str) -> Embedder:
        """From what follows the colon in what the user typed, "" for nothing. Raises ConfigurationError, InputError."""

    @classmethod
    @abstractmethod
    def restore(cls, settings: dict[str, Any], state: bytes | None, folder: Path) -> Embedder:
        """The embedder that `settings` and `state` came from.

        A file that is no longer where `settings` say is looked for in `folder`, that of the index. Raises InputError
        where it is gone or another one.
        """


EMBEDDERS: dict[str, type[Embedder]] = {}


def register(embedder: E) -> E:
    """Class decorator: makes an embedder known by its kind."""
    EMBEDDERS[embedder.kind] = embedder
    return embedder


def make_embedder(name: str) -> Embedder:
    """The embedder of a name; what follows a colon, as in `network:FILE`, is the file that it needs.

    Raises:
        ConfigurationError: an unknown name, or a file where none or nothing where one is needed.
        InputError: a file that cannot be used.
    """
    kind, _, argument = name.partition(":")
    return _known(kind).make(argument)


def restore_embedder(settings: dict[str, Any], state: bytes | None, folder: Path) -> Embedder:
    """The embedder of an index in `folder`, exactly the one that its vectors were made with.

    Raises:
        InputError: its weights are gone or others, or this version of the program would make other vectors.
    """
    embedder = _known(str(settings["name"])).restore(settings, state, folder)
    if without_path(embedder.settings()) != without_path(settings):
        found = f"holds vectors of another version or other weights of the embedding '{embedder.name}'"
        raise IndexFormatError(folder, found, "Build the index again, or put its weights back")
    return embedder


def without_path(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they read back from JSON, without where the weights lie: their checksum says which they are."""
    return {k: v for k, v in json.loads(json.dumps(settings)).items() if k != "path"}


def no_file(kind: str, argument: str) -> None:
    """Raises ConfigurationError where a file was given to an embedder that takes none."""
    if argument:
        raise ConfigurationError(f"embedding '{kind}' takes no file, found '{kind}:{argument}'")


def _known(kind: str) -> type[Embedder]:
    if kind not in EMBEDDERS:
        raise ConfigurationError(f"unknown embedding '{kind}'; known: {', '.join(EMBEDDERS)}")
    return EMBEDDERS[kind]
