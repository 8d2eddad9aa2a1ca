"""What readers say of a synthetic image beside its nearest training image, and the store that keeps it.

Imports with the standard library alone.
"""

from __future__ import annotations

import sqlite3
import time
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from replica_detection.errors import FullDiskError, InputError, RatingConflictError, StorageError
from replica_detection.image_files import composed

# RELICT (arXiv 2502.17360): four points, 3 and 4 count as replica.
SCALE = {
    1: "different",
    2: "similar, but another anatomy",
    3: "nearly the same anatomy",
    4: "the same scan",
}
REPLICA_FROM = 3
LONGEST_NAME, LONGEST_COMMENT = 500, 10_000
# A day: what is longer is no time that somebody looked at a pair.
LONGEST_SECONDS = 86_400.0

_APPLICATION_ID, _SCHEMA_VERSION = 0x52445253, 1
_WAIT_SECONDS = 30.0
_ADVICE = "Name the file of a ratings store, or a new file"


@dataclass(frozen=True)
class Rating:
    """One reader's opinion of one pair.

    `rating_id` is made by whoever stores it first (a UUID), so that sending it twice counts once; `created` is
    ISO 8601 in UTC, by the clock of whoever made it, and only noted; `seconds` is the time spent on the case;
    `index_version` says which training index was shown. Append-only: of the ratings of a pair by one reader, the one
    that arrived last counts.
    """

    rating_id: str
    reader: str
    synthetic_id: str
    training_id: str
    rating: int
    comment: str = ""
    blinded: bool = False
    seconds: float = 0.0
    created: str = ""
    index_version: str = ""


def latest(ratings: Iterable[Rating]) -> list[Rating]:
    """The latest rating of each reader and pair, in the order in which these arrived.

    Args:
        ratings: in the order of their arrival, which alone decides: a clock that is ahead would freeze its rating.
    """
    last: dict[tuple[str, str, str], Rating] = {}
    for rating in ratings:
        key = (rating.reader, rating.synthetic_id, rating.training_id)
        last.pop(key, None)
        last[key] = rating
    return list(last.values())


def checked(rating: Rating, where: Path | str, row: str = "the rating") -> Rating:
    """The rating with names without blanks around them in Unicode's composed form, its time in UTC ("" stays: unknown).

    Args:
        where: the file named in an error.
        row: what the error calls the rating, such as "line 7".

    Raises:
        InputError: a rating that is no whole number from 1 to 4, seconds that are no number from 0 to LONGEST_SECONDS,
            blinded that is not true or false, an id or name that is empty, too long or holds control characters, a
            time that is none.
    """

    def refuse(found: str, advice: str) -> InputError:
        return InputError(where, f"{row} {found}", advice)

    names: dict[str, Any] = {}
    for name in _NAMES:
        value = getattr(rating, name)
        fault = _name_fault(value)
        if fault:
            raise refuse(f"has a {name} that {fault}", f"Give a {name}")
        names[name] = composed(value.strip())
    if isinstance(rating.rating, bool) or not isinstance(rating.rating, int) or rating.rating not in SCALE:
        meaning = ", ".join(f"{value} {text}" for value, text in SCALE.items())
        raise refuse(f"has the value {rating.rating!r}", f"Rate with a whole number: {meaning}")
    for name in ("comment", "index_version"):
        value, limit = getattr(rating, name), LONGEST_COMMENT if name == "comment" else LONGEST_NAME
        if not isinstance(value, str) or len(value) > limit or not _storable(value):
            raise refuse(f"has a {name} that is no text of at most {limit} characters", "Shorten it")
    if isinstance(rating.seconds, bool) or not isinstance(rating.seconds, (int, float)):
        raise refuse(f"has {rating.seconds!r} as seconds", "Give the time spent as a number")
    if not 0 <= rating.seconds <= LONGEST_SECONDS:
        advice = f"Give the time spent as a number, 0 where it is unknown, at most {LONGEST_SECONDS:.0f} (a day)"
        raise refuse(f"took {rating.seconds} seconds", advice)
    if not isinstance(rating.blinded, bool):
        raise refuse(f"has {rating.blinded!r} as blinded", "Say true or false")
    created = _utc(rating.created)
    if created is None:
        raise refuse(f"was created at {rating.created!r}", "Give the time as ISO 8601, such as 2026-01-31T14:05:00Z")
    return replace(replace(rating, seconds=float(rating.seconds), created=created), **names)


class RatingStore:
    """Ratings in one SQLite file, only ever added to.

    Any number of threads and processes may use the same file, each with its own store or sharing one: every call opens
    the file for itself and holds nothing between calls. A rating is on the disk when `add` returns (write-ahead log,
    synchronous=FULL), so a killed process or a power cut loses none that was acknowledged. The file must lie on a local
    disk: SQLite's write-ahead log does not work over a network share.

    Args:
        path: the file; made where it is missing, its folder must exist.

    Raises:
        InputError: the folder is missing, or the file is something else, damaged, or of a later version.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise InputError(self.path, "lies in no folder", f"Make the folder {self.path.parent} first")
        with self._connection() as connection:
            self._set_up(connection)

    def add(self, rating: Rating) -> bool:
        """Stores a rating; True if it is new, False if its `rating_id` was there already (nothing changes then).

        A rating without `created` gets the present time.

        Raises:
            InputError: a faulty rating (see `checked`).
            RatingConflictError: its `rating_id` is there with another content; `created` may differ.
            StorageError: the file cannot be written, FullDiskError where the disk is full. Nothing was stored.
        """
        rating = checked(rating, self.path)
        rating = replace(rating, created=rating.created or _utc(datetime.now(UTC).isoformat()) or "")
        marks = ", ".join("?" * len(_COLUMNS))
        values = [getattr(rating, name) for name in _COLUMNS]
        with self._connection() as connection:
            cursor = connection.execute(
                f"INSERT INTO ratings ({', '.join(_COLUMNS)}) VALUES ({marks}) ON CONFLICT (rating_id) DO NOTHING",
                values,
            )
            if cursor.rowcount == 1:
                return True
            stored = next(_read(connection, "WHERE rating_id = ?", [rating.rating_id]))
        if not same(stored, rating):
            found = f"already holds another rating with the rating_id {rating.rating_id!r}"
            raise RatingConflictError(self.path, found, "Give every rating an id of its own (a UUID)")
        return False

    def find(self, rating_id: str) -> Rating | None:
        """The rating with this id, None where there is none."""
        with self._connection() as connection:
            return next(_read(connection, "WHERE rating_id = ?", [rating_id]), None)

    def all(self) -> list[Rating]:
        """Every rating, in the order in which they arrived."""
        with self._connection() as connection:
            return list(_read(connection))

    def latest(self) -> list[Rating]:
        """What counts: the latest rating of each reader and pair."""
        return latest(self.all())

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            connection = sqlite3.connect(self.path, timeout=_WAIT_SECONDS, isolation_level=None)
        except sqlite3.Error as error:
            raise StorageError(self.path, f"cannot be opened ({error})", "Check that you may write there") from error
        try:
            connection.execute("PRAGMA synchronous = FULL")
            yield connection
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise FullDiskError(self.path, "cannot be written: the disk is full", "Make room on it") from error
            advice = "Check free space and permissions, and that the file lies on a local disk"
            raise StorageError(self.path, f"cannot be used ({error})", advice) from error
        except sqlite3.DatabaseError as error:
            raise InputError(self.path, f"is no store of ratings or is damaged ({error})", _ADVICE) from error
        finally:
            connection.close()

    def _set_up(self, connection: sqlite3.Connection) -> None:
        if not self._is_ours(connection):
            # Looked at again under the lock: another process may be making the same file.
            connection.execute("BEGIN IMMEDIATE")
            if not self._is_ours(connection):
                for statement in _SCHEMA:
                    connection.execute(statement)
            connection.execute("COMMIT")
        _set_journal(connection)

    def _is_ours(self, connection: sqlite3.Connection) -> bool:
        """False for a file without any table; raises InputError for one that this program cannot use."""
        version = _number(connection, "user_version")
        if _number(connection, "application_id") == _APPLICATION_ID:
            if version != _SCHEMA_VERSION:
                found = f"has schema version {version}, this program reads {_SCHEMA_VERSION}"
                raise InputError(self.path, found, "Use the version of this program that wrote it")
            return True
        if connection.in_transaction and _number(connection, "schema_version"):
            raise InputError(self.path, "is an SQLite file of another program", _ADVICE)
        return False


_COLUMNS = tuple(f.name for f in fields(Rating))
_NAMES = ("rating_id", "reader", "synthetic_id", "training_id")
_SCHEMA = (
    # The checks repeat `checked`, so that no other program can put in what this one would not.
    """CREATE TABLE IF NOT EXISTS ratings (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        rating_id TEXT NOT NULL UNIQUE,
        reader TEXT NOT NULL CHECK (reader <> ''),
        synthetic_id TEXT NOT NULL CHECK (synthetic_id <> ''),
        training_id TEXT NOT NULL CHECK (training_id <> ''),
        rating INTEGER NOT NULL CHECK (rating IN (1, 2, 3, 4)),
        comment TEXT NOT NULL,
        blinded INTEGER NOT NULL CHECK (blinded IN (0, 1)),
        seconds REAL NOT NULL CHECK (seconds >= 0),
        created TEXT NOT NULL,
        index_version TEXT NOT NULL
    )""",
    """CREATE TRIGGER IF NOT EXISTS ratings_never_change BEFORE UPDATE ON ratings
        BEGIN SELECT RAISE(ABORT, 'ratings are only ever added'); END""",
    """CREATE TRIGGER IF NOT EXISTS ratings_never_go BEFORE DELETE ON ratings
        BEGIN SELECT RAISE(ABORT, 'ratings are only ever added'); END""",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_SCHEMA_VERSION}",
)


def _read(connection: sqlite3.Connection, where: str = "", values: Iterable[str] = ()) -> Iterator[Rating]:
    rows = connection.execute(f"SELECT {', '.join(_COLUMNS)} FROM ratings {where} ORDER BY sequence", tuple(values))
    for row in rows:
        found = dict(zip(_COLUMNS, row, strict=True))
        # Stores of earlier versions hold names in any form.
        yield Rating(**{**found, **{name: composed(found[name]) for name in _NAMES}, "blinded": bool(found["blinded"])})


def same(one: Rating, other: Rating) -> bool:
    """Whether both say the same in every field; the time is no part of it, for the one who stores it may add it."""
    return replace(one, created="") == replace(other, created="")


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


def _set_journal(connection: sqlite3.Connection) -> None:
    """Changing the journal mode does not wait for other connections by itself, unlike every other statement."""
    end = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)


def _name_fault(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        return "is empty"
    if len(value) > LONGEST_NAME:
        return f"is longer than {LONGEST_NAME} characters"
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in value):
        return "holds a control character or is not valid Unicode"
    return ""


def _storable(text: str) -> bool:
    """Line breaks and tabs may stand in a comment; NUL and lone surrogates no text file can hold."""
    return not any(letter == "\0" or unicodedata.category(letter) == "Cs" for letter in text)


def _utc(created: object) -> str | None:
    """ISO 8601 in UTC, of one length so that times compare as text; without a zone it is UTC. None: this is no time."""
    if not isinstance(created, str):
        return None
    if not created:
        return ""
    try:
        time_given = datetime.fromisoformat(created)
        in_utc = time_given.replace(tzinfo=UTC) if time_given.tzinfo is None else time_given.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return in_utc.isoformat(timespec="microseconds")
