"""Feature level: distances between the vectors of two images. The index's embedder makes the vectors."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from typing import ClassVar

import numpy as np

from replica_detection.embedding import Embedder
from replica_detection.errors import ConfigurationError
from replica_detection.measures.base import Block, Measure, TrainingRows, register
from replica_detection.preparation.prepare import PreparedImage


class EmbeddingMeasure(Measure):
    """A measure of embedded images. The index stores the embedder's description; the vector is computed from it."""

    level = "feature"
    needs: ClassVar[tuple[str, ...]] = ("embedding",)

    @property
    def embedder(self) -> Embedder:
        if self.embedders.images is None:
            raise ConfigurationError(f"measure '{self.name}' needs an embedding of images; give `embedding`")
        return self.embedders.images

    @property
    def saw_training(self) -> bool:
        return self.embedder.saw_training

    def features(self, case: PreparedImage) -> dict[str, np.ndarray]:
        """`embedding`: (F,) float32. One image at a time, so that no bit depends on the other images of a batch."""
        return {"embedding": self.embedder.describe(case.image[None], self.preparation.spacing)[0]}

    def problem(self) -> str | None:
        return "no embedding was chosen; give `embedding`" if self.embedders.images is None else None

    @property
    def is_fitted_on_training(self) -> bool:
        return self.embedder.is_fitted_on_training

    def refit_without(self, training: TrainingRows, left_out: np.ndarray) -> Measure:
        again = self.embedder.refit_without({id for id, out in zip(training.ids, left_out, strict=True) if out})
        return type(self)(self.preparation, self.device, replace(self.embedders, images=again))


class VectorMeasure(EmbeddingMeasure):
    """A measure of two vectors; a subclass defines `of_vectors`."""

    # Name of the comparison, for people.
    compares: ClassVar[str]

    @property
    def definition(self) -> str:
        return f"{self.compares} of the vectors of embedding {self.embedder.definition}"

    @staticmethod
    @abstractmethod
    def of_vectors(queries: np.ndarray, training: np.ndarray) -> np.ndarray:
        """(Q, N) distances of (Q, D) to (N, D) float64, accurate to about 1e-12."""

    def vectors(self, block: Block) -> np.ndarray:
        """The vectors of a block, (B, D) float64."""
        return np.asarray(self.embedder.project(block["embedding"]), np.float64)

    def distances(self, queries: Block, training: Block) -> np.ndarray:
        distances = self.of_vectors(self.vectors(queries), self.vectors(training))
        return zero_where_equal(distances, queries["embedding"], training["embedding"])


@register
class EmbeddingCosine(VectorMeasure):
    """Cosine of the vectors (RELICT, feature level); ranked as 1 - cosine."""

    name = "embedding_cosine"
    sense = "similarity"
    compares = "cosine"

    @staticmethod
    def of_vectors(queries: np.ndarray, training: np.ndarray) -> np.ndarray:
        return cosine_distances(queries, training)


@register
class EmbeddingRmse(VectorMeasure):
    """Root mean squared difference of the vectors (RELICT, feature level)."""

    name = "embedding_rmse"
    sense = "distance"
    compares = "root mean squared difference"

    @staticmethod
    def of_vectors(queries: np.ndarray, training: np.ndarray) -> np.ndarray:
        squares = (queries**2).sum(1)[:, None] + (training**2).sum(1)[None]
        return np.sqrt(np.maximum(squares - 2 * (queries @ training.T), 0) / max(queries.shape[1], 1))


@register
class EmbeddingPearson(VectorMeasure):
    """Pearson correlation of the vectors (Dar et al., Nat. Biomed. Eng. 2025, Algorithm 1); ranked as 1 - rho."""

    name = "embedding_pearson"
    sense = "similarity"
    compares = "Pearson correlation"

    @staticmethod
    def of_vectors(queries: np.ndarray, training: np.ndarray) -> np.ndarray:
        return cosine_distances(*(side - side.mean(1, keepdims=True) for side in (queries, training)))


def cosine_distances(queries: np.ndarray, training: np.ndarray) -> np.ndarray:
    """1 - cosine of (Q, D) with (N, D), float64 in [0, 2]; 1 if either vector is 0, which has no direction."""
    return np.clip(1 - unit(queries) @ unit(training).T, 0, 2)


def zero_where_equal(distances: np.ndarray, queries: np.ndarray, training: np.ndarray) -> np.ndarray:
    """The (Q, N) distances, set to exactly 0 where the rows of (Q, F) and (N, F) are equal, against rounding."""
    first: dict[bytes, list[int]] = {}
    for j, row in enumerate(training):
        first.setdefault(row.tobytes(), []).append(j)
    for i, row in enumerate(queries):
        distances[i, first.get(row.tobytes(), [])] = 0
    return distances


def unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors scaled to length 1, (B, D) float64; a vector of zeros stays 0."""
    vectors = np.asarray(vectors, np.float64)
    length = np.sqrt((vectors**2).sum(1, keepdims=True))
    return vectors / np.where(length > 0, length, 1)
