"""The whole pipeline on made-up cohorts with planted copies."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from Core.made_up import cohort, volume, write
from replica_detection.audit.cohort_duplicates import find_duplicates
from replica_detection.detection.detector import detect
from replica_detection.detection.options import DetectionOptions, resolve_device
from replica_detection.errors import ConfigurationError, InputError
from replica_detection.index.build import build_index
from replica_detection.io.cohort import Cohort
from replica_detection.results.result import DetectionResult

VOXEL = ("mae", "rmse", "ssim", "ncc_aligned", "lncc_aligned")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """30 training, 24 validation and 12 new cases, and copies of training cases: exact, noisy, other contrast."""
    folder = tmp_path_factory.mktemp("planted")
    cohort(folder / "training", 30, 0)
    cohort(folder / "validation", 24, 1000, "unseen")
    cohort(folder / "synthetic", 12, 2000, "new")
    rng = np.random.default_rng(0)
    for n in range(4):
        array = volume(n)
        write(folder / "synthetic" / f"exact_{n:03d}.nii.gz", array)
        write(folder / "synthetic" / f"noisy_{n:03d}.nii.gz", array + rng.normal(0, 60, array.shape).astype("f4"))
        write(folder / "synthetic" / f"dark_{n:03d}.nii.gz", 0.4 * array - 30)
    index = build_index(Cohort.read(folder / "training"), folder / "x.rdindex", measures=VOXEL)
    return folder, index


def run(planted, validation=True, **options):
    folder, index = planted
    unseen = Cohort.read(folder / "validation") if validation else None
    return detect(Cohort.read(folder / "synthetic"), index, validation=unseen, options=DetectionOptions(**options))


@pytest.mark.parametrize("validation", [True, False])
def test_copies_are_found_and_new_cases_are_not(planted, validation):
    result = run(planted, validation)
    assert result.run.null.kind == ("pooled" if validation else "cross-fitted")
    for case in result.summary:
        kind, number = case.synthetic_id.split("_")
        if kind == "new":
            continue
        assert case.verdict == "replica", case
        assert case.nearest_training_id == f"case_{number}"
        assert case.levels_flagged == ("voxel",)
        assert case.measures_agreeing == len(VOXEL)
    flagged = [c for c in result.summary if c.synthetic_id.startswith("new") and c.verdict != "novel"]
    assert len(flagged) <= 2


def test_exact_copies_have_distance_zero_under_every_measure(planted):
    result = run(planted)
    exact = [m for m in result.matches if m.synthetic_id.startswith("exact")]
    assert len(exact) == 4 * len(VOXEL)
    assert all(m.distance == 0 and m.ratio == 0 for m in exact)
    assert all(m.value == (1 if m.measure in ("ssim", "ncc_aligned", "lncc_aligned") else 0) for m in exact)


def test_p_values_are_valid_fractions_and_q_follow(planted):
    result = run(planted)
    for m in result.matches:
        assert 0 < m.p_value <= 1
        assert m.q_value >= m.p_value - 1e-12
    worklist = result.worklist()
    assert [c.score for c in worklist] == sorted((c.score for c in worklist), reverse=True)


def test_neighbors_are_nearest_first_and_agree_with_the_matches(planted):
    result = run(planted, k=7)
    near = result.neighbors
    for measure in ("mae", "rmse", "ssim"):
        assert near.training[measure].shape == (len(result.summary), 7)
        assert near.training[measure].dtype == np.int32
        assert np.all(np.diff(near.distance[measure], axis=1) >= 0)
    row = {m.synthetic_id: m for m in result.matches if m.measure == "rmse"}
    for i, case in enumerate(near.synthetic_ids):
        assert near.training_ids[near.training["rmse"][i, 0]] == row[case].nearest_training_id
        assert row[case].ratio == pytest.approx(near.distance["rmse"][i, 0] / near.distance["rmse"][i].mean())


def test_result_folder_round_trip(planted, tmp_path):
    result = run(planted)
    result.write(tmp_path / "résultat")
    names = sorted(p.name for p in (tmp_path / "résultat").iterdir())
    assert names == ["alignments.json", "detection.json", "matches.csv", "neighbors.npz", "places.json", "summary.csv"]
    again = DetectionResult.read(tmp_path / "résultat")
    assert again.summary == result.summary
    assert again.matches == result.matches
    assert json.dumps(again.run.__dict__, default=str) == json.dumps(result.run.__dict__, default=str)
    np.testing.assert_array_equal(again.neighbors.training["ssim"], result.neighbors.training["ssim"])
    header = (tmp_path / "résultat" / "summary.csv").read_text(encoding="utf-8").splitlines()[0]
    names = "synthetic_id,verdict,score,nearest_training_id,levels_flagged,measures_agreeing,levels_differ,reason"
    assert header == names
    header = (tmp_path / "résultat" / "matches.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == ("synthetic_id,measure,level,nearest_training_id,value,distance,ratio,p_value,q_value,verdict")


def test_damaged_or_missing_results_are_refused(planted, tmp_path):
    with pytest.raises(InputError, match=r"detection\.json"):
        DetectionResult.read(tmp_path)
    run(planted).write(tmp_path)
    (tmp_path / "neighbors.npz").write_bytes(b"PK broken")
    with pytest.raises(InputError, match=r"neighbors\.npz"):
        DetectionResult.read(tmp_path)
    data = json.loads((tmp_path / "detection.json").read_text(encoding="utf-8"))
    (tmp_path / "detection.json").write_text(json.dumps({**data, "schema_version": 0}), encoding="utf-8")
    with pytest.raises(InputError, match="schema version 0"):
        DetectionResult.read(tmp_path)
    (tmp_path / "detection.json").write_text(json.dumps({**data, "colour": "red"}), encoding="utf-8")
    with pytest.raises(InputError, match="unknown field 'colour'"):
        DetectionResult.read(tmp_path)


def test_null_is_computed_once(planted):
    """A second run reads the null from the index: no query of it is compared again."""
    folder, index = planted
    run(planted)
    stages = []
    detect(
        Cohort.read(folder / "synthetic"),
        index,
        validation=Cohort.read(folder / "validation"),
        progress=lambda stage, done, total: stages.append(stage),
    )
    assert "comparing" in stages
    assert "null" not in stages


@given(st.permutations(range(8)))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_permuting_the_training_cohort_permutes_nothing_in_the_result(tmp_path_factory, order):
    folder = tmp_path_factory.mktemp("permuted")
    for position, seed in enumerate(order):
        write(folder / "training" / f"{position}_{seed}.nii.gz", volume(seed))
    write(folder / "synthetic" / "copy.nii.gz", volume(3) + 20)
    write(folder / "synthetic" / "new.nii.gz", volume(300))
    index = build_index(Cohort.read(folder / "training"), folder / "x.rdindex")
    result = detect(Cohort.read(folder / "synthetic"), index)
    assert result.summary[0].nearest_training_id.endswith("_3")
    ratios = [m.ratio for m in result.matches]
    if not hasattr(test_permuting_the_training_cohort_permutes_nothing_in_the_result, "seen"):
        test_permuting_the_training_cohort_permutes_nothing_in_the_result.seen = ratios
    np.testing.assert_allclose(
        ratios, test_permuting_the_training_cohort_permutes_nothing_in_the_result.seen, rtol=1e-4, atol=1e-6
    )


def test_validation_scans_of_training_patients_do_not_meet_them(tmp_path):
    """A validation scan that repeats a training patient is compared with the others only, so the null stays clean."""
    cohort(tmp_path / "training", 12)
    cohort(tmp_path / "validation", 12, 500, "unseen")
    write(tmp_path / "validation" / "unseen_000.nii.gz", volume(0) + 1)
    lines = ["id,patient", "case_000,anna", "unseen_000,anna"]
    (tmp_path / "patients.csv").write_text("\n".join(lines), encoding="utf-8")
    patients = tmp_path / "patients.csv"
    index = build_index(Cohort.read(tmp_path / "training", patients=patients), tmp_path / "x.rdindex")
    cohort(tmp_path / "synthetic", 3, 900, "new")
    synthetic = Cohort.read(tmp_path / "synthetic")
    grouped = detect(synthetic, index, validation=Cohort.read(tmp_path / "validation", patients=patients))
    assert grouped.run.null.validation == 12
    assert min(grouped.run.null.ratios["rmse"]) > 0.3
    loose = detect(synthetic, index, validation=Cohort.read(tmp_path / "validation"))
    assert loose.run.null.removed == ("unseen_000",)
    assert any("unseen_000" in w for w in loose.run.warnings)


def test_identical_training_volumes_make_the_ratio_undefined(tmp_path):
    for n in range(6):
        write(tmp_path / "training" / f"same_{n}.nii.gz", volume(0))
    cohort(tmp_path / "training", 6, 10)
    write(tmp_path / "synthetic" / "copy.nii.gz", volume(0))
    index = build_index(Cohort.read(tmp_path / "training"), tmp_path / "x.rdindex")
    result = detect(Cohort.read(tmp_path / "synthetic"), index, options=DetectionOptions(k=5))
    assert all(np.isnan(m.ratio) for m in result.matches)
    assert (result.summary[0].verdict, result.summary[0].reason) == ("replica", "identical")
    assert any("undefined" in w for w in result.run.warnings)


def test_few_training_cases_leave_a_near_copy_undecided_but_ranked(tmp_path):
    cohort(tmp_path / "training", 3)
    noise = np.random.default_rng(0).normal(0, 60, volume(0).shape).astype("f4")
    write(tmp_path / "synthetic" / "copy.nii.gz", volume(0) + noise)
    cohort(tmp_path / "synthetic", 3, 900, "new")
    index = build_index(Cohort.read(tmp_path / "training"), tmp_path / "x.rdindex")
    result = detect(Cohort.read(tmp_path / "synthetic"), index)
    assert (result.summary[0].verdict, result.summary[0].reason) == ("undecided", "null too small")
    assert result.summary[0].nearest_training_id == "case_000"
    assert result.worklist()[0] == result.summary[0]
    assert any("16 more validation scans" in w for w in result.run.warnings)


def test_bad_synthetic_files_are_listed_and_strict_stops(planted, tmp_path):
    _, index = planted
    write(tmp_path / "good.nii.gz", volume(1))
    (tmp_path / "broken.nii.gz").write_bytes(b"\x1f\x8b\x08 broken")
    result = detect(Cohort.read(tmp_path), index)
    assert [c.synthetic_id for c in result.summary] == ["good"]
    assert any("broken.nii.gz" in path for path, _ in result.run.synthetic.skipped)
    with pytest.raises(InputError, match=r"broken\.nii\.gz"):
        detect(Cohort.read(tmp_path), index, options=DetectionOptions(strict=True))
    (tmp_path / "good.nii.gz").unlink()
    with pytest.raises(InputError, match="no image"):
        detect(Cohort.read(tmp_path), index)


def test_wrong_options_are_refused():
    with pytest.raises(ConfigurationError, match="alpha is"):
        DetectionOptions(alpha=1.5)
    with pytest.raises(ConfigurationError, match="unknown device"):
        resolve_device("abacus")


def test_duplicates_inside_a_cohort(tmp_path):
    cohort(tmp_path / "scans", 24)
    write(tmp_path / "scans" / "again.nii.gz", volume(4))
    noisy = volume(9) + np.random.default_rng(0).normal(0, 20, volume(9).shape).astype("f4")
    write(tmp_path / "scans" / "rescan.nii.gz", noisy)
    index = build_index(Cohort.read(tmp_path / "scans"), tmp_path / "x.rdindex")
    pairs = find_duplicates(index).pairs
    named = {(p.first_id, p.second_id): p.verdict for p in pairs if p.verdict != "suspicious"}
    assert named == {("again", "case_004"): "identical", ("case_009", "rescan"): "near-duplicate"}
    (tmp_path / "patients.csv").write_text("id,patient\nagain,p\ncase_004,p\ncase_009,q\nrescan,q\n", encoding="utf-8")
    grouped = Cohort.read(tmp_path / "scans", patients=tmp_path / "patients.csv")
    pairs = find_duplicates(build_index(grouped, tmp_path / "y.rdindex")).pairs
    # Scans of one patient are alike, but the same image twice is told.
    named = {(p.first_id, p.second_id): p.verdict for p in pairs if p.verdict != "suspicious"}
    assert named == {("again", "case_004"): "identical"}
