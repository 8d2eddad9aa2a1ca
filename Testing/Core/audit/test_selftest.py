"""Planted copies do what their names say, and the self-test counts them right."""

import csv
import json
import math

import numpy as np
import pytest

from Core.made_runs import MASKS, VOXELS, planted_folders
from Core.made_up import volume
from replica_detection import cli
from replica_detection.audit.planted_copies import changes, intensity_range, write_copy
from replica_detection.audit.planted_verdicts import UNSEEN, halves, judge_planted
from replica_detection.audit.selftest_tables import write_selftest
from replica_detection.detection.options import DetectionOptions
from replica_detection.errors import ConfigurationError, InputError
from replica_detection.index.build import build_index
from replica_detection.io.cohort import Case, Cohort
from replica_detection.io.volume import Volume, read_mask, read_volume
from replica_detection.results.result import DetectionResult

SHAPE = (30, 34, 20)


def made(seed=1, shape=SHAPE, spacing=(1.0, 1.0, 2.0), trusted=True):
    affine = np.diag([*spacing, 1.0])
    return Volume(volume(seed, shape), affine, trusted)


def changed(name, source=None, mask=None, seed=0):
    source = source if source is not None else made()
    return changes(source.array.ndim)[name](source, mask, np.random.default_rng(seed), made(2, source.array.shape))


def test_every_change_of_the_plan_is_there_in_2d_and_3d():
    common = {"exact", "noise_0.01", "noise_0.02", "intensity", "jpeg", "crop", "rotated_3", "rotated_5", "blend"}
    assert set(changes(3)) == common | {"flipped_axis_1", "flipped_axis_2", "flipped_axis_3"}
    assert set(changes(2)) == common | {"flipped_axis_1", "flipped_axis_2"}


@pytest.mark.parametrize("dimensions", [2, 3])
def test_no_change_touches_its_source_and_masks_go_along(dimensions):
    source = made(shape=SHAPE[:dimensions])
    mask = (source.array > 600).astype(np.uint8)
    before, mask_before = source.array.copy(), mask.copy()
    as_image = Volume(mask.astype(np.float32), source.affine, True)
    for name in changes(dimensions):
        copy = changed(name, source, mask, seed=5)
        assert np.isfinite(copy.array).all() and copy.mask.shape == copy.array.shape
        assert (source.array == before).all() and (mask == mask_before).all()
        if name.startswith(("rotated", "flipped", "crop")):
            moved = changed(name, as_image, mask, seed=5)
            # Away from the border, where an image repeats its edge and a mask does not.
            inside = tuple(slice(4, -4) for _ in range(dimensions))
            agreeing = ((moved.array > 0.5) == (copy.mask > 0))[inside].mean()
            assert agreeing > 0.97, name
        assert (
            changed(name, source, mask, seed=5).array.tobytes() == copy.array.tobytes()
        )  # the same seed, the same copy


def test_noise_and_intensity_are_as_strong_as_they_say():
    source = made()
    low, high = intensity_range(source.array)
    for name, sigma in (("noise_0.01", 0.01), ("noise_0.02", 0.02)):
        difference = changed(name, source).array - source.array
        assert difference.std() == pytest.approx(sigma * (high - low), rel=0.03) and abs(difference.mean()) < 1
    factors = [float(changed("intensity", source, seed=s).array[5, 5, 5] / source.array[5, 5, 5]) for s in range(40)]
    assert min(factors) < 0.95 < 1.05 < max(factors)
    assert all(0.9 <= f <= 1.1 and abs(f - 1) >= 0.0199 for f in factors)


@pytest.mark.parametrize("degrees", [3, 5])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_rotation_turns_by_its_angle_in_mm(degrees, dimensions):
    """A blob far from the centre keeps its distance to it in mm; its way tells the angle (3D: at most)."""
    shape, spacing = (81, 61, 41)[:dimensions], np.array((1.0, 1.5, 2.0)[:dimensions])
    centre = (np.array(shape) - 1) / 2
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    blob = centre + np.array((25, 14, 8)[:dimensions])
    array = np.exp(-(((grid - blob) * spacing) ** 2).sum(-1) / 8).astype(np.float32)
    source = Volume(array, np.diag([*spacing, *[1.0] * (4 - dimensions)]), True)
    found = []
    for seed in range(12):
        image = changed(f"rotated_{degrees}", source, seed=seed).array.astype(float)
        weight = image / image.sum()
        at = ((grid * weight[..., None]).reshape(-1, dimensions).sum(0) - centre) * spacing
        origin = (blob - centre) * spacing
        assert np.linalg.norm(at) == pytest.approx(np.linalg.norm(origin), rel=0.01)
        cosine = at @ origin / np.linalg.norm(at) / np.linalg.norm(origin)
        found.append(math.degrees(math.acos(min(1, cosine))))
    if dimensions == 2:
        assert found == pytest.approx([degrees] * 12, abs=0.1)
    assert degrees * 0.8 < max(found) <= degrees + 0.1


def test_flips_crops_jpeg_and_blends():
    source = made()
    for axis in range(3):
        assert (np.flip(changed(f"flipped_axis_{axis + 1}", source).array, axis) == source.array).all()
    copy = changed("crop", source, seed=3).array
    assert copy.shape == (27, 31, 18)
    windows = np.lib.stride_tricks.sliding_window_view(source.array, copy.shape)
    assert (windows.reshape(-1, copy.size) == copy.ravel()).all(1).any()
    error = np.abs(changed("jpeg", source).array - source.array).max() / np.ptp(source.array)
    assert 0 < error < 0.15
    other = made(2)
    blends = [changed("blend", source, seed=s).array for s in range(20)]
    corr = [np.corrcoef(b.ravel(), source.array.ravel())[0, 1] for b in blends]
    with_other = [np.corrcoef(b.ravel(), other.array.ravel())[0, 1] for b in blends]
    assert min(corr) > 0.75 and min(np.array(corr) - with_other) > 0.2 and max(with_other) > 0.2


@pytest.mark.parametrize(
    ("source", "suffix"),
    [
        (made(shape=(40, 30), spacing=(0.2, 0.2, 1.0)), ".nii.gz"),
        (made(shape=(40, 30), trusted=False), ".png"),
        (made(), ".nii.gz"),
        (made(trusted=False), ".nii.gz"),
    ],
)
def test_copies_are_written_as_what_their_source_was(source, suffix, tmp_path):
    (tmp_path / "i").mkdir()
    (tmp_path / "m").mkdir()
    source = Volume(np.round(source.array), source.affine, source.trusted)
    mask = (source.array > 500).astype(np.uint8)
    path, mask_path = write_copy(changed("exact", source, mask), source, tmp_path / "i", tmp_path / "m", "a")
    assert path.name == f"a{suffix}"
    read = read_volume(path)
    assert (read.array == source.array).all()
    assert (read_mask(mask_path, read) == mask).all()
    if suffix != ".png":
        assert np.allclose(read.spacing, source.spacing)
    else:
        assert not read.trusted


def test_halves_keep_patients_whole_and_lose_nobody():
    cases = tuple(Case(f"c{i}", (), patient=f"p{i // 2}") for i in range(30))
    first, second = halves(Cohort("x", cases), seed=4)
    assert len(first) == 16 and len(second) == 14 and {*first.ids, *second.ids} == {c.id for c in cases}
    assert not {c.patient for c in first.cases} & {c.patient for c in second.cases}
    assert halves(Cohort("x", cases), seed=5)[0].ids != first.ids
    with pytest.raises(ConfigurationError, match="holds 4 patients: a self-test needs 10"):
        halves(Cohort("x", cases[:8]))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = planted_folders(tmp_path_factory.mktemp("selftest"), masks=True)
    training = Cohort.read(folder / "training", masks=folder / "training_masks")
    index = build_index(training, folder / "x.rdindex", measures=(*VOXELS, *MASKS))
    validation = Cohort.read(folder / "validation", masks=folder / "validation_masks")
    (folder / "planted").mkdir()
    return folder, index, validation, judge_planted(index, validation, folder / "planted", copies=6)


def test_the_table_counts_what_the_run_says(run):
    _, index, validation, found = run
    result, rows = found.result, {r.kind: r for r in found.rows}
    assert set(rows) == {UNSEEN, *changes(3)} and found.rows[0].kind == UNSEEN
    assert rows[UNSEEN].images == 10 and result.run.null.validation + len(result.run.null.removed) == 10
    assert not {*result.run.null.case_ids} & {c.synthetic_id for c in result.summary}
    assert {*result.run.null.case_ids[:10], *(i for i, (k, _) in found.truth.items() if k == UNSEEN)} <= {
        *validation.ids
    }
    verdicts = {c.synthetic_id: c for c in result.summary}
    for kind, row in rows.items():
        ids = [i for i, (k, _) in found.truth.items() if k == kind]
        assert row.images == len(ids)
        assert row.flagged.value == np.mean([verdicts[i].verdict in ("replica", "suspicious") for i in ids])
        assert row.flagged.low <= row.flagged.value <= row.flagged.high
        if kind != UNSEEN:
            named = [verdicts[i].nearest_training_id == found.truth[i][1] for i in ids]
            assert row.right.value == np.mean(named) and all(found.truth[i][1] in index.ids for i in ids)
    flagged = {m.synthetic_id: m.verdict in ("replica", "suspicious") for m in result.matches if m.measure == "dice"}
    exact = [i for i, (k, _) in found.truth.items() if k == "exact"]
    assert rows["exact"].by_measure["dice"].value == np.mean([flagged[i] for i in exact])


def test_exact_copies_are_found_with_distance_zero_and_held_out_cases_are_not(run):
    _, _, _, found = run
    rows = {r.kind: r for r in found.rows}
    exact = {i for i, (kind, _) in found.truth.items() if kind == "exact"}
    assert {m.distance for m in found.result.matches if m.synthetic_id in exact} == {0.0}
    for kind in ("exact", "noise_0.01", "noise_0.02", "intensity", "jpeg"):
        row = rows[kind]
        assert (row.flagged.value, row.replica.value, row.right.value, row.auroc) == (1, 1, 1, 1)
    assert rows[UNSEEN].flagged.value <= 0.2 and math.isnan(rows[UNSEEN].auroc)


def of_arrays(*seeds, prefix):
    return Cohort.from_arrays({f"{prefix}_{n:04d}": volume(n, (12, 14, 10)) for n in seeds}, spacing=1)


def test_held_out_images_that_are_training_images_are_in_no_row_and_are_named(tmp_path):
    index = build_index(of_arrays(*range(12), prefix="t"), tmp_path / "x.rdindex", measures=["mae"])
    validation = of_arrays(*range(1000, 1018), 0, 1, 2, prefix="v")
    options = DetectionOptions(measures=("mae",))
    found = judge_planted(index, validation, empty(tmp_path / "planted"), options=options, copies=2)
    held_out = {c.id for c in halves(validation)[1].cases}
    leaked = held_out & {"v_0000", "v_0001", "v_0002"}
    assert leaked, "another seed is needed"
    unseen = next(r for r in found.rows if r.kind == UNSEEN)
    assert unseen.images == len(held_out) - len(leaked) and not leaked & set(found.truth)
    assert f"{len(leaked)} held-out validation cases are identical" in found.warnings[0]
    assert all(id in found.warnings[0] for id in leaked)
    assert set(found.result.run.null.removed) == {"v_0000", "v_0001", "v_0002"} - leaked


def test_a_self_test_on_training_images_stops(tmp_path):
    """Most of the validation images are training images: rows of held-out images would mean nothing."""
    index = build_index(of_arrays(*range(12), prefix="t"), tmp_path / "x.rdindex", measures=["mae"])
    validation = of_arrays(*range(9), *range(1000, 1003), prefix="v")
    options = DetectionOptions(measures=("mae",))
    with pytest.raises(InputError, match=r"(?i)give scans that the generator never saw"):
        judge_planted(index, validation, empty(tmp_path / "planted"), options=options, copies=1)


def test_undecided_copies_are_counted_and_told(tmp_path):
    """Eleven scans in all are too few for a verdict on anything but the same image."""
    index = build_index(of_arrays(*range(5), prefix="t"), tmp_path / "x.rdindex", measures=["mae"])
    validation = of_arrays(*range(1000, 1010), prefix="v")
    options = DetectionOptions(measures=("mae",), null_size=5)
    found = judge_planted(index, validation, empty(tmp_path / "planted"), options=options, copies=2)
    rows = {r.kind: r for r in found.rows}
    assert rows["exact"].replica.value == 1 and rows["exact"].undecided == 0
    assert rows["noise_0.01"].flagged.value == 0 and rows["noise_0.01"].undecided == 2
    assert any("are undecided and count as not flagged" in w for w in found.warnings)
    write_selftest(found, index, tmp_path / "planted", tmp_path)
    table = {r["kind"]: r for r in csv.DictReader((tmp_path / "selftest.csv").open(encoding="utf-8"))}
    assert table["noise_0.01"]["undecided"] == "2" and table["exact"]["undecided"] == "0"


def empty(folder):
    folder.mkdir()
    return folder


def test_another_seed_plants_other_copies_and_the_same_seed_the_same(run, tmp_path):
    folder, index, validation, found = run
    for name in ("again", "other"):
        (tmp_path / name).mkdir()
    options = DetectionOptions(measures=("mae",))
    again = judge_planted(index, validation, tmp_path / "again", options=options, copies=6)
    other = judge_planted(index, validation, tmp_path / "other", options=options, copies=6, seed=1)
    assert again.truth == found.truth != other.truth
    held_out = [{i for i, (kind, _) in t.truth.items() if kind == UNSEEN} for t in (found, other)]
    assert held_out[0] != held_out[1] and len(held_out[0]) == len(held_out[1])
    first, second = (
        read_volume(where / "images" / "selftest_0007.nii.gz").array
        for where in (folder / "planted", tmp_path / "again")
    )
    assert (first == second).all()


def test_a_training_image_that_is_gone_is_named(tmp_path):
    folder = planted_folders(tmp_path, flat=True)
    index = build_index(Cohort.read(folder / "training"), tmp_path / "x.rdindex", measures=["mae"])
    (folder / "training").rename(folder / "elsewhere")
    (tmp_path / "planted").mkdir()
    with pytest.raises(InputError, match="training"):
        judge_planted(index, Cohort.read(folder / "validation"), tmp_path / "planted")


def test_selftest_of_2d_pictures_on_the_command_line(tmp_path, monkeypatch, capsys):
    folder = planted_folders(tmp_path / "data", flat=True)
    monkeypatch.setenv("COLUMNS", "150")

    def invoke(*arguments):
        monkeypatch.setattr("sys.argv", ["replica-detection", "selftest", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return stop.value.code

    where = ("--validation", folder / "validation", "--measures", "mae,ssim", "--copies", "3")
    out = tmp_path / "out"
    assert invoke("--training", folder / "training", *where, "--output", out) == 0
    shown = capsys.readouterr().out
    assert "measured false-positive rate" in shown and "flipped_axis_2" in shown
    assert {p.name for p in out.iterdir()} == {
        "index.rdindex", "result", "selftest.csv", "selftest_by_measure.csv", "selftest.png", "examples.png",
    }  # fmt: skip
    rows = {r["kind"]: r for r in csv.DictReader((out / "selftest.csv").open(encoding="utf-8"))}
    assert rows["exact"]["flagged"] == rows["exact"]["right_case"] == "1" and rows["exact"]["images"] == "3"
    assert float(rows["exact"]["flagged_low"]) == pytest.approx(0.025 ** (1 / 3))
    by_measure = list(csv.DictReader((out / "selftest_by_measure.csv").open(encoding="utf-8")))
    assert {r["measure"] for r in by_measure} == {"mae", "ssim"} and len(by_measure) == 2 * len(rows)
    exact = [m for m in DetectionResult.read(out / "result").matches if m.distance == 0]
    assert len(exact) == 6  # 3 copies x 2 measures
    assert json.loads((out / "result" / "detection.json").read_text(encoding="utf-8"))["null"]["validation"] <= 10

    assert invoke("--index", out / "index.rdindex", *where, "--output", tmp_path / "two", "--keep-images") == 0
    assert len(list((tmp_path / "two" / "planted" / "images").iterdir())) == 3 * len(changes(2))
    assert invoke("--index", out / "index.rdindex", *where, "--output", out) == 1
    assert "exists already" in capsys.readouterr().err
    assert invoke(*where, "--output", tmp_path / "three") == 2
