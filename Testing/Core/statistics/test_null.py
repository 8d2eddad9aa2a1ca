"""Ratios, p values, q values and the combined statistic, against SciPy and against what must hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from replica_detection.errors import ConfigurationError
from replica_detection.statistics.combination import Combination, combined
from replica_detection.statistics.distance_ratio import evidence, nearest
from replica_detection.statistics.null import Null, benjamini_hochberg, near_duplicates, null_needed, verdicts
from replica_detection.statistics.two_samples import mann_whitney


def test_ratio_is_nearest_over_mean_of_k_nearest():
    distances = np.array([[4.0, 1.0, 3.0, 100.0]])
    found = nearest(distances, k=3)
    assert found.index[0] == 1
    assert found.ratio[0] == pytest.approx(1 / ((1 + 3 + 4) / 3))
    assert found.neighbors[0].tolist() == [1, 2, 0]


def test_exact_copy_has_ratio_zero_and_identical_training_volumes_are_undefined():
    assert nearest(np.array([[0.0, 1.0, 2.0]]), k=2).ratio[0] == 0
    identical = nearest(np.array([[0.0, 0.0, 2.0]]), k=2)
    assert np.isnan(identical.ratio[0])
    assert identical.distance[0] == 0


def test_patient_counts_once_in_the_neighbourhood():
    """Follow-up scans of the copied patient must not raise the ratio."""
    distances = np.array([[1.0, 1.1, 1.2, 10.0, 10.0]])
    with_patients = nearest(distances, k=3, groups=np.array([0, 0, 0, 1, 2]))
    assert with_patients.ratio[0] == pytest.approx(1 / 7)
    assert nearest(distances, k=3).ratio[0] > 0.9


def test_left_out_pairs_enter_no_mean():
    found = nearest(np.array([[np.inf, 2.0, 4.0], [np.inf] * 3]), k=3)
    assert found.ratio[0] == pytest.approx(2 / 3)
    assert found.neighbors[0].tolist() == [1, 2, -1]
    assert found.index[1] == -1
    assert np.isnan(found.ratio[1])


def test_k_larger_than_the_cohort_and_k_of_zero():
    assert nearest(np.array([[1.0, 3.0]]), k=50).ratio[0] == pytest.approx(0.5)
    with pytest.raises(ConfigurationError, match="k is 0"):
        nearest(np.ones((1, 2)), k=0)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_permuting_the_cohort_permutes_the_result(seed):
    rng = np.random.default_rng(seed)
    distances, order = rng.random((4, 12)), rng.permutation(12)
    a, b = nearest(distances, 5), nearest(distances[:, order], 5)
    np.testing.assert_allclose(a.ratio, b.ratio)
    np.testing.assert_array_equal(a.index, order[b.index])


def test_benjamini_hochberg_equals_scipy():
    rng = np.random.default_rng(0)
    p = rng.random(200) ** 2
    np.testing.assert_allclose(benjamini_hochberg(p), stats.false_discovery_control(p))
    with_gap = benjamini_hochberg(np.r_[p, np.nan])
    np.testing.assert_allclose(with_gap[:-1], stats.false_discovery_control(p))
    assert np.isnan(with_gap[-1])


def test_empirical_p_counts_ties_against_the_case():
    null = Null.fit(np.array([1.0, 2.0, 2.0, 3.0, 4.0]), with_tail=False)
    np.testing.assert_allclose(null.p_values(np.array([2.0, 5.0, 0.0, np.nan])), [5 / 6, 1 / 6, 1, np.nan])


@given(st.integers(0, 2**32 - 1), st.integers(10, 120), st.sampled_from([0.01, 0.05, 0.2]))
@settings(max_examples=60, deadline=None)
def test_threshold_and_score_agree_with_p(seed, size, alpha):
    rng = np.random.default_rng(seed)
    null = Null.fit(rng.gumbel(size=size))
    values = np.sort(np.r_[rng.gumbel(size=200) * 2, null.values])
    p, score, threshold = null.p_values(values), null.score(values), null.threshold(alpha)
    assert np.all(np.diff(p) <= 1e-12)
    assert np.all(np.diff(score) >= -1e-12)
    assert np.all((score >= 0) & (score <= 1))
    np.testing.assert_array_equal(p <= alpha, values >= threshold)


def test_fitted_tail_is_near_the_truth_for_exponential_data():
    """Averaged over nulls of 60 cases, the tail at the true 0.1 % point is within a factor of three of it."""
    rng = np.random.default_rng(1)
    found = [Null.fit(rng.exponential(size=60)).p_values(np.array([-np.log(0.001)]))[0] for _ in range(300)]
    assert 0.001 / 3 < np.exp(np.mean(np.log(found))) < 0.001 * 3


def test_tail_beyond_everything_is_small_but_never_zero():
    null = Null.fit(np.random.default_rng(2).normal(size=30))
    p = null.p_values(np.array([null.values[-1] + 20]))[0]
    assert 0 < p < 1e-4


def test_tail_never_ends():
    """Bounded data: a negative shape would make everything beyond its end point impossible."""
    for seed in range(20):
        tail = Null.fit(np.random.default_rng(seed).uniform(size=60)).tail
        assert tail is not None
        assert 0 <= tail.shape <= 0.5


def test_null_cases_are_standardized_by_the_others():
    null = np.random.default_rng(7).normal(size=(12, 1))
    levels = Combination.fit(null, ("voxel",)).null_by_group(null)["voxel"]
    others = np.delete(null[:, 0], 3)
    assert levels[3] == pytest.approx((null[3, 0] - others.mean()) / others.std(ddof=1))


@pytest.mark.parametrize("size", [0, 1, 4, 8, 18, 19, 40])
def test_small_null_leaves_what_it_cannot_decide_undecided(size):
    """Closer than every null case is novel only where that many null cases could have said otherwise."""
    null = Null.fit(np.arange(size, dtype=float), with_tail=False)
    values = np.array([100.0, size / 2 - 1, np.nan])
    p = null.p_values(values)
    assert p[0] == pytest.approx(1 / (1 + size))
    undecided = null.undecided(values, 0.05)
    found = verdicts(p, np.array([1.0, 1.0, np.nan]), 0.05, undecided).tolist()
    assert found[0] == ("undecided" if size < null_needed(0.05) else "suspicious")
    assert found[1:] == ["undecided" if size == 0 else "novel", "undefined"]


@given(st.floats(0.001, 0.5))
def test_null_needed_is_the_smallest_null_that_counting_can_use(alpha):
    needed = null_needed(alpha)
    assert 1 / (1 + needed) <= alpha * (1 + 1e-6)
    assert needed == 0 or 1 / needed > alpha


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.booleans())
@settings(max_examples=60, deadline=None)
def test_score_is_continuous_and_never_below_one_minus_p(seed, size, with_tail):
    rng = np.random.default_rng(seed)
    null = Null.fit(rng.gumbel(size=size).round(1), with_tail=with_tail)
    values = np.linspace(null.values[0] - 3, null.values[-1] + 3, 500)
    values = np.sort(np.r_[values, null.values, np.nextafter(null.values, np.inf), np.nextafter(null.values, -np.inf)])
    score = null.score(values)
    assert (score >= 1 - null.p_values(values) - 1e-9).all()
    assert np.all(np.diff(score) >= -1e-12)
    close = np.diff(values) < 1e-9
    assert np.abs(np.diff(score)[close]).max() < 1e-6
    # Just beyond the largest null case it starts where 1 - p does.
    end = np.nextafter(null.values[-1], np.inf)
    assert null.score(np.array([end]))[0] == pytest.approx(1 - null.p_values(np.array([end]))[0], abs=1e-6)


@pytest.mark.parametrize(
    ("n", "m", "ties"), [(3, 5, False), (8, 21, True), (26, 76, False), (26, 76, True), (1, 9, True)]
)
def test_mann_whitney_equals_scipy(n, m, ties):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        first, second = rng.normal(0.3, size=n), rng.normal(size=m)
        if ties:
            first, second = first.round(), second.round()
        expected = stats.mannwhitneyu(first, second, method="asymptotic").pvalue
        assert mann_whitney(first, second) == pytest.approx(expected, abs=1e-12)
        assert mann_whitney(np.r_[first, np.nan], second) == pytest.approx(expected, abs=1e-12)
    assert np.isnan(mann_whitney(np.array([]), second))
    assert mann_whitney(np.ones(4), np.ones(5)) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_combination_of_very_few_null_cases_keeps_the_evidence(size):
    """No spread can be taken from them: the largest of all is still the largest, and nothing becomes undefined."""
    rng = np.random.default_rng(size)
    null = rng.random((size, 3))
    combination = Combination.fit(null, ("voxel", "voxel", "feature"))
    together = combined(combination.null_by_group(null))
    assert np.isfinite(together).all()
    assert combined(combination.by_group(np.full((1, 3), 5.0)))[0] > together.max()


def test_an_outlier_among_few_is_no_leak_but_nearly_the_same_image_is():
    levels = ("voxel", "voxel", "feature")
    few = np.log(1 / np.array([[0.9, 0.91, 0.8], [0.9, 0.9, 0.8], [0.91, 0.9, 0.8], [0.5, 0.5, 0.3]]))
    assert not near_duplicates(few, levels).any()
    few[3] = np.log(1 / np.array([0.01, 0.02, 0.7]))
    assert near_duplicates(few, levels).tolist() == [False] * 3 + [True]


def test_leaks_are_judged_by_another_spread_where_most_of_a_null_leaked():
    rng = np.random.default_rng(8)
    reference, leaked = rng.normal(0.1, 0.02, (40, 2)), rng.normal(0.8, 0.1, (15, 2))
    assert not near_duplicates(leaked, ("voxel", "voxel")).any()
    assert near_duplicates(leaked, ("voxel", "voxel"), reference).all()


def test_near_duplicates_are_found_and_ordinary_tails_kept():
    rng = np.random.default_rng(3)
    levels = ("voxel", "voxel", "voxel")
    null = np.r_[rng.normal(size=(50, 3)) * 0.1, [[5.0, 5.0, 0.0], [5.0, 0.0, 0.0]]]
    assert near_duplicates(null, levels).tolist() == [False] * 50 + [True, False]
    kept = np.mean([near_duplicates(rng.gumbel(size=(100, 1)) * 0.1, ("voxel",)).mean() for _ in range(50)])
    assert kept < 0.01
    assert not near_duplicates(np.full((4, 1), np.nan), ("voxel",)).any()


def test_degenerate_measure_does_not_outvote_the_others():
    """One of five measures at its cap (two blobs whose skeletons coincide) is less than all five somewhat extreme."""
    rng = np.random.default_rng(6)
    null = rng.normal(size=(60, 5))
    combination = Combination.fit(null, ("segmentation",) * 5)
    lone, agreeing = np.array([[0.0, 0.0, 0.0, 0.0, 100.0]]), np.full((1, 5), 4.0)
    assert combination.by_group(lone)["segmentation"] < combination.by_group(agreeing)["segmentation"]


def test_combined_keeps_the_order_below_the_mean_and_passes_over_missing_levels():
    levels = {
        "voxel": np.array([-2.0, -1.0, 0.5, np.nan, np.nan]),
        "feature": np.array([-3.0, np.nan, 0.0, 2.0, np.nan]),
    }
    np.testing.assert_allclose(combined(levels), [-2, -1, 0.5, 2, np.nan])


@pytest.mark.parametrize("with_validation", [True, False])
def test_fresh_cases_are_flagged_at_the_nominal_rate(with_validation):
    """Cases drawn as the training cases are: the share with p <= 0.05 stays within binomial limits of 5 %.

    Points in 8 dimensions stand for images, two distances and one strongly dependent third for measures; the whole of
    ratio, null, combination and p value runs, many times, because the share varies with the null of a single run.
    """
    rng = np.random.default_rng(4)
    flagged, levels = [], ("voxel", "voxel", "feature")
    for _ in range(60):
        training, fresh = rng.normal(size=(60, 8)), rng.normal(size=(30, 8))
        null_cases = rng.normal(size=(40, 8)) if with_validation else training

        def ratios(cases, own=False, pool=training):
            columns = []
            for power in (1, 2, 1.9):
                d = (np.abs(cases[:, None] - pool[None]) ** power).sum(-1)
                if own:
                    np.fill_diagonal(d, np.inf)
                columns.append(evidence(nearest(d, 50).ratio))
            return np.stack(columns, 1)

        null_values = ratios(null_cases, own=not with_validation)
        combination = Combination.fit(null_values, levels)
        overall = Null.fit(combined(combination.null_by_group(null_values)))
        flagged += (overall.p_values(combined(combination.by_group(ratios(fresh)))) <= 0.05).tolist()
    # Cases of one run share a null, so the limits are those of runs: 60 runs of about 5 % +- 3.5 % each.
    limit = 3 * 0.05 * np.sqrt(1 / 60)
    assert abs(np.mean(flagged) - 0.05) < limit + 0.01, np.mean(flagged)


def test_combination_keeps_a_replica_that_shows_at_one_level_only():
    rng = np.random.default_rng(5)
    null = rng.normal(size=(50, 3))
    combination = Combination.fit(null, ("voxel", "voxel", "segmentation"))
    case = np.array([[0.0, 0.0, 8.0]])
    null_overall = combined(combination.null_by_group(null))
    assert combined(combination.by_group(case))[0] > null_overall.max()
    undefined = combination.by_group(np.array([[np.nan, np.nan, np.nan]]))
    assert np.isnan(combined(undefined)).all()
