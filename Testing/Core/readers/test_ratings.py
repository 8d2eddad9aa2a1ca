"""The ratings store loses nothing and changes nothing; CSV files of ratings are read as people write them."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import unicodedata
import uuid
from dataclasses import replace

import pytest

from replica_detection.errors import FullDiskError, InputError, RatingConflictError
from replica_detection.readers.agreement import pair_agreements
from replica_detection.readers.consensus import consensus
from replica_detection.readers.rating_store import RatingStore
from replica_detection.readers.rating_tables import COLUMNS, read_ratings, write_ratings
from replica_detection.readers.ratings import Rating, latest
from replica_detection.readers.worklist import Filter, filtered, next_unrated, ordered, with_ratings
from replica_detection.results.schema import WorklistItem

UTC_TIME = "2026-01-31T14:05:00.000000+00:00"


def rating(number=0, value=3, reader="anna", **other) -> Rating:
    return Rating(
        **{
            "rating_id": f"id-{number}",
            "reader": reader,
            "synthetic_id": f"synthetic_{number}",
            "training_id": "training_7",
            "rating": value,
            "created": UTC_TIME,
            **other,
        }
    )


def test_a_rating_reads_back_as_it_was_stored(tmp_path):
    store = RatingStore(tmp_path / "ratings.sqlite")
    kept = rating(comment="left MCA, same\nsiphon; “doubtful”", blinded=True, seconds=12.25, index_version="abc")
    assert store.add(kept)
    assert RatingStore(store.path).all() == [kept]


def test_a_rating_sent_twice_counts_once_and_another_under_its_id_is_refused(tmp_path):
    store = RatingStore(tmp_path / "ratings.sqlite")
    assert store.add(rating())
    assert not store.add(rating())
    assert not store.add(rating(created="2026-02-01T00:00:00Z"))  # a client that lost the receipt sends it again
    assert store.all() == [rating()]


@pytest.mark.parametrize(
    "other",
    [
        {"rating": 1},
        {"comment": "another"},
        {"seconds": 1.5},
        {"blinded": True},
        {"reader": "ben"},
        {"synthetic_id": "synthetic_9"},
        {"training_id": "training_9"},
        {"index_version": "v2"},
    ],
)
def test_an_id_stands_for_one_rating_alone(tmp_path, other):
    store = RatingStore(tmp_path / "ratings.sqlite")
    assert store.add(rating())
    with pytest.raises(RatingConflictError, match="another rating with the rating_id 'id-0'"):
        store.add(replace(rating(), **other))
    assert store.all() == [rating()] and store.find("id-0") == rating() and store.find("id-1") is None
    write_ratings([replace(rating(), **other)], tmp_path / "other.csv")
    with pytest.raises(RatingConflictError, match="'id-0'"):
        read_ratings([store.path, tmp_path / "other.csv"])


FAR_AHEAD, LONG_AGO = "2999-01-01T00:00:00Z", "1999-01-01T00:00:00Z"


def test_what_arrived_last_counts_whatever_the_readers_clock_said(tmp_path):
    store = RatingStore(tmp_path / "ratings.sqlite")
    for n, (value, created) in enumerate([(4, FAR_AHEAD), (1, UTC_TIME), (2, LONG_AGO)]):
        store.add(rating(value=value, rating_id=f"a{n}", created=created))
        store.add(rating(value=value, rating_id=f"b{n}", reader="ben", created=created))
        assert [(r.reader, r.rating) for r in store.latest()] == [("anna", value), ("ben", value)]
    assert [r.created[:4] for r in store.all() if r.reader == "anna"] == ["2999", "2026", "1999"], "kept as a note"
    undated = [replace(rating(), created="", rating=value) for value in (3, 2)]
    assert [r.rating for r in latest(undated)] == [2]


def test_agreement_and_consensus_count_what_arrived_last(tmp_path):
    said = [rating(0, 4, "anna", created=FAR_AHEAD), rating(0, 1, "anna", rating_id="x", created=LONG_AGO)]
    said.append(rating(0, 1, "ben", rating_id="y"))
    label = consensus(said)["synthetic_0"]
    assert (label.replica, label.mean) == (False, 1.0)
    assert pair_agreements(said)[0].percent == 1.0


def test_of_several_tables_the_later_row_and_the_later_file_count(tmp_path):
    rows = [rating(0, 4, rating_id="x", created=FAR_AHEAD), rating(0, 2, rating_id="y", created=LONG_AGO)]
    write_ratings(rows, tmp_path / "one.csv")
    write_ratings([rating(0, 3, rating_id="z", created=LONG_AGO)], tmp_path / "two.csv")
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    assert [r.rating for r in latest(read_ratings(one))] == [2]
    assert [r.rating for r in latest(read_ratings([one, two]))] == [3]
    assert [r.rating for r in latest(read_ratings([two, one]))] == [2]


def test_a_case_rated_beside_two_training_cases_has_the_rating_that_arrived_last(tmp_path):
    store = RatingStore(tmp_path / "ratings.sqlite")
    for n, (training, value, created) in enumerate([("t", 1, FAR_AHEAD), ("u", 4, UTC_TIME), ("t", 2, LONG_AGO)]):
        store.add(rating(0, value, rating_id=f"r{n}", training_id=training, created=created))
        item = with_ratings([WorklistItem("synthetic_0")], store.latest(), "anna")[0]
        assert (item.rating, item.readers) == (value, 1)


def test_cases_of_one_score_are_read_in_the_order_of_their_ids():
    items = [WorklistItem(id, "novel", score) for id, score in (("c", 0.5), ("a", 0.5), ("d", 0.9), ("b", 0.5))]
    assert [i.synthetic_id for i in ordered(items)] == ["d", "a", "b", "c"]
    assert [i.synthetic_id for i in ordered(items, descending=False)] == ["a", "b", "c", "d"]


def test_without_a_name_the_next_case_is_one_that_nobody_has_rated():
    items = [WorklistItem("a", "novel", 0.9), WorklistItem("b", "novel", 0.5)]
    assert next_unrated(items).synthetic_id == "a"
    seen = with_ratings(items, [replace(rating(), synthetic_id="a")])
    assert next_unrated(seen).synthetic_id == "b" and next_unrated(seen, after="b") is None
    assert next_unrated(with_ratings(items, [replace(rating(), synthetic_id="a")], "ben"), "ben").synthetic_id == "a"


def test_a_full_disk_is_no_fault_of_the_rating(tmp_path):
    """SQLite's own limit on the pages of a file fails as a full disk does."""
    store = RatingStore(tmp_path / "ratings.sqlite")
    store.add(rating())
    with pytest.raises(FullDiskError, match="the disk is full"), store._connection() as connection:
        connection.execute("PRAGMA max_page_count = 1")
        connection.executemany(
            f"INSERT INTO ratings ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})",
            ([getattr(rating(n, comment="x" * 5000), name) for name in COLUMNS] for n in range(1, 50)),
        )
    assert store.all()[0] == rating()


def test_a_rating_without_a_time_gets_the_present_one(tmp_path):
    store = RatingStore(tmp_path / "ratings.sqlite")
    store.add(rating(created=""))
    assert store.all()[0].created.startswith("20") and store.all()[0].created.endswith("+00:00")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ({"rating": 0}, "value 0"),
        ({"rating": 5}, "value 5"),
        ({"rating": 3.0}, "value 3.0"),
        ({"rating": True}, "value True"),
        ({"rating": "3"}, "value '3'"),
        ({"reader": "  "}, "reader that is empty"),
        ({"reader": "anna\n"}, "reader that holds a control character"),
        ({"synthetic_id": ""}, "synthetic_id that is empty"),
        ({"training_id": None}, "training_id that is empty"),
        ({"training_id": "a\ud800"}, "not valid Unicode"),
        ({"rating_id": "x" * 501}, "longer than 500"),
        ({"comment": "x" * 10_001}, "comment"),
        ({"comment": "a\0b"}, "comment"),
        ({"seconds": float("nan")}, "nan seconds"),
        ({"seconds": -1.0}, "-1.0 seconds"),
        ({"seconds": 86_401.0}, "at most 86400"),
        ({"seconds": 1e308}, "1e+308 seconds"),
        ({"seconds": float("inf")}, "inf seconds"),
        ({"seconds": True}, "True as seconds"),
        ({"blinded": 1}, "1 as blinded"),
        ({"blinded": "no"}, "'no' as blinded"),
        ({"created": "yesterday"}, "'yesterday'"),
    ],
)
def test_a_faulty_rating_is_refused_by_name(tmp_path, fault, says):
    store = RatingStore(tmp_path / "ratings.sqlite")
    with pytest.raises(InputError) as error:
        store.add(replace(rating(), **fault))
    assert says in str(error.value)
    assert store.all() == []


def test_names_are_stored_in_one_form_of_accents_and_found_in_it(tmp_path):
    """Those of a store that an earlier version wrote, too."""
    store = RatingStore(tmp_path / "ratings.sqlite")
    old = replace(rating(), reader="Mu\u0308ller", synthetic_id="e\u0301tude", training_id="o\u0308")
    store.add(old)
    with sqlite3.connect(tmp_path / "ratings.sqlite") as connection:
        rows = connection.execute("SELECT reader, synthetic_id, training_id FROM ratings").fetchall()
        assert rows == [("M\u00fcller", "\u00e9tude", "\u00f6")]
        connection.execute(
            "INSERT INTO ratings (rating_id, reader, synthetic_id, training_id, rating, comment, blinded, seconds, "
            "created, index_version) VALUES ('x', ?, ?, ?, 4, '', 0, 0, '', '')",
            (old.reader, old.synthetic_id, old.training_id),
        )
    connection.close()
    assert [r.rating for r in store.latest()] == [4] and store.latest()[0].reader == "M\u00fcller"


def test_a_search_finds_ids_in_any_form_of_accents_and_case():
    items = [WorklistItem(unicodedata.normalize(form, name)) for form in ("NFC", "NFD") for name in ("\u00c9tude", "x")]
    for search in ("\u00e9tu", "e\u0301tu", "\u00c9TU", "E\u0301TU"):
        assert len(filtered(items, Filter(search=search))) == 2, search


def test_nothing_can_be_changed_or_deleted_not_even_by_another_program(tmp_path):
    store = RatingStore(tmp_path / "ratings.sqlite")
    store.add(rating())
    connection = sqlite3.connect(store.path)
    for statement in ("UPDATE ratings SET rating = 1", "DELETE FROM ratings"):
        with pytest.raises(sqlite3.IntegrityError, match="only ever added"):
            connection.execute(statement)
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute(
            "INSERT INTO ratings (rating_id, reader, synthetic_id, training_id, rating, comment, blinded, seconds,"
            " created, index_version) VALUES ('z', 'a', 's', 't', 9, '', 0, 0, '', '')"
        )
    connection.close()
    assert store.all() == [rating()]


def test_files_that_are_no_store_are_left_as_they_are(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a database, but long enough to be looked at as one " * 40, encoding="utf-8")
    with pytest.raises(InputError, match="is no store of ratings"):
        RatingStore(text)
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE patients (name TEXT)")
    connection.close()
    before = other.read_bytes()
    with pytest.raises(InputError, match="of another program"):
        RatingStore(other)
    assert other.read_bytes() == before
    later = RatingStore(tmp_path / "later.sqlite")
    connection = sqlite3.connect(later.path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(InputError, match="schema version 2"):
        RatingStore(later.path)
    with pytest.raises(InputError, match="Make the folder"):
        RatingStore(tmp_path / "missing" / "ratings.sqlite")


def test_threads_share_one_store_without_losing_a_rating(tmp_path):
    store = RatingStore(tmp_path / "ratings.sqlite")
    failed = []

    def work(reader):
        try:
            for number in range(25):
                assert store.add(rating(number, rating_id=f"{reader}-{number}", reader=f"reader {reader}"))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len({r.rating_id for r in store.all()}) == len(store.all()) == 200


WRITER = """
import sys
from replica_detection.readers.rating_store import RatingStore
from replica_detection.readers.ratings import Rating
store = RatingStore(sys.argv[1])
for number in range(int(sys.argv[3])):
    store.add(Rating(f"{sys.argv[2]}-{number}", sys.argv[2], f"case {number}", "training", 1 + number % 4))
    print(number, flush=True)
"""


def test_processes_that_make_the_same_file_at_once_all_store_their_ratings(tmp_path):
    path = tmp_path / "ratings.sqlite"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), f"reader{i}", "20"], stdout=subprocess.DEVNULL)
        for i in range(5)
    ]
    assert [w.wait(timeout=120) for w in writers] == [0] * 5
    assert len(RatingStore(path).all()) == 100


def test_the_store_writes_ahead_and_waits_for_the_disk(tmp_path):
    """A test cannot cut the power. SQLite guarantees durability with these two settings."""
    store = RatingStore(tmp_path / "ratings.sqlite")
    with store._connection() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
def test_every_acknowledged_rating_survives_a_killed_process(tmp_path):
    path = tmp_path / "ratings.sqlite"
    for attempt in range(3):
        name = f"reader{attempt}"
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), name, "100000"], stdout=subprocess.PIPE, encoding="utf-8"
        )
        acknowledged = [next(writer.stdout) for _ in range(20 + 7 * attempt)]
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged += writer.stdout.read().split()
        writer.wait()
        writer.stdout.close()
        stored = {r.rating_id for r in RatingStore(path).all()}
        assert {f"{name}-{int(number)}" for number in acknowledged} <= stored


def test_csv_reads_back_as_it_was_written(tmp_path):
    ratings = [
        rating(0, comment='says "same", I think;\nmaybe', blinded=True, seconds=3.5, index_version="v1"),
        rating(1, value=1, reader="Ben Müller", created=""),
    ]
    write_ratings(ratings, tmp_path / "ratings.csv")
    assert (tmp_path / "ratings.csv").read_text(encoding="utf-8").splitlines()[0] == ",".join(COLUMNS)
    assert read_ratings(tmp_path / "ratings.csv") == ratings


def test_a_table_made_by_hand_needs_two_columns(tmp_path):
    (tmp_path / "anna.csv").write_text("\ufeffSynthetic_ID;Rating\ncase 1;3\ncase 2;\n\ncase 3;4.0\n", encoding="utf-8")
    (tmp_path / "others.csv").write_text(
        "rating,synthetic_id,reader,age\n1,case 1,ben,40\n2,case 1,ben,40\n", encoding="utf-8"
    )
    found = read_ratings([tmp_path / "anna.csv", tmp_path / "others.csv"])
    assert [(r.reader, r.synthetic_id, r.training_id, r.rating) for r in found] == [
        ("anna", "case 1", "", 3),
        ("anna", "case 3", "", 4),
        ("ben", "case 1", "", 1),
        ("ben", "case 1", "", 2),
    ]
    assert [r.rating for r in latest(found)] == [3, 4, 2]
    again = read_ratings([tmp_path / "anna.csv", tmp_path / "anna.csv"])
    assert len(again) == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("synthetic_id\na\n", "no column rating"),
        ("synthetic_id,rating\na,5\n", "line 2 has the value 5"),
        ("synthetic_id,rating\na,3\nb,3.5\n", "line 3 has the rating '3.5'"),
        ("synthetic_id,rating\na,replica\n", "'replica'"),
        ("synthetic_id,rating\n,3\n", "line 2 has a synthetic_id that is empty"),
        ("synthetic_id,rating,blinded\na,3,perhaps\n", "'perhaps' as blinded"),
        ("synthetic_id,rating,seconds\na,3,long\n", "'long' as seconds"),
        ("synthetic_id,rating,seconds\na,3,1e308\n", "line 2 took 1e+308 seconds"),
        ("synthetic_id,rating,seconds\na,3,nan\n", "line 2 took nan seconds"),
        ("synthetic_id,rating\na,True\n", "'True'"),
        ("synthetic_id,rating,created\na,3,soon\n", "'soon'"),
        ("synthetic_id,rating\na,\n", "holds no rating"),
    ],
)
def test_a_faulty_table_names_its_line(tmp_path, text, says):
    path = tmp_path / "ratings.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_ratings(path)
    assert says in str(error.value) and str(path) in str(error.value)


def test_ratings_of_stores_and_tables_come_together(tmp_path):
    store = RatingStore(tmp_path / "server.db")
    store.add(rating(0))
    write_ratings([rating(0), rating(1, rating_id=str(uuid.uuid4()))], tmp_path / "more.csv")
    assert len(read_ratings([store.path, tmp_path / "more.csv"])) == 2
    with pytest.raises(InputError, match="cannot be read"):
        read_ratings(tmp_path / "nothing.csv")
    assert not (tmp_path / "nothing.csv").exists()


def test_ratings_need_the_standard_library_alone():
    heavy = ("numpy", "scipy")
    code = f"import sys, replica_detection.readers.rating_tables; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert result.stdout.strip() == "[]"
