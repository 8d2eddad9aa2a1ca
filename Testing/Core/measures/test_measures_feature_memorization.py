"""The memorization index: repaired where its published form fails, and the published form as its paper has it."""

import numpy as np
import pytest

from replica_detection.embedding import Embedders
from replica_detection.errors import ConfigurationError
from replica_detection.measures import MeasureOutput, make_measures
from replica_detection.measures.memorization_index import (
    EPSILON,
    MemorizationIndex,
    MemorizationIndexAsPublished,
    inverse_root,
    layer_moments,
    memorization_index,
    published_null,
    published_similarity,
)
from replica_detection.preparation.profiles import Intensity, Native, Preparation
from replica_detection.statistics.null import Null

PREPARATION = Preparation(
    "generic", 3, (1, 1, 1), (4, 4, 4), Intensity((0, 1)), Native((4, 4, 4), (1, 1, 1), (4, 4, 4), "RAS")
)


class Rows:
    """Made-up stored layers, in blocks of 7 cases."""

    def __init__(self, *layers: np.ndarray, patients: np.ndarray | None = None):
        self.layers = [np.asarray(layer, np.float32) for layer in layers]
        self.patients = np.arange(len(self)) if patients is None else patients
        self.ids = tuple(f"case_{n}" for n in range(len(self)))

    def __len__(self) -> int:
        return len(self.layers[0])

    def block(self, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        width = max(layer.shape[1] for layer in self.layers)
        padded = [np.pad(layer, ((0, 0), (0, width - layer.shape[1]))) for layer in self.layers]
        return {"layers": np.stack(padded, 1)[rows]}

    def blocks(self, names):
        for start in range(0, len(self), 7):
            yield start, self.block(slice(start, start + 7))


def fitted(rows: Rows, measure: type = MemorizationIndex, left_out: np.ndarray | None = None):
    made = measure(PREPARATION, embedders=Embedders())
    made.use(made.fit(rows, left_out))
    return made


def draws(seed: int, count: int, dimensions: int) -> np.ndarray:
    """Features with a 1 / rank spectrum in a random basis, as METHODS simulates them."""
    basis = np.linalg.qr(np.random.default_rng(99).standard_normal((dimensions, dimensions)))[0]
    scales = 1 / np.sqrt(np.arange(1, dimensions + 1))
    return 3 + (np.random.default_rng(seed).standard_normal((count, dimensions)) * scales) @ basis


# ------------------------------------------------------------------------------------------------------- pieces


def test_moments_are_those_of_all_blocks_together() -> None:
    layers = draws(0, 30, 5), draws(1, 30, 9)
    out = np.zeros(30, bool)
    out[[0, 8, 29]] = True
    for left_out in (None, out):
        kept = ~out if left_out is not None else np.ones(30, bool)
        for layer, found in zip(layers, layer_moments(Rows(*layers), ("layers",), left_out), strict=True):
            layer = layer.astype(np.float32)[kept]
            assert found.count == kept.sum()
            assert found.columns.tolist() == list(range(layer.shape[1])), "without what fills the shorter layer"
            np.testing.assert_allclose(found.mean, layer.mean(0), atol=1e-6)
            np.testing.assert_allclose(found.covariance, np.cov(layer.T, bias=True), atol=1e-6)


def test_shrinkage_is_that_of_ledoit_and_wolf() -> None:
    """Their estimator written out as in the paper: the mean distance of single outer products to their mean."""
    x = draws(3, 40, 12)
    found = layer_moments(Rows(x), ("layers",), None)[0].ledoit_wolf
    centred = x - x.mean(0)
    covariance = centred.T @ centred / 40
    m = np.trace(covariance) / 12
    d2 = ((covariance - m * np.eye(12)) ** 2).sum() / 12
    b2 = sum(((np.outer(row, row) - covariance) ** 2).sum() / 12 for row in centred) / 40**2
    assert found == pytest.approx(min(b2, d2) / d2, rel=1e-4)
    few, many = (layer_moments(Rows(draws(4, n, 12)), ("layers",), None)[0].ledoit_wolf for n in (10, 4000))
    assert few > 0.1 > 0.02 > many
    assert layer_moments(Rows(np.eye(6) * 0), ("layers",), None)[0].ledoit_wolf == 1


def test_the_inverse_root_whitens() -> None:
    c = np.cov(draws(5, 500, 8).T)
    root = inverse_root(c, 0)
    np.testing.assert_allclose(root @ c @ root, np.eye(8), atol=1e-9)
    np.testing.assert_allclose(root, root.T)


# ----------------------------------------------------------------------------------------------------- the repaired


def test_distance_is_one_minus_the_geometric_mean_of_whitened_cosines() -> None:
    training = Rows(draws(0, 50, 6), draws(1, 50, 10))
    queries = Rows(draws(2, 4, 6), draws(3, 4, 10))
    made = fitted(training)
    found = made.distances(queries.block(), training.block())
    cosines = []
    for n in range(2):
        x, q = training.layers[n].astype(float), queries.layers[n].astype(float)
        moments = layer_moments(training, ("layers",), None)[n]
        c = (1 - moments.ledoit_wolf) * moments.covariance
        c += moments.ledoit_wolf * np.trace(moments.covariance) / len(c) * np.eye(len(c))
        values, vectors = np.linalg.eigh(c)
        w = vectors @ np.diag(values**-0.5) @ vectors.T
        a, b = (q - x.mean(0)) @ w, (x - x.mean(0)) @ w
        cosines.append(a @ b.T / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1))
    expected = 1 - np.sqrt(np.maximum(cosines[0], 1e-6) * np.maximum(cosines[1], 1e-6))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_an_exact_copy_is_at_zero_and_has_the_largest_index() -> None:
    layers = draws(0, 60, 8), draws(1, 60, 8)
    training = Rows(*layers)
    queries = Rows(*(np.concatenate([draws(50 + n, 9, 8), layer[17:18]]) for n, layer in enumerate(layers)))
    made = fitted(training)
    distances = made.distances(queries.block(), training.block())
    assert distances[9, 17] == 0
    null = made.distances(Rows(draws(70, 30, 8), draws(71, 30, 8)).block(), training.block())
    output = MeasureOutput(distances, made.details(queries.block(), training.block()))
    described = made.against_null(made.describe(output, training.ids), null.min(1))
    assert np.argmax(described["MI"]) == 9
    assert described["similarity"][9] == 1
    assert described["layers_agreeing"][9] == "2 of 2"
    assert described["nearest_layer_1"][9] == described["nearest_layer_2"][9] == "case_17"
    assert -1 <= min(described["ONI"]) <= max(described["ONI"]) <= 1
    s = 1 - null.min(1)
    assert described["MI"][9] == pytest.approx((1 - s.mean()) / np.sqrt(s.var() + 1e-8))
    assert Null.fit(s, with_tail=False).p_values(np.array([1.0]))[0] == pytest.approx(1 / 31)


@pytest.mark.parametrize("cases", [20, 60, 150])
def test_fewer_cases_than_features_give_numbers(cases: int) -> None:
    """The published method gives NaN there; see below."""
    training = Rows(draws(0, cases, 100), draws(1, cases, 100))
    made = fitted(training)
    found = made.distances(Rows(draws(2, 5, 100), draws(3, 5, 100)).block(), training.block())
    assert np.isfinite(found).all()
    null = []
    for n in range(0, cases, 5):
        out = np.isin(np.arange(cases), range(n, n + 5))
        again = made.refit_without(training, out)
        null.append(again.distances(training.block(slice(n, n + 5)), training.block())[:, ~out].min(1))
    assert np.std(null) > 1e-3, "the null has a spread"
    output = MeasureOutput(found, made.details(Rows(draws(2, 5, 100), draws(3, 5, 100)).block(), training.block()))
    described = made.against_null(made.describe(output, training.ids), np.concatenate(null))
    assert np.isfinite(described["MI"]).all()
    assert np.abs(described["MI"]).max() < 6, "new cases look like the null"


def test_clean_queries_are_called_at_the_nominal_rate() -> None:
    """Null of training cases that the whitening never saw, 768-like regime (fewer cases than features)."""
    cases, dimensions = 120, 200
    training = Rows(draws(0, cases, dimensions), draws(1, cases, dimensions), draws(2, cases, dimensions))
    made = fitted(training)
    null = []
    for fold in range(10):
        out = np.arange(cases) % 10 == fold
        again = made.refit_without(training, out)
        null.append(again.distances(training.block(out), training.block())[:, ~out].min(1))
    new = Rows(*(draws(1000 + n, 500, dimensions) for n in range(3)))
    s = 1 - made.distances(new.block(), training.block()).min(1)
    p = Null.fit(1 - np.concatenate(null), with_tail=False).p_values(s)
    for level in (0.05, 0.2, 0.5):
        limit = 3.3 * np.sqrt(level * (1 - level) * (1 / 500 + 1 / cases)) + 1 / (cases + 1)
        assert abs(np.mean(p <= level) - level) < limit, level


def test_a_whitening_without_some_cases_does_not_know_them() -> None:
    training = Rows(draws(0, 40, 6))
    out = np.arange(40) < 10
    again = fitted(training).refit_without(training, out)
    direct = fitted(Rows(training.layers[0][10:]))
    np.testing.assert_allclose(again.whitenings[0].matrix, direct.whitenings[0].matrix, rtol=1e-6)


def test_it_needs_an_embedding() -> None:
    with pytest.raises(ConfigurationError, match="`embedding`"):
        make_measures(["memorization_index"], PREPARATION)


# ---------------------------------------------------------------------------------------------------- as published


def test_the_published_formula_by_hand() -> None:
    """One layer of two numbers, four training cases (+-2, 0) and (0, +-1), query (2, 1).

    Mean 0; covariance (1 / 3) diag(8, 2), whitened by diag(sqrt(3 / 8), sqrt(3 / 2)) up to epsilon: training cases
    point along the axes, the query along (1, 1), so every cosine is sqrt(1 / 2) or its negative, and s = sqrt(1 / 2).
    Halves: of the 6 ways to choose 2 of 4 two put opposite cases together, where every nearest in the other half has
    cosine 0; the others have cosines 0 and -1, so 0 as well. Hence mu = epsilon, sigma = sqrt(1e-8), MI = 7071.
    """
    training = Rows(np.array([[2, 0], [-2, 0], [0, 1], [0, -1]]))
    made = fitted(training, MemorizationIndexAsPublished)
    np.testing.assert_allclose(made.whitenings[0].matrix, np.diag(np.sqrt([3 / 8, 3 / 2])), atol=1e-5)
    assert made.null_mean == pytest.approx(EPSILON, rel=1e-3)
    assert made.null_spread == pytest.approx(1e-4)
    query = Rows(np.array([[2.0, 1.0]]))
    details = made.details(query.block(), training.block())
    found = MeasureOutput(made.distances(query.block(), training.block()), details)
    described = made.describe(found, training.ids)
    assert described["similarity"][0] == pytest.approx(np.sqrt(0.5), abs=1e-5)
    assert described["MI"][0] == pytest.approx((np.sqrt(0.5) + EPSILON - made.null_mean) / 1e-4, rel=1e-4)
    assert described["ONI"][0] == pytest.approx(-1)


def test_two_layers_by_hand() -> None:
    """s = exp((log(0.9 + e) + log(0.4 + e)) / 2) = 0.6, and mu, sigma of a null that is known."""
    assert published_similarity([np.array([0.9]), np.array([0.4])])[0] == pytest.approx(0.6, abs=2e-6)
    index, novelty = memorization_index(np.array([0.6]), np.array([0.2, 0.4]))
    assert index[0] == pytest.approx((0.6 - 0.3) / np.sqrt(0.01 + 1e-8))
    assert novelty[0] == pytest.approx(-np.tanh(3), abs=1e-6)


def test_each_layer_has_its_own_neighbour_in_the_published_form() -> None:
    """The repaired one asks that a single training case is near in all layers."""
    first = np.concatenate([np.eye(4), -np.eye(4)])
    training, query = Rows(first, first[[1, 0, 2, 3, 5, 4, 6, 7]]), Rows(np.eye(4)[:1], np.eye(4)[:1])
    # Named by the first layer: case 0; by the second, whose cases 0 and 1 are exchanged: case 1.
    published, repaired = fitted(training, MemorizationIndexAsPublished), fitted(training)
    said = []
    for made in (published, repaired):
        details = made.details(query.block(), training.block())
        found = MeasureOutput(made.distances(query.block(), training.block()), details)
        said.append(made.describe(found, training.ids))
    assert said[0]["nearest_layer_1"] == ["case_0"]
    assert said[0]["nearest_layer_2"] == ["case_1"]
    assert said[0]["similarity"][0] == pytest.approx(1, abs=1e-4)
    assert said[1]["similarity"][0] < 0.1


def test_published_null_is_undefined_with_fewer_cases_than_features() -> None:
    """Every pair of whitened training features then has the cosine -1 / (n - 1): the logarithm of a negative number."""
    layer = draws(0, 30, 80)
    training = Rows(layer)
    made = fitted(training, MemorizationIndexAsPublished)
    whitened = made.whitenings[0](training.layers[0])
    off = (whitened @ whitened.T)[~np.eye(30, dtype=bool)]
    np.testing.assert_allclose(off, -1 / 29, atol=0.01)
    assert np.isnan(made.null_mean)
    query = Rows(draws(1, 3, 80))
    found = MeasureOutput(
        made.distances(query.block(), training.block()), made.details(query.block(), training.block())
    )
    assert np.isfinite(found.distances).all()
    assert made.describe(found, training.ids)["MI"] == [None] * 3


def test_published_null_takes_halves() -> None:
    rng = np.random.default_rng(0)
    layer = np.abs(rng.standard_normal((40, 5)))
    layer /= np.linalg.norm(layer, axis=1)[:, None]
    mean, spread = published_null([layer], np.random.default_rng(1))
    order, values = np.random.default_rng(1), []
    for _ in range(10):
        where = order.permutation(40)
        values.append((layer[where[:20]] @ layer[where[20:]].T).max(1) + EPSILON)
    assert mean == pytest.approx(np.mean(values))
    assert spread == pytest.approx(np.sqrt(np.var(values) + 1e-8))
