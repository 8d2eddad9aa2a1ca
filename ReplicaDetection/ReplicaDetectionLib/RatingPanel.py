"""RatingPanel: four points, a comment, and the way to the next case."""

from __future__ import annotations

from typing import Any

import slicer

from replica_detection.readers.ratings import REPLICA_FROM, SCALE
from ReplicaDetectionLib.Blinding import Blinding
from ReplicaDetectionLib.Panel import Panel, quietly
from ReplicaDetectionLib.Settings import Settings
from ReplicaDetectionLib.Translation import _


class RatingPanel(Panel):
    """The scale is that of the core; what is chosen is stored only by a save button."""

    def __init__(self, session: Any, settings: Settings):
        super().__init__(session)
        self.settings = settings
        ui = self.ui
        self.buttons = {point: getattr(ui, f"rating{point}Button") for point in SCALE}
        for point, button in self.buttons.items():
            button.setText(f"{point}  {_(SCALE[point])}")
            button.setToolTip(_("Key {key}").format(key=point))
            button.connect("clicked()", self._chooser(point))
        replicas = " {} ".format(_("and")).join(str(p) for p in SCALE if p >= REPLICA_FROM)
        meaning = _("{points} count as a replica. Keys 1 to {last}.")
        ui.meaningLabel.setText(meaning.format(points=replicas, last=max(SCALE)))
        with quietly(ui.readerEdit):
            ui.readerEdit.setText(settings.reader)
        session.setReader(settings.reader)
        ui.readerEdit.connect("editingFinished()", self._setReader)
        ui.blindedBox.connect("clicked()", self._setBlinded)
        ui.commentEdit.connect("textEdited(QString)", session.setComment)
        ui.commentEdit.connect("returnPressed()", lambda: session.save(True))
        ui.undoButton.connect("clicked()", session.undo)
        ui.saveButton.connect("clicked()", lambda: session.save())
        ui.saveNextButton.connect("clicked()", lambda: session.save(True))
        for event in (session.sourceChanged, session.caseChanged, session.draftChanged, session.activities.changed):
            event.connect(self._update)
        self._update()

    def _chooser(self, point: int) -> Any:
        def choose() -> None:
            self.session.rate(point)
            self._update()  # also where nothing changed: a second click must not take the mark away

        return choose

    def _setReader(self) -> None:
        name = self.ui.readerEdit.text.strip()
        self.settings.reader = name
        self.session.setReader(name)

    def _setBlinded(self) -> None:
        """Begins or ends a blinded reading; the key stays, so that a reading can go on another day."""
        if not self.ui.blindedBox.checked:
            question = _("End the blinded reading? Names and scores of all cases will be shown.")
            if not slicer.util.confirmYesNoDisplay(question, windowTitle=_("Blinded reading")):
                self._update()
                return
            self.session.setBlinded("")
            return
        if not self.settings.blindingKey:
            self.settings.blindingKey = Blinding.newKey()
        self.session.setBlinded(self.settings.blindingKey)

    def _update(self) -> None:
        ui, session, reading = self.ui, self.session, self.session.reading
        why = session.whyNotRated
        rateable = not why
        draft = reading.draft if rateable or reading.revealed else None
        for point, button in self.buttons.items():
            button.setEnabled(rateable)
            with quietly(button):
                button.setChecked(draft is not None and draft.rating == point)
        ui.commentEdit.setEnabled(rateable)
        comment = draft.comment if draft else ""
        if ui.commentEdit.text != comment:
            with quietly(ui.commentEdit):
                ui.commentEdit.setText(comment)
        idle = session.activities.current is None
        ui.saveButton.setEnabled(rateable and reading.dirty and idle)
        onward = reading.dirty or reading.stored is not None
        ui.saveNextButton.setEnabled(session.pair is not None and (reading.revealed or (rateable and onward)) and idle)
        ui.undoButton.setEnabled(session.list is not None and reading.canUndo(session.item))
        self._updateReader()
        ui.savedLabel.setText(why or self._state())

    def _updateReader(self) -> None:
        ui, session = self.ui, self.session
        known = session.status.reader if session.status else ""
        ui.readerEdit.setEnabled(not known)
        text = known or session.typedReader
        if not ui.readerEdit.hasFocus() and ui.readerEdit.text != text:
            with quietly(ui.readerEdit):
                ui.readerEdit.setText(text)
        ui.blindedBox.setEnabled(session.list is not None and bool(session.reader))
        with quietly(ui.blindedBox):
            ui.blindedBox.setChecked(session.blinded)

    def _state(self) -> str:
        reading = self.session.reading
        if reading.dirty:
            return _("Not saved yet.")
        if reading.stored is None:
            return ""
        stored = reading.stored
        text = _("Saved: {rating}, after {seconds} s").format(rating=stored.rating, seconds=round(stored.seconds))
        return text + (_(", blinded") if stored.blinded else "")
