"""Messages and files survive JSON, and the words of an alignment agree with its numbers."""

import json
import math
import subprocess
import sys
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from replica_detection.readers.ratings import Rating
from replica_detection.registration.alignment import Alignment
from replica_detection.results import schema

IDENTITY = tuple(tuple(float(v) for v in row) for row in np.eye(4))
IN_PLACE = Alignment(IDENTITY, (False,) * 3, 1.0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.9, 0.9, 1.0)

numbers = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(max_size=12)
neighbors = st.builds(schema.NeighborItem, st.integers(1, 50), texts, st.none() | numbers, st.none() | numbers)
results = st.builds(schema.MeasureResult, *[texts] * 3, *[st.none() | numbers] * 5, texts, st.tuples(neighbors))
alignments = st.builds(
    Alignment,
    st.just(IDENTITY),
    st.tuples(*[st.booleans()] * 3),
    *[numbers] * 1,
    st.tuples(*[numbers] * 3),
    st.tuples(*[numbers] * 3),
    *[numbers] * 4,
)
comparisons = st.builds(
    schema.Comparison,
    texts,
    texts,
    st.none() | numbers,
    texts,
    st.tuples(texts),
    st.just(()),
    st.tuples(results, results),
    texts,
    st.tuples(texts),
    st.none() | alignments,
    texts,
)
ratings = st.builds(Rating, texts, texts, texts, texts, st.integers(1, 4), texts, st.booleans(), numbers, texts, texts)


@given(comparisons | ratings)
def test_what_is_sent_is_what_arrives(value):
    sent = json.dumps(schema.to_json(value), allow_nan=False)
    assert schema.from_json(type(value), json.loads(sent)) == value


def test_nan_and_infinity_arrive_as_nothing():
    result = schema.MeasureResult("asd", "segmentation", "t", float("nan"), float("inf"), 0.5, None, None, "undefined")
    arrived = schema.from_json(schema.MeasureResult, json.loads(json.dumps(schema.to_json(result), allow_nan=False)))
    assert arrived == replace(result, value=None, distance=None)


def test_a_newer_server_may_say_more_and_an_older_one_less():
    sent = {**schema.to_json(schema.Job("1", "score", "running")), "invented_later": 1}
    del sent["message"]
    assert schema.from_json(schema.Job, sent) == schema.Job("1", "score", "running")


@pytest.mark.parametrize(
    "data",
    [
        {"id": "1", "kind": "score"},
        {"id": 1, "kind": "score", "state": "done"},
        {"id": "1", "kind": "score", "state": "done", "done": True},
        ["1", "score", "done"],
        None,
    ],
)
def test_what_does_not_fit_is_refused(data):
    with pytest.raises(ValueError, match="Job"):
        schema.from_json(schema.Job, data)


def test_light_part_needs_no_third_party_package():
    heavy = ("numpy", "scipy", "torch")
    code = f"import sys, replica_detection.results.schema; print([m for m in sys.modules if m in {heavy}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "[]"


def test_every_field_that_was_added_later_has_a_default():
    """The fields without default are those of the first version: a client of that version reads any later reply."""
    first = {"id", "kind", "state"}
    assert {f.name for f in fields(schema.Job) if f.default is MISSING} == first


@given(st.tuples(*[st.floats(-80, 80)] * 3))
def test_degrees_are_those_of_the_whole_rotation(angles):
    whole = np.degrees(Rotation.from_euler("xyz", angles, degrees=True).magnitude())
    assert replace(IN_PLACE, rotation_degrees=angles).degrees == pytest.approx(whole, abs=1e-4)


def test_words_name_what_was_done_and_nothing_else():
    assert IN_PLACE.words == "in place"
    moved = replace(
        IN_PLACE,
        flips=(True, False, False),
        scale=1.1,
        rotation_degrees=(0.0, 11.4, 0.0),
        translation_mm=(0.0, 3.0, 4.0),
        elastic_mm=2.0,
    )
    assert moved.words == (
        "mirrored left-right, rotated 11.4 degrees, scaled to 110 %, moved 5.0 mm, warped by up to 2.0 mm"
    )
    assert replace(IN_PLACE, flips=(True, True, False)).words == "mirrored left-right and front-back"
    assert replace(IN_PLACE, rotation_degrees=(0.3, 0, 0), translation_mm=(0.1, 0, 0)).words == "in place"


@dataclass(frozen=True)
class Inner:
    value: float
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    """Every kind of field that the files of a result hold."""

    name: str
    inner: Inner
    numbers: dict[str, tuple[float, ...]]
    anything: dict[str, dict[str, list[Any]]]
    perhaps: Inner | None = None


inners = st.builds(Inner, numbers | st.just(math.nan), st.tuples(texts))
outers = st.builds(
    Outer,
    texts,
    inners,
    st.dictionaries(texts, st.tuples(numbers | st.just(math.nan))),
    st.dictionaries(texts, st.dictionaries(texts, st.lists(st.none() | texts | numbers))),
    st.none() | inners,
)


@given(outers)
def test_a_file_reads_back_as_it_was_written(value):
    written = json.dumps(schema.to_json(value), allow_nan=False)
    again = schema.from_json(Outer, json.loads(written), own_file=True)
    assert json.dumps(schema.to_json(again)) == written
    np.testing.assert_equal(asdict(again), asdict(value))


def test_a_message_may_hold_more_and_a_file_may_not():
    data = {"value": None, "texts": ["a"], "later": 1}
    with pytest.raises(ValueError, match="Inner: has an unknown field 'later'"):
        schema.from_json(Inner, data, own_file=True)
    del data["later"]
    assert math.isnan(schema.from_json(Inner, data, own_file=True).value)
    with pytest.raises(ValueError, match=r"Inner.value: expected float, found None"):
        schema.from_json(Inner, data)
    assert schema.from_json(Inner, {"value": 2, "later": 1}) == Inner(2.0)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"numbers": []}, "Outer.numbers: expected an object, found list"),
        ({"numbers": {"a": [1.0, "x"]}}, r"Outer.numbers\['a'\]\[1\]: expected float, found 'x'"),
        ({"anything": {"a": {"b": 1}}}, r"Outer.anything\['a'\]\['b'\]: expected a list, found int"),
        ({"inner": {}}, "Outer.inner: lacks 'value'"),
    ],
)
def test_an_error_says_where_a_file_is_wrong(data, says):
    whole = {"name": "x", "inner": {"value": 1.0}, "numbers": {}, "anything": {}}
    with pytest.raises(ValueError, match=says):
        schema.from_json(Outer, whole | data, own_file=True)


def test_numpy_scalars_are_written_as_numbers():
    values = (np.float32(0.5), np.float64("nan"), np.int64(3), np.bool_(True), np.inf)
    assert schema.to_json(values) == [0.5, None, 3, True, None]
