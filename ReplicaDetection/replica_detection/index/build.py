"""Building a training index, adding cases to one, and using the one that is there."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from replica_detection.embedding import Embedder
from replica_detection.embedding.stored import fit_embedders, same_embedders, settings_of
from replica_detection.errors import IndexFormatError, InputError
from replica_detection.index.entries import HEADER_FILE, SCHEMA_VERSION, Entry, IndexHeader
from replica_detection.index.options import IndexOptions
from replica_detection.index.rows import (
    PLAN_FILE,
    Making,
    move_into_place,
    resume_build,
    start_build,
    write_header,
    write_rows,
)
from replica_detection.index.training_index import TrainingIndex, settings_of_segmenter
from replica_detection.io.cohort import Cohort
from replica_detection.measures import DEFAULT, make_measures, needed_features
from replica_detection.preparation.loading import nothing_usable, sample_volumes
from replica_detection.preparation.prepare import plan
from replica_detection.preparation.profiles import Preparation, profile_named
from replica_detection.progress import Progress, silent
from replica_detection.segmentation import Segmenter
from replica_detection.util.lock import Lock
from replica_detection.workers.runner import Runner, runner_for

# Fewer voxels (of the grids of all cases) are prepared before worker processes have started.
FEW_VOXELS = 5_000_000


def build_index(
    training: Any,
    output: str | os.PathLike[str],
    *,
    profile: str = "generic",
    measures: Sequence[str] | None = None,
    segmenter: Segmenter | str | None = None,
    embedding: Embedder | str | None = None,
    slice_embedding: Embedder | str | None = None,
    patients: Any = None,
    patient_pattern: str | None = None,
    masks: Any = None,
    strict: bool = False,
    workers: int | str | None = None,
    progress: Progress = silent,
) -> TrainingIndex:
    """Prepares every case of a training cohort and writes the index.

    The work happens in `<output>.partial` and is moved to `output` at the end: a killed build leaves the index that
    was there before, or none. The same call again resumes where it stopped.

    Args:
        training: the cohort, as `Cohort.of` takes it: a Cohort, a folder, a CSV, a `dataset.json`, or images in memory.
        output: folder to write, by custom `*.rdindex`; an index that is there already is replaced.
        profile, measures, segmenter, embedding, slice_embedding, strict, workers: as `IndexOptions` has them.
        patients: as `Cohort.of` takes it: a CSV `id,patient`, or one patient for each image in memory.
        patient_pattern: instead, a regular expression whose group is the patient in a case id or path.
        masks: as `Cohort.of` takes it: a folder, or one mask for each image in memory.
        progress: called with (stage, done, total).

    Raises:
        InputError: no image can be used, `output` is something else, or `strict` and a file has a problem.
        ConfigurationError: options that are not known or do not fit the cohort.

    Example:
        ```python
        import numpy as np
        import replica_detection as rd

        scans = np.random.default_rng(0).random((12, 16, 16, 16))
        index = rd.build_index(rd.Cohort.from_arrays(scans, spacing=1), "training.rdindex", measures=["mae", "ssim"])
        assert len(index) == 12
        ```
    """
    options = IndexOptions(profile, measures, segmenter, embedding, slice_embedding, strict, workers)
    cohort = Cohort.of(training, masks=masks, patients=patients, patient_pattern=patient_pattern, strict=strict)
    return _build(cohort, Path(output), options, progress)


def open_or_build(
    cohort: Cohort,
    folder: str | os.PathLike[str],
    options: IndexOptions | None = None,
    *,
    rebuild: bool = False,
    progress: Progress = silent,
) -> TrainingIndex:
    """The index that is there, where it still fits the cohort and the options, with new cases appended; else a new one.

    Args:
        rebuild: build it anew even where it still fits.

    Raises:
        As `build_index`.
    """
    folder, options = Path(folder), options or IndexOptions()
    if not rebuild and (folder / HEADER_FILE).is_file():
        try:
            kept = TrainingIndex.open(folder)
            if serves(kept, cohort, options):
                return append_cases(kept, cohort, strict=options.strict, workers=options.workers, progress=progress)
        except IndexFormatError:
            pass  # damaged or of another version: built again
    return _build(cohort, folder, options, progress)


def append_cases(
    index: TrainingIndex | str | os.PathLike[str],
    training: Any,
    *,
    patients: Any = None,
    patient_pattern: str | None = None,
    masks: Any = None,
    strict: bool = False,
    workers: int | str | None = None,
    progress: Progress = silent,
) -> TrainingIndex:
    """Adds the cases that are not in the index yet, prepared just as the others were.

    Rows are written behind the ones in use and count only once `index.json` names them, so a killed append leaves the
    index as it was.

    Args:
        index: the index, or its folder.
        training, patients, patient_pattern, masks: the cohort, as `Cohort.of` takes it; cases that the index has
            already are left alone.
        strict: raise the InputError of the first case that cannot be used, instead of listing it.
        workers: as `IndexOptions` has it.

    Returns:
        The index with its new cases, opened anew; `index` itself where there is none.

    Raises:
        InputError: a case id is taken by another image, or another process writes into the index.

    Example:
        ```python
        import numpy as np
        import replica_detection as rd

        scans = np.random.default_rng(0).random((14, 16, 16, 16))
        first = rd.Cohort.from_arrays({f"scan_{n}": scans[n] for n in range(12)}, spacing=1)
        later = rd.Cohort.from_arrays({f"scan_{n}": scans[n] for n in (12, 13)}, spacing=1)
        index = rd.build_index(first, "training.rdindex", measures=["mae"])
        index = rd.append_cases(index, later)
        assert len(index) == 14
        ```
    """
    index = index if isinstance(index, TrainingIndex) else TrainingIndex.open(Path(index))
    cohort = Cohort.of(training, masks=masks, patients=patients, patient_pattern=patient_pattern, strict=strict)
    known = {e.id: e for e in index.entries}
    fresh = tuple(c for c in cohort.cases if c.id not in known)
    for case in cohort.cases:
        if case.id in known and not known[case.id].unchanged(case):
            kind, name = ("file", "name") if case.files else ("image", "id")
            advice = f"Give the new {kind} another {name}, or build the index again"
            raise InputError(case.image, f"has the case id '{case.id}' of another {kind} in the index", advice)
    if not fresh:
        index.remember(cohort.cases)
        return index
    with Lock(index.folder):
        _write_fresh(index, replace(cohort, cases=fresh), strict, workers, progress)
    grown = TrainingIndex.open(index.folder)
    grown.remember(index.in_memory.values())
    grown.remember(cohort.cases)
    return grown


def serves(index: TrainingIndex, cohort: Cohort, options: IndexOptions) -> bool:
    """True where a run on this cohort with these options may use this index as it is, or after an append.

    Rows of an earlier version of the program do not serve: it read some files otherwise.
    """
    if not all(index.voxels):
        return False
    if index.preparation.profile != options.profile:
        return False
    if index.segmenter_settings != settings_of_segmenter(options.mask_maker):
        return False
    if not same_embedders(index.embedder_settings, options.embedders):
        return False
    measures = options.measures
    usual = index.requested is None or DEFAULT in index.requested
    if (measures is None or DEFAULT in measures) and not usual:
        return False
    if not all(index.has_features_of(name) for name in measures or () if name != DEFAULT):
        return False
    cases = {c.id: c for c in cohort.cases}
    return all(
        entry.id in cases and entry.patient == cases[entry.id].patient and entry.unchanged(cases[entry.id])
        for entry in index.entries
    )


def _build(cohort: Cohort, folder: Path, options: IndexOptions, progress: Progress) -> TrainingIndex:
    work = _work_folder(folder)
    foreign = folder.exists() and not (folder / HEADER_FILE).is_file()
    if foreign and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(folder, "exists and is no index", "Choose another name for the index")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work.mkdir(exist_ok=True)
    with Lock(work):
        masks = options.mask_maker is not None or any(c.has_mask for c in cohort.cases)
        preparation, done = _planned(work, cohort, options, masks)
        embedders = options.embedders
        chosen = make_measures(options.measures, preparation, masks=masks, embedders=embedders)
        embedders = fit_embedders(embedders, needed_features(chosen), work, cohort, preparation, progress)
        chosen = make_measures([m.name for m in chosen], preparation, masks=masks, embedders=embedders)
        making = Making(work, preparation, tuple(chosen), options.mask_maker, options.strict)
        with _runner(options.workers, preparation, len(cohort) - len(done)) as runner:
            entries, problems = write_rows(
                work, cohort, making, done=done, first_row=0, runner=runner, progress=progress
            )
        if not entries:
            shutil.rmtree(work, ignore_errors=True)
            raise nothing_usable(cohort.source, (*cohort.problems, *problems))
        header = IndexHeader(
            preparation,
            tuple(m.name for m in chosen),
            None if options.measures is None else tuple(options.measures),
            settings_of_segmenter(options.mask_maker),
            settings_of(embedders),
            cohort.place,
            tuple(entries),
            (*cohort.problems, *problems),
        )
        write_header(work, header)
    move_into_place(work, folder)
    built = TrainingIndex.open(folder)
    built.remember(cohort.cases)
    built.measures(None)  # what they learn from the cohort is learnt and stored now
    return built


def begin_anew(folder: str | os.PathLike[str]) -> None:
    """Lets the next build of this index begin anew, instead of where an interrupted one stopped.

    Raises InputError where a build is going on.
    """
    work = _work_folder(Path(folder))
    if (work / PLAN_FILE).is_file():
        with Lock(work):
            (work / PLAN_FILE).unlink(missing_ok=True)


def _work_folder(folder: Path) -> Path:
    """The folder beside an index in which it is built."""
    return folder.with_name(folder.name + ".partial")


def _runner(workers: int | str | None, preparation: Preparation, cases: int) -> Runner:
    few = cases * math.prod(preparation.grid) < FEW_VOXELS
    return runner_for(1 if workers is None and few else workers, max(cases, 0))


def _planned(work: Path, cohort: Cohort, options: IndexOptions, masks: bool) -> tuple[Preparation, dict[str, Entry]]:
    """The preparation, with the finished cases of an interrupted build with the same options."""
    plan_of_work = {
        "schema": SCHEMA_VERSION,
        "profile": options.profile,
        "measures": None if options.measures is None else list(options.measures),
        "segmenter": settings_of_segmenter(options.mask_maker),
        "masks": masks,
        "encoders": settings_of(options.embedders),
    }
    preparation, done = resume_build(work, plan_of_work, cohort)
    if preparation is None:
        preparation = plan(profile_named(options.profile), sample_volumes(cohort, strict=options.strict))
        start_build(work, plan_of_work, preparation, cohort)
    return preparation, done


def _write_fresh(
    index: TrainingIndex, cohort: Cohort, strict: bool, workers: int | str | None, progress: Progress
) -> None:
    """Writes rows for these cases behind those of the index, then its header; caches that they make stale go."""
    measures = make_measures(index.measure_names, index.preparation, embedders=index.embedders)
    making = Making(index.folder, index.preparation, tuple(measures), index.segmenter, strict)
    first_row = max(e.row for e in index.entries) + 1
    with _runner(workers, index.preparation, len(cohort)) as runner:
        entries, problems = write_rows(
            index.folder, cohort, making, done={}, first_row=first_row, runner=runner, progress=progress
        )
    header = IndexHeader(
        index.preparation,
        index.measure_names,
        index.requested,
        index.segmenter_settings,
        index.embedder_settings,
        index.source,
        (*index.entries, *entries),
        (*index.problems, *cohort.problems, *problems),
    )
    write_header(index.folder, header)
    for cache in ("nulls", "fits", "packed"):
        shutil.rmtree(index.folder / cache, ignore_errors=True)
