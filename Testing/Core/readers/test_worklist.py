"""The worklist: its order, its filters, and the next unrated case, on lists that hypothesis makes."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replica_detection.errors import ConfigurationError
from replica_detection.readers.ratings import Rating
from replica_detection.readers.worklist import (
    SORTS,
    Filter,
    filtered,
    first_unrated,
    is_rated,
    next_unrated,
    ordered,
    with_ratings,
)
from replica_detection.results.schema import WorklistItem
from replica_detection.results.views import worklist_item
from Report.made_up_result import make_result

READERS = ("anna", "ben")
scores = st.none() | st.sampled_from([0.0, 0.25, 0.5, 1.0])
cases = st.lists(scores, max_size=9)
rated_by = st.sets(st.tuples(st.sampled_from(READERS), st.integers(0, 8)), max_size=12)


def made_items(values, shuffled):
    items = [WorklistItem(f"case_{n}", "novel" if v is not None else "", v) for n, v in enumerate(values)]
    return shuffled(items)


def ratings_of(pairs):
    return [Rating(f"{reader}-{n}", reader, f"case_{n}", "train_0", 3) for reader, n in sorted(pairs)]


@given(cases, st.randoms(use_true_random=False))
def test_the_order_depends_on_score_and_id_alone(values, random):
    items = made_items(values, lambda i: random.sample(i, len(i)))
    expected = sorted(items, key=lambda i: (i.score is None, -(i.score or 0.0), i.synthetic_id))
    assert ordered(items) == expected


def test_a_result_and_the_worklist_order_cases_alike():
    """Equal scores go by id, undefined scores come last, in both."""
    result = make_result()
    rows = [replace(c, score=s) for c, s in zip(result.summary, [0.5, math.nan, 0.5, 0.9], strict=False)]
    result = replace(result, summary=tuple(reversed(rows)))
    listed = [item.synthetic_id for item in ordered(worklist_item(c) for c in result.summary)]
    assert len(listed) == 4 and listed == [c.synthetic_id for c in result.worklist()]


@given(cases, rated_by, st.sampled_from([*READERS, ""]))
def test_a_reader_who_rates_what_is_next_sees_every_unrated_case_once(values, pairs, reader):
    """Also without a name: what anybody has rated is not handed out again."""
    items = made_items(values, list)
    ratings = ratings_of(pairs)
    expected = [i.synthetic_id for i in ordered(with_ratings(items, ratings, reader)) if not is_rated(i, reader)]
    seen = []
    while (item := next_unrated(with_ratings(items, ratings, reader), reader)) is not None:
        seen.append(item.synthetic_id)
        assert len(seen) <= len(items)
        ratings.append(Rating(f"{reader}-{item.synthetic_id}", reader or "cara", item.synthetic_id, "train_0", 1))
    assert seen == expected


@given(cases, rated_by, st.sampled_from([*READERS, ""]))
def test_cases_that_are_passed_over_come_once(values, pairs, reader):
    items = with_ratings(made_items(values, list), ratings_of(pairs), reader)
    after, seen = "", []
    while (item := next_unrated(items, reader, after)) is not None:
        seen.append(item)
        after = item.synthetic_id
    assert seen == [i for i in ordered(items) if not is_rated(i, reader)]
    assert next_unrated(items, reader, "no such case") == (seen[0] if seen else None)


def test_the_order_of_a_list_is_kept_and_the_search_can_start_again_at_the_top():
    items = [WorklistItem(id, "novel", score) for id, score in (("c", 0.1), ("a", 0.9), ("b", 0.5))]
    assert first_unrated(items).synthetic_id == "c"
    assert first_unrated(items, after="a").synthetic_id == "b"
    assert first_unrated(items, after="b") is None
    assert first_unrated(items, after="b", wrap=True).synthetic_id == "c"
    rated = [replace(items[0], rating=2, readers=1), *items[1:]]
    assert first_unrated(rated, "anna", after="b", wrap=True).synthetic_id == "a"
    only_last = [replace(i, readers=1) for i in items[:2]] + items[2:]
    assert first_unrated(only_last, after="b", wrap=True).synthetic_id == "b"


@given(cases, rated_by, st.sampled_from([*READERS, ""]))
def test_rated_and_unrated_cases_part_the_list(values, pairs, reader):
    items = with_ratings(made_items(values, list), ratings_of(pairs), reader)
    parts = [filtered(items, Filter(rated=which), reader) for which in ("yes", "no")]
    assert sorted(parts[0] + parts[1], key=items.index) == items
    assert all(is_rated(i, reader) for i in parts[0]) and not any(is_rated(i, reader) for i in parts[1])


def test_an_unknown_order_is_refused():
    with pytest.raises(ConfigurationError, match=f"unknown order 'colour'; known: {', '.join(SORTS)}"):
        ordered([], "colour")
