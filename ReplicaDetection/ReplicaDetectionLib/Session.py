"""Session: the work of one reader: the source, the case on screen and its rating, without widgets.

Panels call its methods and listen to its events; whatever takes long runs in the background, and the events come when
it is done.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from replica_detection.errors import AccessDeniedError, ReplicaDetectionError
from replica_detection.readers.ratings import Rating
from replica_detection.results.schema import AgreementReport, Histogram, Status, WorklistItem
from ReplicaDetectionLib.CaseList import CaseList
from ReplicaDetectionLib.CasePair import CasePair
from ReplicaDetectionLib.Events import Activities, Event
from ReplicaDetectionLib.PairLoader import PairLoader
from ReplicaDetectionLib.Reading import Reading
from ReplicaDetectionLib.Sources import PairCache, Source
from ReplicaDetectionLib.Translation import _

# What a server answers to a reader who may not see it; 401 is for keys that are none.
FORBIDDEN = 403


class Session:
    """State of the reading.

    Args:
        transport: runs what takes long (`Transport`).
        logic: shows pairs (`ReplicaDetectionLogic`).

    Attributes:
        source, status: where cases come from; None without a connection.
        reachable: whether the source answered when it was asked last.
        list: the CaseList, None without a source.
        item: the case on screen as the list states it; None for none, and for an image that was sent.
        reading: its rating.

    Events:
        sourceChanged(): source, status, reader or reachability.
        listChanged(): see CaseList.
        caseChanged(): another pair is on screen, or none, or its blinding began or ended.
        draftChanged(): rating, comment, or whether they may be stored.
        told(str): a note for the user.
    """

    def __init__(self, transport: Any, logic: Any):
        self.logic, self.activities = logic, Activities(transport)
        self.sourceChanged, self.listChanged, self.caseChanged = Event(), Event(), Event()
        self.draftChanged, self.told = Event(), Event()
        self.failed = self.activities.failed
        self.reading = Reading()
        self.typedReader = ""
        self.source: Source | None = None
        self.status: Status | None = None
        self.reachable = False
        self.list: CaseList | None = None
        self.item: WorklistItem | None = None
        self._loader: PairLoader | None = None
        self._histograms: list[Histogram] | None = None
        self._saving = self._polling = False

    @property
    def reader(self) -> str:
        """Name of the reader: the one that belongs to the key, else the one that was typed."""
        return (self.status.reader if self.status else "") or self.typedReader

    @property
    def blinded(self) -> bool:
        """True in a blinded reading."""
        return self.list is not None and self.list.blinding is not None

    @property
    def hidden(self) -> bool:
        """True while the pair on screen is blinded: scores and names are hidden."""
        return self.blinded and self.pair is not None and self.item is not None and not self.reading.revealed

    @property
    def pair(self) -> CasePair | None:
        return self.logic.pair

    # --- source

    def open(self, make: Callable[[Any], Source]) -> None:
        """Opens a source; `make` runs in the background and gets its task, to report progress."""

        def work(task: Any) -> tuple[Source, Status]:
            source = make(task)
            return source, source.status()

        self.close()
        self.activities.start(_("Connecting"), work, lambda found: self._opened(*found))

    def _opened(self, source: Source, status: Status) -> None:
        self.source, self.status, self.reachable = source, status, True
        self.list = CaseList(self.activities, source, lambda: self.reader)
        self.list.changed.connect(self.listChanged)
        self.list.told.connect(self.told)
        self._loader = PairLoader(self.activities, PairCache(source), self._show)
        self.sourceChanged()
        if status.problem:
            self.failed(status.problem)
        self._readOwnRatings()
        self.list.refresh()

    def close(self) -> None:
        """Leaves the source and takes the case off the screen. Ratings that were not stored are lost."""
        self.cancel()
        self.closeCase()
        self.source = self.status = self.list = self._loader = self._histograms = None
        self.reachable, self.reading = False, Reading()
        for event in (self.sourceChanged, self.listChanged, self.caseChanged, self.draftChanged):
            event()

    def poll(self) -> None:
        """Checks that the server still answers; without messages, for a timer."""
        source = self.source
        if source is None or not source.remote or self._polling:
            return

        def heard(status: Status | None) -> None:
            self._polling = False
            now = (status or self.status, status is not None)
            if self.source is source and now != (self.status, self.reachable):
                self.status, self.reachable = now
                self.sourceChanged()

        self._polling = True
        self.activities.transport.run(lambda task: source.status(), heard, lambda message: heard(None))

    def setReader(self, name: str) -> None:
        """Sets the reader's name, for sources that do not know it from a key."""
        if name.strip() == self.typedReader:
            return
        self.typedReader = name.strip()
        self.sourceChanged()
        self.draftChanged()
        if self.list is not None:
            self._readOwnRatings()
            self.list.refresh()

    def _readOwnRatings(self) -> None:
        source, reader, reading = self.source, self.reader, self.reading
        reading.forgetStored()
        if not reader:
            return

        def done(ratings: list[Rating]) -> None:
            if self.reader == reader:
                reading.addStored(ratings)
                self.draftChanged()

        self.activities.start(_("Reading your ratings"), lambda task: source.ratings(reader), done)

    def setBlinded(self, key: str) -> None:
        """Begins a blinded reading with a study's key, or ends it with ""; either way no case stays on screen."""
        self.closeCase()
        self.list.blind(key, self.caseChanged)

    # --- case

    def openItem(self, item: WorklistItem, trainingId: str = "") -> None:
        """Shows a case beside a training image, "" for the nearest one."""
        self.reading.pause()
        self.item = item
        self.list.setCurrent(item)
        if self.logic.pair is not None and not self._loader.isReady(item.synthetic_id, trainingId):
            # The case before must not stand there under another name.
            self.logic.clear()
            self.caseChanged()
        self._loader.want(item.synthetic_id, trainingId)
        self.draftChanged()

    def step(self, step: int) -> None:
        """Opens the next (1) or previous (-1) case of the list."""
        if self.list is not None:
            self.list.step(step, self.openItem)

    def openNextUnrated(self) -> None:
        """Opens the most suspicious case that this reader has not rated."""

        def found(item: WorklistItem | None) -> None:
            if item is None:
                self.told(_("Every case is rated."))
            else:
                self.openItem(item)

        if self.list is not None:
            self.list.nextUnrated(found)

    def openMatch(self, trainingId: str) -> None:
        """Shows another training image beside the case on screen; the slices keep their position."""
        if self.item is None:
            self.told(_("For an image that you sent, only the nearest match can be shown."))
        elif self.pair is not None and self.pair.training.id != trainingId:
            self._loader.want(self.item.synthetic_id, trainingId)

    def _show(self, pair: CasePair) -> None:
        before = self.logic.pair
        same = before is not None and before.synthetic.id == pair.synthetic.id
        self.logic.showPair(pair, self.list.blinding if self.item else None, keepPosition=same)
        self.reading.begin(pair)
        self.caseChanged()
        self.draftChanged()
        self._readAhead()

    def _readAhead(self) -> None:
        """Reads ahead the next row and the case that "save and next" would open."""
        loader, shown = self._loader, self.item

        def read(item: WorklistItem | None) -> None:
            if item is not None and item != shown and self._loader is loader:
                loader.ahead(item.synthetic_id)

        read(self.list.following())
        self.list.nextUnrated(read, quietly=True)

    def closeCase(self) -> None:
        """Takes the case off the screen."""
        if self.logic.pair is not None:
            self.logic.clear()
        self._forgetCase()

    def forgetScene(self) -> None:
        """Drops the case after the scene was closed, which removed its nodes."""
        self.logic.forget()
        self._forgetCase()

    def _forgetCase(self) -> None:
        if self._loader is not None:
            self._loader.giveUp()
        self.reading.pause()
        self.item = None
        if self.list is not None:
            self.list.setCurrent(None)
        self.caseChanged()
        self.draftChanged()

    def compareImage(self, path: str, mask: str, afterwards: Callable[[], None]) -> None:
        """Sends an image file to the server and shows it beside its nearest match. The user has agreed to that.

        Args:
            afterwards: called once the files are not needed any more, unless it is cancelled.
        """
        source = self.source

        def work(task: Any) -> CasePair:
            comparison = source.compareImage(path, mask)
            if not comparison.nearest_training_id:
                raise ReplicaDetectionError(_("No training image can be compared with this one."))
            task.progress(_("Reading the nearest match"), 0, 0)
            return source.pairWith(comparison, path, mask=mask)

        def done(pair: CasePair) -> None:
            afterwards()
            if self.source is source:
                self._forgetCase()
                self._show(pair)

        def failed(message: str) -> None:
            afterwards()
            self.failed(message)

        self.activities.start(_("Comparing the image"), work, done, failed)

    # --- rating

    @property
    def whyNotRated(self) -> str:
        """The reason that the case cannot be rated; "" if it can."""
        if self.pair is None:
            return _("Open a case to rate it.")
        if self.item is None:
            return _("An image that was sent for comparison belongs to no collection; it cannot be rated.")
        if not self.reader:
            return _("Enter your name to rate.")
        if self.reading.revealed:
            return _("Rated blinded. Names and scores are shown now, so this rating can no longer be changed.")
        return ""

    def rate(self, rating: int) -> None:
        """Chooses a point of the scale; nothing is stored yet."""
        if not self.whyNotRated:
            self.reading.choose(rating)
            self.draftChanged()

    def setComment(self, text: str) -> None:
        if not self.whyNotRated and self.reading.setComment(text):
            self.draftChanged()

    def undo(self) -> None:
        """Takes back the last choice; when there is none, goes back to the case that was stored last."""
        if self.reading.undo():
            self.draftChanged()
            return
        saved = self.reading.takeLastSaved(self.item.synthetic_id if self.item else "")
        if saved is None or self.list is None:
            self.told(_("There is nothing to undo."))
            return
        item = self.list.find(saved.synthetic_id)
        item = item or WorklistItem(saved.synthetic_id, nearest_training_id=saved.training_id, rating=saved.rating)
        self.openItem(item, "" if saved.training_id == item.nearest_training_id else saved.training_id)

    def save(self, andNext: bool = False) -> None:
        """Stores the rating; goes on only once it is stored."""
        if self._saving:
            return
        if andNext and self.reading.revealed:
            self.openNextUnrated()
        elif self.whyNotRated:
            self.failed(self.whyNotRated)
        elif self.reading.dirty:
            self._store(andNext)
        elif self.reading.draft.rating is None:
            self.failed(_("Choose 1, 2, 3 or 4 first."))
        elif andNext:
            self.openNextUnrated()

    def _store(self, andNext: bool) -> None:
        source, pair = self.source, self.pair
        rating = self.reading.rating(self.reader, self.blinded)

        def done(receipt: Any) -> None:
            self._saving = False
            self.reading.saved(replace(rating, rating_id=receipt.rating_id, created=receipt.created))
            self.list.markRated(rating)
            if self.pair is pair and andNext:
                self.openNextUnrated()
            elif self.pair is pair and self.blinded:
                self.logic.reveal()
                self.reading.revealed = True
                self.caseChanged()
                self.listChanged()
            self.draftChanged()

        def failed(message: str) -> None:
            self._saving = False
            self.failed(message)

        self._saving = True
        self.activities.start(_("Saving the rating"), lambda task: source.saveRating(rating), done, failed)

    # --- the whole set

    def readHistograms(self, done: Callable[[list[Histogram]], None]) -> None:
        """Gives `done` the ratios of all cases, read once for a source."""
        if self._histograms is not None:
            done(self._histograms)
            return
        source = self.source

        def keep(histograms: list[Histogram]) -> None:
            if self.source is source:
                self._histograms = histograms
                done(histograms)

        self.activities.start(_("Reading the ratios"), lambda task: source.histograms(), keep)

    @property
    def seesAllRatings(self) -> bool:
        """True if the source shows this reader the ratings of all readers; also if the source does not say."""
        return self.status is None or self.status.sees_all_ratings

    def readAgreement(self, done: Callable[[AgreementReport | None], None]) -> None:
        """Gives `done` the agreement, or None if the source shows it only to reviewers."""
        source = self.source

        def read(task: Any) -> AgreementReport | None:
            try:
                return source.agreement()
            except AccessDeniedError as error:
                if error.status != FORBIDDEN:
                    raise
                return None

        self.activities.start(_("Comparing the readers"), read, done)

    def cancel(self) -> None:
        """Cancels everything that the user waits for."""
        self._saving = False
        self.activities.cancel()
        if self._loader is not None:
            self._loader.cancel()
