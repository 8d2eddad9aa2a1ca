"""The places of a result's inputs: `places.json`, beside the tables. Imports with numpy alone.

`detection.json` holds absolute paths; this file holds the same paths from the result's folder, and the state of the
compared files, so that images are known again after a move, and others that took their place are not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from replica_detection.errors import InputError
from replica_detection.io.arrays import SOURCE
from replica_detection.io.case import Case
from replica_detection.io.cohort import Cohort
from replica_detection.results.schema import from_json, to_json
from replica_detection.util.files import atomic_write
from replica_detection.util.places import absolute, candidates, existing, relative_path

PLACES_FILE = "places.json"
MOVED = "Put it back, or run `replica-detection detect` again where the images are now"
_BLOCKS, _BLOCK_BYTES = 16, 4096


@dataclass(frozen=True)
class FileState:
    """The files of an image when they were compared: bytes, time of the last change, and a digest of samples."""

    size: int
    modified_ns: int
    digest: str

    @classmethod
    def of(cls, files: Iterable[Path]) -> FileState:
        """Raises OSError where a file cannot be read."""
        files = list(files)
        stats = [f.stat() for f in files]
        return cls(sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0), _digest(files))

    def holds_for(self, files: Iterable[Path]) -> bool:
        """True for the same files, also where they were copied."""
        files = list(files)
        try:
            stats = [f.stat() for f in files]
            if not stats or sum(s.st_size for s in stats) != self.size:
                return False
            return max(s.st_mtime_ns for s in stats) == self.modified_ns or _digest(files) == self.digest
        except OSError:
            return False


@dataclass(frozen=True)
class Places:
    """The memory that a result has of its inputs, beside their absolute paths.

    Args:
        relative: paths from the result's folder, of `index`, `synthetic`, `validation` and `masks`; a path on another
            drive is missing.
        synthetic: the state of each compared image, by id; those of images in memory are missing.
        validation: the same of the unseen real images.
        index_id: `content_id` of the index.
        folder: the folder that the result was read from; None for one that was made in this process.
    """

    relative: dict[str, str] = field(default_factory=dict)
    synthetic: dict[str, FileState] = field(default_factory=dict)
    validation: dict[str, FileState] = field(default_factory=dict)
    index_id: str = ""
    folder: str | None = None

    def of_input(self, name: str, stated: str) -> list[Path]:
        """The existing places of an input, the most likely one first.

        Args:
            name: `index`, `synthetic`, `validation` or `masks`.
            stated: its path in `detection.json`. Of a result without paths from its folder, places below it and below
                the folders above it are tried too.

        Raises:
            InputError: there is none.
        """
        places = [Path(stated)] if self.folder is None else self._below(name, stated, Path(self.folder))
        found = existing(places) if stated else []
        if not found:
            what = {"index": "index", "masks": "masks"}.get(name, f"{name} images")
            raise InputError(stated, f"does not exist any more; it is where the {what} of this result were", MOVED)
        return found

    def _below(self, name: str, stated: str, folder: Path) -> list[Path]:
        near = candidates(stated, self.relative.get(name, ""), folder)
        beside = [folder / Path(stated).name, *(base / stated for base in folder.resolve().parents)]
        # A path that was stored as it was typed says nothing about the folder that this process works in.
        return near + beside if Path(stated).is_absolute() else beside + near


def states_of(cases: Iterable[Case]) -> dict[str, FileState]:
    """The state of each case that lies in files; a file that went meanwhile is left out."""
    states = {}
    for case in cases:
        if case.files:
            try:
                states[case.id] = FileState.of(case.files)
            except OSError:
                continue
    return states


def cohort_at(
    places: list[Path], states: dict[str, FileState], ids: Iterable[str], **reading: Any
) -> tuple[Cohort, set[str]]:
    """The cohort at that of several places which holds most images of a run as they were.

    Args:
        places: existing ones, the most likely one first; at least one.
        states: of the run's images; empty where it did not store them: then ids alone count.
        ids: of the run's images.
        reading: further arguments of `Cohort.read`.

    Returns:
        The cohort, and the ids of those cases that are other images now than those that the run compared.

    Raises:
        InputError: no place holds a cohort, or none of the run's images as they were.
    """
    wanted = set(ids)
    best: tuple[int, Cohort, set[str]] | None = None
    first_error: InputError | None = None
    for place in places:
        try:
            cohort = Cohort.read(place, **reading)
        except InputError as error:
            first_error = first_error or error
            continue
        known = [c for c in cohort.cases if c.id in wanted]
        changed = {c.id for c in known if c.id in states and not states[c.id].holds_for(c.files)}
        if best is None or len(known) - len(changed) > best[0]:
            best = len(known) - len(changed), cohort, changed
        if best[0] == len(wanted):
            break
    if best is None:
        assert first_error is not None
        raise first_error
    if states and not best[0]:
        found = f"holds none of the {len(wanted)} images of this result as they were when the run compared them"
        raise InputError(best[1].source, found, MOVED)
    return best[1], best[2]


def write_places(places: Places, run: Any, folder: Path) -> None:
    """Writes `places.json` for a result in `folder`; `run` is its `RunInfo`, which holds the absolute paths."""
    inputs = {"index": run.index, "synthetic": run.synthetic.source, "masks": run.options.get("masks")}
    inputs["validation"] = None if run.validation is None else run.validation.source
    relative = {}
    for name, stated in inputs.items():
        if stated and stated != SOURCE:
            old = candidates(stated, places.relative.get(name, ""), Path(places.folder)) if places.folder else []
            relative[name] = relative_path(old[0] if old else stated, folder)
    content = to_json(Places({n: r for n, r in relative.items() if r}, *_states(places), places.index_id))
    with atomic_write(folder / PLACES_FILE) as f:
        json.dump({k: v for k, v in content.items() if k != "folder"}, f, ensure_ascii=False)


def _states(places: Places) -> tuple[dict[str, FileState], dict[str, FileState]]:
    return places.synthetic, places.validation


def read_places(folder: Path) -> Places:
    """The places of the result in `folder`; nothing but the folder for a result of a version that stored none.

    Raises OSError or ValueError for a damaged file.
    """
    path, here = folder / PLACES_FILE, absolute(folder)
    if not path.is_file():
        return Places(folder=here)
    stored = from_json(Places, json.loads(path.read_text(encoding="utf-8", errors="surrogateescape")))
    return Places(stored.relative, *_states(stored), stored.index_id, here)


def _digest(files: list[Path]) -> str:
    """SHA-256 over blocks spread evenly over the first, the middle and the last file: quick on any size."""
    digest = hashlib.sha256()
    for path in dict.fromkeys((files[0], files[len(files) // 2], files[-1])) if files else ():
        with path.open("rb") as f:
            size = f.seek(0, os.SEEK_END)
            for n in range(_BLOCKS):
                f.seek(max(0, (size - _BLOCK_BYTES) * n // (_BLOCKS - 1)))
                digest.update(f.read(_BLOCK_BYTES))
    return digest.hexdigest()[:32]
