"""The worklist: every synthetic image with its score and what readers said of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from replica_detection.ratings import Rating
from replica_detection.result_views import worklist_item
from replica_detection.results import VERDICTS, CaseSummary
from replica_detection.schema import WorklistItem

Sort = Literal["score", "synthetic_id", "verdict", "rating"]
Rated = Literal["any", "yes", "no"]


@dataclass(frozen=True)
class Filter:
    """Which cases to keep. `verdict`: only these, "" for cases without a score; `rated` and `reader`: whether that
    reader (none named: anybody) has rated the case; `search`: part of the id, in any case."""

    verdict: tuple[str, ...] = ()
    rated: Rated = "any"
    search: str = ""


def items(
    ids: Iterable[str], scored: dict[str, CaseSummary], ratings: Sequence[Rating], reader: str = ""
) -> list[WorklistItem]:
    """An item for each id, in that order.

    Args:
        scored: what is known of cases that were scored.
        ratings: the latest of each reader and pair.
        reader: whose rating stands in the item; "": nobody's.
    """
    readers: dict[str, set[str]] = {}
    own: dict[str, Rating] = {}
    for r in ratings:
        readers.setdefault(r.synthetic_id, set()).add(r.reader)
        # A reader may have rated a case beside several training cases: the latest counts.
        if r.reader == reader and (r.synthetic_id not in own or r.created >= own[r.synthetic_id].created):
            own[r.synthetic_id] = r
    return [_item(id, scored.get(id), own[id].rating if id in own else None, len(readers.get(id, ()))) for id in ids]


def filtered(found: Iterable[WorklistItem], chosen: Filter, reader: str = "") -> list[WorklistItem]:
    def keep(item: WorklistItem) -> bool:
        rated = item.rating is not None if reader else item.readers > 0
        return (
            (not chosen.verdict or item.verdict in chosen.verdict)
            and (chosen.rated == "any" or rated == (chosen.rated == "yes"))
            and chosen.search.casefold() in item.synthetic_id.casefold()
        )

    return [item for item in found if keep(item)]


def ordered(found: Iterable[WorklistItem], sort: Sort = "score", *, descending: bool = True) -> list[WorklistItem]:
    """Sorted by one field, what has none of it last whichever way; ties by id."""
    keys: dict[str, Callable[[WorklistItem], Any]] = {
        "score": lambda i: i.score,
        "synthetic_id": lambda i: i.synthetic_id,
        # By how replica-like a verdict is, not by its letters.
        "verdict": lambda i: -VERDICTS.index(i.verdict) if i.verdict in VERDICTS else None,
        "rating": lambda i: i.rating,
    }
    key = keys[sort]
    by_id = sorted(found, key=lambda i: i.synthetic_id)
    known = [i for i in by_id if key(i) is not None]
    return sorted(known, key=key, reverse=descending) + [i for i in by_id if key(i) is None]


def next_item(found: Iterable[WorklistItem], after: str = "") -> WorklistItem | None:
    """The most replica-like case that is not rated yet; with `after`, the one that follows that case.

    Args:
        found: items with the reader's own ratings.
    """
    left = ordered(found)
    if after:
        position = next((n for n, item in enumerate(left) if item.synthetic_id == after), -1)
        left = left[position + 1 :]
    return next((item for item in left if item.rating is None), None)


def _item(id: str, row: CaseSummary | None, rating: int | None, readers: int) -> WorklistItem:
    if row is None:
        return WorklistItem(id, rating=rating, readers=readers)
    return replace(worklist_item(row), rating=rating, readers=readers)
