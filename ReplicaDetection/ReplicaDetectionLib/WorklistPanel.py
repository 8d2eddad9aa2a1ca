"""WorklistPanel: the cases, a page at a time, with sorting, filters and navigation."""

from __future__ import annotations

from typing import Any

import qt

from replica_detection.results.result import TO_REVIEW
from ReplicaDetectionLib.CaseList import PAGE
from ReplicaDetectionLib.Panel import Panel, dressTable, fillTable, number, quietly, selectRow
from ReplicaDetectionLib.Translation import _

SORT_OF_COLUMN = {0: "synthetic_id", 1: "rating", 2: "score", 3: "verdict"}
RATING, NUMBERS = 1, (1, 2)


class WorklistPanel(Panel):
    """In a blinded reading the table shows only codes and the reader's own ratings."""

    def __init__(self, session: Any):
        super().__init__(session)
        ui = self.ui
        for text, verdicts in (
            (_("All verdicts"), ""),
            (_("To be looked at"), " ".join(TO_REVIEW)),
            (_("Replica or suspicious"), "replica suspicious"),
            (_("Replica"), "replica"),
            (_("Suspicious"), "suspicious"),
            (_("Undecided"), "undecided"),
            (_("Novel"), "novel"),
            (_("Undefined"), "undefined"),
        ):
            ui.verdictBox.addItem(text, verdicts)
        for text, rated in ((_("All cases"), "any"), (_("Not rated by me"), "no"), (_("Rated by me"), "yes")):
            ui.ratedBox.addItem(text, rated)
        header = ui.caseTable.horizontalHeader()
        header.setSectionsClickable(True)
        header.setSortIndicatorShown(True)
        dressTable(ui.caseTable)
        header.sectionClicked.connect(self._sort)
        ui.verdictBox.connect("currentIndexChanged(int)", lambda index: self._filter())
        ui.ratedBox.connect("currentIndexChanged(int)", lambda index: self._filter())
        ui.searchEdit.connect("editingFinished()", self._filter)
        ui.caseTable.connect("cellClicked(int,int)", lambda row, column: self._open(row))
        ui.caseTable.connect("cellActivated(int,int)", lambda row, column: self._open(row))
        ui.pageBackButton.connect("clicked()", lambda: self._turn(-1))
        ui.pageForwardButton.connect("clicked()", lambda: self._turn(1))
        ui.refreshButton.connect("clicked()", lambda: session.list.refresh())
        ui.previousButton.connect("clicked()", lambda: session.step(-1))
        ui.nextButton.connect("clicked()", lambda: session.step(1))
        ui.nextUnratedButton.connect("clicked()", session.openNextUnrated)
        session.listChanged.connect(self._update)
        session.draftChanged.connect(self._updateRatings)
        self._shown: Any = None
        self._update()

    def _open(self, row: int) -> None:
        items = self.session.list.items
        shown = self.session.item.synthetic_id if self.session.item else ""
        if 0 <= row < len(items) and items[row].synthetic_id != shown:
            self.session.openItem(items[row])

    def _sort(self, column: int) -> None:
        cases = self.session.list
        sort = SORT_OF_COLUMN.get(column)
        if cases is None or cases.blinding is not None or sort is None:
            self._showOrder()
            return
        # Names read upwards, numbers and verdicts with the most suspicious first; a second click turns round.
        descending = not cases.query.descending if cases.query.sort == sort else sort != "synthetic_id"
        cases.setQuery(sort=sort, descending=descending)

    def _filter(self) -> None:
        if self.session.list is not None:
            self.session.list.setQuery(
                verdicts=tuple(self.ui.verdictBox.currentData.split()),
                rated=self.ui.ratedBox.currentData,
                search=self.ui.searchEdit.text.strip(),
            )

    def _turn(self, pages: int) -> None:
        self.session.list.setQuery(offset=self.session.list.query.offset + pages * PAGE)

    def _update(self) -> None:
        cases, blinded = self.session.list, self.session.blinded
        items = cases.items if cases else ()
        for widget in (self.ui.verdictBox, self.ui.searchEdit):
            widget.setEnabled(cases is not None and not blinded)
        for widget in (self.ui.ratedBox, self.ui.refreshButton):
            widget.setEnabled(cases is not None)
        for widget in (self.ui.previousButton, self.ui.nextButton, self.ui.nextUnratedButton):
            widget.setEnabled(bool(items))
        self.ui.nextUnratedButton.setText(_("Next not rated") if blinded else _("Next most suspicious"))
        shown = (items, blinded)
        if shown != self._shown:
            self._shown = shown
            fillTable(self.ui.caseTable, [self._cells(item) for item in items], NUMBERS)
            for column in range(2, 6):
                self.ui.caseTable.setColumnHidden(column, blinded)
        self._showOrder()
        self._showFilter()
        selectRow(self.ui.caseTable, cases.row if cases else -1)
        self._showPage(len(items))

    def _cells(self, item: Any) -> list[str]:
        rating = self._rating(item)
        if self.session.blinded:
            return [self.session.list.code(item), rating, "", "", "", ""]
        levels = ", ".join(item.levels_flagged)
        if item.levels_differ:
            levels += _(" (other match)")
        verdict = f"{item.verdict}: {item.reason}" if item.reason else item.verdict
        return [item.synthetic_id, rating, number(item.score), verdict, item.nearest_training_id, levels]

    def _rating(self, item: Any) -> str:
        """The rating of a case, in brackets if it is not saved yet."""
        unsaved = self.session.reading.unsaved(item.synthetic_id)
        if unsaved is not None and unsaved != item.rating:
            return f"({unsaved})"
        return "" if item.rating is None else str(item.rating)

    def _updateRatings(self) -> None:
        items = self.session.list.items if self.session.list else ()
        for row, item in enumerate(items[: self.ui.caseTable.rowCount]):
            text, cell = self._rating(item), self.ui.caseTable.item(row, RATING)
            if cell.text() != text:
                cell.setText(text)

    def _showOrder(self) -> None:
        cases, header = self.session.list, self.ui.caseTable.horizontalHeader()
        if cases is None or cases.blinding is not None:
            header.setSortIndicator(-1, qt.Qt.AscendingOrder)
            return
        column = next(c for c, sort in SORT_OF_COLUMN.items() if sort == cases.query.sort)
        header.setSortIndicator(column, qt.Qt.DescendingOrder if cases.query.descending else qt.Qt.AscendingOrder)

    def _showFilter(self) -> None:
        query = self.session.list.query if self.session.list else None
        if query is None:
            return
        with quietly(self.ui.verdictBox, self.ui.ratedBox, self.ui.searchEdit):
            self.ui.verdictBox.setCurrentIndex(max(0, self.ui.verdictBox.findData(" ".join(query.verdicts))))
            self.ui.ratedBox.setCurrentIndex(max(0, self.ui.ratedBox.findData(query.rated)))
            if not self.ui.searchEdit.hasFocus():
                self.ui.searchEdit.setText(query.search)

    def _showPage(self, count: int) -> None:
        cases = self.session.list
        total, offset = (cases.page.total, cases.page.offset) if cases and cases.page else (0, 0)
        self.ui.pageBackButton.setEnabled(offset > 0)
        self.ui.pageForwardButton.setEnabled(offset + count < total)
        if cases is None:
            text = _("Choose a source above.")
        elif not total:
            text = _("No case matches the filter.")
        else:
            text = _("{first} to {last} of {total}").format(first=offset + 1, last=offset + count, total=total)
        self.ui.pageLabel.setText(text)
