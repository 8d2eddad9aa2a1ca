"""Thresholds from labels: brute force, published intervals, honest out-of-sample figures."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replica_detection.errors import ConfigurationError
from replica_detection.statistics.intervals import (
    Estimate,
    clopper_pearson,
    mean_of,
    percentile_interval,
    resamples,
)
from replica_detection.statistics.thresholds import (
    Confusion,
    balanced_accuracy_threshold,
    reader_threshold,
    youden_threshold,
)


def balanced_accuracy(values, replica, threshold):
    flagged = values <= threshold
    return (flagged[replica].mean() + (~flagged)[~replica].mean()) / 2


labelled = st.lists(st.tuples(st.integers(0, 100), st.booleans()), min_size=2, max_size=40).filter(
    lambda rows: 0 < sum(r for _, r in rows) < len(rows)
)


@settings(max_examples=200, deadline=None)
@given(labelled)
def test_no_threshold_of_the_grid_is_better_than_the_chosen_one(rows):
    values, replica = np.array([v / 100 for v, _ in rows]), np.array([r for _, r in rows])
    chosen = balanced_accuracy_threshold(values, replica)
    assert chosen == pytest.approx(round(chosen, 2), abs=1e-9)
    best = max(balanced_accuracy(values, replica, t / 100 + 1e-9) for t in range(-1, 102))
    assert balanced_accuracy(values, replica, chosen + 1e-9) == pytest.approx(best)


@settings(max_examples=200, deadline=None)
@given(labelled)
def test_no_cut_at_all_is_better_than_youdens(rows):
    values, replica = np.array([v / 7 - 3 for v, _ in rows]), np.array([r for _, r in rows])
    cuts = np.concatenate([[values.min() - 1], np.unique(values) + 1e-9])
    best = max(balanced_accuracy(values, replica, t) for t in cuts)
    assert balanced_accuracy(values, replica, youden_threshold(values, replica)) == pytest.approx(best)


def test_the_threshold_lies_in_the_middle_of_what_is_equally_good():
    values, replica = np.array([0.1, 0.2, 0.61, 0.9]), np.array([True, True, False, False])
    assert youden_threshold(values, replica) == pytest.approx(0.405)
    assert balanced_accuracy_threshold(values, replica) == pytest.approx(0.40)
    # A grid point that equals a value flags it, whatever the rounding.
    assert balanced_accuracy_threshold(np.array([0.07, 0.08]), np.array([True, False])) == pytest.approx(0.07)


def test_relict_figure_of_three_operating_points():
    # METHODS of RELICT's TOF-MRA cohort: 5 replicas among 50, balanced accuracy 0.79 = (3/5 + 44/45) / 2.
    replica = np.arange(50) < 5
    values = np.where(replica, [0.3, 0.3, 0.3, 0.95, 0.95, *[0] * 45], [*[0] * 5, 0.2, *[0.8] * 44])
    found = reader_threshold(values, replica, "balanced-accuracy")
    assert found.apparent.balanced_accuracy.value == pytest.approx((3 / 5 + 44 / 45) / 2)
    assert round(found.apparent.balanced_accuracy.value, 2) == 0.79
    assert found.apparent.sensitivity.low < 0.2  # 3 of 5 say little


def test_missing_values_are_left_out_and_one_label_alone_gives_no_threshold():
    values, replica = np.array([0.1, math.nan, 0.9, 0.2, 0.8]), np.array([True, True, False, True, False])
    assert youden_threshold(values, replica) == pytest.approx(0.5)
    alone = reader_threshold(values, np.ones(5, bool), "youden")
    assert math.isnan(alone.threshold) and alone.cross_validated is None and "fewer than two" in alone.note
    few = reader_threshold(values, np.array([True, False, False, False, False]), "youden")
    assert few.threshold == pytest.approx(0.15) and few.cross_validated is None and "replica" in few.note
    assert math.isnan(reader_threshold(np.array([]), np.array([], bool), "youden").threshold)
    with pytest.raises(ConfigurationError, match="guess"):
        reader_threshold(values, replica, "guess")


def test_sensitivity_is_not_the_positive_predictive_value():
    # MRNet of Dar et al., MedDiff: 58 both negative, 6 flagged without being replicas, 2 missed, 34 both positive.
    # The paper prints 85 and 97 %, which are the predictive values.
    replica = np.repeat([False, False, True, True], [58, 6, 2, 34])
    flagged = np.repeat([False, True, False, True], [58, 6, 2, 34])
    found = Confusion.of(replica, flagged)
    assert found.sensitivity.value == pytest.approx(34 / 36) and found.specificity.value == pytest.approx(58 / 64)
    assert found.positive_predictive_value.value == pytest.approx(34 / 40)
    assert found.negative_predictive_value.value == pytest.approx(58 / 60)
    swapped = Confusion.of(flagged, replica)
    assert swapped.sensitivity.value == pytest.approx(0.85) and round(swapped.specificity.value, 2) == 0.97
    monai = Confusion.of(np.repeat([False, False, True], [55, 7, 38]), np.repeat([False, True, True], [55, 7, 38]))
    assert monai.sensitivity.value == 1 and monai.specificity.value == pytest.approx(55 / 62)


def test_exact_intervals_are_the_published_ones():
    assert clopper_pearson(5, 5)[0] == pytest.approx(0.478, abs=5e-4)
    assert clopper_pearson(45, 45) == (pytest.approx(0.921, abs=5e-4), 1.0)
    # By statsmodels' proportion_confint(method="beta").
    assert clopper_pearson(7, 50) == pytest.approx((0.05819170034037209, 0.2673960024970084))
    assert clopper_pearson(34, 36) == pytest.approx((0.813363293542446, 0.9931996993459772))
    assert clopper_pearson(0, 0) == (0, 1)
    with pytest.raises(ValueError, match="3 successes in 2"):
        clopper_pearson(3, 2)


@pytest.mark.parametrize("chance", [0.5, 0.9, 0.99])
def test_exact_intervals_cover_at_least_as_often_as_they_say(chance):
    from scipy.stats import binom

    for trials in (5, 23, 45):
        limits = [clopper_pearson(k, trials) for k in range(trials + 1)]
        covered = sum(binom.pmf(k, trials, chance) for k, (a, b) in enumerate(limits) if a <= chance <= b)
        assert covered >= 0.95


def test_the_interval_of_a_mean_of_two_shares():
    found = mean_of(Estimate(1, *clopper_pearson(5, 5)), Estimate(1, *clopper_pearson(45, 45)))
    assert found.value == 1 and found.high == 1
    assert found.low == pytest.approx(1 - math.hypot(1 - 0.478176, 1 - 0.921307) / 2, abs=1e-4)
    assert f"{found:.2f}" == "1.00 (0.74 to 1.00)" and f"{Estimate():.2f}" == "undefined"


def sample(rng, replicas, others, apart):
    replica = np.arange(replicas + others) < replicas
    return np.where(replica, rng.normal(0.8 - apart, 0.1, len(replica)), rng.normal(0.8, 0.1, len(replica))), replica


def test_labels_that_mean_nothing_are_not_learned_out_of_sample():
    apparent, held_out, out_of_bag = [], [], []
    for seed in range(40):
        values, replica = sample(np.random.default_rng(seed), 10, 30, 0.0)
        for method in ("balanced-accuracy", "youden"):
            found = reader_threshold(values, replica, method)
            apparent.append(found.apparent.balanced_accuracy.value)
            held_out.append(found.cross_validated.balanced_accuracy.value)
            out_of_bag.append(found.out_of_bag.value)
    assert np.mean(apparent) > 0.56  # chosen and scored on the same images
    assert 0.42 < np.mean(held_out) < 0.53 and 0.45 < np.mean(out_of_bag) < 0.53


def test_the_cross_validated_interval_covers_what_the_threshold_is_worth_on_new_cases():
    truth_values, truth = sample(np.random.default_rng(99), 20_000, 20_000, 0.2)
    covered, bootstrap = 0, 0
    for seed in range(60):
        values, replica = sample(np.random.default_rng(seed), 12, 40, 0.2)
        found = reader_threshold(values, replica, "youden")
        worth = balanced_accuracy(truth_values, truth, found.threshold)
        accuracy = found.cross_validated.balanced_accuracy
        covered += accuracy.low <= worth <= accuracy.high
        bootstrap += found.interval[0] <= 0.7 <= found.interval[1]  # 0.7 is the best threshold there is
    assert covered >= 55
    assert bootstrap >= 50


def test_held_out_cases_have_no_say_in_their_threshold():
    # One value far off on its own: wherever it lies, the thresholds chosen without it must be the same.
    values, replica = np.array([0.1, 0.2, 0.3, 0.7, 0.8, 0.9]), np.array([True] * 3 + [False] * 3)
    from replica_detection.statistics.thresholds import _best_cut, _best_on_grid

    without = np.array([[1, 1, 1, 0, 1, 1.0]])
    for place in (0.31, 0.5, 0.79):
        moved = np.where(np.arange(6) == 3, place, values)
        assert _best_cut(moved, replica, without) == pytest.approx((0.3 + 0.8) / 2)
        assert _best_on_grid(moved, replica, without, step=0.01) == pytest.approx(0.54)


def test_the_same_seed_gives_the_same_figures():
    values, replica = sample(np.random.default_rng(1), 10, 20, 0.15)
    first, again = (reader_threshold(values, replica, "youden", seed=5) for _ in range(2))
    assert first == again
    assert first != reader_threshold(values, replica, "youden", seed=6)


def test_resamples_keep_their_strata():
    strata = np.array([0] * 5 + [1] * 3)
    drawn = resamples(8, 200, seed=1, strata=strata)
    assert (np.sort(strata[drawn], 1) == np.sort(strata)).all() and len(np.unique(drawn)) == 8
    assert percentile_interval(np.arange(1001.0)) == pytest.approx((25, 975))
    assert all(map(math.isnan, percentile_interval(np.array([1, math.nan, math.nan]))))
