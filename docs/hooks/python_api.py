"""Fills the page `api.md` with the public names of the package: functions first, then types, then errors."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[2] / "ReplicaDetection" / "replica_detection" / "__init__.py"
PLACES = {"functions": "<!-- functions -->", "types": "<!-- types -->", "errors": "<!-- errors -->"}


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Puts a request for mkdocstrings into each place of the page."""
    if page.file.src_uri != "api.md":
        return markdown
    for kind, names in public_names(PACKAGE).items():
        requests = "\n".join(f"::: replica_detection.{name}\n    options: {{heading_level: 3}}\n" for name in names)
        markdown = markdown.replace(PLACES[kind], requests)
    return markdown


def public_names(package: Path) -> dict[str, list[str]]:
    """Returns the names in `__all__` by kind, without those with underscores."""
    tree = ast.parse(package.read_text(encoding="utf-8"))
    [names] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    ]
    kinds: dict[str, list[str]] = {kind: [] for kind in PLACES}
    for name in names:
        if not name.startswith("_"):
            kinds["errors" if name.endswith("Error") else "functions" if name.islower() else "types"].append(name)
    return kinds
