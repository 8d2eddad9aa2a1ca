"""Ratings as CSV files, and ratings from any file: CSV or store. Imports with the standard library alone."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from replica_detection.errors import InputError, RatingConflictError
from replica_detection.io.cohort_tables import read_cells
from replica_detection.io.paths import composed, require_readable
from replica_detection.readers.rating_store import RatingStore
from replica_detection.readers.ratings import Rating, checked, same
from replica_detection.util.csv_tables import write_rows
from replica_detection.util.files import atomic_write

COLUMNS = (
    "synthetic_id",
    "training_id",
    "reader",
    "rating",
    "comment",
    "blinded",
    "seconds",
    "created",
    "rating_id",
    "index_version",
)
_YES, _NO = ("1", "true", "yes"), ("", "0", "false", "no")
# Rows without an id get one from their content, so that a file that is read twice counts once.
_NAMESPACE = uuid.UUID("6ba8f1d4-3f0e-5c5e-9a54-9d5a4b7f3c21")


def read_ratings(paths: Path | Sequence[Path]) -> list[Rating]:
    """All ratings of one or several files, each `rating_id` once, in the order of the files.

    A store is known by its content. A CSV needs the columns `synthetic_id,rating`; other `COLUMNS` may be missing:
    without `reader` the file's name is the reader, and an empty `training_id` stands for whatever training case the
    result names for the image. Rows with an empty rating are passed over. Separators may be commas, semicolons or
    tabs. Later rows of a file count as later, and later files as later than those before them.

    Raises:
        InputError: a file is missing, neither of both, lacks a column, or a row is faulty; no rating at all.
        RatingConflictError: one `rating_id` stands for two different ratings.
    """
    paths = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(p) for p in paths]
    by_id: dict[str, Rating] = {}
    for path in paths:
        for rating in RatingStore(path).all() if _is_sqlite(path) else _read_csv(path):
            if not same(by_id.setdefault(rating.rating_id, rating), rating):
                fault = f"holds another rating than before with the rating_id {rating.rating_id!r}"
                raise RatingConflictError(path, fault, "Keep one of the two, or clear the rating_id of one")
    if not by_id:
        raise InputError(paths[0] if paths else "ratings", "holds no rating", "Fill in the column rating, 1 to 4")
    return list(by_id.values())


def write_ratings(ratings: Iterable[Rating], path: Path) -> None:
    """Writes the CSV of `COLUMNS`, one row for each rating; whole or not at all."""
    with atomic_write(Path(path)) as f:
        write_rows(f, [COLUMNS])
        write_rows(f, (_row(r) for r in ratings))


def _row(rating: Rating) -> list[object]:
    cells = {**vars(rating), "blinded": int(rating.blinded)}
    return [cells[name] for name in COLUMNS]


def _is_sqlite(path: Path) -> bool:
    require_readable(path)
    try:
        with path.open("rb") as f:
            return f.read(16) == b"SQLite format 3\0"
    except OSError as error:
        advice = "Give a CSV with the columns synthetic_id,rating, or the ratings store of a server"
        raise InputError(path, f"cannot be read ({error.strerror or error})", advice) from error


def _read_csv(path: Path) -> list[Rating]:
    ratings = []
    for line, cells in read_cells(path, required=("synthetic_id", "rating"), verbatim=("comment", "index_version")):
        if not cells["rating"]:
            continue
        where = f"line {line}"
        rating = Rating(
            rating_id=cells.get("rating_id", ""),
            reader=cells.get("reader") or path.stem,
            synthetic_id=composed(cells["synthetic_id"]),
            training_id=composed(cells.get("training_id", "")),
            rating=_whole(cells["rating"], path, where),
            comment=cells.get("comment", ""),
            blinded=_yes(cells.get("blinded", ""), path, where),
            seconds=_seconds(cells.get("seconds", ""), path, where),
            created=cells.get("created", ""),
            index_version=cells.get("index_version", ""),
        )
        if not rating.rating_id:
            cells_read = [str(getattr(rating, name)) for name in COLUMNS]
            rating = replace(rating, rating_id=str(uuid.uuid5(_NAMESPACE, "\n".join([*cells_read, where]))))
        # The placeholder passes the check of ids; only a result can tell which training case it stands for.
        known = checked(replace(rating, training_id=rating.training_id or "?"), path, where)
        ratings.append(replace(known, training_id=rating.training_id))
    return ratings


def _whole(text: str, path: Path, where: str) -> int:
    try:
        number = float(text.replace(",", "."))
        if number == int(number):
            return int(number)
    except (ValueError, OverflowError):
        pass
    raise InputError(path, f"{where} has the rating {text!r}", "Rate with a whole number from 1 to 4")


def _yes(text: str, path: Path, where: str) -> bool:
    if text.lower() in _YES + _NO:
        return text.lower() in _YES
    raise InputError(path, f"{where} has {text!r} as blinded", "Write 1 or 0")


def _seconds(text: str, path: Path, where: str) -> float:
    try:
        return float(text.replace(",", ".")) if text else 0.0
    except ValueError:
        raise InputError(path, f"{where} has {text!r} as seconds", "Write a number, or nothing") from None
