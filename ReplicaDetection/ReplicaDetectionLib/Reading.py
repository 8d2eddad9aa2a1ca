"""Reading: the rating of the pair on screen before it is stored, its undo, and the reading time."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from replica_detection.readers.ratings import LONGEST_SECONDS, SCALE, Rating

Key = tuple[str, str]


@dataclass(frozen=True)
class Draft:
    """Rating and comment of the reader that are not stored yet; `rating` is None before a choice."""

    rating: int | None = None
    comment: str = ""

    @classmethod
    def of(cls, rating: Rating) -> Draft:
        return cls(rating.rating, rating.comment)


class Reading:
    """Drafts and stored ratings of one reader, each for a synthetic id and a training id.

    Attributes:
        draft: of the pair on screen.
        revealed: its rating was stored blinded, and the names are shown now.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.draft, self.revealed = Draft(), False
        self._clock = clock
        self._pair: Any = None
        self._key: Key = ("", "")
        self._drafts: dict[Key, Draft] = {}
        self._stored: dict[Key, Rating] = {}
        self._seconds: dict[Key, float] = {}
        self._tried: dict[Key, Rating] = {}
        self._undo: list[Draft] = []
        self._saved: list[Rating] = []
        self._since: float | None = None

    def begin(self, pair: Any) -> None:
        """Another pair is on screen; its time runs from now."""
        self.pause()
        self._pair, self._key, self.revealed = pair, (pair.synthetic.id, pair.training.id), False
        self._undo.clear()
        self._since = self._clock()
        self._takeDraft()

    def _takeDraft(self) -> None:
        self.draft = self._drafts.get(self._key) or (Draft.of(self.stored) if self.stored else Draft())

    @property
    def stored(self) -> Rating | None:
        """The reader's latest stored rating of the pair on screen."""
        return self._stored.get(self._key)

    def forgetStored(self) -> None:
        """Forgets the stored ratings, for another reader."""
        self._stored.clear()
        self._takeDraft()

    def addStored(self, ratings: Iterable[Rating]) -> None:
        """Adds ratings that the reader stored earlier, oldest first. Ratings stored since then take precedence."""
        self._stored = {(r.synthetic_id, r.training_id): r for r in ratings} | self._stored
        self._takeDraft()

    @property
    def dirty(self) -> bool:
        """True if there is a rating to store."""
        return self.draft.rating is not None and (self.stored is None or self.draft != Draft.of(self.stored))

    def unsaved(self, syntheticId: str) -> int | None:
        """A rating that was chosen for a case and not stored."""
        return next((d.rating for key, d in self._drafts.items() if key[0] == syntheticId and d.rating), None)

    @property
    def unsavedCount(self) -> int:
        """Number of ratings that were chosen and not stored."""
        return sum(draft.rating is not None for draft in self._drafts.values())

    def choose(self, rating: int) -> None:
        """Raises ValueError for a number that is no point of the scale."""
        if rating not in SCALE:
            raise ValueError(f"{rating} is none of {', '.join(map(str, SCALE))}")
        if rating != self.draft.rating:
            self._undo.append(self.draft)
            self._set(replace(self.draft, rating=rating))

    def setComment(self, text: str) -> bool:
        """Returns whether it changed. Typing is undone in the text box, not here."""
        if text == self.draft.comment:
            return False
        self._set(replace(self.draft, comment=text))
        return True

    def _set(self, draft: Draft) -> None:
        self.draft = self._drafts[self._key] = draft

    def undo(self) -> bool:
        """Takes back the last choice of a number and keeps the comment; False if there was none."""
        if not self._undo:
            return False
        self._set(replace(self._undo.pop(), comment=self.draft.comment))
        return True

    def canUndo(self, item: Any) -> bool:
        """True if there is a choice to take back, or another case than `item` (None: any) to go back to."""
        shown = item.synthetic_id if item is not None else ""
        return bool(self._undo) or any(rating.synthetic_id != shown for rating in self._saved)

    def takeLastSaved(self, otherThan: str = "") -> Rating | None:
        """The rating that was stored last in this session, of another case than the given one; each is given once."""
        while self._saved:
            rating = self._saved.pop()
            if rating.synthetic_id != otherThan:
                return rating
        return None

    def rating(self, reader: str, blinded: bool) -> Rating:
        """The draft as it is to be stored. A second try is the first one again, its id and time included, so that it
        counts once; another draft has another id, for the first try may have been stored although its answer was lost.
        """
        made = Rating(
            rating_id=uuid.uuid4().hex,
            reader=reader,
            synthetic_id=self._key[0],
            training_id=self._key[1],
            rating=self.draft.rating,
            comment=self.draft.comment,
            blinded=blinded,
            seconds=min(round(self.seconds, 1), LONGEST_SECONDS),
            index_version=self._pair.comparison.index_version,
        )
        tried = self._tried.get(self._key)
        if tried is None or replace(made, rating_id=tried.rating_id, seconds=tried.seconds) != tried:
            tried = self._tried[self._key] = made
        return tried

    def saved(self, rating: Rating) -> None:
        """Notes that a rating was stored. Changes since then are still to be stored."""
        key = (rating.synthetic_id, rating.training_id)
        self._saved.append(rating)
        self._stored[key] = rating
        self._tried.pop(key, None)
        if self._drafts.get(key) == Draft.of(rating):
            del self._drafts[key]
        if self._key == key:
            self._undo.clear()

    @property
    def seconds(self) -> float:
        """Time that the pair was on screen, all visits together."""
        running = self._clock() - self._since if self._since is not None else 0.0
        return self._seconds.get(self._key, 0.0) + running

    def pause(self) -> None:
        """Stops the clock, when the user leaves the case or the module."""
        if self._since is not None:
            self._seconds[self._key] = self.seconds
            self._since = None

    def resume(self) -> None:
        """Starts the clock again, when the user returns to the module with the pair still on screen."""
        if self._pair is not None and self._since is None:
            self._since = self._clock()
