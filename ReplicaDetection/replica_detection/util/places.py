"""Stored paths: each absolute, and from the folder of the file that names it, so that it is found after a move."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any


def absolute(path: str | os.PathLike[str]) -> str:
    """The path from the root, without "." and "..", links as they are."""
    return os.path.abspath(path)  # noqa: PTH100 Path.resolve would follow links


def relative_path(path: str | os.PathLike[str], folder: str | os.PathLike[str], flavour: Any = os.path) -> str:
    """The path from `folder` to `path`, links followed, with "/" between names.

    Args:
        flavour: the module of paths, as `os.path` or `ntpath`.

    Returns:
        "" where there is no such path: on another drive of Windows.
    """
    try:
        found: str = flavour.relpath(flavour.realpath(path), flavour.realpath(folder))
    except ValueError:
        return ""
    return found.replace(flavour.sep, "/")


def candidates(stated: str | os.PathLike[str], relative: str, folder: Path) -> list[Path]:
    """The existing places of a stored path: as it was stated first, then from `folder`; each place once.

    `folder` may itself be reached by a link: both what the link points to and where the link lies are tried.
    """
    places = [Path(stated)]
    if relative:
        places += [Path(absolute(folder.resolve() / relative)), Path(absolute(folder / relative))]
    return existing(places)


def existing(places: Iterable[Path]) -> list[Path]:
    """Those that exist, each once, in their order; a name that no file system takes does not exist."""
    found: dict[str, Path] = {}
    for place in places:
        with suppress(OSError, ValueError):
            if place.exists():
                found.setdefault(os.path.realpath(place), place)
    return list(found.values())
