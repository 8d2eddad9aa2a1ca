"""CSV tables, written whole or not at all. No spreadsheet runs their text as a formula.

Imports with the standard library alone.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

from replica_detection.util.files import atomic_write

# Text that a spreadsheet takes for a formula, or for the end of the cell before; some count full-width signs.
_FORMULA = re.compile(r"""[\s'"]*[=+\-@\t\r\uff1d\uff0b\uff0d\uff20]""")
# Text after the end of a cell, for spreadsheets that split at other separators or ignore quotes.
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
    """The text with an apostrophe before everything that a spreadsheet would run as a formula; numbers stay numbers.

    The apostrophe goes before the text, and after each character in it at which some spreadsheets end a cell.
    """
    inner = _BEHIND_END.sub(lambda part: f"'{part[0]}" if _is_formula(part[0]) else part[0], text)
    return f"'{inner}" if _is_formula(text) else inner


def original(cell: str) -> str:
    """The inverse of `defused`."""
    return _bare(_BEHIND_END.sub(lambda part: _bare(part[0]), cell))


def _bare(text: str) -> str:
    return text[1:] if text.startswith("'") and _is_formula(text[1:]) else text


def _is_formula(text: str) -> bool:
    return bool(_FORMULA.match(text)) and not _NUMBER.fullmatch(text)


@runtime_checkable
class Interval(Protocol):
    """A value with the two ends of its interval, such as `statistics.intervals.Estimate`."""

    @property
    def value(self) -> float: ...

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, exact: bool = False) -> None:
    """Writes a header and the columns of each row; a missing or undefined number (NaN) is an empty cell.

    An interval under `name` fills the columns `name`, `name_low` and `name_high`. A tuple is joined by semicolons.

    Args:
        exact: write numbers with all digits, so that they read back as the same floats; else with ten significant
            digits.
    """
    with atomic_write(Path(path)) as f:
        write_rows(f, [columns])
        write_rows(f, (_cells(row, columns, exact) for row in rows))


def estimate_columns(*names: str) -> tuple[str, ...]:
    """`name`, `name_low`, `name_high` of each."""
    return tuple(column for name in names for column in (name, f"{name}_low", f"{name}_high"))


def _cells(row: Mapping[str, Any], columns: Sequence[str], exact: bool) -> list[Any]:
    cells = dict(row)
    for name, value in row.items():
        if isinstance(value, Interval):
            cells |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
    return [_cell(cells.get(name), exact) for name in columns]


def _cell(value: Any, exact: bool) -> Any:
    if value is None:
        return ""
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(float(value)) if exact else f"{value:.10g}"
    if isinstance(value, bool):
        return int(value)
    return ";".join(map(str, value)) if isinstance(value, (tuple, list)) else value
