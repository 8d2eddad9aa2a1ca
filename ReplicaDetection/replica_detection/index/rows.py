"""Writing an index: rows first, each named in a journal, `index.json` last; a kill never costs the old index."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.index.entries import HEADER_FILE, Entry, IndexHeader, entry_from_json
from replica_detection.io.case import folders_of
from replica_detection.io.cohort import Case, Cohort, Problem
from replica_detection.measures import Measure, features_of
from replica_detection.preparation.loading import load_case
from replica_detection.preparation.profiles import Preparation
from replica_detection.progress import Progress
from replica_detection.segmentation import Segmenter
from replica_detection.util.files import atomic_write
from replica_detection.workers.runner import Runner

# Says what an unfinished build makes.
PLAN_FILE = "plan.json"


def start_build(work: Path, options: dict[str, Any], preparation: Preparation, cohort: Cohort) -> None:
    """Starts a fresh build in `work`: what an interrupted one of other images or options left there goes."""
    shutil.rmtree(work / "features.zarr", ignore_errors=True)
    for stale in (work / "entries.jsonl", *work.glob("encoder_*.safetensors")):
        stale.unlink(missing_ok=True)
    plan = {"options": options, "preparation": preparation.to_json(), "cohort": _fingerprint(cohort)}
    with atomic_write(work / PLAN_FILE) as f:
        json.dump(plan, f)


def _fingerprint(cohort: Cohort) -> str:
    """A hash that is equal for the same files, unchanged, and for the same images in memory."""
    digest = hashlib.sha256()
    for case in cohort.cases:
        stats = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in case.input_files if f.exists()]
        digest.update(repr((case.id, stats, "" if case.files else case.checksum())).encode())
    return digest.hexdigest()


def resume_build(work: Path, options: dict[str, Any], cohort: Cohort) -> tuple[Preparation | None, dict[str, Entry]]:
    """Preparation and finished cases of an interrupted build with the same options, else (None, {}).

    The cohort may have grown or shrunk since; but the grid, and what embedders learnt, are of no use to another one.
    """
    try:
        stored = json.loads((work / PLAN_FILE).read_text(encoding="utf-8"))
        if stored["options"] != options:
            return None, {}
        preparation = Preparation.from_json(stored["preparation"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, {}
    done = {}
    journal = work / "entries.jsonl"
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else ():
        try:
            entry = entry_from_json(json.loads(line), work)
        except (ValueError, TypeError):  # the line that a kill cut short
            break
        done[entry.id] = entry
    if done:
        same = any(c.id in done and done[c.id].unchanged(c) for c in cohort.cases)
    else:
        same = stored.get("cohort") == _fingerprint(cohort)
    return (preparation, done) if same else (None, {})


def write_rows(
    folder: Path,
    cohort: Cohort,
    making: Making,
    *,
    done: dict[str, Entry],
    first_row: int,
    runner: Runner,
    progress: Progress,
) -> tuple[list[Entry], list[Problem]]:
    """Prepares the cases that are not done yet and writes a row for each; the journal names a row once it is whole.

    Args:
        folder: where `features.zarr` and the journal lie.
        making: makes a row of a case.
        done: entries of an interrupted build by case id; one whose case changed since is prepared again.
        first_row: the first row that may be written where `done` is empty.
        runner: where the rows are made.

    Returns:
        Entries in the order of the cohort, and the problems of the cases that were left out, in that order too.
    """
    import zarr

    store = zarr.open_group(folder / "features.zarr", mode="a")
    kept = {c.id: done[c.id] for c in cohort.cases if c.id in done and done[c.id].unchanged(c)}
    entries = {c.id: replace(kept[c.id], patient=c.patient) for c in cohort.cases if c.id in kept}
    todo = [c for c in cohort.cases if c.id not in kept]
    first = max([first_row - 1, *(e.row for e in done.values())]) + 1
    problems: dict[int, Problem] = {}
    journal_path = folder / "entries.jsonl"
    _end_line(journal_path)
    runner.check(folders_of(todo))
    if entries:  # what an interrupted build left
        progress("preparing", len(entries), len(cohort.cases))
    with journal_path.open("a", encoding="utf-8") as journal:
        for position, made in runner.map(making.row, enumerate(todo, first)):
            if isinstance(made, Problem):
                problems[position] = made
            else:
                entry, features = made
                for name, array in features.items():
                    _row_array(store, name, array, entry.row + 1)[entry.row] = array
                journal.write(json.dumps(entry.to_json()) + "\n")
                journal.flush()
                os.fsync(journal.fileno())
                entries[entry.id] = entry
            progress("preparing", len(entries) + len(problems), len(cohort.cases))
    return [entries[c.id] for c in cohort.cases if c.id in entries], [problems[n] for n in sorted(problems)]


@dataclass(frozen=True)
class Making:
    """Makes the row of a case.

    Args:
        folder: where the index lies, for the relative paths of its entries.
        preparation: of the images.
        measures: for which features are stored.
        segmenter: makes the masks of cases that have none; None: none are made.
        strict: raise the InputError of the first case that cannot be used.
    """

    folder: Path
    preparation: Preparation
    measures: tuple[Measure, ...]
    segmenter: Segmenter | None
    strict: bool

    def row(self, numbered: tuple[int, Case]) -> tuple[Entry, dict[str, np.ndarray]] | Problem:
        """The entry for this row, and the features to store."""
        row, case = numbered
        with_masks = any(m.needs_mask for m in self.measures)
        prepared = load_case(
            case, self.preparation, with_masks=with_masks, segmenter=self.segmenter, strict=self.strict
        )
        if isinstance(prepared, Problem):
            return prepared
        features = {"image": prepared.image, **features_of(prepared, self.measures)}
        return Entry.of(case, row, prepared, self.folder), features


def _row_array(store: Any, name: str, example: np.ndarray, rows: int) -> Any:
    """The Zarr array of a feature, grown to at least `rows` cases; made after `example` where there is none."""
    from zarr.codecs import Crc32cCodec, ZstdCodec

    if name not in store:
        store.create_array(
            name,
            shape=(rows, *example.shape),
            chunks=(1, *example.shape),
            dtype=example.dtype,
            compressors=[ZstdCodec(level=1), Crc32cCodec()],
        )
    array = store[name]
    if array.shape[0] < rows:
        array.resize((rows, *example.shape))
    return array


def _end_line(journal: Path) -> None:
    """Cuts the half line off that a kill may leave, so that the next one starts on its own."""
    if journal.is_file() and journal.stat().st_size:
        with journal.open("rb+") as f:
            content = f.read()
            f.truncate(content.rfind(b"\n") + 1)


def write_header(folder: Path, header: IndexHeader) -> None:
    """Writes `index.json`, which makes the rows that it names count; the journal is done with."""
    with atomic_write(folder / HEADER_FILE) as f:
        json.dump(header.to_json(), f, indent=1)
    (folder / "entries.jsonl").unlink(missing_ok=True)


def move_into_place(work: Path, folder: Path) -> None:
    """Moves a finished build to its place; the old index goes only after the new one is whole."""
    (work / PLAN_FILE).unlink(missing_ok=True)
    if folder.exists():
        old = folder.with_name(folder.name + ".old")
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
        work.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        work.rename(folder)
