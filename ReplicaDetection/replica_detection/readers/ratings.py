"""Readers' ratings of pairs of a synthetic and a training image, and their validation.

Imports with the standard library alone.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from replica_detection.errors import InputError
from replica_detection.io.paths import composed

# RELICT (arXiv 2502.17360): four points, 3 and 4 count as replica.
SCALE = {
    1: "different",
    2: "similar, but another anatomy",
    3: "nearly the same anatomy",
    4: "the same scan",
}
REPLICA_FROM = 3
LONGEST_NAME, LONGEST_COMMENT = 500, 10_000
# A day; nobody looks at one pair for longer.
LONGEST_SECONDS = 86_400.0


@dataclass(frozen=True)
class Rating:
    """One reader's opinion of one pair.

    `rating_id` is a UUID from the first program that stores the rating, so that sending it twice counts once.
    `created` is ISO 8601 in UTC by that program's clock, for information only. `seconds` is the time spent on the case.
    `index_version` identifies the training index that was shown. Ratings are only added: of the ratings of a pair by
    one reader, the one that arrived last counts.
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

    def refuse(fault: str, advice: str) -> InputError:
        return InputError(where, f"{row} {fault}", advice)

    names: dict[str, Any] = {}
    for name in NAMES:
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
    created = in_utc_text(rating.created)
    if created is None:
        raise refuse(f"was created at {rating.created!r}", "Give the time as ISO 8601, such as 2026-01-31T14:05:00Z")
    return replace(replace(rating, seconds=float(rating.seconds), created=created), **names)


NAMES = ("rating_id", "reader", "synthetic_id", "training_id")


def same(one: Rating, other: Rating) -> bool:
    """True if all fields but `created` are equal; the store may add that one."""
    return replace(one, created="") == replace(other, created="")


def _name_fault(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        return "is empty"
    if len(value) > LONGEST_NAME:
        return f"is longer than {LONGEST_NAME} characters"
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in value):
        return "holds a control character or is not valid Unicode"
    return ""


def _storable(text: str) -> bool:
    """False for text with NUL or lone surrogates, which no text file can hold; line breaks and tabs are allowed."""
    return not any(letter == "\0" or unicodedata.category(letter) == "Cs" for letter in text)


def in_utc_text(created: object) -> str | None:
    """ISO 8601 in UTC with microseconds, so that times compare as text; no zone means UTC. None if it is no time."""
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
