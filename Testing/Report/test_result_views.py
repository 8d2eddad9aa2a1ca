"""A result in the words of the schema: nothing is lost, and what is undefined stays undefined."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from made_up_result import make_result, with_reasons

from replica_detection.readers.worklist import Filter, filtered, next_unrated, ordered
from replica_detection.results import wording
from replica_detection.results.result import IDENTICAL, NO_MASK, SMALL_NULL, TO_REVIEW
from replica_detection.results.schema import Comparison, WorklistItem, from_json, to_json
from replica_detection.results.views import comparison_of, histograms_of, worklist_item


@pytest.fixture(scope="module")
def result():
    return make_result(cases=40, training=30)


def test_a_comparison_says_what_the_tables_say(result):
    for row in result.summary:
        found = comparison_of(result, row.synthetic_id, 5, "v1")
        assert (found.verdict, found.nearest_training_id) == (row.verdict, row.nearest_training_id)
        assert (found.score is None) == math.isnan(row.score) and found.index_version == "v1"
        for measure, match in zip(found.measures, result.matches_of(row.synthetic_id), strict=True):
            assert measure.measure == match.measure and measure.verdict == match.verdict
            for name in ("value", "distance", "ratio", "p_value", "q_value"):
                stated, kept = getattr(measure, name), getattr(match, name)
                assert stated == kept if math.isfinite(kept) else stated is None


def test_reasons_travel_with_their_verdicts(result):
    reasoned = with_reasons(result)
    assert {c.reason for c in reasoned.summary} >= {IDENTICAL, SMALL_NULL}
    for row in reasoned.summary:
        found = comparison_of(reasoned, row.synthetic_id, 3, "")
        assert (found.verdict, found.reason, worklist_item(row).reason) == (row.verdict, row.reason, row.reason)
        assert wording.reason(found) == wording.reason(row) == wording.reason(worklist_item(row))
    older = to_json(comparison_of(reasoned, reasoned.summary[0].synthetic_id, 3, ""))
    del older["reason"]
    assert from_json(Comparison, older).reason == "", "a server before this version sends none"


def test_neighbours_carry_the_value_that_their_field_reports(result):
    near, at = result.neighbors, 3
    found = comparison_of(result, near.synthetic_ids[at], 4, "")
    for measure in found.measures:
        similarity = result.run.definitions[measure.measure].sense == "similarity"
        assert len(measure.neighbors) <= 4
        tables = near.training[measure.measure][at], near.distance[measure.measure][at]
        for item, n, d in zip(measure.neighbors, *tables, strict=False):
            assert item.training_id == near.training_ids[n] and item.distance == pytest.approx(float(d))
            assert item.value == pytest.approx(1 - d if similarity else d)


def test_what_a_measure_says_beyond_the_match_goes_with_it(result):
    ids = [row.synthetic_id for row in result.summary]
    name, other = (m.name for m in result.run.measures[:2])
    columns = {"layers_agreeing": [f"{n} of 4" for n in range(len(ids))], "MI": [None, *range(1, len(ids))]}
    told = replace(result, run=replace(result.run, details={name: columns}))
    for n, id in enumerate(ids):
        said = {m.measure: {d.name: d.text for d in m.details} for m in comparison_of(told, id, 3, "").measures}
        assert said[name] == {"layers agreeing": f"{n} of 4", "MI": "–" if n == 0 else wording.number(n)}
        assert said[other] == {}


def test_an_unknown_case_is_a_key_error(result):
    with pytest.raises(KeyError):
        comparison_of(result, "nobody", 5, "")


def test_it_travels_as_json(result):
    found = comparison_of(result, result.summary[-1].synthetic_id, 5, "v1")
    assert from_json(Comparison, json.loads(json.dumps(to_json(found), allow_nan=False))) == found


def test_histograms_have_one_value_for_each_case(result):
    overall, *measures = histograms_of(result)
    assert overall.measure == "" and overall.synthetic_ids == tuple(c.synthetic_id for c in result.summary)
    assert [h.measure for h in measures] == [m.name for m in result.run.measures]
    ratios = {(m.measure, m.synthetic_id): m.ratio for m in result.matches}
    for histogram in measures:
        stated = np.array([np.nan if v is None else v for v in histogram.synthetic])
        expected = [ratios.get((histogram.measure, id), np.nan) for id in histogram.synthetic_ids]
        np.testing.assert_array_equal(stated, expected)


def test_rows_of_the_list_are_rows_of_the_summary(result):
    for row in result.summary:
        item = worklist_item(row)
        assert (item.synthetic_id, item.verdict, item.levels_flagged) == (
            row.synthetic_id,
            row.verdict,
            row.levels_flagged,
        )
        assert item.rating is None and item.readers == 0


def test_undecided_images_are_listed_by_their_score_like_all_others():
    items = [
        WorklistItem("a", "undefined", None, reason=NO_MASK),
        WorklistItem("b", "novel", 0.4),
        WorklistItem("c", "undecided", 0.97, reason=SMALL_NULL),
        WorklistItem("d", "replica", 0.999),
        WorklistItem("e", "replica", 1.0, reason=IDENTICAL),
    ]
    assert [i.synthetic_id for i in ordered(items)] == list("edcba")
    assert [i.synthetic_id for i in ordered(items, "verdict")] == list("decba")
    assert filtered(items, Filter(TO_REVIEW)) == items[2:]
    assert next_unrated([replace(i, readers=i.synthetic_id > "c") for i in items]) == items[2]
