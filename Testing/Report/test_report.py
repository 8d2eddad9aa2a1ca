"""Text and structure of the page, on synthetic results."""

import math
import re
from dataclasses import replace

import pytest
from made_up_result import make_pairs, make_result, with_reasons, without_flags
from pages import Page, render, stable

from replica_detection.errors import InputError
from replica_detection.report.page import no_pictures, pictured
from replica_detection.results import wording
from replica_detection.results.result import FLAGGED, IDENTICAL, SMALL_NULL, VERDICTS, DetectionResult

FEW = "undecided, since there are too few real cases to compare with"
EVIL = "<script>alert('x')</script> & \"q\" 'r' </style>"


def renamed(result: DetectionResult, old: str, new: str) -> DetectionResult:
    """The result with another synthetic id."""
    summary = tuple(replace(c, synthetic_id=new) if c.synthetic_id == old else c for c in result.summary)
    matches = tuple(replace(m, synthetic_id=new) if m.synthetic_id == old else m for m in result.matches)
    return replace(result, summary=summary, matches=matches)


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_headline_counts_the_verdicts(result, page):
    replicas, suspicious, undefined = (result.count(v) for v in ("replica", "suspicious", "undefined"))
    assert replicas > 1 and suspicious > 1 and undefined == 1
    wanted = f"{replicas} of 60 synthetic images are replicas of a training case; {suspicious} more are suspicious"
    assert wanted in page.text
    assert "1 could not be judged" in page.text


@pytest.mark.parametrize(
    ("verdicts", "sentence"),
    [
        ("", "No synthetic image was compared."),
        ("r", "1 of 1 synthetic image is a replica of a training case."),
        ("rrn", "2 of 3 synthetic images are replicas of a training case."),
        ("rsn", "1 of 3 synthetic images is a replica of a training case; 1 more is suspicious."),
        ("ssn", "None of 3 synthetic images was found to be a replica of a training case; 2 are suspicious."),
        ("nn", "None of 2 synthetic images was found to be a replica of a training case, and none is suspicious."),
        ("uu", "None of 2 synthetic images could be judged."),
        ("rnu", "1 of 3 synthetic images is a replica of a training case; 1 could not be judged."),
        ("in", "1 of 2 synthetic images is a replica of a training case (identical to it)."),
        ("rrin", "3 of 4 synthetic images are replicas of a training case (1 identical to it)."),
        ("rud", f"1 of 3 synthetic images is a replica of a training case; 1 is {FEW}; 1 could not be judged."),
        ("ddn", f"None of 3 synthetic images was found to be a replica of a training case; 2 are {FEW}."),
        ("rsd", f"1 of 3 synthetic images is a replica of a training case; 1 more is suspicious; 1 is {FEW}."),
    ],
)
def test_outcome(result, verdicts, sentence):
    names = {"r": "replica", "i": "replica", "s": "suspicious", "d": "undecided", "n": "novel", "u": "undefined"}
    summary = tuple(
        replace(c, verdict=names[v], reason=IDENTICAL if v == "i" else "")
        for c, v in zip(result.summary[: len(verdicts)], verdicts, strict=True)
    )
    assert wording.outcome(replace(result, summary=summary)) == sentence


def test_worklist_holds_every_case_by_falling_score(result, page):
    assert [r[1] for r in page.rows] == [c.synthetic_id for c in result.worklist()]
    assert [int(r[0]) for r in page.rows] == list(range(1, 61))
    for row, case in zip(page.rows, result.worklist(), strict=True):
        assert case.verdict in row[2]
        assert len(row) == 7 + len(result.run.measures)


def test_flagged_cases_link_to_their_sections(result, page):
    flagged = [c for c in result.worklist() if c.verdict in FLAGGED]
    articles = [a["id"] for tag, a in page.tags if tag == "article"]
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert articles == [f"case-{i + 1}" for i in range(len(flagged))]
    assert [f"#{a}" for a in articles] == [h for h in links if h.startswith("#case-")]
    ids = [a["id"] for _, a in page.tags if a.get("id")]
    assert len(ids) == len(set(ids)), "ids are unique, those of the drawings among them"
    assert {h[1:] for h in links} <= set(ids)


def test_says_nothing_that_the_tool_cannot_know(page):
    assert not re.search(r"\b(private|anonymous|anonymi[sz]ed|safe|safely|safety)\b", page.text, re.IGNORECASE)
    assert "does not mean that nothing about a patient can be learned" in page.text
    assert "expected to be called suspicious by chance" in page.text


def test_lists_warnings_and_files_left_out(result, page):
    for warning in result.run.warnings:
        assert warning in page.text
    for cohort in (result.run.synthetic, result.run.validation):
        for path, reason in cohort.skipped:
            assert path in page.text and reason in page.text
    for case in result.run.null.removed:
        assert case in page.text


def test_refers_to_nothing_outside(html, page):
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "xlink:href", "action", "poster"):
            value = attributes.get(name) or ""
            assert value.startswith(("#", "data:")) or not value, (tag, name, value)
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style
    allowed = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\s\"'<>)]+", html)) <= allowed


def test_is_labelled(html, page):
    assert html.startswith("<!DOCTYPE html>") and '<html lang="en">' in html
    assert re.search(r"<title>[^<]+12 replicas, \d+ suspicious of 60 images</title>", html)
    pictures = [a for tag, a in page.tags if tag == "img"]
    assert pictures and all(a.get("alt") for a in pictures)
    drawings = [a for _, a in page.tags if a.get("role") == "img"]
    assert len(drawings) == 8 and all("threshold" in a["aria-label"] for a in drawings)


def test_names_from_files_are_escaped(result, tmp_path):
    first = result.worklist()[0]
    evil = renamed(result, first.synthetic_id, EVIL)
    evil = replace(
        evil,
        summary=tuple(replace(c, nearest_training_id="<img src=x onerror=alert(1)>") for c in evil.summary),
        run=replace(
            evil.run,
            warnings=("<b>bold</b>",),
            versions={"<i>": "<u>"},
            synthetic=replace(evil.run.synthetic, source="</title><script>", skipped=(("<a>", "<em>"),)),
        ),
    )
    html = render(tmp_path, evil)
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not {"b", "em", "u"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, a in page.tags for name in a)
    assert any(row[1] == EVIL for row in page.rows)
    assert EVIL in page.text and "<img src=x onerror=alert(1)>" in page.text


def test_fifty_cases_stay_small(tmp_path):
    result = make_result(cases=140, copies=60)
    steps = []
    made = make_pairs((128, 128, 64))
    few = [made(f"synthetic_{i}", "training") for i in range(5)]
    html = render(tmp_path, result, lambda *_: few[len(steps) % 5], progress=lambda *step: steps.append(step))
    flagged = sum(c.verdict in FLAGGED for c in result.summary)
    assert html.count('<article id="case-') == 50 and flagged > 50
    assert len(html) < 8_000_000
    assert steps == [("drawing", i, 50) for i in range(1, 51)]
    left_out = flagged - 50
    assert f"{left_out} further flagged case{'s' if left_out > 1 else ''}" in Page(html).text


@pytest.mark.parametrize("cases", [0, 1, 60])
def test_zero_flagged(tmp_path, cases):
    html = render(tmp_path, without_flags(make_result(cases=cases, copies=0)))
    assert "None of" in html or "No synthetic image" in html
    assert "nothing to show side by side" in html and "<article" not in html


def test_no_null_and_nothing_defined(result, tmp_path):
    empty = make_result(cases=5, null=0, copies=0)
    assert empty.count("undefined") == 5
    page = Page(render(tmp_path, empty))
    assert "None of 5 synthetic images could be judged" in page.text
    assert "no p value could be given" in page.text and "none given" in page.text


def test_cross_fitted_null_is_not_called_unseen(result, tmp_path):
    run = replace(result.run, validation=None, null=replace(result.run.null, kind="cross-fitted"))
    text = Page(render(tmp_path, replace(result, run=run), max_pairs=0)).text
    assert "cross-fitted" in text and "never saw" not in text
    assert "training cases of different patients" in text


def test_reasons_stand_beside_their_verdicts(tmp_path):
    result = with_reasons(make_result(cases=40, copies=9, null=12))
    assert {c.verdict for c in result.summary} == set(VERDICTS) - {"suspicious"}
    page = Page(render(tmp_path, result))
    for row, case in zip(page.rows, result.worklist(), strict=True):
        assert case.verdict in row[2] and case.reason in row[2]
        assert wording.reason(case) in row[2] and "{" not in row[2]
        assert bool(wording.reason(case)) == bool(case.reason)
    identical, *_ = result.worklist()
    assert (
        identical.reason == IDENTICAL
        and f"The same voxels as training case {identical.nearest_training_id}," in page.text
    )
    assert "11 more validation scans would settle the undecided images." in page.text
    for verdict in VERDICTS:  # a counter, a box to filter by, and a badge with a symbol of its own
        assert re.search(rf"\b{result.count(verdict)} {wording.SYMBOLS[verdict]} {verdict}\b", page.text)
        assert [a["value"] for t, a in page.tags if a.get("name") == "verdict"].count(verdict) == 1
    assert len(set(wording.SYMBOLS.values())) == len(VERDICTS)


def test_undecided_cases_are_shown_behind_the_flagged_ones(tmp_path):
    result = with_reasons(make_result(cases=40, copies=9, null=12))
    flagged, undecided = sum(c.verdict in FLAGGED for c in result.summary), result.count("undecided")
    assert flagged and undecided
    html = render(tmp_path, result)
    verdicts = re.findall(r'<h3 id="case-\d+-title">.*?class="badge (\w+)"', html)
    assert verdicts == ["replica"] * flagged + ["undecided"] * undecided
    sections = html.split('<article id="')[1:]
    assert sum("Null too small." in s for s in sections) == undecided
    few = Page(render(tmp_path, result, max_pairs=flagged)).text
    assert f"{undecided} further flagged or undecided case" in few


@pytest.mark.parametrize(
    ("null", "sentences"),
    [
        (
            {"kind": "pooled", "size": 34, "validation": 8, "cross_fitted": 26, "agreement": 0.41},
            (
                "8 real validation cases",
                "26 training cases, each compared with those of other patients",
                "agree (p = 0.410)",
            ),
        ),
        ({"kind": "pooled", "size": 27, "validation": 1, "cross_fitted": 26}, ("1 real validation case that",)),
        (
            {"kind": "validation", "size": 30, "agreement": 1e-9},
            ("30 real", "disagree with them (p < 10⁻⁶)", "not used"),
        ),
        ({"kind": "validation", "size": 30}, ("30 real validation cases that the generator never saw.",)),
        ({"kind": "cross-fitted", "size": 26}, ("26 training cases", "cross-fitted")),
    ],
)
def test_the_null_in_words(result, null, sentences):
    said = wording.null_sentence(replace(result.run.null, **null))
    assert all(s in said for s in sentences), said
    assert ("agree" in said) == ("agreement" in null)
    assert "more validation" not in wording.resolution_sentence(replace(result.run.null, **null))
    assert "1 more validation scan would" in wording.resolution_sentence(replace(result.run.null, **null, missing=1))


def test_each_reason_has_a_sentence_that_claims_nothing(result):
    case = replace(result.summary[0], nearest_training_id="train_{1}", reason=SMALL_NULL)
    assert "train_{1}" in wording.reason(case)
    assert wording.reason(replace(case, reason="")) == ""
    assert wording.reason(replace(case, reason="of a later version")) == "of a later version"
    for sentence in wording.REASONS.values():
        assert not re.search(r"\b(private|anonymous|anonymi[sz]ed|safe)\b", sentence, re.IGNORECASE)


def test_two_dimensional_pairs(result, tmp_path):
    html = render(tmp_path, result, make_pairs((64, 80), (0.2, 0.2)), max_pairs=2)
    assert html.count("data:image/jpeg") == 2


def test_missing_pictures_are_named(result, tmp_path):
    shown = []

    def pair(synthetic_id, training_id):
        shown.append((synthetic_id, training_id))
        return

    html = render(tmp_path, result, pair, max_pairs=4)
    assert shown == [(c.synthetic_id, c.nearest_training_id) for c in result.worklist()[:4]]
    assert html.count("No picture:") == 4 and "data:image" not in html


def test_same_page_from_disk(result, html, tmp_path):
    result.write(tmp_path)
    again = render(tmp_path, DetectionResult.read(tmp_path))

    assert stable(again) == stable(html)


def test_extreme_numbers(result, tmp_path):
    """Exact copies reach any evidence; thresholds may not exist."""
    evidence = (math.inf, 1e308, -1e9, *result.run.evidence[3:])
    measures = tuple(replace(m, threshold=math.nan) for m in result.run.measures)
    run = replace(result.run, evidence=evidence, evidence_threshold=math.inf, measures=measures)
    html = render(tmp_path, replace(result, run=run), max_pairs=0)
    assert html.count("no threshold") == 2 * 8


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, "–"),
        (0.0, "0"),
        (1.0, "1"),
        (0.5, "0.500"),
        (0.00123, "0.0012"),
        (3.21e-5, "3.2×10⁻⁵"),
        (1e-9, "< 10⁻⁶"),
    ],
)
def test_probabilities(value, text):
    assert wording.probability(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(math.nan, "–"), (math.inf, "∞"), (0.0, "0"), (-1.23456, "−1.235"), (12345.6, "12346"), (1.5e-7, "1.5×10⁻⁷")],
)
def test_numbers(value, text):
    assert wording.number(value) == text


def test_a_page_is_not_replaced_by_one_of_the_same_run_without_its_pictures(tmp_path):
    result = make_result(cases=12, copies=3)
    kept = render(tmp_path, result)
    assert kept.count("<img") > 0
    some = make_pairs((32, 32, 16))
    first = pictured(result)[0].synthetic_id
    for lacking in (no_pictures, lambda *pair: some(*pair) if pair[0] != first else None):
        with pytest.raises(
            InputError, match=r"html: was kept: it has \d+ pictures, a new page \d+, .* delete the page"
        ):
            render(tmp_path, result, lacking)
        assert (tmp_path / "report" / "index.html").read_text(encoding="utf-8") == kept
    # Fewer because fewer were asked for, or a page of another run: replaced.
    fewer = render(tmp_path, result, max_pairs=1)
    assert 0 < fewer.count("<img") < kept.count("<img")
    again = replace(result, run=replace(result.run, created="2031-02-03T04:05:06+00:00"))
    assert render(tmp_path, again, no_pictures).count("<img") == 0
    assert render(tmp_path, again, no_pictures).count("<img") == 0
