"""Feature level at scale: vectors of 512 numbers of 2,000 cases against 2,000, and 60,000 slices by two searches.

Neighbours are checked against FAISS, and approximate search against exact; times are for people.
"""

from __future__ import annotations

import time

import faiss
import numpy as np
from rich.console import Console
from rich.table import Table

from replica_detection.embedding import Embedders
from replica_detection.embedding.base import Embedder
from replica_detection.measures.feature import EmbeddingCosine, EmbeddingPearson, EmbeddingRmse
from replica_detection.measures.memorization_index import MemorizationIndex
from replica_detection.measures.slice_votes import flat_index, hnsw_index
from replica_detection.preparation.profiles import Intensity, Native, Preparation
from replica_detection.statistics.distance_ratio import evidence, nearest
from replica_detection.statistics.null import Null, benjamini_hochberg

CASES, NUMBERS, LAYERS, K = 2000, 512, 3, 50
SLICES, SLICE_NUMBERS, ASKED = 60_000, 384, 2_000
PREPARATION = Preparation(
    "generic", 3, (1, 1, 1), (8, 8, 8), Intensity((0, 1)), Native((8, 8, 8), (1, 1, 1), (8, 8, 8), "RAS")
)


class _Given(Embedder):
    """Vectors as they are stored."""

    kind, version = "given", 1

    def describe(self, images, spacing_mm):
        return images

    @classmethod
    def make(cls, argument):
        return cls()

    @classmethod
    def restore(cls, settings, state, folder):
        return cls()


class _Rows:
    """A made-up index of layers."""

    def __init__(self, layers: np.ndarray):
        self.layers = layers
        self.patients, self.ids = np.arange(len(layers)), tuple(map(str, range(len(layers))))

    def __len__(self) -> int:
        return len(self.layers)

    def block(self) -> dict[str, np.ndarray]:
        return {"layers": self.layers}

    def blocks(self, names):
        yield 0, self.block()


def report() -> bool:
    """Prints seconds; False where a neighbour is not the one that FAISS finds, or HNSW finds too few."""
    rng = np.random.default_rng(0)
    training, queries, unseen = (rng.standard_normal((CASES, NUMBERS)).astype(np.float32) for _ in range(3))
    queries[:200] = training[:200] + rng.normal(0, 0.2, (200, NUMBERS)).astype(np.float32)
    table = Table("feature level", "data", "seconds", "result")
    right = _vectors(table, training, queries, unseen)
    _memorization(table, rng)
    right &= _slices(table, rng)
    Console(width=140).print(table)
    return right


def _vectors(table: Table, training: np.ndarray, queries: np.ndarray, unseen: np.ndarray) -> bool:
    right = True
    for kind in (EmbeddingCosine, EmbeddingRmse, EmbeddingPearson):
        measure = kind(PREPARATION, embedders=Embedders(_Given()))
        start = time.perf_counter()
        block = {"embedding": training}
        near = nearest(measure.distances({"embedding": queries}, block), K)
        null = nearest(measure.distances({"embedding": unseen}, block), K)
        p = Null.fit(evidence(null.ratio)).p_values(evidence(near.ratio))
        q = benjamini_hochberg(p)
        seconds = time.perf_counter() - start
        same = _same_as_faiss(kind.name, near.neighbors, training, queries)
        right &= same > 0.999
        found = (
            f"{np.mean(q[:200] <= 0.05):.3f} of copies, {np.mean(p[200:] <= 0.05):.3f} of new; FAISS agrees {same:.4f}"
        )
        data = f"{CASES:,} x {CASES:,} of {NUMBERS}, null of {CASES:,}"
        table.add_row(f"{kind.name}: neighbours, p, q", data, f"{seconds:.2f}", found)
    return right


def _same_as_faiss(name: str, neighbors: np.ndarray, training: np.ndarray, queries: np.ndarray) -> float:
    """Share of the k nearest that FAISS, too, counts among them."""
    if name == "embedding_rmse":
        index = faiss.IndexFlatL2(NUMBERS)
    else:
        index = faiss.IndexFlatIP(NUMBERS)
        centre = [x - x.mean(1, keepdims=True) if name == "embedding_pearson" else x for x in (training, queries)]
        training, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in centre)
    index.add(training)
    expected = index.search(queries, K)[1]
    return float(np.mean([len(np.intersect1d(a, b)) / K for a, b in zip(neighbors, expected, strict=True)]))


def _memorization(table: Table, rng: np.random.Generator) -> None:
    training, queries = (rng.standard_normal((CASES, LAYERS, NUMBERS)).astype(np.float32) for _ in range(2))
    measure = MemorizationIndex(PREPARATION, embedders=Embedders(_Given()))
    start = time.perf_counter()
    measure.use(measure.fit(_Rows(training)))
    fitted = time.perf_counter()
    distances = measure.distances(_Rows(queries).block(), _Rows(training).block())
    done = time.perf_counter()
    data = f"{CASES:,} x {CASES:,}, {LAYERS} layers of {NUMBERS}"
    table.add_row("memorization_index: whitening", data, f"{fitted - start:.2f}", "")
    table.add_row("memorization_index: all pairs", data, f"{done - fitted:.2f}", f"smallest {distances.min():.3f}")


def _slices(table: Table, rng: np.random.Generator) -> bool:
    """Slices as they are: neighbours alike, so in clusters."""
    centres = rng.standard_normal((SLICES // 30, SLICE_NUMBERS))
    vectors = np.repeat(centres, 30, 0) + 0.5 * rng.standard_normal((SLICES, SLICE_NUMBERS))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    asked = vectors[rng.choice(SLICES, ASKED, replace=False)] + 0.02 * rng.standard_normal((ASKED, SLICE_NUMBERS))
    asked = (asked / np.linalg.norm(asked, axis=1, keepdims=True)).astype(np.float32)
    nearest = []
    for name, make in (("exact search", flat_index), ("HNSW", hnsw_index)):
        start = time.perf_counter()
        index = make(vectors)
        built = time.perf_counter()
        nearest.append(index.search(asked, 1)[1][:, 0])
        done = time.perf_counter()
        data = f"{SLICES:,} of {SLICE_NUMBERS}"
        table.add_row(f"slices, {name}: built", data, f"{built - start:.2f}", "")
        same = np.mean(nearest[-1] == nearest[0])
        table.add_row(f"slices, {name}: {ASKED:,} asked", data, f"{done - built:.2f}", f"nearest found {same:.4f}")
    return bool(np.mean(nearest[0] == nearest[1]) >= 0.99)
