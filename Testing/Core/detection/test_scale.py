"""A comparison in parts: the same bits wherever the parts run, no full table, and a killed run that goes on."""

import csv
import signal
import subprocess
import sys
import textwrap
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from Core.made_up import volume, write
from replica_detection.detection import queries
from replica_detection.detection.comparison import compare
from replica_detection.detection.detector import detect
from replica_detection.detection.distances import Distances
from replica_detection.detection.distances_file import read_distances, write_distances
from replica_detection.detection.finished_parts import FinishedParts, forget
from replica_detection.detection.null_distances import cross_fitted_distances, holdout_distances
from replica_detection.detection.queries import CohortQueries, IndexQueries
from replica_detection.index.build import build_index
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort
from replica_detection.results.result import DetectionResult
from replica_detection.statistics.distance_ratio import Nearest, nearest
from replica_detection.workers.cluster import local_cluster
from replica_detection.workers.processes import Processes
from replica_detection.workers.runner import InProcess

SHAPE = (16, 14, 12)
# One of each kind: in place, of an embedding that is refitted, aligned twice by one search, and one with columns.
MEASURES = ["mae", "ssim", "embedding_cosine", "ncc_aligned", "lncc_aligned", "memorization_index"]


def images(first, count):
    return {f"case_{first + n:04d}": volume(first + n, SHAPE) for n in range(count)}


def cohort(arrays, folder=None):
    found = Cohort.from_arrays(arrays, spacing=1.0)
    cases = tuple(replace(c, patient=f"p{n // 2}") for n, c in enumerate(found.cases))
    return replace(found, cases=cases)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scale") / "training.rdindex"
    return build_index(cohort(images(0, 14)), folder, measures=MEASURES, workers=1)


@pytest.fixture(scope="module")
def made():
    """Copies, one of them mirrored, and a new image."""
    known = images(0, 14)
    copies = {"copy_a": known["case_0003"] + 5, "copy_b": known["case_0007"][::-1].copy()}
    return Cohort.from_arrays({**copies, **images(900, 3)}, spacing=1.0)


def bits(distances):
    """All of the distances that a result depends on, in a form that == compares."""
    found = [distances.ids, distances.voxels, distances.left_out, distances.warnings, distances.choices.tobytes()]
    for name, of_measure in sorted(distances.by_measure.items()):
        found += [name, *(getattr(of_measure.near, f.name).tobytes() for f in fields(Nearest))]
        found += [of_measure.exact, of_measure.chosen.tobytes(), repr(of_measure.columns)]
        found += [tuple(v.tobytes() if isinstance(v, np.ndarray) else v for v in vars(p).values())
                  for candidates in of_measure.placements for p in candidates]  # fmt: skip
    return found


@pytest.fixture(scope="module")
def places():
    """Everywhere that parts can run."""
    with Processes(2) as processes, local_cluster(2) as cluster:
        yield {"processes": processes, "cluster": cluster}


def test_every_place_gives_the_same_bits(index, made, places, tmp_path):
    measures = index.measures(None)
    unseen = cohort(images(500, 5))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("replica_detection.detection.null_distances._Null.cached", lambda self, m, compute: compute(m))

        def everything(runner):
            asked = CohortQueries(made, index)
            return [
                bits(compare(asked, index, measures, runner=runner)),
                bits(holdout_distances(unseen, index, measures, runner=runner)),
                bits(cross_fitted_distances(index, measures, runner=runner)),
            ]

        here = everything(InProcess())
        for name, runner in places.items():
            assert everything(runner) == here, name


def test_an_index_that_worker_processes_prepare_is_the_same(index, places, tmp_path):
    address = places["cluster"].address
    again = build_index(cohort(images(0, 14)), tmp_path / "x.rdindex", measures=MEASURES, workers=address)
    assert again.content_id == index.content_id
    for name in index.feature_names:
        assert np.array_equal(again.features(range(14), [name])[name], index.features(range(14), [name])[name]), name


def test_a_measure_of_the_user_s_own_works_in_workers(tmp_path):
    script = """
        import numpy as np
        from replica_detection import Cohort, build_index, detect
        from replica_detection.measures import Measure, register

        @register
        class Largest(Measure):
            name, level, sense, needs = "largest", "voxel", "distance", ("image",)
            definition = "largest absolute difference"

            def features(self, case):
                return {"image": case.image}

            def distances(self, queries, training):
                rows = [[np.abs(q - t).max() for t in training["image"]] for q in queries["image"]]
                return np.array(rows, np.float64)

        scans = np.random.default_rng(0).random((12, 8, 8, 8))
        index = build_index(Cohort.from_arrays(scans, spacing=1), "x.rdindex", measures=["largest"], workers=2)
        result = detect(Cohort.from_arrays(scans[:3] + 0.01, spacing=1), index, workers=2)
        first = result.matches[0].distance

        @register
        class Twice(Largest):
            definition = "twice the largest absolute difference"

            def distances(self, queries, training):
                return 2 * super().distances(queries, training)

        again = detect(Cohort.from_arrays(scans[:3] + 0.01, spacing=1), index, workers=2)
        print(round(again.matches[0].distance / first, 6), [m.nearest_training_id for m in result.matches])
        """
    (tmp_path / "own.py").write_text(textwrap.dedent(script), encoding="utf-8")
    done = subprocess.run([sys.executable, "own.py"], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(" ", 1)[0] == "2.0", "an earlier definition of the measure was used"
    assert len(set(eval(done.stdout.split(" ", 1)[1]))) == 3


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_what_is_kept_of_rows_is_what_the_statistics_of_whole_rows_say(seed):
    rng = np.random.default_rng(seed)
    cases, training, k = rng.integers(1, 6), int(rng.integers(1, 12)), int(rng.integers(1, 9))
    table = rng.integers(0, 4, (cases, training)).astype(float)
    table[rng.random(table.shape) < 0.3] = np.inf
    patients = rng.integers(0, 5, training)
    rows = {"mae": table, "rmse": table[:, ::-1].copy()}
    ids = [str(n) for n in range(cases)]
    found = Distances.reduced(ids, rows, k=k, patients=patients, exact_of=["mae"], whole=True)
    for name, of_measure in found.by_measure.items():
        whole = nearest(rows[name], k, patients)
        for field in fields(Nearest):
            kept = getattr(of_measure.near, field.name)
            assert np.array_equal(kept, getattr(whole, field.name), equal_nan=kept.dtype.kind == "f")
        for i, choices in enumerate(found.choices):
            expected = [rows[name][i, j] if j >= 0 else np.inf for j in choices]
            assert of_measure.chosen[i].tolist() == expected
        exact = [tuple(np.flatnonzero(row == 0)) for row in rows[name]] if name == "mae" else [()] * cases
        assert list(of_measure.exact) == exact


def test_no_table_of_all_pairs_is_kept(index, made):
    distances = compare(CohortQueries(made, index), index, index.measures(None), k=3)
    for of_measure in distances.by_measure.values():
        assert of_measure.rows is None
        arrays = [of_measure.chosen, *(getattr(of_measure.near, f.name) for f in fields(Nearest))]
        assert all(a.size <= len(made) * max(3, len(distances.by_measure)) for a in arrays)


def test_distances_come_back_from_their_file_as_they_were(index, made, tmp_path):
    problem = tmp_path / "broken.nii.gz"
    problem.write_bytes(b"no image")
    (tmp_path / "ünlesbar").mkdir()
    asked = replace(made, cases=(*made.cases, *Cohort.read(problem.parent).cases))
    distances = compare(CohortQueries(asked, index), index, index.measures(None), whole=True, kind="validation")
    assert distances.problems
    write_distances(tmp_path / "deep" / "x.npz", distances)
    back = read_distances(tmp_path / "deep" / "x.npz")
    assert bits(back) == bits(distances)
    assert (back.problems, back.kind) == (distances.problems, "validation")
    assert np.array_equal(back.by_measure["mae"].rows, distances.by_measure["mae"].rows)
    assert all(np.array_equal(a, b) for a, b in zip(back.affines, distances.affines, strict=True))
    whole = (tmp_path / "deep" / "x.npz").read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.npz").write_bytes(whole[:cut])
        assert read_distances(tmp_path / "cut.npz") is None


KEY = "a" * 24


class StoppedError(Exception):
    pass


def stopped_after(parts, folder, index, made):
    """Stops a comparison once so many parts are kept; the number of parts that are then on disk."""
    finished = FinishedParts(folder, KEY)
    kept = []

    class Counting(FinishedParts):
        def keep(self, number, distances):
            super().keep(number, distances)
            kept.append(number)
            if len(kept) == parts:
                raise StoppedError

    with pytest.raises(StoppedError):
        compare(CohortQueries(made, index), index, index.measures(None), finished=Counting(folder, KEY))
    return finished


def test_an_interrupted_comparison_goes_on_where_it_stopped(index, made, tmp_path, monkeypatch):
    whole = compare(CohortQueries(made, index), index, index.measures(None))
    finished = stopped_after(3, tmp_path / "unfinished", index, made)
    (tmp_path / "unfinished" / KEY / "000001.npz").write_bytes(b"cut short")  # a part that the disk lost
    loaded = []
    load = queries.CohortPart.load
    monkeypatch.setattr(queries.CohortPart, "load", lambda self, *a: loaded.append(self.cases[0].id) or load(self, *a))
    told = []
    again = compare(
        CohortQueries(made, index), index, index.measures(None), finished=finished, progress=lambda *a: told.append(a)
    )
    assert bits(again) == bits(whole)
    assert loaded == [made.ids[1], *made.ids[3:]]
    pairs = len(index) * len(MEASURES)
    assert told[0] == ("comparing", 2 * pairs, len(made) * pairs) and told[-1][1] == told[-1][2]
    assert [t[1] for t in told] == sorted(t[1] for t in told)


def test_parts_of_another_comparison_are_not_used_and_only_ours_ever_go(index, made, tmp_path):
    folder = tmp_path / "unfinished"
    (folder / "scans").mkdir(parents=True)
    (folder / "scans" / "000001.npz").write_bytes(b"a user's file")
    stopped_after(2, folder, index, made)
    (folder / KEY / "notes.txt").write_text("a user's note", encoding="utf-8")
    other = FinishedParts(folder, "b" * 24)
    assert other.read(5) == {}
    compare(CohortQueries(made, index), index, index.measures(["mae"]), finished=other)
    assert len(FinishedParts(folder, KEY).read(5)) == 2
    other.clear()
    assert not (folder / ("b" * 24)).exists()
    forget(folder)
    left = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    assert left == [f"{KEY}/notes.txt", "scans/000001.npz"]


def test_a_part_with_a_file_that_could_not_be_read_is_not_kept(index, tmp_path):
    """The disk may have failed for a moment, and `strict` must see the file again."""
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        write(tmp_path / "images" / f"{name}.nii.gz", volume(3, SHAPE))
    broken = tmp_path / "images" / "a.nii.gz"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:50])
    asked = CohortQueries(Cohort.read(tmp_path / "images"), index)
    finished = FinishedParts(tmp_path / "unfinished", KEY)
    measures = index.measures(["mae"])
    assert [p.path for p in compare(asked, index, measures, finished=finished).problems] == [str(broken)]
    assert list(finished.read(2)) == [1]
    broken.write_bytes(whole)
    assert compare(asked, index, measures, finished=finished).ids == ("a", "b")


def test_training_cases_of_one_patient_alone_give_no_null_and_no_error(tmp_path):
    known = Cohort.from_arrays(images(0, 6), spacing=1.0)
    alone = replace(known, cases=tuple(replace(c, patient="anonymous") for c in known.cases))
    one = build_index(alone, tmp_path / "x.rdindex", measures=["mae", "embedding_cosine", "memorization_index"])
    found = cross_fitted_distances(one, one.measures(None))
    assert found.ids == one.ids
    assert all(np.isinf(m.near.distance).all() for m in found.by_measure.values())


def test_a_column_of_numpy_numbers_is_kept(tmp_path, index, made, monkeypatch):
    from replica_detection.measures.voxel import MeanAbsoluteError

    monkeypatch.setattr(MeanAbsoluteError, "describe", lambda self, output, ids: {"n": output.distances.argmin(1)})
    finished = FinishedParts(tmp_path, KEY)
    compare(CohortQueries(made, index), index, index.measures(["mae"]), finished=finished)
    assert [type(d.by_measure["mae"].columns["n"][0]) for d in finished.read(5).values()] == [int] * 5


def test_an_interrupted_null_goes_on_and_leaves_nothing_behind(index, tmp_path, monkeypatch):
    copy = build_index(cohort(images(0, 14)), tmp_path / "x.rdindex", measures=MEASURES, workers=1)
    whole = cross_fitted_distances(index, index.measures(None))

    def stop(stage, done, total):
        if done > total / 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        cross_fitted_distances(copy, copy.measures(None), progress=stop)
    kept = list((copy.folder / "nulls" / "unfinished").rglob("*.npz"))
    assert kept
    seen = []
    load = queries.IndexPart.load
    monkeypatch.setattr(queries.IndexPart, "load", lambda self, *a: seen.append(1) or load(self, *a))
    assert bits(cross_fitted_distances(copy, copy.measures(None))) == bits(whole)
    assert len(seen) < 2 * len(copy)
    assert not list((copy.folder / "nulls" / "unfinished").rglob("*.npz"))


KILLED = """
    import os, signal, sys
    from replica_detection.cli import main
    from replica_detection.detection import finished_parts
    keep = finished_parts.FinishedParts.keep

    def killing(self, number, distances):
        keep(self, number, distances)
        if self.folder.parent.name == "killed" and number == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    finished_parts.FinishedParts.keep = killing
    main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_detect_goes_on_and_writes_the_same_tables(tmp_path):
    import nibabel as nib

    for part, found in (("training", images(0, 8)), ("made", {"copy": images(0, 1)["case_0000"] + 3, **images(50, 5)})):
        (tmp_path / part).mkdir()
        for name, array in found.items():
            nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / part / f"{name}.nii.gz")

    def run(output, *options, code="from replica_detection.cli import main; main()"):
        arguments = ["detect", "made", "--training", "training", "--output", output, "--measures", "mae,ncc_aligned"]
        command = [sys.executable, "-c", textwrap.dedent(code), *arguments, *options]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")

    killed = run("killed", code=KILLED)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    unfinished = tmp_path / "killed" / "unfinished"
    assert len(list(unfinished.rglob("*.npz"))) == 3
    assert not (tmp_path / "killed" / "detection.json").exists()
    for output, options in (("killed", ()), ("whole", ("--restart",))):
        done = run(output, *options)
        assert done.returncode == 0, done.stderr
        assert not (tmp_path / output / "unfinished").exists()
    for table in ("summary.csv", "matches.csv", "neighbors.npz", "alignments.json"):
        assert (tmp_path / "killed" / table).read_bytes() == (tmp_path / "whole" / table).read_bytes(), table
    with (tmp_path / "whole" / "summary.csv").open(encoding="utf-8") as f:
        assert {row["synthetic_id"] for row in csv.DictReader(f)} == {"copy", *images(50, 5)}


def test_a_folder_that_cannot_be_written_costs_the_resumption_alone(index, made, tmp_path):
    (tmp_path / "unfinished").write_text("a file where the folder should be", encoding="utf-8")
    finished = FinishedParts(tmp_path / "unfinished", KEY)
    found = compare(CohortQueries(made, index), index, index.measures(["mae"]), finished=finished)
    assert found.ids == made.ids


def test_null_cases_are_cut_by_their_number_alone_and_never_meet_themselves(index):
    measures = index.measures(["mae"])
    parts = IndexQueries(index, range(14)).parts(index, measures)
    assert [len(part) for part in parts] == [1] * 14
    found = compare(IndexQueries(index, range(14)), index, measures, whole=True)
    assert np.isinf(np.diag(found.by_measure["mae"].rows)).all()
    assert np.isfinite(found.by_measure["mae"].rows).sum() == 14 * 13


def test_detect_says_the_same_with_any_number_of_workers(index, made):
    results = [detect(made, TrainingIndex.open(index.folder), workers=workers) for workers in (1, 2)]
    assert results[0].summary == results[1].summary and results[0].matches == results[1].matches
    assert isinstance(results[0], DetectionResult) and results[0].summary[1].nearest_training_id == "case_0007"
