"""Rows of CSV files whose text no spreadsheet runs as a formula. Imports with the standard library alone."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from typing import IO, Any

# What a spreadsheet takes for a formula, or for the end of the cell before it; full-width signs count in some.
_FORMULA = re.compile(r"""[\s'"]*[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]""")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|nan)")


def write_rows(file: IO[str], rows: Iterable[Iterable[Any]]) -> None:
    """Writes rows of cells; None is an empty cell. Text that a spreadsheet would run gets an apostrophe (`defused`)."""
    line = io.StringIO(newline="")
    # Lines end with \n alone; told of both, the module also quotes a cell that holds a lone \r.
    writer = csv.writer(line, lineterminator="\r\n")
    for row in rows:
        writer.writerow([defused(cell) if isinstance(cell, str) else cell for cell in row])
        file.write(line.getvalue().removesuffix("\r\n") + "\n")
        line.seek(0)
        line.truncate()


def defused(text: str) -> str:
    """The text, with an apostrophe before it where a spreadsheet would take it for a formula; numbers stay numbers."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def original(cell: str) -> str:
    """The text that `defused` was given."""
    return cell[1:] if cell.startswith("'") and defused(cell[1:]) != cell[1:] else cell
