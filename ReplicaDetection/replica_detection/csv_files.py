"""Tables as CSV files that are whole or not there. Needs numpy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from replica_detection.atomic import atomic_write
from replica_detection.csv_rows import write_rows
from replica_detection.intervals import Estimate


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes the columns of each row; a missing or undefined number (NaN) is an empty cell.

    An `Estimate` under `name` fills the columns `name`, `name_low` and `name_high`, a tuple is joined by semicolons.
    """
    with atomic_write(Path(path)) as f:
        write_rows(f, [columns])
        write_rows(f, (_cells(row, columns) for row in rows))


def estimate_columns(*names: str) -> tuple[str, ...]:
    """`name`, `name_low`, `name_high` of each."""
    return tuple(column for name in names for column in (name, f"{name}_low", f"{name}_high"))


def _cells(row: Mapping[str, Any], columns: Sequence[str]) -> list[Any]:
    cells = dict(row)
    for name, value in row.items():
        if isinstance(value, Estimate):
            cells |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
    return [_cell(cells.get(name)) for name in columns]


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.10g}"
    if isinstance(value, bool):
        return int(value)
    return ";".join(map(str, value)) if isinstance(value, (tuple, list)) else value
