"""The same questions to every source of cases: a result folder, a real server over its files, and the tests' own."""

from __future__ import annotations

import shutil
import sys
import uuid
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import made_collection
import pytest
from made_source import MadeSource

from replica_detection.errors import ReplicaDetectionError
from replica_detection.readers.ratings import Rating
from replica_detection.readers.worklist import SORTS
from replica_detection.results.result import VERDICTS
from replica_detection.results.schema import WorklistItem
from ReplicaDetectionLib.FolderSource import FolderSource
from ReplicaDetectionLib.Sources import Source

# Cases of equal score, whose files sort the other way round than their ids; and one that no measure can compare.
EQUAL, UNSCORED = ("synthetic_3", "synthetic_3-copy"), "synthetic_1"
VALUES: dict[str, Callable[[WorklistItem], Any]] = {
    "score": lambda item: item.score,
    "synthetic_id": lambda item: item.synthetic_id,
    "verdict": lambda item: -VERDICTS.index(item.verdict) if item.verdict in VERDICTS else None,
    "rating": lambda item: item.rating,
}


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> made_collection.Collection:
    made = made_collection.make_files(tmp_path_factory.mktemp("contract"), training=6, validation=10, synthetic=5)
    for part in ("synthetic", "synthetic_masks"):
        shutil.copy(made.folder(part) / f"{EQUAL[0]}.nii.gz", made.folder(part) / f"{EQUAL[1]}.nii.gz")
    (made.folder("synthetic_masks") / f"{UNSCORED}.nii.gz").unlink()
    return made_collection.judge(made, measures=("dice",))


@pytest.fixture(scope="module")
def folder(collection, tmp_path_factory) -> Source:
    return FolderSource(collection.result, ratings=tmp_path_factory.mktemp("ratings") / "ratings.sqlite")


@pytest.fixture(scope="module")
def server(collection, tmp_path_factory) -> Source:
    pytest.importorskip("monailabel", reason="the server's packages are not installed")
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "Server"))
    from running import running_server

    from ReplicaDetectionLib.ServerSource import ServerSource

    folders = {name: collection.folder(name) for name in ("validation", "training_masks", "validation_masks")}
    with running_server(
        collection.folder("synthetic"),
        work=tmp_path_factory.mktemp("server"),
        training=collection.folder("training"),
        index=collection.root / "training.rdindex",
        hardened=True,
        conf={"masks": collection.folder("synthetic_masks"), **folders},
    ) as running:
        source = ServerSource(running.url)
        job = source.client.wait(source.client.start_scoring().id)
        assert job.state == "done", (job, running.log_text()[-2000:])
        yield source


@pytest.fixture(scope="module")
def made() -> Source:
    return MadeSource(6)


@pytest.fixture(params=["folder", "server", "made"])
def source(request) -> Source:
    return request.getfixturevalue(request.param)


def ids(source: Source, **query: Any) -> list[str]:
    return [item.synthetic_id for item in source.worklist(**query).items]


def check_order(items: tuple[WorklistItem, ...], sort: str, descending: bool) -> None:
    """Values in order, equal ones by id; behind them, by id as well, the cases without a value."""
    value = VALUES[sort]
    known = [item for item in items if value(item) is not None]
    rest = items[len(known) :]
    assert all(value(item) is None for item in rest), (sort, descending)
    assert [i.synthetic_id for i in rest] == sorted(i.synthetic_id for i in rest)
    for above, below in pairwise(known):
        if value(above) == value(below):
            assert above.synthetic_id < below.synthetic_id, (sort, descending)
        else:
            assert (value(above) > value(below)) == descending, (sort, descending)


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("sort", SORTS)
def test_every_order_is_whole_and_decided(source, sort, descending):
    items = source.worklist(sort=sort, descending=descending).items
    assert len(items) == 6 and {i.synthetic_id for i in items} == set(ids(source))
    check_order(items, sort, descending)


@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("sort", ["score", "synthetic_id", "verdict"])
def test_folder_and_server_give_the_same_order(folder, server, sort, descending):
    items = folder.worklist().items
    scores = {item.synthetic_id: item.score for item in items}
    assert scores[EQUAL[0]] == scores[EQUAL[1]] is not None and scores[UNSCORED] is None
    assert ids(folder, sort=sort, descending=descending) == ids(server, sort=sort, descending=descending)


def test_pages_make_the_whole_list(source):
    pages = [source.worklist(offset=offset, limit=4) for offset in (0, 4, 8)]
    assert [item.synthetic_id for page in pages for item in page.items] == ids(source)
    assert [(page.total, page.offset, len(page.items)) for page in pages] == [(6, 0, 4), (6, 4, 2), (6, 8, 0)]


def test_filters_keep_the_order(source):
    verdict = source.worklist().items[0].verdict
    assert ids(source, verdicts=(verdict,)) == [i.synthetic_id for i in source.worklist().items if i.verdict == verdict]
    wanted = ids(source)[2]
    assert wanted in ids(source, search=wanted[-4:].upper())
    assert ids(source, search="nobody is called so") == []


def test_an_unknown_order_is_refused(source):
    with pytest.raises(ReplicaDetectionError):
        source.worklist(sort="colour")


def test_after_a_case_come_only_the_cases_below_it(source):
    order, reader = ids(source), f"reader {uuid.uuid4()}"
    for above, below in pairwise(order):
        assert source.next(reader, above).synthetic_id == below
    assert source.next(reader, order[-1]) is None
    assert source.next(reader, "nobody").synthetic_id == order[0]


def test_the_next_case_is_unrated_until_none_is_left(source):
    """By name and without a name, each in the order of scores; the ratings of another reader count for the latter."""
    assert source.ratings() == [], "no other test of this file stores ratings"
    order = ids(source)
    for position, expected in enumerate(order):
        for reader in ("anna", ""):
            assert source.next(reader).synthetic_id == expected
            assert ids(source, rated="no", reader=reader) == order[position:]
            assert ids(source, rated="yes", reader=reader) == order[:position]
        rating = Rating(str(uuid.uuid4()), "anna", expected, "train_1", 1 + position % 4)
        receipt = source.saveRating(rating)
        assert receipt == source.saveRating(rating) == replace(receipt, reader="anna")
    assert source.next("anna") is None and source.next("") is None
    assert source.next("ben").synthetic_id == order[0]
    for descending in (True, False):
        items = source.worklist(sort="rating", descending=descending, reader="anna").items
        assert {item.rating for item in items} == {1, 2, 3, 4} and {item.readers for item in items} == {1}
        check_order(items, "rating", descending)
