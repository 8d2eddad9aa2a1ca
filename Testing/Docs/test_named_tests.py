"""The pages on the server name a test for each claim: each of them exists, in the file that the page names."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
SERVER = PROJECT / "Testing" / "Server"
# The page, and the files that tests without a file name may be in.
PAGES = {
    "docs/server-security.md": ("test_security_traps.py",),
    "MonaiLabelApp/README.md": ("test_app.py", "test_app_datastore.py", "test_app_jobs.py"),
}


@cache
def _functions(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def _named(page: str) -> list[tuple[str, str]]:
    """(file, function) of each test that a page names; "" for a whole file, or where the page names no file."""
    named = []
    for line in (PROJECT / page).read_text(encoding="utf-8").splitlines():
        file = ""
        for text in re.findall(r"`((?:[\w./]+\.py)?(?:::)?(?:test_\w+)?)`", line):
            before, colons, function = text.rpartition("::")
            if text.endswith(".py"):
                file, function = text, ""
            elif colons:
                file = before or file
            if "test_" in text:
                named.append((file if text.endswith(".py") or colons else "", function))
    return named


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_exists(page):
    named = _named(page)
    assert len(named) > 20
    for file, function in named:
        files = [SERVER / file] if file else [SERVER / name for name in PAGES[page]]
        # A file may be given from the project's folder as well.
        files = [f if f.is_file() else PROJECT / file for f in files]
        assert all(f.is_file() for f in files), f"{page} names {file}, which is not there"
        assert not function or any(function in _functions(f) for f in files), f"{page} names {file}::{function}"
