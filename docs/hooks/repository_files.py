"""Puts files of the repository that pages link to into the site, under `repository/`, and mends the links.

Pages link to files outside of `docs/` by relative paths, which work where the repository is browsed. CONTRIBUTING.md,
SECURITY.md and CHANGELOG.md are pages of the site too; their own links to `docs/` are mended in the same way.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "repository"
PAGES = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "MonaiLabelApp/README.md")
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the linked files, and those that these link to in turn."""
    waiting = [f"docs/{page.src_uri}" for page in files.documentation_pages()] + list(PAGES)
    added = set()
    while waiting:
        path = waiting.pop()
        outside = not path.startswith("docs/")
        if outside and path not in added:
            added.add(path)
            files.append(File.generated(config, f"{FOLDER}/{path}", abs_src_path=str(ROOT / path)))
        if path.endswith(".md") and (outside or (ROOT / path).is_file()):
            waiting += [p for p in _linked(path) if not p.startswith("docs/") and p not in added]
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Turns links to files of the repository into links inside the site."""
    place = page.file.src_uri
    here = place.removeprefix(f"{FOLDER}/") if place.startswith(f"{FOLDER}/") else f"docs/{place}"

    def mended(match: re.Match[str]) -> str:
        path = _in_repository(here, match[2])
        if path is None:
            return match[0]
        target = path.removeprefix("docs/") if path.startswith("docs/") else f"{FOLDER}/{path}"
        return match[1] + posixpath.relpath(target, posixpath.dirname(place) or ".") + match[3]

    return _outside_of_code(markdown, lambda text: _LINK.sub(mended, text))


def _linked(page: str) -> list[str]:
    """Returns the files of the repository that a page links to, as paths from its root."""
    text = _FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
    found = (_in_repository(page, match[2]) for match in _LINK.finditer(text))
    return [path for path in found if path is not None]


def _in_repository(page: str, link: str) -> str | None:
    """Returns the linked file as a path from the root of the repository; None for what is no file of it."""
    if "://" in link or link.startswith(("mailto:", "/")):
        return None
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return path if not path.startswith("..") and (ROOT / path).is_file() else None


def _outside_of_code(markdown: str, change: Any) -> str:
    """Applies `change` to what stands outside of fenced code."""
    parts, last = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [change(markdown[last : fence.start()]), fence[0]]
        last = fence.end()
    return "".join([*parts, change(markdown[last:])])
