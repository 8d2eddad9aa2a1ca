"""Panel: what all panels share: the .ui file, tables, and changes of widgets without signals."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import qt
import slicer

RESOURCES = Path(__file__).resolve().parent.parent / "Resources"
ROW_HEIGHT = 22
# Dark enough on white and light enough on black; the word always stands beside the colour.
VERDICT_COLOURS = {"replica": "#c62828", "suspicious": "#b26a00", "undecided": "#7e57c2", "novel": "#2e7d32"}


class Panel:
    """A part of the module's widget, named as its file in Resources/UI.

    Args:
        session: what the panel shows and steers.
    """

    def __init__(self, session: Any):
        self.session = session
        self.widget = slicer.util.loadUI(str(RESOURCES / "UI" / f"{type(self).__name__}.ui"))
        self.ui = slicer.util.childWidgetVariables(self.widget)


@contextmanager
def quietly(*widgets: Any) -> Iterator[None]:
    """Blocks the signals of widgets."""
    before = [widget.blockSignals(True) for widget in widgets]
    try:
        yield
    finally:
        for widget, blocked in zip(widgets, before, strict=True):
            widget.blockSignals(blocked)


def dressTable(table: Any, wide: int = -1) -> None:
    """Narrow rows without numbers; `wide`: the column that takes the remaining width."""
    table.verticalHeader().setVisible(False)
    table.verticalHeader().setDefaultSectionSize(ROW_HEIGHT)
    if wide >= 0:
        header = table.horizontalHeader()
        for column in range(table.columnCount):
            header.setSectionResizeMode(column, qt.QHeaderView.ResizeToContents)
        header.setSectionResizeMode(wide, qt.QHeaderView.Stretch)


def fillTable(table: Any, rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> None:
    """Replaces the rows of a table.

    Args:
        numbers: columns that are aligned as numbers.
    """
    with quietly(table):
        table.setRowCount(0)
        table.setRowCount(len(rows))
        for r, row in enumerate(rows):
            for c, text in enumerate(row):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(text)
                if c in numbers:
                    item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
                colour = VERDICT_COLOURS.get(text.partition(":")[0])  # a reason may follow
                if colour:
                    item.setForeground(qt.QBrush(qt.QColor(colour)))
                table.setItem(r, c, item)
    table.resizeColumnsToContents()


def selectRow(table: Any, row: int) -> None:
    """Selects a row, none for -1, without signals."""
    with quietly(table):
        table.clearSelection()
        if row >= 0:
            table.setCurrentCell(row, 0)


def number(value: float | None, digits: int = 3) -> str:
    """A number as tables show it: rounded for reading; a dash if it is undefined."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value != 0 and abs(value) < 10**-digits:
        return f"{value:.1e}"
    return f"{value:.{digits}f}"
