"""TrainingIndex: the prepared training cohort on disk, built once and used by every later run.

A folder `*.rdindex` with `index.json` (what it holds and how it was made), `features.zarr` (one array for each feature,
first axis = case, one chunk a case, each chunk with a CRC-32C), `encoder_*.safetensors` (what embedders learnt from the
cohort), and two caches: `nulls/` (distances of null cases) and `fits/` (what measures learnt from the cohort).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.embedding import Encoders
from replica_detection.embedding.stored import (
    ENCODED,
    fit_encoders,
    make_encoders,
    restore_encoders,
    same_encoders,
    settings_of,
)
from replica_detection.errors import ConfigurationError, IndexFormatError, InputError
from replica_detection.index.build import (
    move_into_place,
    resume_build,
    start_build,
    write_index,
    write_rows,
)
from replica_detection.index.entries import SCHEMA_VERSION, checksum, entry_from_json, patient_groups
from replica_detection.io.cohort import Cohort, Problem
from replica_detection.measures import (
    DEFAULT,
    MEASURES,
    Block,
    FittedMeasure,
    Measure,
    make_measures,
    needed_features,
)
from replica_detection.preparation.loading import nothing_usable, sample_volumes
from replica_detection.preparation.prepare import plan
from replica_detection.preparation.profiles import Preparation, profile_named
from replica_detection.progress import Progress, silent
from replica_detection.segmentation import Segmenter, make_segmenter
from replica_detection.util.files import atomic_write
from replica_detection.util.lock import Lock

BLOCK_BYTES = 96 * 2**20


class TrainingIndex:
    """An opened index. `build` makes one, `open` reads one; both give the same object."""

    def __init__(self, folder: Path, data: dict[str, Any]):
        import zarr

        self.folder = folder
        self.preparation = Preparation.from_json(data["preparation"])
        self.measure_names: tuple[str, ...] = tuple(data["measures"])
        self.requested: tuple[str, ...] | None = None if data["requested"] is None else tuple(data["requested"])
        self.segmenter_settings: dict[str, Any] | None = data["segmenter"]
        self.encoder_settings: dict[str, Any] = data["encoders"]
        self.source: str = data["source"]
        self.entries = tuple(entry_from_json(e) for e in data["entries"])
        self.problems = tuple(Problem(**p) for p in data["problems"])
        self.versions: dict[str, str] = data["versions"]
        self._store: Any = zarr.open_group(folder / "features.zarr", mode="r")

    # ------------------------------------------------------------------------------------------ making and opening

    @classmethod
    def build(
        cls,
        cohort: Cohort,
        folder: Path,
        *,
        profile: str = "generic",
        measures: Sequence[str] | None = None,
        segmenter: Segmenter | None = None,
        encoders: Encoders | None = None,
        strict: bool = False,
        progress: Progress = silent,
    ) -> TrainingIndex:
        """Prepares every case of a cohort and writes the index.

        The work happens in `<folder>.partial` and is moved to `folder` at the end: a killed build leaves the index
        that was there before, or none. Calling it again with the same cohort and options resumes where it stopped.

        Args:
            cohort: training cases; files that cannot be read are listed in `problems` (`strict`: InputError).
            folder: where to write, by custom `*.rdindex`; an index that is there already is replaced.
            profile: a name in PROFILES.
            measures: which measures it shall serve; None: all that can be used on the grid and, where the cohort has
                no masks and no segmenter is given, need none.
            segmenter: makes the masks of cases that have none, here and of every later query.
            encoders: make the vectors of images (and of slices) for the measures that need them; None: the default.
        """
        folder = Path(folder)
        work = folder.with_name(folder.name + ".partial")
        if folder.exists() and not (folder / "index.json").is_file() and any(folder.iterdir()):
            raise InputError(folder, "exists and is no index", "Choose another name for the index")
        folder.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir(exist_ok=True)
        with Lock(work):
            requested = None if measures is None else list(measures)
            settings = _settings(segmenter)
            masks = segmenter is not None or any(c.mask is not None for c in cohort.cases)
            encoders = encoders or make_encoders()
            options = {
                "schema": SCHEMA_VERSION,
                "profile": profile,
                "measures": requested,
                "segmenter": settings,
                "masks": masks,
                "encoders": settings_of(encoders),
            }
            preparation, done = resume_build(work, options)
            if preparation is None:
                volumes = sample_volumes(cohort, strict=strict)
                preparation = plan(profile_named(profile), volumes)
                start_build(work, options, preparation)
            chosen = make_measures(measures, preparation, masks=masks, encoders=encoders)
            encoders = fit_encoders(encoders, needed_features(chosen), work, cohort, preparation, progress)
            chosen = make_measures([m.name for m in chosen], preparation, masks=masks, encoders=encoders)
            data = _header(
                preparation, [m.name for m in chosen], requested, settings, settings_of(encoders), str(cohort.source)
            )
            entries, problems = write_rows(
                work,
                cohort,
                preparation,
                chosen,
                segmenter,
                done=done,
                first_row=0,
                strict=strict,
                progress=progress,
            )
            if not entries:
                shutil.rmtree(work, ignore_errors=True)
                raise nothing_usable(cohort.source, (*cohort.problems, *problems))
            write_index(work, data, entries, (*cohort.problems, *problems))
        move_into_place(work, folder)
        built = cls.open(folder)
        built.measures(None)  # what they learn from the cohort is learnt and stored now
        return built

    @classmethod
    def open(cls, folder: Path) -> TrainingIndex:
        """Opens a finished index. Raises IndexFormatError where there is none or it cannot be used."""
        folder = Path(folder)
        path = folder / "index.json"
        if not path.is_file():
            unfinished = folder.with_name(folder.name + ".partial").is_dir()
            found = "is no finished index" + (" (an interrupted build lies beside it)" if unfinished else "")
            raise IndexFormatError(folder, found, "Run `replica-detection index` with this --output to build it")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            version = data["schema_version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IndexFormatError(path, f"cannot be read ({error})", "Build the index again") from error
        if version != SCHEMA_VERSION:
            found = f"has schema version {version}, this program reads {SCHEMA_VERSION}"
            raise IndexFormatError(path, found, "Build the index again with this version")
        try:
            index = cls(folder, data)
            rows = max(e.row for e in index.entries) + 1
            for name in index.feature_names:
                if index._store[name].shape[0] < rows:
                    raise ValueError(f"feature '{name}' has {index._store[name].shape[0]} rows of {rows}")
        except Exception as error:  # any damage to the store ends in one message
            raise IndexFormatError(folder, f"is damaged ({error})", "Build the index again") from error
        return index

    def append(self, cohort: Cohort, *, strict: bool = False, progress: Progress = silent) -> TrainingIndex:
        """Adds the cases that are not in the index yet, prepared just as the others were.

        Rows are written behind the ones in use and count only once `index.json` names them, so a killed
        append leaves the index as it was. Raises InputError where a case id is taken by another file.
        """
        known = {e.id: e for e in self.entries}
        fresh = [c for c in cohort.cases if c.id not in known]
        for case in cohort.cases:
            if case.id in known and not known[case.id].unchanged(case):
                advice = "Give the new file another name, or build the index again"
                raise InputError(case.image, f"has the case id '{case.id}' of another file in the index", advice)
        if not fresh:
            return self
        with Lock(self.folder):
            measures = make_measures(self.measure_names, self.preparation, encoders=self.encoders)
            first = max(e.row for e in self.entries) + 1
            entries, problems = write_rows(
                self.folder,
                Cohort(cohort.source, tuple(fresh), cohort.problems),
                self.preparation,
                measures,
                self.segmenter,
                done={},
                first_row=first,
                strict=strict,
                progress=progress,
            )
            data = _header(
                self.preparation,
                self.measure_names,
                self.requested,
                self.segmenter_settings,
                self.encoder_settings,
                self.source,
            )
            write_index(self.folder, data, [*self.entries, *entries], (*self.problems, *cohort.problems, *problems))
            for cache in ("nulls", "fits"):
                shutil.rmtree(self.folder / cache, ignore_errors=True)
        return TrainingIndex.open(self.folder)

    # ------------------------------------------------------------------------------------------------------ reading

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(e.id for e in self.entries)

    @property
    def segmenter(self) -> Segmenter | None:
        """Makes the masks of queries that have none, as it made those of the index.

        Raises IndexFormatError where this version of the program would make other masks.
        """
        if self.segmenter_settings is None:
            return None
        chosen = {k: v for k, v in self.segmenter_settings.items() if k not in ("name", "version")}
        made = make_segmenter(self.segmenter_settings["name"], **chosen)
        if _settings(made) != self.segmenter_settings:
            found = f"holds masks by another version of segmenter '{made.name}'"
            raise IndexFormatError(self.folder, found, "Build the index again")
        return made

    @cached_property
    def encoders(self) -> Encoders:
        """Make the vectors of queries as they made those of the index.

        Raises InputError where their weights are gone or others.
        """
        return restore_encoders(self.folder, self.encoder_settings)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """What the measures need, and the images themselves, which pictures show."""
        return tuple(dict.fromkeys(["image", *needed_features(MEASURES[name] for name in self.measure_names)]))

    @property
    def warnings(self) -> tuple[tuple[str, str], ...]:
        """(case id, text) of what the reader had to say about the training images."""
        return tuple((e.id, text) for e in self.entries for text in e.warnings)

    @property
    def patients(self) -> np.ndarray:
        """(N,) integers, equal for the cases of one patient; a case without a patient id is its own patient."""
        return patient_groups([e.patient for e in self.entries], [e.id for e in self.entries])

    @property
    def content_id(self) -> str:
        """SHA-256 over preparation, measures and the checksums of all cases: changes when a distance could."""
        parts: list[Any] = [
            self.preparation.to_json(),
            self.measure_names,
            [(e.id, e.patient, e.sha256) for e in self.entries],
        ]
        parts += [self.segmenter_settings, self.encoder_settings]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def features(self, positions: Sequence[int], names: Iterable[str]) -> Block:
        """Stacked features of the cases at these positions in `entries`."""
        rows = [self.entries[i].row for i in positions]
        contiguous = rows == list(range(rows[0], rows[0] + len(rows))) if rows else False
        block = {}
        for name in names:
            array = self._store[name]
            try:
                if contiguous:
                    block[name] = np.asarray(array[rows[0] : rows[-1] + 1])
                else:
                    block[name] = np.stack([np.asarray(array[r]) for r in rows])
            except Exception as error:
                found = f"feature '{name}' is damaged ({error})"
                raise IndexFormatError(self.folder, found, "Build the index again") from error
        return block

    def block_rows(self, names: Iterable[str], limit: int = BLOCK_BYTES) -> int:
        """How many cases fit into `limit` bytes, at least one."""
        size = sum(int(np.prod(self._store[n].shape[1:])) * self._store[n].dtype.itemsize for n in names)
        return max(1, limit // max(size, 1))

    def blocks(self, names: Sequence[str], limit: int = BLOCK_BYTES) -> Iterator[tuple[int, Block]]:
        """Streams (first position, features) over the whole index; the next block is read while one is used."""
        rows = self.block_rows(names, limit)
        starts = range(0, len(self), rows)
        with ThreadPoolExecutor(1) as reader:

            def read(start: int) -> Block:
                return self.features(range(start, min(start + rows, len(self))), names)

            ahead = reader.submit(read, 0) if len(starts) else None
            for start in starts:
                assert ahead is not None
                block = ahead.result()
                if start + rows < len(self):
                    ahead = reader.submit(read, start + rows)
                yield start, block

    def verify(self, progress: Progress = silent) -> list[str]:
        """Reads every stored row (checksums included) and every input file; returns what is wrong, empty if nothing.

        Input files that were moved away are no fault of the index and are named as such.
        """
        faults = []
        for done, entry in enumerate(self.entries):
            try:
                for name, block in self.features([done], self.feature_names).items():
                    if not np.isfinite(block).all():
                        faults.append(f"{entry.id}: feature '{name}' holds NaN or infinity")
            except IndexFormatError as error:
                faults.append(f"{entry.id}: {error}")
            files = [Path(f) for f in entry.files]
            if not all(f.is_file() for f in files):
                faults.append(f"{entry.id}: input file is no longer at {files[0]}")
            elif checksum(files) != entry.sha256:
                faults.append(f"{entry.id}: input file {files[0]} changed since it was indexed")
            progress("verifying", done + 1, len(self))
        return faults

    def serves(
        self,
        cohort: Cohort,
        profile: str,
        measures: Sequence[str] | None,
        segmenter: Segmenter | None = None,
        encoders: Encoders | None = None,
    ) -> bool:
        """Whether a run on this cohort with these options may use this index as it is, or after an append."""
        if self.preparation.profile != profile or self.segmenter_settings != _settings(segmenter):
            return False
        if not same_encoders(self.encoder_settings, encoders or make_encoders()):
            return False
        usual = self.requested is None or DEFAULT in self.requested
        if (measures is None or DEFAULT in measures) and not usual:
            return False
        if not all(self.has_features_of(name) for name in measures or () if name != DEFAULT):
            return False
        known = {e.id: e for e in self.entries}
        cases = {c.id: c for c in cohort.cases}
        return all(
            id in cases and entry.patient == cases[id].patient and entry.unchanged(cases[id])
            for id, entry in known.items()
        )

    def measures(self, names: Sequence[str] | None, device: str = "cpu", *, aligning: bool = True) -> list[Measure]:
        """The named measures, or all that this index serves; without `aligning` only those that compare cases as they
        lie, pair by pair.

        Raises ConfigurationError for one that it does not serve, or where none is left.
        """
        usual = [name for name in self.measure_names if MEASURES[name].by_default] or list(self.measure_names)
        chosen = self.measure_names if names is None else [n for m in names for n in (usual if m == DEFAULT else [m])]
        for name in chosen:
            if name in MEASURES and not self.has_features_of(name):
                raise ConfigurationError(
                    f"the index {self.folder} was not built for measure '{name}' "
                    f"(it serves {', '.join(self.measure_names)}); build it again with --measures"
                )
        known = [MEASURES[name] for name in chosen if name in MEASURES]
        # An index whose weights are gone still serves the measures that need none.
        encoders = self.encoders if set(needed_features(known)) & set(ENCODED) else None
        every = make_measures(chosen, self.preparation, device, encoders=encoders)
        made = [m for m in every if aligning or m.stage == "in place"]
        if not made:
            raise ConfigurationError("only measures that align were named; name one that compares cases as they lie")
        for measure in made:
            if isinstance(measure, FittedMeasure):
                measure.use(self._fit_of(measure))
        return made

    def has_features_of(self, name: str) -> bool:
        """Whether the index stores all that the measure of this name reads."""
        return name in MEASURES and set(MEASURES[name].needs) <= set(self.feature_names)

    def _fit_of(self, measure: FittedMeasure) -> dict[str, np.ndarray]:
        """What the measure learns from this cohort, learnt once."""
        key = hashlib.sha256(f"{self.content_id} {measure.definition}".encode()).hexdigest()[:24]
        path = self.folder / "fits" / f"{measure.name}-{key}.npz"
        try:
            with np.load(path, allow_pickle=False) as stored:
                return dict(stored)
        except (OSError, ValueError, KeyError):
            fit = dict(measure.fit(self))
        # An index that cannot be written to (a shared, read-only one) still serves.
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            with atomic_write(path, "wb") as f:
                np.savez(f, allow_pickle=False, **fit)
        return fit


def index_for(
    cohort: Cohort,
    folder: Path,
    profile: str = "generic",
    measures: Sequence[str] | None = None,
    segmenter: Segmenter | None = None,
    encoders: Encoders | None = None,
    strict: bool = False,
    progress: Progress = silent,
) -> TrainingIndex:
    """The index that is there, where it still fits the cohort, with new cases appended; else a new one."""
    encoders = encoders or make_encoders()
    if (folder / "index.json").is_file():
        try:
            kept = TrainingIndex.open(folder)
            if kept.serves(cohort, profile, measures, segmenter, encoders):
                return kept.append(cohort, strict=strict, progress=progress)
        except IndexFormatError:
            pass  # damaged or of another version: built again
    return TrainingIndex.build(
        cohort,
        folder,
        profile=profile,
        measures=measures,
        segmenter=segmenter,
        encoders=encoders,
        strict=strict,
        progress=progress,
    )


def _header(
    preparation: Preparation,
    measures: Sequence[str],
    requested: Sequence[str] | None,
    segmenter: dict[str, Any] | None,
    encoders: dict[str, Any],
    source: str,
) -> dict[str, Any]:
    """What `index.json` says of the whole index, as the constructor reads it."""
    return {
        "preparation": preparation.to_json(),
        "measures": list(measures),
        "requested": None if requested is None else list(requested),
        "segmenter": segmenter,
        "encoders": encoders,
        "source": source,
    }


def _settings(segmenter: Segmenter | None) -> dict[str, Any] | None:
    """A segmenter's settings as they read back from JSON."""
    return None if segmenter is None else json.loads(json.dumps(segmenter.settings()))
