"""The store of ratings: one SQLite file, only ever added to. Imports with the standard library alone."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path

from replica_detection.errors import FullDiskError, InputError, RatingConflictError, StorageError
from replica_detection.io.paths import composed
from replica_detection.readers.ratings import NAMES, Rating, checked, in_utc_text, latest, same

_APPLICATION_ID, _SCHEMA_VERSION = 0x52445253, 1


_WAIT_SECONDS = 30.0


_ADVICE = "Name the file of a ratings store, or a new file"


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
        rating = replace(rating, created=rating.created or in_utc_text(datetime.now(UTC).isoformat()) or "")
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
            fault = f"already holds another rating with the rating_id {rating.rating_id!r}"
            raise RatingConflictError(self.path, fault, "Give every rating an id of its own (a UUID)")
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
        """The ratings that count: the latest of each reader and pair."""
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
        version = _pragma(connection, "user_version")
        if _pragma(connection, "application_id") == _APPLICATION_ID:
            if version != _SCHEMA_VERSION:
                fault = f"has schema version {version}, this program reads {_SCHEMA_VERSION}"
                raise InputError(self.path, fault, "Use the version of this program that wrote it")
            return True
        if connection.in_transaction and _pragma(connection, "schema_version"):
            raise InputError(self.path, "is an SQLite file of another program", _ADVICE)
        return False


_COLUMNS = tuple(f.name for f in fields(Rating))


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
        cells = dict(zip(_COLUMNS, row, strict=True))
        # Stores of earlier versions hold names in any Unicode form.
        yield Rating(**{**cells, **{name: composed(cells[name]) for name in NAMES}, "blinded": bool(cells["blinded"])})


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


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
