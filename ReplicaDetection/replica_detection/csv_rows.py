"""Rows of CSV files whose text no spreadsheet runs as a formula. Imports with the standard library alone."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from typing import IO, Any

# What a spreadsheet takes for a formula, or for the end of the cell before it; full-width signs count in some.
_FORMULA = re.compile(r"""[\s'"]*[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]""")
# What follows the end of a cell in a spreadsheet that does not separate at commas, or that does not heed quotes.
_BEHIND_END = re.compile(r"(?<=[;\t\r\n])[^;\t\r\n]+")
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
    """The text, with an apostrophe wherever a spreadsheet would take what follows for a formula; numbers stay numbers.

    That is before the text, and behind each sign in it at which some spreadsheets end a cell.
    """
    inner = _BEHIND_END.sub(lambda part: f"'{part[0]}" if _is_formula(part[0]) else part[0], text)
    return f"'{inner}" if _is_formula(text) else inner


def original(cell: str) -> str:
    """The text that `defused` was given."""
    return _bare(_BEHIND_END.sub(lambda part: _bare(part[0]), cell))


def _bare(text: str) -> str:
    return text[1:] if text.startswith("'") and _is_formula(text[1:]) else text


def _is_formula(text: str) -> bool:
    return bool(_FORMULA.match(text)) and not _NUMBER.fullmatch(text)
