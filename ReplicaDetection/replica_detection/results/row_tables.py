"""Tables whose rows are dataclasses, as CSV files. Imports with the standard library alone."""

from __future__ import annotations

import csv
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from replica_detection.errors import InputError
from replica_detection.util.csv_tables import original, write_csv


def write_table(path: Path, row_type: type, rows: Iterable[Any]) -> None:
    """A row for each dataclass of `row_type`, a column for each field; numbers in full precision."""
    write_csv(path, [f.name for f in dataclasses.fields(row_type)], map(vars, rows), exact=True)


def read_table(path: Path, row_type: type) -> Iterator[Any]:
    """The rows that `write_table` wrote. A field with a default may lack its column.

    Raises:
        InputError: a column is missing.
    """
    fields = {f.name: f.type for f in dataclasses.fields(row_type)}
    added = {f.name for f in dataclasses.fields(row_type) if f.default is not dataclasses.MISSING}  # by later versions
    parse: dict[str, Callable[[str], Any]] = {
        "float": lambda text: float(text) if text else math.nan,
        "int": int,
        "tuple[str, ...]": lambda text: tuple(text.split(";")) if text else (),
        "str": str,
    }
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as f:
        reader = csv.DictReader(f)
        missing = set(fields) - added - set(reader.fieldnames or ())
        if missing:
            raise InputError(path, f"lacks the columns {sorted(missing)}", "Run `replica-detection detect` again")
        for row in reader:
            known = {name: kind for name, kind in fields.items() if name in row}
            yield row_type(**{name: parse[str(kind)](original(row[name])) for name, kind in known.items()})
