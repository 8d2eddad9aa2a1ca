"""Set-level figures against reference formulas, hand-worked cases, and what fresh draws must give."""

import math

import numpy as np
import pytest
import torch
from monai.metrics.fid import get_fid_score
from monai.metrics.regression import MultiScaleSSIMMetric
from scipy.spatial.distance import cdist
from scipy.stats import mannwhitneyu

from replica_detection.audit import memorization_metrics
from replica_detection.audit.distribution_metrics import (
    ct_score,
    frechet,
    frechet_distance,
    ms_ssim,
    scales_of,
)
from replica_detection.audit.memorization_metrics import (
    as_published,
    authentic,
    copies,
    memorization_index,
    memorized,
)


def draws(seed: int, *sizes: int, dimensions: int = 6) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(n, dimensions)) for n in sizes]


def test_fresh_draws_pass_size_matched_thresholds_at_the_nominal_rate_and_published_ones_by_pool_size():
    """N_val != N_syn: MRNet of Dar et al. has four times as many synthetic and training as validation cases."""
    matched, published = [], []
    for seed in range(12):
        train, val, syn = draws(seed, 400, 100, 400)
        d_syn, d_val = cdist(syn, train), cdist(val, train)
        matched.append([memorized(d_syn, d_val).estimate.value, copies(d_syn.min(1), d_val.min(1)).estimate.value])
        published.append([f.estimate.value for f in as_published(d_syn, d_val)])
    n_mem, n_copies = np.mean(matched, 0)
    assert n_mem == pytest.approx(0.05, abs=0.012)
    assert n_copies == pytest.approx(5 / 101, abs=0.015)
    expected = 1 - 0.95**4
    assert as_published(d_syn, d_val)[0].expected == pytest.approx(expected) == pytest.approx(0.185, abs=1e-3)
    assert np.mean(published, 0) == pytest.approx([expected, expected], abs=0.04)


def test_fresh_draws_of_a_small_holdout_stay_within_binomial_limits_of_what_is_expected():
    """26 hold-out cases: one of 27 is the largest share that can be promised below 5 %."""
    flagged = []
    for seed in range(150):
        train, val, syn = draws(1000 + seed, 60, 26, 20)
        found = copies(cdist(syn, train).min(1), cdist(val, train).min(1))
        assert found.expected == pytest.approx(1 / 27)
        flagged.append(found.estimate.value)
    # 3,000 synthetic cases, but only 150 thresholds: the spread of the means gives the limits.
    assert abs(np.mean(flagged) - 1 / 27) < 3 * np.std(flagged) / math.sqrt(len(flagged))


def test_intervals_cover_what_fresh_draws_are_expected_to_give():
    covered = []
    for seed in range(60):
        train, val, syn = draws(5000 + seed, 120, 99, 150)
        e = copies(cdist(syn, train).min(1), cdist(val, train).min(1), seed=seed).estimate
        covered.append(e.low <= 0.05 <= e.high)
    assert np.mean(covered) >= 0.85


def test_n_mem_intervals_know_that_one_case_can_be_near_to_many():
    """A share of 77 independent cases would have an interval of 0.05 in width; this one varies by more than that."""
    covered, widths = [], []
    for seed in range(50):
        train, val, syn = draws(7000 + seed, 77, 27, 24)
        matched = memorized(cdist(syn, train), cdist(val, train), seed=seed).estimate
        published = as_published(cdist(syn, train), cdist(val, train), seed=seed)[0]
        covered.append([matched.low <= 0.05 <= matched.high, published.estimate.low <= published.expected])
        widths.append(matched.high - matched.low)
    assert np.mean(covered, 0).min() >= 0.9 and np.mean(widths) > 0.1


def test_copies_are_counted_in_the_right_direction():
    train, val, syn = draws(3, 200, 60, 90)
    syn[:45] = train[7] + np.random.default_rng(0).normal(0, 1e-3, (45, 6))  # half of the set copies one patient
    d_syn, d_val = cdist(syn, train), cdist(val, train)
    n_copies, n_mem = copies(d_syn.min(1), d_val.min(1)), memorized(d_syn, d_val)
    assert 0.5 <= n_copies.estimate.value < 0.6 and n_copies.estimate.low > 0.35
    assert n_mem.estimate.value < 0.1
    syn[:] = np.repeat(train[:90], 1, 0)  # each copies another patient
    d_syn = cdist(syn, train)
    assert copies(d_syn.min(1), d_val.min(1)).estimate.value == 1
    assert memorized(d_syn, d_val).estimate.value == pytest.approx(60 / 200, abs=0.06)  # 60 are drawn
    assert as_published(d_syn, d_val)[0].estimate.value == pytest.approx(90 / 200, abs=0.1)


def test_the_published_formula_by_hand():
    #             training 0    1    2    3
    holdout = np.array([[1.0, 4.0, 2.0, 8.0], [3.0, 2.0, 6.0, 4.0]])  # nearest unseen: 1, 2, 2, 4
    synthetic = np.array([[0.5, 9.0, 9.0, 9.0], [9.0, 9.0, 9.0, 1.2], [9.0, 1.1, 9.0, 9.0]])
    threshold = np.quantile([1, 2, 2, 4], 0.05)  # 1.15
    n_mem, n_copies = as_published(synthetic, holdout)
    assert threshold == pytest.approx(1.15)
    assert n_mem.estimate.value == 2 / 4 and n_mem.cases == 4  # training cases 0 and 1
    assert n_copies.estimate.value == 2 / 3 and n_copies.cases == 3  # synthetic cases 0 and 2
    assert n_mem.expected == pytest.approx(1 - 0.95 ** (3 / 2)) and n_copies.expected == pytest.approx(1 - 0.95**2)


def test_the_repaired_threshold_by_hand():
    holdout = np.arange(1.0, 40.0)  # 39 cases: two of 40 fresh draws fall below the second smallest
    found = copies(np.array([0.5, 1.9, 2.0, 30.0]), holdout)
    assert found.estimate.value == 0.5 and found.expected == 2 / 40
    few = copies(np.array([0.5]), np.arange(18.0))
    assert math.isnan(few.estimate.value) and "19 are needed" in few.note


def test_left_out_pairs_do_not_count():
    train, val, syn = draws(4, 50, 30, 40)
    d_syn, d_val = cdist(syn, train), cdist(val, train)
    alone = memorized(d_syn, d_val), *as_published(d_syn, d_val)
    more_syn = np.vstack([d_syn, np.full((3, 50), np.inf)])
    more_val = np.vstack([d_val, np.full((2, 50), np.inf)])
    unreached = np.full((43, 1), np.inf), np.vstack([np.full((30, 1), 0.1), np.full((2, 1), np.inf)])
    padded = np.hstack([more_syn, unreached[0]]), np.hstack([more_val, unreached[1]])
    assert (memorized(*padded), *as_published(*padded)) == alone
    assert copies(np.r_[d_syn.min(1), np.inf], np.r_[d_val.min(1), np.nan]) == copies(d_syn.min(1), d_val.min(1))
    nothing = memorized(np.full((2, 3), np.inf), d_val[:, :3])
    assert math.isnan(nothing.estimate.value) and nothing.note
    assert all(math.isnan(f.estimate.value) for f in as_published(d_syn, np.empty((0, 50))))


def authpct_as_published(train, made):
    """dgm-eval's steps: d(i*, its nearest other training case) < d(i*, j)."""
    real = cdist(train, train)
    np.fill_diagonal(real, np.inf)
    table = cdist(train, made)
    return 100 * np.mean(real.min(0)[table.argmin(0)] < table.min(0))


def test_authpct_equals_the_published_steps():
    train, made = draws(5, 80, 70)
    made[:30] = train[:30] + 0.01
    table, real = cdist(made, train), cdist(train, train)
    np.fill_diagonal(real, np.inf)
    found = authentic(table.argmin(1), table.min(1), real.min(1))
    assert found.estimate.value == pytest.approx(authpct_as_published(train, made))
    assert found.estimate.value < 70
    assert found.estimate.low < found.estimate.value < found.estimate.high and not found.note


def test_authpct_by_hand_and_its_blindness_to_duplicates():
    to_other = np.array([0.5, 2.0, 0.0])
    found = authentic(np.array([0, 0, 1, 2, -1]), np.array([0.4, 0.6, 1.0, 0.001, np.inf]), to_other)
    assert found.estimate.value == pytest.approx(50)  # the second, and the copy of a duplicated training case
    assert found.cases == 4 and "1 training cases have an exact duplicate" in found.note
    assert math.isnan(authentic(np.array([-1]), np.array([np.inf]), to_other).estimate.value)


def cells(n, seed, dimensions=80):
    """Three populations far apart in two of 80 dimensions."""
    rng = np.random.default_rng(seed)
    which = rng.integers(0, 3, n)
    x = rng.normal(0, 1, (n, dimensions))
    x[:, :2] += np.array([[0, 0], [40, 0], [0, 40]], float)[which]
    return x


def test_ct_score_equals_dgm_eval():
    train, val, syn = cells(200, 1), cells(90, 2), cells(120, 3)
    syn[:60] = train[:60] + np.random.default_rng(4).normal(0, 0.05, (60, 80))
    # By dgm-eval's steps with scikit-learn 1.9.1: PCA of 64, KMeans of 3, NearestNeighbors, SciPy's mannwhitneyu.
    found = ct_score(train, val, syn)
    assert found.estimate.value == pytest.approx(-3.730525125479913, abs=1e-6)
    assert found.estimate.low < found.estimate.value < found.estimate.high < 0


def test_u_is_scipys_with_ties_too():
    from replica_detection.audit.distribution_metrics import _mann_whitney_z

    rng = np.random.default_rng(6)
    made, real = rng.integers(0, 12, 40).astype(float), rng.integers(2, 14, 30).astype(float)
    u = mannwhitneyu(made, real, alternative="less").statistic
    assert _mann_whitney_z(made, real) == pytest.approx((u - 599.5) / math.sqrt(1200 * 71 / 12))


def test_ct_score_is_about_zero_for_fresh_draws_and_drops_small_cells():
    values = [ct_score(*draws(100 + s, 300, 150, 150)).estimate.value for s in range(12)]
    assert abs(np.mean(values)) < 3 / math.sqrt(12)
    assert np.std(values) < 2
    train, val, few = cells(100, 1), cells(60, 2), cells(30, 3)
    assert math.isnan(ct_score(train, val, few[:12]).estimate.value)
    assert "no cell has more than 20" in ct_score(train, val, few[:12]).note
    assert ct_score(train, val[:0], few).note == "no hold-out"
    far = cells(40, 8) + 1000
    assert ct_score(train, val, far).estimate.value > 3  # underfitting


@pytest.mark.parametrize(("first", "second", "dimensions"), [(200, 150, 8), (40, 30, 8), (12, 15, 20)])
def test_frechet_distance_equals_monai(first, second, dimensions):
    a, b = draws(7, first, second, dimensions=dimensions)
    b = b @ np.random.default_rng(1).normal(size=(dimensions, dimensions)) + 0.3
    by_monai = float(get_fid_score(torch.from_numpy(a), torch.from_numpy(b)))
    assert frechet_distance(a, b) == pytest.approx(by_monai, rel=1e-5)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b))


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(8)
    a, b = rng.normal(1, 2, (200_000, 1)), rng.normal(4, 5, (200_000, 1))
    assert frechet_distance(a, b) == pytest.approx((1 - 4) ** 2 + (2 - 5) ** 2, rel=0.02)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    large = rng.normal(size=(20, 3000))  # no covariance of 3000 x 3000 is needed
    assert frechet_distance(large, large + 1) == pytest.approx(3000, rel=1e-6)


def test_size_matched_frechet_distances_can_be_compared():
    real, unseen, made = draws(9, 300, 40, 300, dimensions=16)
    whole, small = frechet(made, real), frechet(made, real, size=40)
    unseen_figure = frechet(unseen, real, "FID of unseen", size=40)
    assert whole.estimate.value < small.estimate.value / 2  # bias of small sets
    assert small.estimate.value == pytest.approx(unseen_figure.estimate.value, rel=0.3)
    assert small.variant == memorization_metrics.SIZE_MATCHED and whole.variant == ""
    assert "strongly biased" in frechet(unseen[:10], real).note
    assert math.isnan(frechet(unseen[:1], real).estimate.value)


def test_memorization_index_by_hand():
    null = np.array([0.2, 0.4, 0.6, 0.8])  # mean 0.5, standard deviation sqrt(0.05)
    mi, oni = memorization_index(np.array([0.5, 0.9, np.nan]), null)
    z = (0.9 - 0.5) / math.sqrt(0.05)
    assert mi.estimate.value == pytest.approx(z / 2) and mi.cases == 2
    assert oni.estimate.value == pytest.approx((0 - math.tanh(z)) / 2)
    assert mi.estimate.low < mi.estimate.value < mi.estimate.high
    assert all(math.isnan(f.estimate.value) for f in memorization_index(np.array([0.5]), null[:1]))


def test_ms_ssim_is_monais_and_says_how_many_scales_fit():
    rng = np.random.default_rng(10)
    images = [torch.from_numpy(rng.random((192, 180), np.float32)) for _ in range(4)]
    images[1] = (0.7 * images[0] + 0.3 * images[1]).float()
    metric = MultiScaleSSIMMetric(spatial_dims=2, data_range=1.0)
    by_monai = [float(metric(images[a][None, None], images[b][None, None])) for a, b in ((0, 1), (2, 3))]
    found = ms_ssim([(images[0].numpy(), images[1].numpy()), (images[2].numpy(), images[3].numpy())])
    assert found.estimate.value == pytest.approx(np.mean(by_monai), abs=1e-6) and not found.note
    small = rng.random((24, 30, 26), np.float32)
    assert ms_ssim([(small, small)]).estimate.value == pytest.approx(1, abs=1e-5)
    assert ms_ssim([(small, small)]).note == "2 of 5 scales fit into the grid"
    assert "does not fit" in ms_ssim([(small[:10], small[:10])]).note
    assert math.isnan(ms_ssim([]).estimate.value)
    assert [scales_of((n, 500)) for n in (10, 11, 21, 22, 44, 98, 99, 176)] == [0, 1, 1, 2, 3, 3, 4, 5]
