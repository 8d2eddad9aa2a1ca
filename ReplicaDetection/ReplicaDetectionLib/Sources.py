"""Source: cases and their ratings, from a result folder or a server, behind one interface.

Every method may take long and touches neither MRML nor Qt, so that it can run in a thread of its own. Errors are
`replica_detection.errors.ReplicaDetectionError` (a message for the reader of the screen) and nothing else.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence

from replica_detection.errors import ReplicaDetectionError
from replica_detection.progress import Progress, silent
from replica_detection.readers.ratings import Rating
from replica_detection.results.schema import (
    AgreementReport,
    Comparison,
    Histogram,
    RatingReceipt,
    Status,
    Worklist,
    WorklistItem,
)
from ReplicaDetectionLib.CasePair import CasePair

Cancelled = Callable[[], bool]


class LoadCancelled(ReplicaDetectionError):
    """The user asked for something else while a case was being read."""


def never() -> bool:
    return False


class Source(ABC):
    """One collection of synthetic cases that were compared with a training cohort."""

    #: Whether `compareImage` works: an image of the scene can be sent for comparison.
    comparesImages = False
    #: What a person knows it by: an address or a folder.
    name = ""
    #: Images leave this machine only if this is true and `compareImage` is called.
    remote = False

    @abstractmethod
    def status(self) -> Status:
        """The collection at a glance."""

    @abstractmethod
    def worklist(
        self,
        *,
        offset: int = 0,
        limit: int = 50,
        sort: str = "score",
        descending: bool = True,
        verdicts: Sequence[str] = (),
        rated: str = "any",
        reader: str = "",
        search: str = "",
    ) -> Worklist:
        """One page of cases.

        Args:
            sort: one of `replica_detection.readers.worklist.SORTS`; unscored cases come last, ties go by id.
            verdicts: only these; empty: all.
            rated: "any", "yes" or "no", by `reader` (empty: by anyone).
            search: part of a synthetic id.
        """

    @abstractmethod
    def next(self, reader: str = "", after: str = "") -> WorklistItem | None:
        """The highest score that `reader` (empty: anyone) has not rated yet, below case `after` if given; or None."""

    @abstractmethod
    def comparison(self, syntheticId: str, k: int = 10) -> Comparison:
        """A case under every measure, with its k nearest training cases."""

    @abstractmethod
    def pair(
        self,
        syntheticId: str,
        trainingId: str = "",
        *,
        progress: Progress = silent,
        cancelled: Cancelled = never,
    ) -> CasePair:
        """Both images, masks and surfaces; `trainingId` empty: the nearest one.

        Args:
            progress: called with (stage, done, total).
            cancelled: asked between the steps; the call then raises LoadCancelled.
        """

    @abstractmethod
    def histograms(self) -> list[Histogram]:
        """Ratios of the set and of the null, one for each measure and "" for the combined evidence."""

    @abstractmethod
    def saveRating(self, rating: Rating) -> RatingReceipt:
        """Stores a rating; returns once it is on disk."""

    @abstractmethod
    def ratings(self, reader: str = "", syntheticId: str = "") -> list[Rating]:
        """The latest rating of each pair and reader."""

    @abstractmethod
    def agreement(self) -> AgreementReport:
        """The agreement of the readers."""

    def compareImage(self, path: str, mask: str = "", k: int = 10) -> Comparison:
        """Sends an image file for comparison. Nothing of it is kept by the other side."""
        raise ReplicaDetectionError(f"{self.name}: a result folder compares no further images; connect to a server")

    def pairWith(self, comparison: Comparison, image: str, trainingId: str = "", mask: str = "") -> CasePair:
        """An image that was sent by `compareImage`, beside one of its matches."""
        raise ReplicaDetectionError(f"{self.name}: a result folder compares no further images; connect to a server")


class PairCache:
    """Pairs of a source, the last few kept; `get` from any thread.

    Args:
        size: how many pairs are kept at most, and
        limit: how many bytes of voxels; the pair that was read last is kept however large.
    """

    def __init__(self, source: Source, size: int = 3, limit: int = 2**30):
        self.source, self.size, self.limit = source, size, limit
        self._pairs: OrderedDict[tuple[str, str], CasePair] = OrderedDict()
        self._lock = threading.Lock()

    def ready(self, syntheticId: str, trainingId: str = "") -> CasePair | None:
        """The pair if it has been read already."""
        with self._lock:
            return self._pairs.get((syntheticId, trainingId))

    def get(
        self, syntheticId: str, trainingId: str = "", *, progress: Progress = silent, cancelled: Cancelled = never
    ) -> CasePair:
        """The pair, read from the source unless it is here; call it ahead of time to prefetch."""
        found = self.ready(syntheticId, trainingId)
        if found is None:
            found = self.source.pair(syntheticId, trainingId, progress=progress, cancelled=cancelled)
        with self._lock:
            self._pairs[syntheticId, trainingId] = found
            self._pairs.move_to_end((syntheticId, trainingId))
            while len(self._pairs) > self.size or (len(self._pairs) > 1 and self._bytes() > self.limit):
                self._pairs.popitem(last=False)
        return found

    def _bytes(self) -> int:
        return sum(p.synthetic.array.nbytes + p.training.array.nbytes for p in self._pairs.values())


class Steps:
    """Reports progress step by step, and stops once the work is cancelled.

    Args:
        total: how many calls make the whole.
    """

    def __init__(self, total: int, progress: Progress, cancelled: Cancelled):
        self.total, self._progress, self._cancelled, self._done = total, progress, cancelled, 0

    def __call__(self, stage: str) -> None:
        """A step begins. Raises LoadCancelled."""
        if self._cancelled():
            raise LoadCancelled("Cancelled.")
        self._progress(stage, self._done, self.total - 1)
        self._done += 1
