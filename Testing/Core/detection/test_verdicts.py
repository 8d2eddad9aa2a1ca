"""Verdicts that no null decides, nulls that are small, leaked or of two origins, and the reasons that are given."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from replica_detection.audit.cohort_duplicates import find_duplicates
from replica_detection.detection.detector import Detector, detect
from replica_detection.detection.distances import Distances
from replica_detection.detection.null_pool import NullPool
from replica_detection.detection.options import DetectionOptions
from replica_detection.detection.verdicts import assign_verdicts
from replica_detection.errors import InputError
from replica_detection.index.build import build_index
from replica_detection.index.entries import patient_groups
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort
from replica_detection.measures import make_measures
from replica_detection.preparation.prepare import plan
from replica_detection.preparation.profiles import PROFILES
from replica_detection.preparation.voxel_hash import hash_of_voxels

SIDE = 16
VOXEL = ("mae", "rmse", "ssim")


def scans(count, seed):
    """(count, SIDE, SIDE, SIDE) images that differ as patients do: a common shape, and structure of their own."""
    rng = np.random.default_rng(seed)
    grid = np.indices((SIDE,) * 3) - (SIDE - 1) / 2
    common = 1000 * np.exp(-(grid**2).sum(0) / 40)
    own = rng.normal(size=(count, 4, 4, 4)).repeat(4, 1).repeat(4, 2).repeat(4, 3)
    return (common + 200 * own).astype(np.float32)


def noisy(arrays, sigma, seed=0):
    return arrays + np.random.default_rng(seed).normal(0, sigma, arrays.shape).astype(np.float32)


def cohort(arrays, names="scan", patients=None):
    ids = [f"{names}_{n:03d}" for n in range(len(arrays))]
    found = Cohort.from_arrays(list(arrays), spacing=1.0, ids=ids)
    if patients is None:
        return found
    cases = tuple(dataclasses.replace(c, patient=p) for c, p in zip(found.cases, patients, strict=True))
    return dataclasses.replace(found, cases=cases)


class Pipeline:
    """The statistics on distances that are computed here, by numpy: no file is read and no index built."""

    def __init__(self, training, patients=None):
        self.training, self.patients = training, patients or [None] * len(training)
        self.ids = tuple(f"scan_{n:03d}" for n in range(len(training)))
        self.index = SimpleNamespace(
            ids=self.ids,
            patients=patient_groups(self.patients, self.ids),
            voxels=tuple(map(hash_of_voxels, training)),
            entries=tuple(SimpleNamespace(patient=p) for p in self.patients),
        )
        volumes = [SimpleNamespace(array=a, affine=np.eye(4), spacing=(1.0,) * 3, trusted=True) for a in training[:2]]
        self.measures = make_measures(["mae", "rmse"], plan(PROFILES["generic"], volumes))

    def distances(self, arrays, names, kind="", patients=None, change=lambda tables: None, k=50):
        difference = [[a - b for b in self.training] for a in arrays]
        tables = {
            "mae": np.array([[np.abs(d).mean(dtype=np.float64) for d in row] for row in difference]),
            "rmse": np.array([[np.sqrt((d**2).mean(dtype=np.float64)) for d in row] for row in difference]),
        }
        excluded = np.zeros((len(arrays), len(self.training)), bool)
        if kind == "cross-fitted":
            np.fill_diagonal(excluded, True)
        if kind and patients is not None:
            excluded |= np.array([[p is not None and p == q for q in self.patients] for p in patients])
        for table in tables.values():
            table[excluded] = np.inf
        change(tables)
        return Distances.reduced(
            self.ids if kind == "cross-fitted" else tuple(f"{names}_{n:03d}" for n in range(len(arrays))),
            tables,
            k=k,
            patients=self.index.patients,
            exact_of=tables,
            voxels=tuple(map(hash_of_voxels, arrays)),
            left_out=tuple(excluded.sum(1).tolist()),
            kind=kind,
        )

    def null(self, holdout=None, holdout_patients=None):
        parts = [] if holdout is None else [self.distances(holdout, "unseen", "validation", holdout_patients)]
        parts.append(self.distances(self.training, "", "cross-fitted", self.patients))
        return NullPool.of(parts, self.measures, self.index, alpha=0.05)

    def judged(self, made, holdout=None, k=50):
        queries = self.distances(made, "made", k=k)
        return assign_verdicts(queries, self.null(holdout), self.measures, self.index, alpha=0.05)


@pytest.mark.parametrize("training", [1, 2, 3, 6, 12, 30])
@pytest.mark.parametrize("holdout", [0, 1, 5, 30])
def test_the_same_voxels_are_a_replica_whatever_the_null(training, holdout):
    known = scans(training, 1)
    result = Pipeline(known).judged(np.r_[known[:1], scans(2, 3)], scans(holdout, 2) if holdout else None)
    copy, *others = result.summary
    assert (copy.verdict, copy.reason, copy.nearest_training_id) == ("replica", "identical", "scan_000")
    assert copy.score == 1
    assert "voxel" in copy.levels_flagged
    assert all(m.verdict == "replica" for m in result.matches[:2])
    assert all(c.reason != "identical" for c in others)


def test_distance_zero_under_one_of_two_voxel_measures_is_not_the_same_image():
    known = Pipeline(scans(6, 1))

    def at_zero(tables):
        tables["mae"][0, 2] = 0

    queries = known.distances(scans(1, 9), "made", change=at_zero)
    result = assign_verdicts(queries, known.null(), known.measures, known.index, alpha=0.05)
    assert result.summary[0].reason != "identical"


@pytest.mark.parametrize("holdout", [1, 4, 8, 18])
def test_closer_than_a_small_null_is_undecided_and_never_novel(holdout):
    """Training cases of one patient give no null of their own: the holdout stands alone."""
    known = scans(12, 1)
    result = Pipeline(known, ["one"] * 12).judged(noisy(known[:2], 5), scans(holdout, 2), k=5)
    assert (result.null.kind, result.null.size) == ("validation", holdout)
    if holdout >= 10:  # a tail is fitted
        assert all(c.verdict in ("replica", "suspicious", "undecided") for c in result.summary)
        return
    assert {(c.verdict, c.reason) for c in result.summary} == {("undecided", "null too small")}
    assert result.null.missing == 19 - holdout
    assert any(f"{19 - holdout} more validation scans" in w for w in result.warnings)
    assert all(0 < c.score < 1 for c in result.summary)


def test_the_null_is_pooled_and_finds_what_eight_holdout_scans_could_not():
    known = scans(21, 1)
    made = np.r_[noisy(known[:6], 20), scans(6, 9)]
    result = Pipeline(known, [f"p{n}" for n in range(21)]).judged(made, scans(8, 2))
    null = result.null
    assert (null.kind, null.size, null.validation, null.cross_fitted) == ("pooled", 29, 8, 21)
    assert null.agreement >= 0.05
    assert all(c.verdict == "replica" for c in result.summary[:6])
    assert all(c.verdict != "replica" for c in result.summary[6:])
    assert not any("patients of the training cases are not known" in w for w in result.warnings)


def test_where_holdout_and_training_disagree_the_holdout_stands_alone():
    result = Pipeline(scans(30, 1)).judged(scans(3, 9), noisy(scans(30, 2), 150))
    assert (result.null.kind, result.null.size) == ("validation", 30)
    assert result.null.agreement < 0.05
    assert any("further from" in w for w in result.warnings)


def test_a_holdout_too_small_to_decide_is_pooled_with_training_scans_that_lie_closer_but_not_with_further_ones():
    known = scans(24, 1)
    known[1::2] = noisy(known[::2], 100)  # two scans of each person under two ids
    pool = Pipeline(known, [f"p{n}" for n in range(24)]).null(scans(8, 2))
    assert pool.agreement < 0.05
    assert (pool.kind, pool.validation, len(pool.ids)) == ("pooled", 8, 32)
    assert any("both are the null" in w for w in pool.warnings)
    close = np.float32(0.3) * scans(24, 1)[:8] + np.float32(0.7) * scans(8, 2)
    pool = Pipeline(scans(24, 1)).null(close)
    assert pool.agreement < 0.05
    assert pool.kind == "validation"
    assert any("closer to" in w for w in pool.warnings)


def test_holdout_and_training_that_are_alike_are_seldom_taken_to_disagree():
    found = [Pipeline(scans(20, seed)).null(scans(10, 1000 + seed)).kind for seed in range(20)]
    assert found.count("pooled") >= 16  # 19 expected; fewer has a chance of less than one in three hundred


@pytest.mark.parametrize("leaked", [0, 1, 4, 10, 11, 15, 20])
def test_leaks_are_left_out_and_named_and_more_than_half_is_refused(leaked):
    known, unseen = scans(30, 1), scans(20, 2)
    unseen[:leaked] = known[:leaked]
    pipeline = Pipeline(known)
    assert pipeline.null(unseen).refused == (leaked > 10)
    result = pipeline.judged(noisy(known[20:22], 20), unseen)
    assert [c.verdict for c in result.summary] == ["replica", "replica"]
    assert set(result.null.removed) == {f"unseen_{n:03d}" for n in range(leaked)}
    assert sum(f"{leaked} of 20 validation cases" in w for w in result.warnings) == (leaked > 0)
    assert any("NOT USED" in w for w in result.warnings) == (leaked > 10)
    assert result.null.validation == (0 if leaked > 10 else 20 - leaked)


def test_a_refusal_is_told_before_all_else_that_is_left_out():
    known = scans(12, 1)
    pipeline = Pipeline(known)

    def no_mask(tables):
        for table in tables.values():
            table[5] = np.inf

    holdout = pipeline.distances(np.r_[known[:4], scans(2, 2)], "unseen", "validation", change=no_mask)
    among = pipeline.distances(known, "", "cross-fitted", pipeline.patients)
    pool = NullPool.of([holdout, among], pipeline.measures, pipeline.index, alpha=0.05)
    assert pool.refused and "NOT USED" in pool.warnings[0]
    assert "1 of 6 validation cases could be compared with no training case" in pool.warnings[1]


@pytest.mark.parametrize("leaked", [3, 12, 20])
def test_leaks_that_were_changed_a_little_are_found_too(leaked):
    known, unseen = scans(30, 1), scans(20, 2)
    unseen[:leaked] = noisy(known[:leaked], 5)
    assert set(Pipeline(known).null(unseen).removed) == {f"unseen_{n:03d}" for n in range(leaked)}


def test_leaks_of_a_training_patient_are_found_by_their_voxels():
    """Pairs of one patient are not compared, and yet a scan that the generator saw is no null."""
    known, unseen = scans(24, 1), scans(12, 2)
    unseen[3] = known[5]
    pipeline = Pipeline(known, [f"p{n}" for n in range(24)])
    null = pipeline.null(unseen, [f"p{5 if n == 3 else 100 + n}" for n in range(12)])
    assert null.removed == ("unseen_003",)


@pytest.mark.parametrize("known_patients", [False, True])
def test_two_scans_of_one_person_that_nobody_named_are_no_null(known_patients):
    known = scans(30, 1)
    known[7] = (known[22] + known[7]) / 2
    null = Pipeline(known, [f"p{n}" for n in range(30)] if known_patients else None).null()
    assert ("scan_007" in null.removed) == (not known_patients)
    assert not Pipeline(scans(30, 1)).null().removed


def test_one_patient_for_all_is_said_with_the_remedy():
    known = scans(24, 1)
    result = Pipeline(known, ["ANONYMOUS"] * 24).judged(np.r_[known[:1], scans(1, 9)])
    assert [c.verdict for c in result.summary] == ["replica", "undecided"]
    said = " ".join(result.warnings)
    assert "all 24 training cases have one patient id" in said
    assert "--patients" in said
    assert "no mask" not in said


def test_reasons_tell_why_nothing_was_compared():
    known = scans(12, 1)
    pipeline = Pipeline(np.r_[known[:1].repeat(6, 0), known[1:]])

    def changed(tables):
        for table in tables.values():
            table[0] = np.inf  # no mask
            table[1] = np.inf  # nobody else's scan
            table[2, :6] = 0.0
            table[2, 6:] = 1.0
        tables["rmse"][2] = np.inf

    queries = pipeline.distances(scans(4, 9), "made", change=changed, k=5)
    queries = dataclasses.replace(queries, left_out=(0, 17, 0, 0))
    result = assign_verdicts(queries, pipeline.null(), pipeline.measures, pipeline.index, alpha=0.05)
    assert [c.reason for c in result.summary[:2]] == ["no mask", "same patient"]
    assert [c.verdict for c in result.summary[:3]] == ["undefined"] * 3
    assert result.summary[2].reason == "identical training cases"
    assert result.summary[3].reason == ""


# ------------------------------------------------------------------------------------------ on images, end to end


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verdicts")
    patients = [f"p{n}" for n in range(12)]
    return build_index(cohort(scans(12, 1), patients=patients), folder / "x.rdindex", measures=VOXEL)


def test_the_patient_of_a_synthetic_image_exempts_it_from_nothing(index):
    near = noisy(scans(12, 1)[:2], 10)
    carrying = detect(cohort(near, "made", ["p0", "p1"]), index)
    plain = detect(cohort(near, "made"), index)
    assert carrying.summary == plain.summary
    assert [c.verdict for c in carrying.summary] == ["replica", "replica"]
    assert any("carries the patient id of a training case" in w and "2 synthetic" in w for w in carrying.run.warnings)
    assert not any("carries the patient id" in w for w in plain.run.warnings)


def test_null_size_bounds_both_parts_together_and_leaks_are_known_again(index):
    unseen = scans(6, 2)
    for size, parts in ((10, (6, 4)), (6, (6, 0)), (100, (6, 12))):
        null = Detector(index, validation=cohort(unseen, "unseen"), options=DetectionOptions(null_size=size)).null
        assert (null.validation, len(null.ids) - null.validation) == parts
    unseen[0] = scans(12, 1)[0]
    first = Detector(index, validation=cohort(unseen, "unseen")).null
    again = Detector(TrainingIndex.open(index.folder), validation=cohort(unseen, "unseen")).null
    assert first.removed == again.removed == ("unseen_000",)
    np.testing.assert_array_equal(first.values, again.values)
    with pytest.raises(InputError, match="NOT USED"):
        leaked, strict = cohort(scans(12, 1)[:6], "unseen"), DetectionOptions(strict=True)
        Detector(index, validation=leaked, options=strict)


def test_an_index_without_hashes_still_knows_the_same_image(index):
    opened = TrainingIndex.open(index.folder)
    opened.entries = tuple(dataclasses.replace(e, voxels="") for e in opened.entries)
    assert detect(cohort(scans(12, 1)[4:5], "made"), opened).summary[0].reason == "identical"


def test_a_mirrored_copy_is_identical_too():
    known = scans(6, 1)
    made = np.stack([np.flip(known[2], axis) for axis in range(3)])
    result = detect(cohort(made, "made"), cohort(known), measures=["mae"])
    assert {(c.verdict, c.reason, c.nearest_training_id) for c in result.summary} == {
        ("replica", "identical", "scan_002")
    }


def test_equal_masks_are_not_the_same_image():
    mask = np.zeros((SIDE,) * 3, np.uint8)
    mask[4:12, 4:12, 4:12] = 1
    ids = [f"t{n}" for n in range(4)]
    training = Cohort.from_arrays(list(scans(4, 1)), spacing=1.0, ids=ids, masks=[mask] * 4)
    made = Cohort.from_arrays(list(scans(1, 5)), spacing=1.0, ids=["new"], masks=[mask])
    assert detect(made, training, measures=["dice"]).summary[0].reason != "identical"


def test_hash_is_of_the_values_and_not_of_the_file(tmp_path):
    nib = pytest.importorskip("nibabel")
    arrays = np.random.default_rng(0).integers(0, 900, (4, 12, 12, 12)).astype(np.int16)
    for folder in ("training", "made"):
        (tmp_path / folder).mkdir()
    for n, a in enumerate(arrays):
        nib.save(nib.Nifti1Image(a, np.eye(4)), tmp_path / "training" / f"t{n}.nii.gz")
    # The same values as floats, in another container and on a grid with another spacing.
    nib.save(nib.Nifti1Image(arrays[0].astype(np.float64), np.diag([2, 2, 2, 1])), tmp_path / "made" / "a.nii")
    result = detect(tmp_path / "made", tmp_path / "training", measures=["mae"])
    assert (result.summary[0].verdict, result.summary[0].reason) == ("replica", "identical")


@pytest.mark.parametrize("others", [0, 3, 9])
@pytest.mark.parametrize("patients", ["unknown", "one"])
def test_duplicates_names_the_same_image_in_cohorts_of_any_size(others, patients):
    arrays = scans(others + 2, 1)
    arrays[-1] = arrays[0]
    ids = None if patients == "unknown" else ["p"] * len(arrays)
    found = find_duplicates(cohort(arrays, patients=ids), measures=["mae"])
    same = [p for p in found.pairs if p.verdict == "identical"]
    assert [(p.first_id, p.second_id) for p in same] == [("scan_000", f"scan_{others + 1:03d}")]
    assert same[0].values == {"mae": 0}
    if patients == "one":
        assert any("one patient id" in w for w in found.warnings)
        assert not any("no mask" in w for w in found.warnings)
        assert any("no null case" in w and "scans of other patients" in w for w in found.warnings)
    assert not any("alidation" in w for w in found.warnings)  # which duplicates does not take


def test_duplicates_across_two_cohorts_names_the_same_image_of_one_patient():
    first, second = scans(8, 1), scans(5, 2)
    second[4] = first[6]
    both = cohort(first, "a", ["p"] * 8), cohort(second, "b", ["p"] * 5)
    pairs = find_duplicates(*both, measures=["mae"]).pairs
    assert [(p.first_id, p.second_id, p.verdict) for p in pairs] == [("a_006", "b_004", "identical")]
