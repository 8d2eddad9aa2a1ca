"""Feature level: how the vectors of two images compare. Which vectors, the index's embedding decides."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from replica_detection.embedding import Embedder
from replica_detection.errors import ConfigurationError
from replica_detection.measures.base import Block, Measure, register
from replica_detection.preprocessing import Prepared

# Below this distance rounding decides; such pairs are computed again without it.
NEARLY_EQUAL = 1e-9


class EmbeddingMeasure(Measure):
    """A measure of two vectors; the images' vectors are what the index stores."""

    level = "feature"
    needs: ClassVar[tuple[str, ...]] = ("embedding",)

    @property
    def embedder(self) -> Embedder:
        if self.encoders.images is None:
            raise ConfigurationError(f"measure '{self.name}' needs an embedding: give --embedding")
        return self.encoders.images

    def features(self, case: Prepared) -> dict[str, np.ndarray]:
        """`embedding`: (D,) float32. One image at a time, so that no bit depends on what else is embedded."""
        return {"embedding": self.embedder.embed(case.image[None], self.preparation.spacing)[0]}

    def problem(self) -> str | None:
        return "no embedding was chosen; give --embedding" if self.encoders.images is None else None


@register
class EmbeddingCosine(EmbeddingMeasure):
    """Cosine of the vectors (RELICT, feature level); ranked as 1 - cosine."""

    name = "embedding_cosine"
    sense = "similarity"

    @property
    def definition(self) -> str:
        return f"cosine of the vectors of embedding {self.embedder.definition}"

    def distances(self, queries: Block, training: Block) -> np.ndarray:
        return cosine_distances(queries["embedding"], training["embedding"])


@register
class EmbeddingRmse(EmbeddingMeasure):
    """Root mean squared difference of the vectors (RELICT, feature level)."""

    name = "embedding_rmse"
    sense = "distance"

    @property
    def definition(self) -> str:
        return f"root mean squared difference of the vectors of embedding {self.embedder.definition}"

    def distances(self, queries: Block, training: Block) -> np.ndarray:
        return rmse_distances(queries["embedding"], training["embedding"])


@register
class EmbeddingPearson(EmbeddingMeasure):
    """Pearson correlation of the vectors (Dar et al., Nat. Biomed. Eng. 2025, Algorithm 1); ranked as 1 - rho."""

    name = "embedding_pearson"
    sense = "similarity"

    @property
    def definition(self) -> str:
        return f"Pearson correlation of the vectors of embedding {self.embedder.definition}"

    def distances(self, queries: Block, training: Block) -> np.ndarray:
        q, n = (np.asarray(b["embedding"], np.float64) for b in (queries, training))
        return cosine_distances(q - q.mean(1, keepdims=True), n - n.mean(1, keepdims=True))


def cosine_distances(queries: np.ndarray, training: np.ndarray) -> np.ndarray:
    """1 - cosine of (Q, D) with (N, D), float64 in [0, 2]: exactly 0 for equal vectors, 1 with a vector of zeros."""
    q, n = unit(queries), unit(training)
    distances = np.clip(1 - q @ n.T, 0, 2)
    for i, j in zip(*np.nonzero(distances < NEARLY_EQUAL), strict=True):
        distances[i, j] = 0.5 * float(((q[i] - n[j]) ** 2).sum())
    # Two vectors of zeros point nowhere, but they are equal.
    distances[np.ix_(~q.any(1), ~n.any(1))] = 0
    return distances


def rmse_distances(queries: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Root mean squared difference of (Q, D) to (N, D), float64; exactly 0 for equal vectors."""
    q, n = np.asarray(queries, np.float64), np.asarray(training, np.float64)
    squares = (q**2).sum(1)[:, None] + (n**2).sum(1)[None]
    differences = np.maximum(squares - 2 * (q @ n.T), 0)
    for i, j in zip(*np.nonzero(differences <= NEARLY_EQUAL * squares), strict=True):
        differences[i, j] = ((q[i] - n[j]) ** 2).sum()
    return np.sqrt(differences / max(q.shape[1], 1))


def unit(vectors: np.ndarray) -> np.ndarray:
    """(B, D) float64 with length 1; a vector of zeros stays one."""
    vectors = np.asarray(vectors, np.float64)
    length = np.sqrt((vectors**2).sum(1, keepdims=True))
    return vectors / np.where(length > 0, length, 1)
