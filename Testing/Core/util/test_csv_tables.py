"""No spreadsheet runs what a table holds, and every table reads back as it was."""

import csv
import io
import math
import re
import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from Core.readers.test_ratings import rating
from replica_detection.audit.cohort_duplicates import DuplicatePair, write_duplicates
from replica_detection.io.cohort_tables import read_cells
from replica_detection.readers.rating_tables import read_ratings, write_ratings
from replica_detection.results.result import CaseSummary
from replica_detection.results.row_tables import read_table, write_table
from replica_detection.util.csv_tables import defused, original, write_csv, write_rows

FORMULAS = [
    "=HYPERLINK(1)",
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1)",
    "\t=1+1",
    "\r=1+1",
    " =1+1",
    "'=1+1",
    '"=1+1',
    "\n=1+1",
    "  -x",
    "＝1+1",
    "-",
    "-1-",
]
text = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=12)
risky = st.text("=+-@\t\r\n '\";,x1.e", max_size=8)


def runs(cell: str) -> bool:
    """True if a spreadsheet that drops quotes and blanks before a cell takes it for a formula."""
    bare = cell.lstrip(" \n\"'\xa0") if not cell.startswith("'") else cell
    if not bare or bare[0] not in "=+-@\t\r＝":
        return False
    try:
        float(cell)
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("formula", FORMULAS)
def test_formulas_are_text(formula):
    assert runs(formula) or formula.startswith("'")
    assert defused(formula).startswith("'") and not runs(defused(formula)) and original(defused(formula)) == formula
    # As tables hold it that were written before.
    assert original(f"'{formula}") == formula


@pytest.mark.parametrize("end", [";", "\t", "\r", "\n", "\r\n", ";;"])
@pytest.mark.parametrize("formula", ["=HYPERLINK(1)", "+1+cmd|' /C calc'!A0", "@SUM(1)", " =1+1", '"=1+1', "-2+3"])
def test_formulas_behind_what_ends_a_cell_elsewhere_are_text(end, formula):
    given_text = f"ok{end}{formula}{end}more"
    assert defused(given_text) == f"ok{end}'{formula}{end}more"
    assert original(defused(given_text)) == given_text


@pytest.mark.parametrize(
    "plain",
    [
        "",
        "case 1",
        "1-2",
        "a=b",
        "-1",
        "+2.5",
        "-1e-05",
        "-.5",
        "-inf",
        "'s",
        '"',
        "a;b",
        "1;-2.5;+3",
        "a\nb-c",
        "a;'s",
    ],
)
def test_everything_else_stays_as_it_is(plain):
    assert defused(plain) == original(plain) == plain


@given(text | risky)
@example("''=")
@example("'")
def test_the_text_comes_back(given_text):
    assert original(defused(given_text)) == given_text and not runs(defused(given_text))
    assert not any(runs(part) for part in re.split("[;\t\r\n]", defused(given_text)))
    file = io.StringIO(newline="")
    write_rows(file, [[given_text, "end"]])
    assert [[original(c) for c in row] for row in csv.reader(io.StringIO(file.getvalue(), newline=""))] == [
        [given_text, "end"]
    ]


def test_ordinary_rows_are_written_as_ever():
    rows = [["id", "value"], ["a,b", 'say "x"'], ["two\nlines", -1.5], [None, True], ["", 3], [""]]
    expected = io.StringIO(newline="")
    csv.writer(expected, lineterminator="\n").writerows(rows)
    found = io.StringIO(newline="")
    write_rows(found, rows)
    assert found.getvalue() == expected.getvalue()


@given(text | risky)
def test_comments_of_readers_read_back(tmp_path_factory, comment):
    path = tmp_path_factory.mktemp("ratings") / "ratings.csv"
    kept = [rating(0, comment=comment, index_version="=v"), rating(1, reader="=cmd|x", synthetic_id="@s")]
    write_ratings(kept, path)
    with path.open(encoding="utf-8", newline="") as file:
        assert not any(runs(cell) for row in csv.reader(file) for cell in row)
    assert read_ratings(path) == kept


def test_no_table_holds_a_formula_made_of_a_file_name(tmp_path):
    """Every writer of ids: results, tables of figures, duplicates; and what reads them finds the ids again."""
    id, other = "=HYPERLINK(1,2)", "-x+1"
    cases = [CaseSummary(id, "replica", -0.5, other, ("voxel",), 3), CaseSummary("b", "novel", math.nan, "", (), 0)]
    write_table(tmp_path / "summary.csv", CaseSummary, cases)
    again = list(read_table(tmp_path / "summary.csv", CaseSummary))
    assert (again[0], again[1].synthetic_id) == (cases[0], "b")
    # A table of an earlier version lacks the columns that were added since.
    lines = (tmp_path / "summary.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0].endswith(",levels_differ,reason")
    older = "".join(line.rsplit(",", 2)[0] + "\n" for line in lines)
    (tmp_path / "older.csv").write_text(older, encoding="utf-8")
    assert next(read_table(tmp_path / "older.csv", CaseSummary)) == cases[0]
    write_csv(tmp_path / "figures.csv", ("id", "kappa", "others"), [{"id": id, "kappa": -0.25, "others": (other, id)}])
    assert read_cells(tmp_path / "figures.csv", ("id",))[0][1] == {
        "id": id,
        "kappa": "-0.25",
        "others": f"{other};{id}",
    }
    pair = DuplicatePair(id, other, "identical", 1.0, {"rmse": -0.125})
    write_duplicates([pair], tmp_path, lambda first, second: None)
    for path in tmp_path.glob("*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not any(map(runs, cells)) and f"'{id}" in cells, path


@given(st.floats() | st.sampled_from([np.float64(0.1), np.float64("nan"), 1 / 3, 5e-324]))
def test_exact_numbers_read_back_bit_for_bit(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("exact") / "t.csv"
    write_csv(path, ("id", "x"), [{"id": "a", "x": value}], exact=True)
    cell = read_cells(path, ("id",))[0][1]["x"]
    assert (cell == "" and math.isnan(value)) or struct.pack("d", float(cell)) == struct.pack("d", value)


def test_other_numbers_have_ten_digits(tmp_path):
    write_csv(tmp_path / "t.csv", ("x", "y", "z"), [{"x": 1 / 3, "y": math.nan, "z": True}])
    assert (tmp_path / "t.csv").read_text(encoding="utf-8") == "x,y,z\n0.3333333333,,1\n"
