"""Calibrated Memorization Index (Deo et al., arXiv 2602.13066): similarity in several whitened layers at once.

`memorization_index` is the method with four corrections, `memorization_index_as_published` the method as the paper
states it. Both compare the layers of the index's embedding. Section numbers below are those of the paper.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from replica_detection.measures.base import Block, FittedMeasure, MeasureOutput, TrainingRows, register
from replica_detection.measures.feature import (
    EmbeddingMeasure,
    cosine_distances,
    unit,
    zero_where_equal,
)
from replica_detection.preparation.prepare import PreparedImage

# Smallest value of a cosine, because a geometric mean needs values above 0.
FLOOR = 1e-6
# Constants of sections 2.2 to 2.4.
EPSILON, SPREAD_EPSILON, REPEATS = 1e-6, 1e-8, 10


@dataclass(frozen=True)
class Whitening:
    """Whitening of the D columns that vary: (x[columns] - mean) @ matrix has the identity as covariance, up to the
    shrinkage. `mean` and `columns` are (D,), `matrix` (D, D) is symmetric."""

    mean: np.ndarray
    matrix: np.ndarray
    columns: np.ndarray

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """The whitened rows of (B, F), scaled to length 1: (B, D) float64."""
        return unit((np.asarray(features[:, self.columns], np.float64) - self.mean) @ self.matrix)


class _Layered(FittedMeasure, EmbeddingMeasure):
    """Cosines of whitened features in each layer, and their geometric mean."""

    sense = "similarity"
    needs: ClassVar[tuple[str, ...]] = ("layers",)
    by_default = False
    whitenings: tuple[Whitening, ...] = ()

    @abstractmethod
    def root(self, moments: Moments) -> np.ndarray:
        """(D, D) matrix that whitens the training features of one layer."""

    def features(self, case: PreparedImage) -> dict[str, np.ndarray]:
        """`layers`: (L, F) float32, shorter layers padded with zeros."""
        layers = [layer[0] for layer in self.embedder.layers(case.image[None], self.preparation.spacing)]
        width = max(len(layer) for layer in layers)
        return {"layers": np.stack([np.pad(layer, (0, width - len(layer))) for layer in layers]).astype(np.float32)}

    def fit(self, training: TrainingRows, left_out: np.ndarray | None = None) -> Mapping[str, np.ndarray]:
        """`mean_<l>`, `matrix_<l>` and `columns_<l>` of each layer."""
        fitted: dict[str, np.ndarray] = {}
        for layer, moments in enumerate(layer_moments(training, self.needs, left_out)):
            fitted[f"mean_{layer}"], fitted[f"matrix_{layer}"] = moments.mean, self.root(moments)
            fitted[f"columns_{layer}"] = moments.columns
        return fitted

    def use(self, fit: Mapping[str, np.ndarray]) -> None:
        count = sum(name.startswith("mean_") for name in fit)
        self.whitenings = tuple(
            Whitening(fit[f"mean_{n}"], fit[f"matrix_{n}"], fit[f"columns_{n}"]) for n in range(count)
        )

    def distances(self, queries: Block, training: Block) -> np.ndarray:
        logs = [np.log(np.maximum(c, FLOOR)) for c in self._cosines(queries, training)]
        return zero_where_equal(np.maximum(1 - np.exp(np.mean(logs, 0)), 0), queries["layers"], training["layers"])

    def details(self, queries: Block, training: Block) -> dict[str, np.ndarray]:
        """The cosine in each layer, (Q, N)."""
        return {f"layer_{n}": c for n, c in enumerate(self._cosines(queries, training), 1)}

    def _cosines(self, queries: Block, training: Block) -> list[np.ndarray]:
        pairs = zip(self.whitenings, split(queries), split(training), strict=True)
        return [1 - cosine_distances(whiten(q), whiten(n)) for whiten, q, n in pairs]


@register
class MemorizationIndex(_Layered):
    """Geometric mean of whitened cosines over the layers of one training case (sections 2.2 and 2.3, corrected):

        s = exp(mean over layers k of log max(cos(f_k, t_k), 1e-6))

    with f_k and t_k the whitened features of the query and the training case. Four corrections: each layer's covariance
    is shrunk (Ledoit and Wolf, J. Multivariate Anal. 2004), so that it can be inverted with fewer training cases than
    features; cosines below 0 count as 0 instead of making the mean undefined; all layers compare the same training
    case; and the null comes from cases that the whitening never saw (holdout scans, or training cases of other patients
    than those it was fitted to).

    `describe` gives the similarity s, MI = (s - mean of the null) / its standard deviation, ONI = -tanh(MI), the
    difference to the second nearest case, and the number of layers in which the match is the nearest case. MI and ONI
    are for information: the null of a nearest neighbour is skewed, so the p value is the empirical one.
    """

    name = "memorization_index"

    @property
    def definition(self) -> str:
        return (
            "geometric mean of the cosines of whitened features (covariance shrunk by Ledoit and Wolf) over the layers "
            f"of embedding {self.embedder.definition}"
        )

    def root(self, moments: Moments) -> np.ndarray:
        share, dimensions = moments.ledoit_wolf, len(moments.mean)
        target = float(np.trace(moments.covariance)) / dimensions
        shrunk = (1 - share) * moments.covariance + share * target * np.eye(dimensions)
        return inverse_root(shrunk, 1e-12 * target)

    def describe(self, output: MeasureOutput, ids: Sequence[str]) -> dict[str, list[Any]]:
        best = np.sort(1 - output.distances, axis=1)[:, ::-1]
        similarity = best[:, 0]
        nearest = output.distances.argmin(1)
        names = list(output.details)
        by_layer = [np.where(np.isfinite(output.distances), output.details[n], -np.inf).argmax(1) for n in names]
        consensus = np.sum([choice == nearest for choice in by_layer], 0)
        return {
            "similarity": similarity.tolist(),
            "margin": (best[:, 0] - best[:, 1]).tolist() if best.shape[1] > 1 else [None] * len(best),
            "layers_agreeing": [f"{n} of {len(names)}" for n in consensus],
            **{f"nearest_{n}": [ids[i] for i in choice] for n, choice in zip(names, by_layer, strict=True)},
        }

    def against_null(self, columns: dict[str, list[Any]], null: np.ndarray) -> dict[str, list[Any]]:
        if not columns:
            return columns
        known = null[np.isfinite(null)]
        of_null = 1 - known if len(known) else np.full(1, np.nan)
        index, novelty = memorization_index(np.array(columns["similarity"]), of_null)
        first = {"similarity": columns["similarity"], "MI": index.tolist(), "ONI": novelty.tolist()}
        return {**first, **columns}


@register
class MemorizationIndexAsPublished(_Layered):
    """The index as published: no shrinkage, each layer with its own neighbour, null of halves of the training set.

    `describe` gives s, MI and ONI by the paper's formulas, and None where these take the logarithm of a negative
    number: with fewer training cases than features, every pair of whitened training features has the cosine
    -1 / (n - 1), and the index is undefined. Ratio, p and verdict follow the rules of all other measures; the paper
    has none.
    """

    name = "memorization_index_as_published"
    null_mean = null_spread = float("nan")

    @property
    def definition(self) -> str:
        return (
            "geometric mean of the cosines of whitened features (ZCA, epsilon 1e-6, no shrinkage) over the layers of "
            f"embedding {self.embedder.definition}; MI and ONI against random halves of the training set"
        )

    def root(self, moments: Moments) -> np.ndarray:
        unbiased = moments.covariance * moments.count / max(moments.count - 1, 1)
        return inverse_root(unbiased + EPSILON * np.eye(len(moments.mean)), EPSILON)

    def fit(self, training: TrainingRows, left_out: np.ndarray | None = None) -> Mapping[str, np.ndarray]:
        fitted = dict(super().fit(training, left_out))
        self.use(fitted)
        kept = np.ones(len(training), bool) if left_out is None else ~left_out
        parts = [split(block) for _, block in training.blocks(self.needs)]
        layers = [np.concatenate([part[n] for part in parts])[kept] for n in range(len(self.whitenings))]
        whitened = [whiten(layer) for whiten, layer in zip(self.whitenings, layers, strict=True)]
        fitted["null"] = np.array(published_null(whitened, np.random.default_rng(0)))
        return fitted

    def use(self, fit: Mapping[str, np.ndarray]) -> None:
        super().use(fit)
        if "null" in fit:
            self.null_mean, self.null_spread = (float(v) for v in fit["null"])

    def describe(self, output: MeasureOutput, ids: Sequence[str]) -> dict[str, list[Any]]:
        nearest = [np.where(np.isfinite(output.distances), c, -np.inf) for c in output.details.values()]
        similarity = published_similarity([c.max(1) for c in nearest])
        index = (similarity - self.null_mean) / self.null_spread
        columns = {"similarity": similarity, "MI": index, "ONI": -np.tanh(index)}
        return {
            **{name: [v if np.isfinite(v) else None for v in values.tolist()] for name, values in columns.items()},
            **{
                f"nearest_{name}": [ids[i] for i in c.argmax(1)]
                for name, c in zip(output.details, nearest, strict=True)
            },
        }


def memorization_index(similarity: np.ndarray, null: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """MI and ONI (section 2.4): (s - mean(null)) / sqrt(var(null) + 1e-8), and -tanh(MI)."""
    index = (np.asarray(similarity) - np.mean(null)) / np.sqrt(np.var(null) + SPREAD_EPSILON)
    return index, -np.tanh(index)


def published_similarity(by_layer: Sequence[np.ndarray]) -> np.ndarray:
    """s = exp(mean over layers of log(s_k + epsilon)), section 2.3; NaN where s_k + epsilon is not above 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.exp(np.mean([np.log(np.asarray(s, np.float64) + EPSILON) for s in by_layer], 0))
    return np.where(np.all([np.asarray(s) + EPSILON > 0 for s in by_layer], 0), mean, np.nan)


def published_null(whitened: Sequence[np.ndarray], rng: np.random.Generator) -> tuple[float, float]:
    """Mean and standard deviation of s from one random half of the training set to the other, 10 times (section 2.4).

    Args:
        whitened: for each layer (N, D_l), rows of length 1.
    """
    count = len(whitened[0])
    values = []
    for _ in range(REPEATS):
        order = rng.permutation(count)
        first, second = order[: count // 2], order[count // 2 :]
        values.append(published_similarity([(layer[first] @ layer[second].T).max(1) for layer in whitened]))
    pooled = np.concatenate(values)
    return float(np.mean(pooled)), float(np.sqrt(np.var(pooled) + SPREAD_EPSILON))


@dataclass(frozen=True)
class Moments:
    """Moments of the n = `count` features of a layer, over the columns that vary (or the first if none does).

    `mean` (D,); `covariance` (D, D), divided by n; `fourth`, the sum over the centred features of the fourth power of
    their length; `columns` (D,), the positions among the stored columns.
    """

    count: int
    mean: np.ndarray
    covariance: np.ndarray
    fourth: float
    columns: np.ndarray

    @property
    def ledoit_wolf(self) -> float:
        """Weight of (trace / D) I in the shrunk covariance with the smallest expected error, in [0, 1].

        Ledoit and Wolf 2004, lemma 3.1 and section 3.3.
        """
        dimensions = len(self.mean)
        target = np.trace(self.covariance) / dimensions
        away = float(((self.covariance - target * np.eye(dimensions)) ** 2).sum())
        scatter = (self.fourth / self.count - float((self.covariance**2).sum())) / self.count
        return 1.0 if away <= 0 else float(np.clip(scatter / away, 0, 1))


def layer_moments(training: TrainingRows, names: Sequence[str], left_out: np.ndarray | None) -> list[Moments]:
    """Moments of each layer over the training cases that are not left out; reads the blocks twice."""

    def kept() -> Iterator[list[np.ndarray]]:
        for start, block in training.blocks(names):
            layers = split(block)
            use = slice(None) if left_out is None else ~left_out[start : start + len(layers[0])]
            yield [layer[use].astype(np.float64) for layer in layers]

    sums: list[np.ndarray] = []
    count = 0
    for layers in kept():
        count += len(layers[0])
        sums = [layer.sum(0) + (sums[n] if sums else 0) for n, layer in enumerate(layers)]
    means = [total / max(count, 1) for total in sums]
    products = [np.zeros((len(mean), len(mean))) for mean in means]
    fourth = [0.0] * len(means)
    for layers in kept():
        for n, layer in enumerate(layers):
            centred = layer - means[n]
            products[n] += centred.T @ centred
            fourth[n] += float(((centred**2).sum(1) ** 2).sum())
    moments = []
    for mean, product, power in zip(means, products, fourth, strict=True):
        columns = np.flatnonzero(np.diag(product) > 0) if product.any() else np.arange(1)
        covariance = product[np.ix_(columns, columns)] / max(count, 1)
        moments.append(Moments(count, mean[columns], covariance, power, columns))
    return moments


def split(block: Block) -> list[np.ndarray]:
    """The layers of a block, (B, F) each."""
    return list(block["layers"].swapaxes(0, 1))


def inverse_root(covariance: np.ndarray, least: float) -> np.ndarray:
    """The symmetric C^(-1/2) (ZCA); eigenvalues below `least` count as `least`."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors / np.sqrt(np.maximum(values, max(least, 1e-300)))) @ vectors.T
