"""What stays of a synthetic set, why the rest went, and that the source is never touched."""

import csv
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from Core.made_runs import COPIES, NEW, VOXELS, planted_folders, planted_run
from Core.made_up import volume, write
from replica_detection import cli
from replica_detection.audit.filtering import MANIFEST, decide, filter_replicas, write_filtered
from replica_detection.audit.synthetic_duplicates import DuplicateGroup, _near, near_duplicate_groups
from replica_detection.detection.distances import Distances
from replica_detection.errors import InputError
from replica_detection.index.build import build_index
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Case, Cohort
from replica_detection.io.volume import voxel_files
from replica_detection.results.result import IDENTICAL, NO_MASK, SMALL_NULL, CaseSummary, CohortInfo
from Report.made_up_result import make_result


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = planted_folders(tmp_path_factory.mktemp("filter"))
    return folder, planted_run(folder)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def manifest(folder: Path) -> dict[str, dict[str, str]]:
    return {row["synthetic_id"]: row for row in csv.DictReader((folder / MANIFEST).open(encoding="utf-8"))}


def invoke(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["replica-detection", "filter", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code


def test_replicas_go_and_the_rest_is_copied_bit_by_bit(run, tmp_path, monkeypatch, capsys):
    folder, result = run
    before = contents(folder / "synthetic")
    assert invoke(monkeypatch, folder / "result", "--output", tmp_path / "kept") == 0
    assert f"{NEW} of {NEW + COPIES} images stay; {COPIES} went by their verdict, 0 as near" in capsys.readouterr().out
    assert contents(folder / "synthetic") == before
    kept = contents(tmp_path / "kept")
    del kept[MANIFEST]
    assert kept == {name: content for name, content in before.items() if name.startswith("new")}
    rows = manifest(tmp_path / "kept")
    assert set(rows) == {c.synthetic_id for c in result.summary}
    assert rows["copy_03"]["reason"] == "replica: resembles training case train_03" and rows["copy_03"]["kept"] == "0"
    assert rows["new_00"]["reason"] == "kept" and rows["new_00"]["files"].endswith("new_00.nii.gz")
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_only_a_list_copies_nothing(run, tmp_path, monkeypatch):
    folder, _ = run
    assert invoke(monkeypatch, folder / "result", "--output", tmp_path / "listed", "--list", "--keep-duplicates") == 0
    assert [p.name for p in (tmp_path / "listed").iterdir()] == [MANIFEST]


def test_suspicious_cases_go_only_when_asked():
    result = make_result()
    cohort = Cohort(Path("x"), tuple(Case(c.synthetic_id, (Path(f"x/{c.synthetic_id}.png"),)) for c in result.summary))
    suspicious = [c.synthetic_id for c in result.summary if c.verdict == "suspicious"]
    undefined = [c.synthetic_id for c in result.summary if c.verdict == "undefined"]
    assert suspicious and undefined
    loose = {d.synthetic_id: d for d in decide(result, cohort)}
    strict = {d.synthetic_id: d for d in decide(result, cohort, without_suspicious=True)}
    assert all(loose[i].kept and "though suspicious" in loose[i].reason for i in suspicious)
    assert all(not strict[i].kept and strict[i].reason.startswith("suspicious: resembles") for i in suspicious)
    assert all(strict[i].kept and "could not be judged" in strict[i].reason for i in undefined)
    assert sum(d.kept for d in loose.values()) == len(result.summary) - result.count("replica")
    # A file that the run could not read is named, and so are images that came or went since.
    assert loose[""].reason == "could not be read: holds NaN only" and not loose[""].kept
    moved = Cohort(Path("x"), (*cohort.cases[1:], Case("late", (Path("x/late.png"),))))
    reasons = {d.synthetic_id: (d.kept, d.reason) for d in decide(result, moved)}
    assert reasons["late"] == (False, "was not in the run")
    assert reasons[cohort.cases[0].id] == (False, "its image is no longer there as it was compared")


@pytest.mark.parametrize("noted", ["made/bad.png", "./made/bad.png", "/data/made/bad.png", "../made/bad.png"])
def test_an_image_that_the_run_could_not_read_is_listed_once(noted):
    result = make_result()
    skipped = CohortInfo("made", 1, ((noted, "holds NaN only"),))
    result = replace(result, run=replace(result.run, synthetic=skipped))
    cohort = Cohort(Path("x"), tuple(Case(n, (Path(f"/data/made/{n}.png"),)) for n in ("bad", "ad", "late")))
    rows = [(d.synthetic_id, d.reason) for d in decide(result, cohort) if d.summary is None]
    unknown = "was not in the run"
    assert rows == [("bad", "could not be read: holds NaN only"), ("ad", unknown), ("late", unknown)]


def test_the_least_replica_like_of_near_duplicates_stays():
    result = make_result()
    novel = sorted((c for c in result.summary if c.verdict == "novel"), key=lambda c: c.score)
    replica = next(c for c in result.summary if c.verdict == "replica")
    cohort = Cohort(Path("x"), tuple(Case(c.synthetic_id, (Path(f"x/{c.synthetic_id}.png"),)) for c in result.summary))
    group = DuplicateGroup(tuple(c.synthetic_id for c in (novel[5], replica, novel[0], novel[3])), False)
    found = {d.synthetic_id: d for d in decide(result, cohort, [group])}
    assert found[novel[0].synthetic_id].kept
    for other in (novel[3], novel[5]):
        d = found[other.synthetic_id]
        assert (d.kept, d.kept_instead, d.reason) == (
            False,
            novel[0].synthetic_id,
            f"near-duplicate of {novel[0].synthetic_id}",
        )
    assert found[replica.synthetic_id].reason.startswith("replica")


def test_no_image_stays_in_silence_that_was_not_cleared(tmp_path, monkeypatch, capsys):
    """A finished run of a small null on disk: identical, undecided, suspicious, unjudged and new images."""
    made = [("a", "replica", IDENTICAL), ("b", "undecided", SMALL_NULL), ("c", "suspicious", ""), ("d", "novel", ""),
            ("e", "undefined", NO_MASK), ("f", "undecided", SMALL_NULL)]  # fmt: skip
    for name, *_ in made:
        write(tmp_path / "synthetic" / f"{name}.nii.gz", volume(5))
    result = make_result(cases=6, copies=0)
    run = replace(
        result.run,
        null=replace(result.run.null, missing=7),
        synthetic=CohortInfo(str(tmp_path / "synthetic"), len(made)),
    )
    summary = tuple(CaseSummary(id, verdict, 0.9, "train_7", (), 0, (), reason) for id, verdict, reason in made)
    replace(result, summary=summary, run=run).write(tmp_path / "result")
    assert invoke(monkeypatch, tmp_path / "result", "--output", tmp_path / "kept", "--keep-duplicates") == 0
    shown = capsys.readouterr()
    assert "5 of 6 images stay; 1 went by their verdict" in shown.out
    assert "2 undecided images kept" in shown.err and "7 more validation scans would settle" in shown.err
    assert "leave them out (--without-suspicious)" in shown.err
    assert "1 suspicious image kept" in shown.err and "1 image kept that could not be judged" in shown.err
    rows = manifest(tmp_path / "kept")
    assert {i: r["kept"] for i, r in rows.items()} == dict(zip("abcdef", "011111", strict=True))
    assert rows["a"]["reason"].startswith("replica: identical to training case train_7")
    assert rows["b"]["reason"].startswith("kept, but undecided: no real case of the null is closer")
    assert (
        rows["e"]["reason"].startswith("kept, but could not be judged: only masks were compared")
        and rows["d"]["reason"] == "kept"
    )
    filtered = filter_replicas(tmp_path / "result", keep_duplicates=True, without_suspicious=True)
    assert filtered.kept_ids == ("d", "e") and filtered.flagged == 4
    assert [w[:7] for w in filtered.warnings] == ["1 image"]


@pytest.mark.parametrize("training", [1, 2, 4, 8, 12])
def test_copies_among_synthetic_images_are_found_in_the_smallest_cohorts(tmp_path, training):
    """Below ten training images no tail can be fitted: nothing but copies can be found, and a warning says so."""
    arrays = np.stack([volume(n) for n in range(training)])
    index = build_index(Cohort.from_arrays(arrays, spacing=1), tmp_path / "x.rdindex", measures=VOXELS)
    made = np.stack([volume(100 + n) for n in (0, 1, 0, 2)])
    found = near_duplicate_groups(Cohort.from_arrays(made, spacing=1), index, index.measures(VOXELS))
    assert [(len(g.ids), g.identical) for g in found.groups] == [(2, True)]
    assert len(found.warnings) == (training < 10)
    if training < 10:
        compared = training if training > 1 else 0
        assert f"only {compared} training images" in found.warnings[0]


def test_near_duplicates_and_repeated_images_are_grouped_and_fresh_ones_are_not(run, tmp_path):
    """One image in two versions, one repeated more often than the neighbourhood is large, one stored twice."""
    folder, _ = run
    index = TrainingIndex.open(folder / "result" / "index.rdindex")
    rng = np.random.default_rng(0)
    for n in range(50):  # twice the training cohort
        write(tmp_path / f"fresh_{n:02d}.nii.gz", volume(70_000 + n))
    for name, seed, times in (("pair", 1, 2), ("collapsed", 2, 14)):
        for n in range(times):
            image = volume(80_000 + seed)
            write(tmp_path / f"{name}_{n:02d}.nii.gz", image + rng.normal(0, 15, image.shape).astype("f4"))
    shutil.copy(tmp_path / "fresh_00.nii.gz", tmp_path / "same.nii.gz")
    groups = near_duplicate_groups(Cohort.read(tmp_path), index, index.measures(VOXELS)).groups
    by_size = sorted(groups, key=lambda g: len(g.ids))
    named = [{i.split("_")[0] for i in g.ids} for g in by_size]
    assert {"pair"} in named and {"collapsed"} in named and {"fresh", "same"} in named
    assert len(by_size[-1].ids) == 14 and not by_size[-1].identical
    assert next(g for g in groups if "same" in g.ids).identical
    false = sum(len(g.ids) - 1 for g in groups if named[by_size.index(g)] == {"fresh"})
    assert false <= 2


def test_blends_of_one_image_stand_out_by_their_ratio(run, tmp_path):
    """Two images that share 62 % of a third: far from equal, yet nearer than two patients ever are."""
    folder, _ = run
    index = TrainingIndex.open(folder / "result" / "index.rdindex")
    for pair in range(10):
        for n in range(2):
            image = 0.62 * volume(80_000 + pair) + 0.38 * volume(81_000 + 2 * pair + n)
            write(tmp_path / f"pair{pair}_{n}.nii.gz", image)
    for n in range(30):
        write(tmp_path / f"fresh_{n:02d}.nii.gz", volume(85_000 + n))
    groups = near_duplicate_groups(Cohort.read(tmp_path), index, index.measures(VOXELS)).groups
    assert {g.ids for g in groups} == {(f"pair{pair}_0", f"pair{pair}_1") for pair in range(10)}


def test_fresh_images_are_rarely_called_near_duplicates_even_in_large_sets(run, tmp_path):
    """Six times the training cohort: many a nearest distance is smaller than any among training images."""
    folder, _ = run
    index = TrainingIndex.open(folder / "result" / "index.rdindex")
    for n in range(150):
        write(tmp_path / f"{n:03d}.nii.gz", volume(70_000 + n))
    groups = near_duplicate_groups(Cohort.read(tmp_path), index, index.measures(VOXELS)).groups
    assert sum(len(g.ids) - 1 for g in groups) <= 3


def test_images_of_one_kind_are_no_near_duplicates(run):
    """Kinds of four images each: ordinary distances inside a kind, three times as large between kinds."""
    folder, _ = run
    index = TrainingIndex.open(folder / "result" / "index.rdindex")
    rng = np.random.default_rng(0)
    kinds = np.repeat(np.arange(12), 4)
    measures = index.measures(VOXELS)
    rows = {m.name: 1 + 0.05 * rng.random((len(index), len(index))) for m in measures}
    for table in rows.values():
        np.fill_diagonal(table, np.inf)
    null = Distances.reduced(index.ids, rows, k=5, patients=index.patients, exact_of=[])
    inside = kinds[:, None] == kinds
    distances = {m.name: np.where(inside, 1.02, 3) + 0.05 * rng.random((48, 48)) for m in measures}
    for table in distances.values():
        table[:] = (table + table.T) / 2
        np.fill_diagonal(table, np.inf)
    assert not _near(distances, null, 5, measures, 0.05, len(index))[1].any()
    for table in distances.values():
        table[5, 9] = table[9, 5] = 0.7  # nearer than any two training images
    partner, near, _ = _near(distances, null, 5, measures, 0.05, len(index))
    assert np.flatnonzero(near).tolist() == [5, 9] and partner[[5, 9]].tolist() == [9, 5]


def test_one_image_or_none_has_no_near_duplicate(run, tmp_path):
    folder, _ = run
    index = TrainingIndex.open(folder / "result" / "index.rdindex")
    one = Cohort(folder, Cohort.read(folder / "synthetic").cases[:1])
    assert near_duplicate_groups(one, index, index.measures(VOXELS)).groups == []
    assert near_duplicate_groups(Cohort(folder, ()), index, index.measures(VOXELS)).groups == []


def test_places_that_cannot_be_written_to_are_refused(run, tmp_path):
    folder, result = run
    cohort = Cohort.read(folder / "synthetic")
    decisions = decide(result, cohort)
    before = contents(folder / "synthetic")
    for output, says in ((folder / "synthetic" / "kept", "lies inside"), (folder / "synthetic", "exists already")):
        with pytest.raises(InputError, match=says):
            write_filtered(decisions, folder / "synthetic", output)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="exists already"):
        write_filtered(decisions, folder / "synthetic", tmp_path / "full")
    assert (
        contents(folder / "synthetic") == before
        and (tmp_path / "full" / "mine.txt").read_text(encoding="utf-8") == "mine"
    )
    (tmp_path / "empty").mkdir()
    write_filtered(decisions, folder / "synthetic", tmp_path / "empty")
    assert len(list((tmp_path / "empty").iterdir())) == NEW + 1


def test_a_copy_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
    folder, result = run
    decisions = decide(result, Cohort.read(folder / "synthetic"))
    copied = []

    def full(source, target):
        copied.append(source)
        if len(copied) == 4:
            raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr("replica_detection.audit.filtering.shutil.copy2", full)
    with pytest.raises(InputError, match="No space left"):
        write_filtered(decisions, folder / "synthetic", tmp_path / "kept")
    assert list(tmp_path.iterdir()) == []

    def stopped(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("replica_detection.audit.filtering.shutil.copy2", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_filtered(decisions, folder / "synthetic", tmp_path / "kept")
    assert list(tmp_path.iterdir()) == []


def test_detached_voxels_go_with_their_header(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    image = SimpleITK.GetImageFromArray(volume(1).T)
    for name in ("a.mhd", "b.nhdr"):
        SimpleITK.WriteImage(image, str(source / name))
    assert {p.suffix for p in voxel_files(source / "a.mhd")} == {".mhd", ".raw"}
    assert len(voxel_files(source / "b.nhdr")) == 2
    cohort = Cohort.read(source)
    result = make_result(cases=2, copies=0)
    summary = tuple(replace(c, synthetic_id=i, verdict="novel") for c, i in zip(result.summary, "ab", strict=True))
    write_filtered(decide(replace(result, summary=summary), cohort), source, tmp_path / "out")
    for name in ("a.mhd", "b.nhdr"):
        assert (SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / "out" / name))) == volume(1).T).all()


def test_a_list_of_images_anywhere_and_links(tmp_path):
    """Files beside the list keep their place, others come under the name of their case, links become files."""
    (tmp_path / "lists" / "below").mkdir(parents=True)
    write(tmp_path / "else" / "image.nii.gz", volume(1))
    write(tmp_path / "lists" / "below" / "b.nii.gz", volume(2))
    (tmp_path / "lists" / "link.nii.gz").symlink_to(tmp_path / "else" / "image.nii.gz")
    table = tmp_path / "lists" / "cases.csv"
    table.write_text("id,image\nfar,../else/image.nii.gz\nnear,below/b.nii.gz\nlinked,link.nii.gz\n", encoding="utf-8")
    cohort = Cohort.read(table)
    result = make_result(cases=3, copies=0)
    ids = ("far", "near", "linked")
    summary = tuple(replace(c, synthetic_id=i, verdict="novel") for c, i in zip(result.summary, ids, strict=True))
    write_filtered(decide(replace(result, summary=summary), cohort), table, tmp_path / "out")
    files = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert files == {MANIFEST, "far/image.nii.gz", "below/b.nii.gz", "link.nii.gz"}
    assert not (tmp_path / "out" / "link.nii.gz").is_symlink()


def test_2d_images_that_were_moved(tmp_path, monkeypatch):
    folder = planted_folders(tmp_path / "flat", flat=True)
    planted_run(folder)
    (folder / "synthetic").rename(tmp_path / "moved")
    where = ("--synthetic", tmp_path / "moved", "--output", tmp_path / "kept", "--without-suspicious")
    assert invoke(monkeypatch, folder / "result", *where) == 0
    rows = manifest(tmp_path / "kept")
    kept = {name for name, row in rows.items() if row["kept"] == "1"}
    assert kept and {p.stem for p in (tmp_path / "kept").glob("*.png")} == kept
    assert not any(name.startswith("copy") for name in kept)
