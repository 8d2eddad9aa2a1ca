"""The order in which readers look at cases, for the server and for viewers of a folder. Imports with numpy alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from replica_detection.errors import ConfigurationError
from replica_detection.io.paths import composed
from replica_detection.readers.ratings import Rating
from replica_detection.results.result import VERDICTS
from replica_detection.results.schema import WorklistItem

Sort = Literal["score", "synthetic_id", "verdict", "rating"]
Rated = Literal["any", "yes", "no"]
SORTS: tuple[str, ...] = get_args(Sort)


@dataclass(frozen=True)
class Filter:
    """Which cases to keep. `verdict`: only these, "" for cases without a score; `rated`: whether the asking reader
    (none named: anybody) has rated the case; `search`: part of the id, in any case and form of its accents."""

    verdict: tuple[str, ...] = ()
    rated: str = "any"
    search: str = ""


def with_ratings(items: Iterable[WorklistItem], ratings: Iterable[Rating], reader: str = "") -> list[WorklistItem]:
    """The items with what was said of them: the reader's own rating, and how many readers rated the case.

    Args:
        ratings: in the order in which they arrived. A reader may have rated a case beside several training cases: the
            last one counts.
        reader: whose rating stands in the item; "": nobody's.
    """
    readers: dict[str, set[str]] = {}
    own: dict[str, int] = {}
    for r in ratings:
        readers.setdefault(r.synthetic_id, set()).add(r.reader)
        if r.reader == reader:
            own[r.synthetic_id] = r.rating
    return [
        replace(item, rating=own.get(item.synthetic_id), readers=len(readers.get(item.synthetic_id, ())))
        for item in items
    ]


def is_rated(item: WorklistItem, reader: str) -> bool:
    """Whether the reader has rated the case; without a name, whether anybody has."""
    return item.rating is not None if reader else item.readers > 0


def filtered(items: Iterable[WorklistItem], chosen: Filter, reader: str = "") -> list[WorklistItem]:
    search = _folded(chosen.search)

    def keep(item: WorklistItem) -> bool:
        return (
            (not chosen.verdict or item.verdict in chosen.verdict)
            and (chosen.rated == "any" or is_rated(item, reader) == (chosen.rated == "yes"))
            and search in _folded(item.synthetic_id)
        )

    return [item for item in items if keep(item)]


def _folded(text: str) -> str:
    return composed(composed(text).casefold())


def ordered(items: Iterable[WorklistItem], sort: str = "score", *, descending: bool = True) -> list[WorklistItem]:
    """Sorted by one field, what has none of it last whichever way; ties by id.

    Raises:
        ConfigurationError: `sort` is none of SORTS.
    """
    keys: dict[str, Callable[[WorklistItem], Any]] = {
        "score": lambda i: i.score,
        "synthetic_id": lambda i: i.synthetic_id,
        # By how replica-like a verdict is, not by its letters.
        "verdict": lambda i: -VERDICTS.index(i.verdict) if i.verdict in VERDICTS else None,
        "rating": lambda i: i.rating,
    }
    if sort not in keys:
        raise ConfigurationError(f"unknown order '{sort}'; known: {', '.join(SORTS)}")
    key = keys[sort]
    by_id = sorted(items, key=lambda i: i.synthetic_id)
    known = [i for i in by_id if key(i) is not None]
    return sorted(known, key=key, reverse=descending) + [i for i in by_id if key(i) is None]


def next_item(items: Iterable[WorklistItem], reader: str = "", after: str = "") -> WorklistItem | None:
    """The most replica-like case that the reader (none named: anybody) has not rated yet, None where none is left.

    Args:
        items: with the reader's own ratings.
        after: only below this case, where it is among the items.
    """
    left = ordered(items)
    if after:
        position = next((n for n, item in enumerate(left) if item.synthetic_id == after), -1)
        left = left[position + 1 :]
    return next((item for item in left if not is_rated(item, reader)), None)
