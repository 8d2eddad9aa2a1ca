"""From ratings to a calibration file, to verdicts by it, and to the tables of what a threshold is worth elsewhere."""

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from Core.made_runs import NEW, VOXELS, planted_folders, planted_run
from replica_detection import cli
from replica_detection.detection.detector import detect
from replica_detection.detection.options import DetectionOptions
from replica_detection.errors import ConfigurationError, InputError
from replica_detection.index.build import build_index
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort
from replica_detection.readers.calibration import Calibration, calibrate
from replica_detection.readers.consensus import OVERALL, consensus, resolved
from replica_detection.readers.ratings import Rating
from replica_detection.readers.tables import sensitivity_to_k, transfer
from replica_detection.report import write_report
from replica_detection.results.result import IDENTICAL, DetectionResult
from replica_detection.statistics.distance_ratio import nearest
from Report.made_up_result import make_result, with_reasons


def ratings_of(result, replicas, readers=("anna", "ben")):
    return [
        Rating(f"{c.synthetic_id}-{r}", r, c.synthetic_id, c.nearest_training_id, 4 if replicas(c.synthetic_id) else 1)
        for c in result.summary
        for r in readers
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = planted_folders(tmp_path_factory.mktemp("calibration"))
    return folder, planted_run(folder)


@pytest.fixture(scope="module")
def calibration(run):
    _, result = run
    return calibrate(result, ratings_of(result, lambda c: c.startswith("copy")), files=["a.csv"])


def invoke(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["replica-detection", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code


def test_a_calibration_reads_back_as_it_was_written(calibration, tmp_path):
    calibration.write(tmp_path / "c.json")
    assert Calibration.read(tmp_path / "c.json") == calibration
    content = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    first = content["thresholds"][0]
    assert content["made_from"]["readers"] == 2 and content["made_from"]["replicas"] == 8
    assert first["apparent"]["sensitivity"][0] == 1.0 and first["apparent"]["true_positive"] == 8


def test_verdicts_follow_the_thresholds_and_nothing_else_changes(run, calibration):
    folder, by_null = run
    index = TrainingIndex.open(folder / "result" / "index.rdindex")
    validation = Cohort.read(folder / "validation")
    result = detect(
        Cohort.read(folder / "synthetic"),
        index,
        validation=validation,
        options=DetectionOptions(calibration=calibration),
    )
    known = calibration.measures
    for match, before in zip(result.matches, by_null.matches, strict=True):
        t = known[match.measure]
        expected = "replica" if match.ratio <= t.reader_threshold.threshold else "novel"
        if expected == "novel" and match.ratio <= t.suspicious_up_to:
            expected = "suspicious"
        assert match.verdict == expected
        assert replace(match, verdict="") == replace(before, verdict="")
    assert [c.verdict for c in result.summary] == ["replica"] * 8 + ["novel"] * NEW
    assert [c.score for c in result.summary] == [c.score for c in by_null.summary]
    assert "verdicts come from readers" in result.run.warnings[0]
    assert "2 readers" in result.run.options["calibration"]
    assert by_null.run.options["calibration"] is None
    assert result.run.definitions["mae"].threshold == known["mae"].suspicious_up_to
    result.write(folder / "by_readers")
    read = DetectionResult.read(folder / "by_readers")
    assert (read.summary, read.matches, read.run.measures) == (result.summary, result.matches, result.run.measures)


def test_a_stricter_reader_makes_stricter_verdicts(run):
    """Readers who call only the nearest three copies replicas draw the line between them and the rest."""
    folder, by_null = run
    mae = {m.synthetic_id: m.ratio for m in by_null.matches if m.measure == "mae"}
    nearest_three = set(sorted(mae, key=mae.get)[:3])
    strict = calibrate(by_null, ratings_of(by_null, lambda c: c in nearest_three))
    index = TrainingIndex.open(folder / "result" / "index.rdindex")
    result = detect(Cohort.read(folder / "synthetic"), index, options=DetectionOptions(calibration=strict))
    called = {m.synthetic_id for m in result.matches if m.measure == "mae" and m.verdict == "replica"}
    assert called == nearest_three


def test_the_best_measure_decides_and_the_combined_evidence_only_over_the_same_measures(run, calibration):
    folder, _ = run
    assert calibration.order[0] == OVERALL  # of equals
    index = TrainingIndex.open(folder / "result" / "index.rdindex")
    fewer = detect(
        Cohort.read(folder / "synthetic"),
        index,
        options=DetectionOptions(measures=("ssim", "mae"), calibration=calibration),
    )
    assert [c.verdict for c in fewer.summary] == ["replica"] * 8 + ["novel"] * NEW
    assert math.isnan(fewer.run.evidence_threshold)
    assert any("set for other measures" in w for w in fewer.run.warnings)
    assert "that of mae" in fewer.run.warnings[0]


def test_a_run_that_differs_from_the_rated_one_says_how(run, calibration):
    folder, _ = run
    index = TrainingIndex.open(folder / "result" / "index.rdindex")
    other = replace(calibration.thresholds[2], definition="another mae", measure="mae")
    changed = replace(calibration, thresholds=tuple(other if t.measure == "mae" else t for t in calibration.thresholds))
    result = detect(Cohort.read(folder / "synthetic"), index, options=DetectionOptions(k=5, calibration=changed))
    assert any("set at k = 24, the ratios of this run are at k = 5" in w for w in result.run.warnings)
    assert any(
        "mae: the readers' threshold was set for another definition (another mae)" in w for w in result.run.warnings
    )
    alone = replace(calibration, thresholds=tuple(t for t in calibration.thresholds if t.measure == "mae"))
    result = detect(Cohort.read(folder / "synthetic"), index, options=DetectionOptions(calibration=alone))
    assert {m.verdict for m in result.matches if m.measure == "ssim"} == {"undefined"}
    assert any("ssim: the calibration has no threshold" in w for w in result.run.warnings)
    with pytest.raises(ConfigurationError, match="no threshold for a measure of this run"):
        detect(
            Cohort.read(folder / "synthetic"), index, options=DetectionOptions(measures=("ssim",), calibration=alone)
        )


def test_a_case_that_the_first_measure_cannot_judge_is_judged_by_the_next():
    result = make_result()  # its last case has no ratio, one in twenty no mask
    likeness = {m.synthetic_id: m.ratio for m in result.matches if m.measure == "dice"}
    by_dice = calibrate(result, ratings_of(result, lambda c: likeness[c] < 0.5))
    from replica_detection.readers.calibration import applied

    without = replace(by_dice, thresholds=tuple(t for t in by_dice.thresholds if t.measure != OVERALL))
    assert without.order[0] == "dice"
    found = applied(judged_by_null(result), without, result.run.k)
    no_mask = [c.synthetic_id for c in found.summary if math.isnan(likeness[c.synthetic_id])]
    verdicts = {c.synthetic_id: c.verdict for c in found.summary}
    assert len(no_mask) == 4 and verdicts[no_mask[0]] != "undefined"
    assert verdicts[result.summary[-1].synthetic_id] == "undefined"


def judged_by_null(result):
    from replica_detection.results.result import Verdicts

    run = result.run
    tables = result.summary, result.matches, result.neighbors, run.measures, run.null
    return Verdicts(*tables, run.evidence, 0.0, (*run.warnings, "11 scans would settle what is undecided"))


def test_an_identical_image_stays_a_replica_and_nothing_stays_undecided():
    """Readers called the images with the smallest Dice ratios replicas; the identical image is not among them."""
    from replica_detection.readers.calibration import applied

    result = with_reasons(make_result(null=12))
    identical = next(c for c in result.summary if c.reason == IDENTICAL)
    mine = {identical.synthetic_id: 0.99}  # another mask on the same image
    matches = tuple(replace(m, ratio=mine.get(m.synthetic_id, m.ratio)) for m in result.matches)
    result = replace(result, matches=matches)
    likeness = {m.synthetic_id: m.ratio for m in result.matches if m.measure == "dice"}
    undecided = [c for c in result.summary if c.verdict == "undecided"]
    assert undecided and result.run.null.missing
    by_dice = calibrate(result, ratings_of(result, lambda c: likeness[c] < 0.5))
    by_dice = replace(by_dice, thresholds=tuple(t for t in by_dice.thresholds if t.measure == "dice"))
    assert by_dice.measures["dice"].verdict(likeness[identical.synthetic_id]) == "novel"
    found = applied(judged_by_null(result), by_dice, result.run.k)
    of = {c.synthetic_id: c for c in found.summary}
    mine = of[identical.synthetic_id]
    assert (mine.verdict, mine.reason, mine.nearest_training_id) == (
        "replica", IDENTICAL, identical.nearest_training_id,
    )  # fmt: skip
    for case in undecided:
        expected = by_dice.measures["dice"].verdict(likeness[case.synthetic_id])
        assert (of[case.synthetic_id].verdict, of[case.synthetic_id].reason) == (expected, "")
    verdicts = {v.verdict for v in (*found.summary, *found.matches)}
    assert "undecided" not in verdicts and found.null.missing == 0
    assert not any("undecided" in w for w in found.warnings) and set(result.run.warnings) < set(found.warnings)
    reasons = {c.synthetic_id: c.reason for c in result.summary}
    for case in found.summary:
        if case.verdict == "undefined":
            assert case.reason in ("", reasons[case.synthetic_id])
        elif case is not mine:
            assert case.reason == ""


def test_undecided_images_are_no_reference_for_a_threshold(run, calibration):
    _, result = run
    whole = {(r.measure, r.method): r for r in transfer(calibration, result, None)}
    replicas = [c.synthetic_id for c in result.summary if c.synthetic_id.startswith("copy")][:3]
    summary = tuple(replace(c, verdict="undecided") if c.synthetic_id in replicas else c for c in result.summary)
    rows = {(r.measure, r.method): r for r in transfer(calibration, replace(result, summary=summary), None)}
    assert rows[OVERALL, "youden"].cases == whole[OVERALL, "youden"].cases - 3
    assert rows["mae", "youden"] == whole["mae", "youden"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not JSON"),
        ("[]", "is no reader calibration"),
        ('{"kind": "reader-calibration", "schema_version": 9}', "has schema version 9"),
        ('{"kind": "reader-calibration", "schema_version": 1}', "is damaged"),
    ],
)
def test_a_file_that_is_no_calibration_is_named(tmp_path, text, says):
    (tmp_path / "c.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=says):
        Calibration.read(tmp_path / "c.json")
    with pytest.raises(InputError, match="cannot be read"):
        Calibration.read(tmp_path / "missing.json")


@pytest.mark.parametrize("damage", ["thresholds", "made_from", "interval", "apparent"])
def test_a_damaged_calibration_is_named(calibration, tmp_path, damage):
    path = tmp_path / "c.json"
    calibration.write(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    if damage in content:
        content[damage] = {"wrong": 1}
    else:
        content["thresholds"][0][damage] = "wrong"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match="is damaged"):
        Calibration.read(path)


def test_ratings_that_give_no_threshold_are_refused_with_the_reason(run):
    _, result = run
    with pytest.raises(ConfigurationError, match="all of the 18 rated images are replicas"):
        calibrate(result, ratings_of(result, lambda c: True))
    with pytest.raises(ConfigurationError, match="none of the 18 rated images is a replica"):
        calibrate(result, ratings_of(result, lambda c: False))
    with pytest.raises(ConfigurationError, match="none of the 1 ratings is of an image of this result"):
        calibrate(result, [Rating("1", "anna", "stranger", "t", 4)])
    with pytest.raises(ConfigurationError, match="unknown threshold method 'best'"):
        calibrate(result, ratings_of(result, lambda c: True), method="best")


def test_sensitivity_to_k_is_the_ratio_of_the_full_table(run):
    folder, result = run
    labels = consensus(resolved(ratings_of(result, lambda c: c.startswith("copy")), result)[0])
    from replica_detection.detection.comparison import compare
    from replica_detection.detection.queries import CohortQueries
    from replica_detection.readers.tables import _ratios_at

    index = TrainingIndex.open(folder / "result" / "index.rdindex")
    queries = CohortQueries(Cohort.read(folder / "synthetic"), index)
    distances = compare(queries, index, index.measures(None), whole=True)
    for k in (1, 5, 10, 24, 100):
        for name, table in distances.by_measure.items():
            found, short = _ratios_at(result, name, k, None)
            assert not short and list(found.values()) == pytest.approx(nearest(table.rows, k).ratio.tolist())
    rows = sensitivity_to_k(result, labels, None)
    assert [(r.measure, r.k) for r in rows] == [(m, k) for m in distances.by_measure for k in (10, 25, 50, 100)]
    assert all(r.reader_threshold.apparent.balanced_accuracy.value == 1 for r in rows)


def test_neighbours_that_are_too_few_for_k_are_not_made_up(run, tmp_path):
    folder, whole = run
    labels = consensus(ratings_of(whole, lambda c: c.startswith("copy")))
    index = TrainingIndex.open(folder / "result" / "index.rdindex")
    few = detect(Cohort.read(folder / "synthetic"), index, options=DetectionOptions(k=12))
    rows = {r.k: r for r in sensitivity_to_k(few, labels, None, ks=(10, 12, 13, 24)) if r.measure == "ssim"}
    assert rows[10].reader_threshold and rows[12].reader_threshold
    assert rows[13].reader_threshold is None and "run detect with k = 13" in rows[13].note
    # Two scans of each patient: twelve neighbours hold at most twelve patients, and at least six.
    pairs = np.repeat(np.arange(12), 2)
    table = tmp_path / "patients.csv"
    table.write_text(
        "id,patient\n" + "".join(f"{id},{p}\n" for id, p in zip(index.ids, pairs, strict=True)), encoding="utf-8"
    )
    training = Cohort.read(folder / "training", patients=table)
    grouped = build_index(training, tmp_path / "grouped.rdindex", measures=VOXELS)
    result = detect(Cohort.read(folder / "synthetic"), grouped, options=DetectionOptions(k=12))
    rows = sensitivity_to_k(result, labels, grouped.patients, ks=(6, 12))
    assert all(r.reader_threshold for r in rows if r.k == 6)
    assert all("run detect with k = 12" in r.note for r in rows if r.k == 12)
    unknown = sensitivity_to_k(result, labels, None, ks=(6,))
    assert all(r.reader_threshold is None and "do not follow" in r.note for r in unknown)


def test_a_threshold_of_one_cohort_on_another(run, calibration, tmp_path):
    other = planted_run(planted_folders(tmp_path, first_seed=50_000))
    labels = consensus(ratings_of(other, lambda c: c.startswith("copy")))
    rows = {(r.measure, r.method): r for r in transfer(calibration, other, labels)}
    assert len(rows) == 2 * (1 + len(other.run.measures))
    mae = rows["mae", "youden"]
    ratios = {m.synthetic_id: m.ratio for m in other.matches if m.measure == "mae"}
    flagged = {c for c, r in ratios.items() if r <= mae.threshold}
    assert mae.here.true_positive == sum(c.startswith("copy") for c in flagged)
    assert mae.here.false_positive == sum(c.startswith("new") for c in flagged)
    assert mae.own.value == pytest.approx(1) and mae.threshold != mae.own_threshold
    null = {(r.measure, r.method): r for r in transfer(calibration, other, None)}
    assert null["mae", "youden"].reference == "null" and null["mae", "youden"].cases == 18
    stranger = replace(calibration, thresholds=(replace(calibration.thresholds[2], measure="other"),))
    with pytest.raises(ConfigurationError, match="no measure in common"):
        transfer(stranger, other, labels)


def test_calibrate_and_detect_on_the_command_line(run, tmp_path, monkeypatch, capsys):
    folder, result = run
    for reader in ("anna", "ben"):
        rows = "".join(f"{c.synthetic_id};{4 if c.synthetic_id.startswith('copy') else 2}\n" for c in result.summary)
        (tmp_path / f"{reader}.csv").write_text("synthetic_id;rating\n" + rows + "else;4\n", encoding="utf-8")
    out = tmp_path / "calibration.json"
    arguments = ("--ratings", tmp_path / "anna.csv", "--ratings", tmp_path / "ben.csv", "--output", out)
    assert invoke(monkeypatch, "calibrate", folder / "result", *arguments, "--tables", tmp_path / "tables") == 0
    shown = capsys.readouterr()
    assert "8 of 18 rated images are replicas" in shown.out and "100%" in shown.out
    assert "1 rated images are not in this result" in shown.err
    tables = {p.name: list(csv.DictReader(p.open(encoding="utf-8"))) for p in (tmp_path / "tables").iterdir()}
    assert set(tables) == {
        "agreement.csv",
        "consensus.csv",
        "correlation.csv",
        "sensitivity_to_k.csv",
        "thresholds.csv",
    }
    assert tables["correlation.csv"][0]["measure"] == OVERALL
    assert float(tables["correlation.csv"][0]["spearman"]) > 0.7
    assert {r["verdict"] for r in tables["consensus.csv"] if r["replica"] == "1"} == {"replica"}
    assert float(tables["thresholds.csv"][0]["cross_validated_balanced_accuracy_low"]) < 1

    arguments = ("--index", folder / "result" / "index.rdindex", "--calibration", out)
    code = invoke(monkeypatch, "detect", folder / "synthetic", *arguments, "--output", tmp_path / "result")
    assert code == 0 and "verdicts come from readers" in capsys.readouterr().err
    page = (tmp_path / "result" / "report" / "index.html").read_text(encoding="utf-8")
    assert "Readers rated images of a run" in page and "best separates the images that readers called replicas" in page
    assert "p ≤" not in page[: page.index("Worklist")]

    code = invoke(monkeypatch, "calibrate", tmp_path / "result", "--apply", out)
    assert code == 0 and "own null" in capsys.readouterr().out
    assert (tmp_path / "result" / "readers" / "transfer.csv").is_file()
    assert invoke(monkeypatch, "calibrate", folder / "result") == 2
    assert "give --ratings, or --apply" in capsys.readouterr().err
    assert invoke(monkeypatch, "calibrate", folder / "result", "--ratings", out, "--k", "ten") == 2


def test_a_report_by_the_null_says_nothing_of_readers(tmp_path):
    result = make_result(cases=5)
    page = write_report(result, tmp_path, lambda *_: None).read_text(encoding="utf-8")
    assert "Readers" not in page and "p ≤ 0.05" in page
