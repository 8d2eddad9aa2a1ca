"""`python Testing/Benchmarks [--device DEVICE] [name ...]`: run the benchmarks of this folder and print one table.

Every module here with a function `measure` that yields `timing.Row` takes part, and every one with a function `report`,
which prints for itself and says whether what it found is right. Exits with 1 if a result differs from its
reference by more than the row's tolerance or a report is not right; never because of a time. DEVICE (cuda, or
torch-cpu) is for the modules that compare a GPU with the CPU (`TAKES_DEVICE`).
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from timing import Row


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python Testing/Benchmarks")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args(arguments)
    wanted = given.names
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem != "__main__")
    if unknown := set(wanted) - set(names):
        print(f"No benchmark named {', '.join(sorted(unknown))}; here are {', '.join(names)}.")
        return 2
    rows: list[Row] = []
    right = True
    for name in wanted or names:
        module = importlib.import_module(name)
        if hasattr(module, "report"):
            right &= module.report(given.device) if hasattr(module, "TAKES_DEVICE") else module.report()
        if hasattr(module, "measure"):
            rows.extend(module.measure())
    # A pipe has no width: without one of its own, rich would cut the table to 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 160)
    if rows:
        console.print(_table(rows))
    wrong = [row for row in rows if not row.equal]
    for row in wrong:
        console.print(f"{row.what} ({row.data}) differs from {row.against} by {row.difference:.2g}.")
    return 1 if wrong or not right else 0


def _table(rows: list[Row]) -> Table:
    table = Table("what", "against", "data", "ours", "reference", "ratio", "at least", "max difference")
    for row in rows:
        cells = f"{row.ratio:.3g}x", f"{row.budget:g}x", f"{row.difference:.1e}"
        table.add_row(row.what, row.against, row.data, row.ours, row.reference, *cells)
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
