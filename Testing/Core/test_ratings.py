"""The ratings store loses nothing and changes nothing; CSV files of ratings are read as people write them."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import uuid
from dataclasses import replace

import pytest

from replica_detection.errors import InputError
from replica_detection.rating_files import COLUMNS, read_ratings, write_ratings
from replica_detection.ratings import Rating, RatingStore, latest

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
    with pytest.raises(InputError, match="another rating with the rating_id 'id-0'"):
        store.add(rating(value=1))
    assert store.all() == [rating()]


def test_the_latest_rating_of_a_reader_and_pair_counts_by_its_own_time(tmp_path):
    store = RatingStore(tmp_path / "ratings.sqlite")
    first = rating(value=2, rating_id="a", created="2026-01-31T15:00:00+01:00")
    second = rating(value=4, rating_id="b", created="2026-01-31T14:30:00Z")
    late_from_a_queue = rating(value=1, rating_id="c", created="2026-01-31T13:00:00Z")
    other = rating(value=1, rating_id="d", reader="ben", created="2026-01-31T13:00:00Z")
    for r in (first, second, late_from_a_queue, other):
        store.add(r)
    assert [(r.reader, r.rating) for r in store.latest()] == [("anna", 4), ("ben", 1)]
    assert len(store.all()) == 4
    undated = [replace(first, created="", rating=value) for value in (3, 2)]
    assert [r.rating for r in latest(undated)] == [2]


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
        ({"created": "yesterday"}, "'yesterday'"),
    ],
)
def test_a_faulty_rating_is_refused_by_name(tmp_path, fault, says):
    store = RatingStore(tmp_path / "ratings.sqlite")
    with pytest.raises(InputError) as error:
        store.add(replace(rating(), **fault))
    assert says in str(error.value)
    assert store.all() == []


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
    text.write_text("not a database, but long enough to be looked at as one " * 40)
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
from replica_detection.ratings import Rating, RatingStore
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
    """What a test cannot kill: the power. SQLite's own promise for it holds with these two settings."""
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
            [sys.executable, "-c", WRITER, str(path), name, "100000"], stdout=subprocess.PIPE, text=True
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
    (tmp_path / "others.csv").write_text("rating,synthetic_id,reader,age\n1,case 1,ben,40\n2,case 1,ben,40\n")
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
        ("synthetic_id,rating,created\na,3,soon\n", "'soon'"),
        ("synthetic_id,rating\na,\n", "holds no rating"),
    ],
)
def test_a_faulty_table_names_its_line(tmp_path, text, says):
    path = tmp_path / "ratings.csv"
    path.write_text(text)
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
    code = "import sys, replica_detection.rating_files; print([m for m in ('numpy', 'scipy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
