"""Agreement of readers against scikit-learn's and Krippendorff's figures; consensus; readers against measures."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from replica_detection.errors import ConfigurationError
from replica_detection.readers.agreement import (
    agreement_report,
    overall_alpha,
    pair_agreements,
    rank_correlations,
)
from replica_detection.readers.consensus import OVERALL, RULES, consensus, replica_likeness, resolved
from replica_detection.readers.kappa import cohen_kappa, krippendorff_alpha, percent_agreement
from replica_detection.readers.ratings import Rating
from replica_detection.results import schema
from Report.made_up_result import make_result

FIRST = np.array([int(c) for c in "433434411224412414124222324223333444332421414311211342444323"])
SECOND = np.array([int(c) for c in "333343312333412314114133224333243334432431413211211243444423"])
# Four observers, twelve units, five categories: the worked example of Krippendorff, "Computing Krippendorff's
# Alpha-Reliability" (2011), which gives 0.743 (nominal) and 0.815 (ordinal).
NAN = math.nan
OBSERVERS = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
)


def rate(synthetic, training, reader, value, created="") -> Rating:
    return Rating(f"{synthetic}-{training}-{reader}-{value}", reader, synthetic, training, value, created=created)


@pytest.mark.parametrize(
    ("weights", "by_scikit_learn"),
    [("none", 0.3768545994065282), ("linear", 0.6139705882352942), ("quadratic", 0.8017465187632759)],
)
def test_kappa_equals_scikit_learn(weights, by_scikit_learn):
    assert cohen_kappa(FIRST, SECOND, weights) == pytest.approx(by_scikit_learn, abs=1e-12)
    assert cohen_kappa(SECOND, FIRST, weights) == pytest.approx(by_scikit_learn, abs=1e-12)


def test_kappa_of_the_textbook_table():
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: observed 0.70, expected 0.50, kappa 0.40.
    first, second = np.repeat([1, 1, 0, 0], [20, 5, 10, 15]), np.repeat([1, 0, 1, 0], [20, 5, 10, 15])
    assert percent_agreement(first, second) == pytest.approx(0.7)
    assert cohen_kappa(first, second, categories=(0, 1)) == pytest.approx(0.4)


def test_kappa_where_nothing_can_be_said():
    same = np.full(10, 4)
    assert math.isnan(cohen_kappa(same, same)) and percent_agreement(same, same) == 1
    assert math.isnan(cohen_kappa(np.array([], int), np.array([], int)))
    assert math.isnan(percent_agreement(np.array([]), np.array([])))
    assert cohen_kappa(FIRST, FIRST, "quadratic") == 1
    with pytest.raises(ConfigurationError, match="cubic"):
        cohen_kappa(FIRST, SECOND, "cubic")


def test_independent_readers_agree_by_chance_alone():
    rng = np.random.default_rng(3)
    first, second = rng.integers(1, 5, 20_000), rng.choice([1, 2, 3, 4], 20_000, p=[0.7, 0.1, 0.1, 0.1])
    for weights in ("none", "linear", "quadratic"):
        assert abs(cohen_kappa(first, second, weights)) < 0.02


@pytest.mark.parametrize(("level", "published"), [("nominal", 0.743421052631579), ("ordinal", 0.8153875037548814)])
def test_alpha_is_that_of_krippendorffs_example(level, published):
    assert krippendorff_alpha(OBSERVERS, level, (1, 2, 3, 4, 5)) == pytest.approx(published, abs=1e-12)


def test_alpha_where_nothing_can_be_said():
    assert math.isnan(krippendorff_alpha(np.array([[1.0, NAN], [NAN, 2.0]])))
    assert math.isnan(krippendorff_alpha(np.full((2, 5), 3.0)))
    assert math.isnan(overall_alpha([]))
    with pytest.raises(ConfigurationError, match="ratio"):
        krippendorff_alpha(OBSERVERS, "ratio")


def test_pairs_of_readers_count_what_both_rated_and_only_the_latest():
    ratings = [rate("s0", "t", "anna", 1, "2026-01-03")]  # withdrawn, by a clock that was ahead
    ratings += [rate(f"s{i}", "t", "anna", int(v), "2026-01-02") for i, v in enumerate(FIRST)]
    ratings += [rate(f"s{i}", "t", "ben", int(v), "2026-01-02") for i, v in enumerate(SECOND)]
    ratings += [rate("alone", "t", "anna", 4), rate("s0", "other", "ben", 1), rate("alone", "t", "carl", 4)]
    pairs = {p.readers: p for p in pair_agreements(ratings)}
    assert set(pairs) == {("anna", "ben"), ("anna", "carl")}
    found = pairs["anna", "ben"]
    assert found.cases == 60
    assert found.percent == pytest.approx(np.mean(FIRST == SECOND))
    assert found.linear_kappa.value == pytest.approx(0.6139705882352942)
    assert found.linear_kappa.low < found.linear_kappa.value < found.linear_kappa.high
    assert found.replica_percent == pytest.approx(np.mean((FIRST >= 3) == (SECOND >= 3)))
    assert found.replica_kappa.value == pytest.approx(cohen_kappa(FIRST >= 3, SECOND >= 3, categories=(0, 1)))
    assert math.isnan(pairs["anna", "carl"].kappa.value)


@pytest.mark.parametrize(
    ("values", "by_rule"),
    [
        ([4, 4, 1], {"majority": True, "any": True, "all": False, "mean": True}),
        ([3, 1, 1], {"majority": False, "any": True, "all": False, "mean": False}),
        ([3, 3, 1, 1], {"majority": False, "any": True, "all": False, "mean": False}),  # half and half, mean 2
        ([4, 2], {"majority": True, "any": True, "all": False, "mean": True}),  # half and half, mean 3
        ([3, 2], {"majority": True, "any": True, "all": False, "mean": True}),  # mean 2.5 exactly
        ([3, 3, 1], {"majority": True, "any": True, "all": False, "mean": False}),
        ([2], {"majority": False, "any": False, "all": False, "mean": False}),
        ([3, 4], {"majority": True, "any": True, "all": True, "mean": True}),
    ],
)
def test_consensus_rules(values, by_rule):
    assert set(by_rule) == set(RULES)
    ratings = [rate("s", "t", f"reader{i}", v) for i, v in enumerate(values)]
    for rule, replica in by_rule.items():
        found = consensus(ratings, rule)["s"]
        assert (found.replica, found.readers, found.mean) == (replica, len(values), np.mean(values))
    with pytest.raises(ConfigurationError, match="dictator"):
        consensus(ratings, "dictator")


def test_an_image_is_a_replica_where_any_of_its_pairs_is():
    ratings = [rate("s", "t1", "anna", 1), rate("s", "t1", "ben", 2), rate("s", "t2", "anna", 4)]
    found = consensus(ratings)["s"]
    assert found.replica and found.mean == 4 and found.training_ids == ("t1", "t2") and found.readers == 2
    assert not consensus(ratings[:2])["s"].replica


def readers_of(result, noise=0.0, seed=0) -> list[Rating]:
    """Two readers who see the ratio of `ssim`, with noise, and rate its nearest case."""
    rng = np.random.default_rng(seed)
    ratings = []
    for match in (m for m in result.matches if m.measure == "ssim" and not math.isnan(m.ratio)):
        for reader in ("anna", "ben"):
            seen = match.ratio + noise * rng.normal()
            value = 1 + sum(seen < cut for cut in (0.85, 0.6, 0.3))
            ratings.append(rate(match.synthetic_id, match.nearest_training_id, reader, value))
    return ratings


def test_rank_correlation_is_scipys_and_tells_who_looked_at_another_pair():
    result = make_result()
    labels = consensus(readers_of(result, 0.1))
    found = {c.measure: c for c in rank_correlations(labels, result)}
    assert set(found) == {OVERALL, *(m.name for m in result.run.measures)}
    ssim = {m.synthetic_id: m for m in result.matches if m.measure == "ssim"}
    x, y = [-ssim[c].ratio for c in labels], [labels[c].mean for c in labels]
    assert found["ssim"].spearman.value == pytest.approx(stats.spearmanr(x, y).statistic)
    assert found["ssim"].kendall == pytest.approx(stats.kendalltau(x, y).statistic)
    assert found["ssim"].spearman.low < found["ssim"].spearman.value < found["ssim"].spearman.high
    assert found["ssim"].other_candidate == 0 < found["mae"].other_candidate
    assert found["ssim"].cases == len(labels)
    flat = rank_correlations(consensus([rate(c, "t", "anna", 3) for c in labels]), result)
    assert all(math.isnan(c.spearman.value) and math.isnan(c.kendall) for c in flat)


def test_ratings_without_a_training_case_speak_of_the_nearest_and_strangers_are_named():
    result = make_result(cases=3)
    known, unknown = resolved([rate("synthetic_0001", "", "anna", 3), rate("else", "t", "anna", 3)], result)
    assert [r.training_id for r in known] == [result.summary[1].nearest_training_id] and unknown == ["else"]


def test_smaller_likeness_is_more_replica_like_for_every_name():
    result = make_result()
    best = result.worklist()[0].synthetic_id
    for name, values in replica_likeness(result).items():
        known = [v for v in values.values() if not math.isnan(v)]
        assert values[best] <= np.quantile(known, 0.3), name


def test_the_servers_report_holds_agreement_and_cross_validated_thresholds():
    result = make_result()
    ratings = [*readers_of(result, 0.1), rate("stranger", "t", "anna", 4)]
    report = agreement_report(ratings, result)
    assert report.readers == ("anna", "ben") and report.cases == 59
    assert report.replicas == sum(c.replica for c in consensus(ratings[:-1]).values())
    assert len(report.thresholds) == 2 * (1 + len(result.run.measures))
    ssim = next(t for t in report.thresholds if t.measure == "ssim" and t.method == "balanced-accuracy")
    assert 0.55 < ssim.threshold < 0.65  # the readers' own cut, 0.6
    assert ssim.balanced_accuracy > 0.9 and ssim.low < ssim.balanced_accuracy <= ssim.high
    assert ssim.balanced_accuracy == pytest.approx((ssim.sensitivity + ssim.specificity) / 2)
    assert "stranger" in report.note and "cross-validated" in report.note
    again = schema.from_json(schema.AgreementReport, json.loads(json.dumps(schema.to_json(report))))
    assert again == report


def test_the_servers_report_without_ratings_or_result():
    empty = agreement_report([])
    assert (empty.readers, empty.cases, empty.pairs, empty.thresholds) == ((), 0, (), ())
    assert agreement_report([], make_result()).thresholds == ()
    ratings = [rate(f"s{i}", "t", r, v) for r, vs in (("a", FIRST), ("b", SECOND)) for i, v in enumerate(vs.tolist())]
    assert agreement_report(ratings).pairs[0].weighted_kappa == pytest.approx(0.8017465187632759)
    one_kind = agreement_report([rate(c.synthetic_id, "", "anna", 4) for c in make_result().summary], make_result())
    assert all(t.threshold is None for t in one_kind.thresholds) and "fewer than two" in one_kind.note
