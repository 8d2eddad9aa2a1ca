"""Tutorials are scripts; this makes pages of them, and runs them.

In `docs/tutorials/NAME.py` the docstring and each block of comments that an empty line follows are text, everything
else is code. What each piece of code printed stands in `NAME.json` beside it, the pictures that it wrote in
`docs/images/tutorials/`. `python docs/hooks/tutorials.py NAME.py [NAME.py ...]` runs scripts and renews both.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1]
SCRIPTS = DOCS / "tutorials"
PICTURES = DOCS / "images" / "tutorials"


@dataclass(frozen=True)
class Cell:
    """A piece of a script: `text` in Markdown, or code that begins at `line`."""

    code: bool
    text: str
    line: int


def on_files(files: Any, *, config: Any) -> Any:
    """Adds a page for each tutorial."""
    from mkdocs.structure.files import File

    for script in sorted(SCRIPTS.glob("*.py")):
        files.append(File.generated(config, f"tutorials/{script.stem}.md", content=page_of(script)))
    return files


def cells_of(script: Path) -> list[Cell]:
    """Splits a script into text and code, in order."""
    source = script.read_text(encoding="utf-8")
    docstring = ast.parse(source).body[0]
    lines = source.splitlines()
    found = [Cell(False, ast.get_docstring(ast.parse(source)) or "", 1)]
    start = docstring.end_lineno or 0
    for paragraph in re.finditer(r"(?:^.+\n?)+", "\n".join(lines[start:]), re.MULTILINE):
        line = start + 1 + "\n".join(lines[start:])[: paragraph.start()].count("\n")
        text = paragraph[0].rstrip("\n")
        if all(row.startswith("#") for row in text.splitlines()):
            found.append(Cell(False, re.sub(r"(?m)^# ?", "", text), line))
        elif found[-1].code:
            gap = line - found[-1].line - found[-1].text.count("\n") - 1
            found[-1] = Cell(True, found[-1].text + "\n" * (gap + 1) + text, found[-1].line)
        else:
            found.append(Cell(True, text, line))
    return found


def run(script: Path, folder: Path) -> list[str]:
    """Runs a script in `folder` and returns what each piece of code printed."""
    import matplotlib

    matplotlib.use("Agg")
    printed, names, before = [], {"__name__": "__main__"}, Path.cwd()
    os.chdir(folder)
    try:
        for cell in cells_of(script):
            if cell.code:
                out = io.StringIO()
                with contextlib.redirect_stdout(out):
                    exec(compile("\n" * (cell.line - 1) + cell.text, str(script), "exec"), names)
                printed.append(out.getvalue())
    finally:
        os.chdir(before)
    return printed


def page_of(script: Path) -> str:
    """Returns a tutorial's Markdown, with what its code printed."""
    printed = iter(json.loads(script.with_suffix(".json").read_text(encoding="utf-8")))
    parts = []
    for cell in cells_of(script):
        if not cell.code:
            parts.append(cell.text)
            continue
        parts.append(f"```python\n{cell.text}\n```")
        if output := next(printed).rstrip():
            parts.append(f"```text\n{output}\n```")
    link = f"[{script.name}]({script.name})"
    parts.append(f"---\n\nThis page is made of the script {link}, which the tests run.")
    return "\n\n".join(parts) + "\n"


def renew(script: Path) -> None:
    """Runs a script and keeps what it printed and the pictures that it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        printed = run(script, Path(folder))
        PICTURES.mkdir(parents=True, exist_ok=True)
        for picture in Path(folder).glob("*.png"):
            shutil.copyfile(picture, PICTURES / picture.name)
    script.with_suffix(".json").write_text(json.dumps(printed, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        renew(Path(name).resolve())
        print(name)
