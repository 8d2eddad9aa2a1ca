"""The lines that `detect` prints about a result, on made-up ones."""

from dataclasses import replace
from pathlib import Path

import pytest

from replica_detection.cli.console import STYLES, print_result
from replica_detection.results import wording
from replica_detection.results.result import IDENTICAL, NO_MASK, SMALL_NULL, VERDICTS, CaseSummary
from Report.made_up_result import make_result


def printed(capsys, *cases, **null):
    """What stands on the console for cases (id, verdict, reason) under a null with these fields."""
    result = make_result(cases=1, copies=0)
    summary = tuple(CaseSummary(id, v, 0.9, "[train]", (), 0, (), reason) for id, v, reason in cases)
    run = replace(result.run, null=replace(result.run.null, **null))
    print_result(replace(result, summary=summary, run=run), Path("page"))
    return " ".join(capsys.readouterr().out.split())


def test_every_verdict_has_a_style():
    assert set(STYLES) == set(wording.SYMBOLS) == set(wording.READERS_VERDICTS) == set(VERDICTS)


def test_identical_and_undecided_images_are_named_with_what_would_settle_them(capsys, monkeypatch):
    monkeypatch.setattr("replica_detection.cli.console.console.width", 400)
    many = [(f"u{n}", "undecided", SMALL_NULL) for n in range(7)]
    cases = [("[a]", "replica", IDENTICAL), *many, ("n", "novel", ""), ("m", "undefined", NO_MASK)]
    out = printed(capsys, *cases, kind="pooled", size=11, validation=3, cross_fitted=8, missing=8)
    assert "10 synthetic images" in out and "1 replicas, 0 suspicious, 7 undecided, 1 novel, 1 undefined" in out
    assert "Most replica-like of 1 flagged and 7 undecided images" in out
    assert "or a mirrored or turned copy: [a] = [train]" in out
    assert "Undecided: u0, u1, u2, u3, u4 and 2 more; closer to a training image than every real image" in out
    assert "8 more validation scans would settle the undecided images." in out
    assert "m: Not judged: only masks were compared" in out
    assert "Null: 3 validation and 8 cross-fitted training cases" in out


def test_undecided_without_any_null_case_is_not_said_to_be_close(capsys):
    out = printed(capsys, ("a", "undecided", SMALL_NULL), kind="cross-fitted", size=0, missing=19)
    assert "Undecided: a; there is no real image of the null to compare with. 19 more validation scans" in out
    assert "closer to" not in out


@pytest.mark.parametrize(
    ("verdict", "counts"),
    [("novel", "0 replicas, 0 suspicious, 1 novel"), ("suspicious", "0 replicas, 1 suspicious, 0 novel")],
)
def test_a_run_without_such_images_says_nothing_of_them(capsys, verdict, counts):
    out = printed(capsys, ("a", verdict, ""))
    assert f"training images: {counts} Null: 120 validation cases" in out
    assert "ndecided" not in out and "dentical" not in out
    assert ("Most replica-like of 1 flagged images" in out) == (verdict == "suspicious")
