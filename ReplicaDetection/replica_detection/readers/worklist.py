"""The worklist of cases: ratings, filters, order, and the next unrated case.

The server and the viewer of a result folder both use it. Imports with numpy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
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
    """Conditions on the cases of the list.

    `verdict`: keep only these; "" stands for cases without a score. `rated`: "yes" or "no" keeps the cases that the
    reader (without a name: any reader) has or has not rated. `search`: part of the id; case and the form of accents do
    not matter.
    """

    verdict: tuple[str, ...] = ()
    rated: str = "any"
    search: str = ""


def with_ratings(items: Iterable[WorklistItem], ratings: Iterable[Rating], reader: str = "") -> list[WorklistItem]:
    """The items with the reader's own rating and the number of readers who rated the case.

    Args:
        ratings: in the order of arrival. A reader may have rated a case beside several training cases; the last rating
            counts.
        reader: the reader whose ratings are entered; "": nobody's.
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
    """True if the reader has rated the case; without a name, if anybody has."""
    return item.rating is not None if reader else item.readers > 0


def filtered(items: Iterable[WorklistItem], chosen: Filter, reader: str = "") -> list[WorklistItem]:
    """The items that meet all conditions, in their order."""
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
    """Sorted by one field. Items without a value come last in both directions; ties go by id.

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


def next_unrated(items: Iterable[WorklistItem], reader: str = "", after: str = "") -> WorklistItem | None:
    """The most replica-like case that the reader has not rated; without a name, that nobody has rated.

    Args:
        items: in any order, with the reader's ratings (`with_ratings`).
        reader: the reader's name, or "".
        after: id of a case; only cases below it in the order of scores count. An id that is not among the items is
            ignored.

    Returns:
        None if no such case is left.
    """
    return first_unrated(ordered(items), reader, after)


def first_unrated(
    items: Sequence[WorklistItem], reader: str = "", after: str = "", *, wrap: bool = False
) -> WorklistItem | None:
    """The first case in the given order that is unrated, as in `next_unrated`; for lists in an order of their own.

    Args:
        wrap: go on from the top after the last case.
    """
    start = next((n + 1 for n, item in enumerate(items) if after and item.synthetic_id == after), 0)
    rest = [*items[start:], *items[:start]] if wrap else items[start:]
    return next((item for item in rest if not is_rated(item, reader)), None)
