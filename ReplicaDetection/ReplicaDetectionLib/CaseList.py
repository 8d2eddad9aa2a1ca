"""CaseList: the cases of a source, page by page; in a blinded reading, in an order that the study's key decides."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from replica_detection.readers.ratings import Rating
from replica_detection.readers.worklist import Filter, filtered, first_unrated
from replica_detection.results.schema import Worklist, WorklistItem
from ReplicaDetectionLib.Blinding import Blinding
from ReplicaDetectionLib.Events import Activities, Event
from ReplicaDetectionLib.Sources import Source
from ReplicaDetectionLib.Translation import _

PAGE = 100
# A blinded list holds every case; it is read in pages of this size.
WHOLE_LIST_PAGE = 500


@dataclass(frozen=True)
class ListQuery:
    """Order, filters and first row of the list, as `Source.worklist` takes them."""

    offset: int = 0
    sort: str = "score"
    descending: bool = True
    verdicts: tuple[str, ...] = ()
    rated: str = "any"
    search: str = ""


class CaseList:
    """One page of a source's cases, and the position of the case on screen.

    Args:
        activities: runs what takes long.
        source: where the cases are.
        reader: gives the name whose ratings count.

    Attributes:
        page: what is shown, or None before it was read.
        place: index of the case on screen in the whole list, -1 for no case. Once a filter hides that case, half a
            step less: between its neighbours.

    Events:
        changed(): the page, the query or the place.
        told(str): something worth knowing.
    """

    def __init__(self, activities: Activities, source: Source, reader: Callable[[], str]):
        self._activities, self._source, self._reader = activities, source, reader
        self.changed, self.told = Event(), Event()
        self.query = ListQuery()
        self.page: Worklist | None = None
        self.place = -1.0
        self.blinding: Blinding | None = None
        self._order: tuple[WorklistItem, ...] = ()
        self._current = ""

    @property
    def items(self) -> tuple[WorklistItem, ...]:
        return self.page.items if self.page else ()

    @property
    def row(self) -> int:
        """The row of the page whose case is on screen, -1 if none is."""
        row = self.place - self.query.offset
        return int(row) if row == int(row) and 0 <= row < len(self.items) else -1

    def setQuery(self, **changes: Any) -> None:
        """Changes sorting, filter or page. A new sorting or filter starts at the first page."""
        query = replace(self.query, **changes)
        if query == self.query:
            return
        if "offset" not in changes:
            query, self.place = replace(query, offset=0), -1.0
        self.query = query
        self.refresh()

    def refresh(self, then: Callable[[], None] | None = None) -> None:
        """Reads the present page again; `then` is called once it is shown."""
        if self.blinding is not None:
            self._show(self._blindPage(), then)
            return
        query, reader = self.query, self._reader()

        def work(task: Any) -> Worklist:
            return self._source.worklist(
                offset=query.offset,
                limit=PAGE,
                sort=query.sort,
                descending=query.descending,
                verdicts=query.verdicts,
                rated=query.rated,
                reader=reader,
                search=query.search,
            )

        def done(page: Worklist) -> None:
            if self.query == query and self.blinding is None:
                self._show(page, then)

        self._activities.start(_("Reading the list"), work, done)

    def _show(self, page: Worklist, then: Callable[[], None] | None) -> None:
        if page.total and page.offset >= page.total:  # a filter took the cases of this page away
            self.query = replace(self.query, offset=(page.total - 1) // PAGE * PAGE)
            self.refresh(then)
            return
        self.page = page
        ids = [item.synthetic_id for item in page.items]
        if self._current in ids:
            self.place = float(page.offset + ids.index(self._current))
        elif page.offset <= self.place < page.offset + PAGE and self.place == int(self.place):
            self.place -= 0.5
        self.changed()
        if then is not None:
            then()

    def setCurrent(self, item: WorklistItem | None) -> None:
        """Sets the case on screen, None for none."""
        self._current = item.synthetic_id if item else ""
        ids = [i.synthetic_id for i in self.items]
        if item is None:
            self.place = -1.0
        elif self._current in ids:
            self.place = float(self.query.offset + ids.index(self._current))
        self.changed()

    def step(self, step: int, then: Callable[[WorklistItem], None]) -> None:
        """Gives `then` the next (1) or previous (-1) case of the list."""
        target = math.floor(self.place) + 1 if step > 0 else math.ceil(self.place) - 1
        if self.page is None or not 0 <= target < self.page.total:
            self.told(_("This was the last case.") if step > 0 else _("This is the first case."))
            return
        if target >= self.query.offset + len(self.items) and self.query.rated == "no":
            # What was rated meanwhile is gone from the pages that follow.
            target -= sum(item.rating is not None for item in self.items)
            self.at(target, then, again=True)
        else:
            self.at(target, then)

    def at(self, position: int, then: Callable[[WorklistItem], None], *, again: bool = False) -> None:
        """Gives the case at an index of the whole list to `then`; reads its page if needed (`again`: in any case)."""

        def give() -> None:
            row = position - self.query.offset
            if 0 <= row < len(self.items):
                then(self.items[row])
            else:
                self.told(_("This was the last case."))

        if not again and 0 <= position - self.query.offset < len(self.items):
            give()
        else:
            self.query = replace(self.query, offset=position // PAGE * PAGE)
            self.refresh(give)

    def following(self) -> WorklistItem | None:
        """The row below the case on screen, if it is on this page."""
        row = math.floor(self.place) + 1 - self.query.offset
        return self.items[row] if 0 <= row < len(self.items) else None

    def nextUnrated(self, then: Callable[[WorklistItem | None], None], *, quietly: bool = False) -> None:
        """Gives `then` the most suspicious case that the reader has not rated: below the case on screen, else from the
        top."""
        if self.blinding is not None:
            then(first_unrated(self._order, self._reader(), self._current, wrap=True))
            return
        source, reader, after = self._source, self._reader(), self._current

        def work(task: Any) -> WorklistItem | None:
            found = source.next(reader, after)
            return found if found is not None or not after else source.next(reader)

        if quietly:
            self._activities.quietly(work, then)
        else:
            self._activities.start(_("Looking for the next case"), work, then)

    def markRated(self, rating: Rating) -> None:
        """Shows a rating that was stored, without moving any row."""

        def marked(items: Iterable[WorklistItem]) -> tuple[WorklistItem, ...]:
            return tuple(
                replace(item, rating=rating.rating, readers=max(item.readers, 1))
                if item.synthetic_id == rating.synthetic_id
                else item
                for item in items
            )

        self._order = marked(self._order)
        if self.page is not None:
            self.page = replace(self.page, items=marked(self.page.items))
        self.changed()

    def find(self, syntheticId: str) -> WorklistItem | None:
        """A case by its id, if it was read."""
        return next((i for i in (*self.items, *self._order) if i.synthetic_id == syntheticId), None)

    # --- blinded

    def blind(self, key: str, then: Callable[[], None]) -> None:
        """Lists all cases in the order of a study's key, without verdicts, scores and names; "" ends that."""
        if not key:
            self.blinding, self._order, self.query, self.place = None, (), ListQuery(), -1.0
            self.refresh(then)
            return
        reader = self._reader()

        def work(task: Any) -> list[WorklistItem]:
            items: list[WorklistItem] = []
            while True:
                page = self._source.worklist(
                    offset=len(items), limit=WHOLE_LIST_PAGE, sort="synthetic_id", descending=False, reader=reader
                )
                items += page.items
                task.progress(_("Reading the list"), len(items), page.total)
                if not page.items or len(items) >= page.total:
                    return items

        def done(items: list[WorklistItem]) -> None:
            shown = (item for item in items if item.nearest_training_id)
            self._order = tuple(
                sorted(shown, key=lambda item: hashlib.sha256(f"{key}/{item.synthetic_id}".encode()).digest())
            )
            self.blinding, self.query, self.place = Blinding(key), ListQuery(), -1.0
            self.refresh(then)

        self._activities.start(_("Reading the list"), work, done)

    def code(self, item: WorklistItem) -> str:
        """The name of a case in a blinded list."""
        return self.blinding.code(item.synthetic_id, item.nearest_training_id)

    def _blindPage(self) -> Worklist:
        chosen = tuple(filtered(self._order, Filter(rated=self.query.rated), self._reader()))
        offset = self.query.offset
        return Worklist(len(chosen), offset, chosen[offset : offset + PAGE])
