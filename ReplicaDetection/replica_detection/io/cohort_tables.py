"""Lists of a cohort: the CSV of images, the CSV of patients, and the Decathlon's dataset.json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replica_detection.errors import InputError
from replica_detection.io.paths import composed, require_readable
from replica_detection.util.csv_tables import original

Report = Callable[[InputError], None]


@dataclass(frozen=True)
class Row:
    """One line of a list. `id` None: the name of the image file is the id. `origin` says where it stands."""

    id: str | None
    image: Path
    origin: str
    mask: Path | None = None
    patient: str | None = None


def read_table(path: Path, report: Report) -> list[Row]:
    """Rows of a CSV `id,image[,mask][,patient]`; paths are relative to the CSV.

    Raises:
        InputError: the file is not a UTF-8 table, or lacks a column. A faulty row goes to `report` instead.
    """
    rows = []
    for line, cells in read_cells(path, required=("id", "image")):
        missing = [name for name in ("id", "image") if not cells[name]]
        if missing:
            report(
                InputError(
                    path, f"line {line} has no {' and no '.join(missing)}", "Fill in the cell or delete the line"
                )
            )
            continue
        mask = path.parent / cells["mask"] if cells.get("mask") else None
        name = composed(cells["id"])
        rows.append(
            Row(name, path.parent / cells["image"], f"line {line} of {path.name}", mask, cells.get("patient") or None)
        )
    return rows


def read_patients(path: Path) -> dict[str, str]:
    """Patient of each case id, from a CSV `id,patient`; rows without a patient are left out.

    Raises:
        InputError: the file is not a UTF-8 table, lacks a column, or gives one id two patients.
    """
    patients: dict[str, str] = {}
    for line, cells in read_cells(path, required=("id", "patient")):
        name, patient = composed(cells["id"]), cells["patient"]
        if name and patient and patients.setdefault(name, patient) != patient:
            raise InputError(path, f"line {line} gives the id {name!r} a second patient", "Keep one line for each id")
    return patients


def read_decathlon(path: Path, report: Report) -> list[Row]:
    """Rows of a Medical Segmentation Decathlon `dataset.json`, paths relative to it.

    The training part holds `{"image": ..., "label": ...}` or plain paths; the test part is read where there is no
    training part. An entry of another kind goes to `report`.

    Raises:
        InputError: the file is not JSON of this shape.
    """
    advice = 'Give a Decathlon dataset.json: {"training": [{"image": "./imagesTr/a.nii.gz"}, ...]}'
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"is not JSON ({error})", advice) from error
    entries = (content.get("training") or content.get("test")) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise InputError(path, 'has no list "training"', advice)
    rows = []
    for number, entry in enumerate(entries, 1):
        image: Any = entry.get("image") if isinstance(entry, dict) else entry
        label: Any = entry.get("label") if isinstance(entry, dict) else None
        if not (_is_path(image) and (label is None or _is_path(label))):
            report(InputError(path, f'entry {number} of "training" names no single image file', advice))
            continue
        rows.append(
            Row(None, path.parent / image, f"entry {number} of {path.name}", path.parent / label if label else None)
        )
    return rows


def _is_path(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


def read_cells(
    path: Path, required: tuple[str, ...], verbatim: tuple[str, ...] = ()
) -> list[tuple[int, dict[str, str]]]:
    """Line number and cells by lower-case column name of each row that is not blank.

    Cells are stripped, except those of the columns `verbatim`; the apostrophe that `csv_rows` puts before what a
    spreadsheet would take for a formula is taken off.
    """
    text = _text(path)
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    advice = f"Save the table as CSV in UTF-8 with the columns {','.join(required)}"
    try:
        columns = [cell.strip().lower() for cell in next(reader, [])]
        kept = {n for n, name in enumerate(columns) if name in verbatim}
        lines = [
            (reader.line_num, [original(cell if n in kept else cell.strip()) for n, cell in enumerate(row)])
            for row in reader
        ]
    except csv.Error as error:
        raise InputError(path, f"line {reader.line_num} cannot be read as CSV ({error})", advice) from error
    missing = [name for name in required if name not in columns]
    if missing:
        found = f"has no column {' and no column '.join(missing)} (it has: {', '.join(columns) or 'none'})"
        raise InputError(path, found, advice)
    if len(set(columns)) < len(columns):
        raise InputError(path, f"has a column twice ({', '.join(columns)})", advice)
    if any("\0" in cell for _, row in lines for cell in row):
        raise InputError(path, "holds NUL characters", advice)
    padding = [""] * len(columns)
    return [(line, dict(zip(columns, row + padding, strict=False))) for line, row in lines if any(map(str.strip, row))]


def _text(path: Path) -> str:
    require_readable(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"is not UTF-8 text (byte {error.start} is 0x{error.object[error.start]:02x})"
        raise InputError(path, found, "Save it as UTF-8 (in Excel: CSV UTF-8)") from error
    except OSError as error:
        advice = "Check that the file exists and that you may read it"
        raise InputError(path, f"cannot be read ({error.strerror or error})", advice) from error
