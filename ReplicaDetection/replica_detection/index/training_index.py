"""TrainingIndex: the prepared training cohort on disk, built once and used by every later run.

A folder `*.rdindex` with `index.json` (what it holds and how it was made), `features.zarr` (one array for each feature,
first axis = case, one chunk a case, each chunk with a CRC-32C), `encoder_*.safetensors` (what embedders learnt from the
cohort), and three caches: `nulls/` (distances of null cases), `fits/` (what measures learnt from the cohort) and
`packed/` (features that are read as a whole, see `packed`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.embedding import Embedders
from replica_detection.embedding.stored import EMBEDDED, restore_embedders
from replica_detection.errors import ConfigurationError, IndexFormatError, InputError
from replica_detection.index.entries import IndexHeader, patient_groups, read_header
from replica_detection.index.packed import packed
from replica_detection.index.similar import SimilarCases
from replica_detection.io.case import Case, checksum
from replica_detection.measures import (
    DEFAULT,
    MEASURES,
    AligningMeasure,
    Block,
    FittedMeasure,
    Measure,
    make_measures,
    needed_features,
)
from replica_detection.progress import Progress, silent
from replica_detection.segmentation import Segmenter, make_segmenter
from replica_detection.util.files import atomic_write

BLOCK_BYTES = 96 * 2**20
# Read at a time while a feature is packed.
PACKED_BYTES = 8 * 2**20
EARLIER = (
    "prepared by an earlier version of the program, which read some files otherwise (padding of CT, compressed X-rays, "
    "labels above 255) and kept no hash of the voxels, so that copies may be missed: build the index again"
)


class TrainingIndex:
    """An opened index, for reading; `index.build` makes one."""

    def __init__(self, folder: Path, header: IndexHeader):
        import zarr

        self.folder = folder
        self._header = header
        self.preparation = header.preparation
        self.measure_names = header.measures
        self.requested = header.requested
        self.segmenter_settings = header.segmenter
        self.embedder_settings = header.embedders
        self.source = header.source
        self.entries = header.entries
        self.problems = header.problems
        self.versions = header.versions
        self.in_memory: dict[str, Case] = {}
        self._packed: dict[str, np.ndarray] = {}
        self.held: object = None  # what must live as long as the index, such as its temporary folder
        self._store: Any = zarr.open_group(folder / "features.zarr", mode="r")

    @classmethod
    def open(cls, folder: Path) -> TrainingIndex:
        """Opens a finished index. Raises IndexFormatError where there is none or it cannot be used."""
        folder = Path(folder)
        header = read_header(folder)
        try:
            index = cls(folder, header)
            rows = max(e.row for e in index.entries) + 1
            for name in index.feature_names:
                if index._store[name].shape[0] < rows:
                    raise ValueError(f"feature '{name}' has {index._store[name].shape[0]} rows of {rows}")
        except Exception as error:  # any damage to the store ends in one message
            raise IndexFormatError(folder, f"is damaged ({error})", "Build the index again") from error
        return index

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
        if settings_of_segmenter(made) != self.segmenter_settings:
            found = f"holds masks by another version of segmenter '{made.name}'"
            raise IndexFormatError(self.folder, found, "Build the index again")
        return made

    @cached_property
    def embedders(self) -> Embedders:
        """Make the vectors of queries as they made those of the index.

        Raises InputError where their weights are gone or others.
        """
        return restore_embedders(self.folder, self.embedder_settings)

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the stored features: those that the measures need, and `image`, which pictures show."""
        return tuple(dict.fromkeys(["image", *needed_features(MEASURES[name] for name in self.measure_names)]))

    @property
    def warnings(self) -> tuple[tuple[str, str], ...]:
        """(case id, text) of the reader's warnings about the training images, and of rows by an earlier version."""
        told = [(e.id, text) for e in self.entries for text in e.warnings]
        return (*told, *((e.id, EARLIER) for e in self.entries if not e.voxels))

    @property
    def voxels(self) -> tuple[str, ...]:
        """`PreparedImage.voxels` of each case; "" where the index does not know it."""
        return tuple(e.voxels for e in self.entries)

    @property
    def patients(self) -> np.ndarray:
        """(N,) integers, equal for the cases of one patient; a case without a patient id is its own patient."""
        return patient_groups([e.patient for e in self.entries], [e.id for e in self.entries])

    @property
    def content_id(self) -> str:
        """SHA-256 over preparation, measures and the checksums of all cases: changes when a distance could."""
        return self._header.content_id

    def features(self, positions: Sequence[int], names: Iterable[str]) -> Block:
        """Stacked features of the cases at these positions in `entries`."""
        rows = [self.entries[i].row for i in positions]
        contiguous = rows == list(range(rows[0], rows[0] + len(rows))) if rows else False
        block = {}
        for name in names:
            try:
                array = self._store[name]
                if contiguous:
                    block[name] = np.asarray(array[rows[0] : rows[-1] + 1])
                else:
                    block[name] = np.stack([np.asarray(array[r]) for r in rows])
            except Exception as error:
                found = f"feature '{name}' is damaged ({error})"
                raise IndexFormatError(self.folder, found, "Build the index again") from error
        return block

    def packed(self, name: str) -> np.ndarray:
        """One feature of all cases, (N, ...), in the order of `entries`; read-only, shared by all processes.

        It is mapped from a file in `packed/`, which the first call writes; in memory where the folder is read-only.
        """
        if name not in self._packed:
            stored = self._store[name]
            rows = self.block_rows([name], PACKED_BYTES)

            def blocks() -> Iterator[np.ndarray]:
                for start in range(0, len(self), rows):
                    yield self.features(range(start, min(start + rows, len(self))), [name])[name]

            self._packed[name] = packed(self._packed_file(name), (len(self), *stored.shape[1:]), stored.dtype, blocks)
        return self._packed[name]

    @cached_property
    def similar(self) -> SimilarCases | None:
        """Search among the embeddings of the cases; None where the index holds none, or their weights are gone."""
        if "embedding" not in self.feature_names:
            return None
        try:
            embedder = self.embedders.images
        except InputError:
            return None
        assert embedder is not None
        path = self.folder / "packed" / f"similar-{self.content_id[:24]}.faiss"
        return SimilarCases(path, len(self), embedder, self._descriptions)

    def _descriptions(self) -> Iterator[np.ndarray]:
        for _, block in self.blocks(["embedding"]):
            yield block["embedding"]

    def _packed_file(self, name: str) -> Path:
        return self.folder / "packed" / f"{name}-{self.content_id[:24]}.npy"

    def block_rows(self, names: Iterable[str], limit: int = BLOCK_BYTES) -> int:
        """Number of cases whose features fit into `limit` bytes, at least one."""
        size: int = sum(int(np.prod(self._store[n].shape[1:])) * self._store[n].dtype.itemsize for n in names)
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

        Input files that were moved away are no fault of the index and are named as such. Images that were given in
        memory have none; those of a cohort at hand are compared with what was indexed.
        """
        faults = []
        packed = {name: self.packed(name) for name in self.feature_names if self._packed_file(name).is_file()}
        for done, entry in enumerate(self.entries):
            try:
                for name, block in self.features([done], self.feature_names).items():
                    if not np.isfinite(block).all():
                        faults.append(f"{entry.id}: feature '{name}' holds NaN or infinity")
                    if name in packed and not np.array_equal(packed[name][done], block[0], equal_nan=True):
                        faults.append(f"{entry.id}: feature '{name}' differs in {self._packed_file(name)}; delete it")
            except IndexFormatError as error:
                faults.append(f"{entry.id}: {error}")
            files = entry.located
            if entry.in_memory:
                if entry.id in self.in_memory and not entry.unchanged(self.in_memory[entry.id]):
                    faults.append(f"{entry.id}: the image in memory changed since it was indexed")
            elif not all(f.is_file() for f in files):
                faults.append(f"{entry.id}: input file is no longer at {files[0]}")
            elif checksum(files) != entry.sha256:
                faults.append(f"{entry.id}: input file {files[0]} changed since it was indexed")
            progress("verifying", done + 1, len(self))
        return faults

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
                    f"(it serves {', '.join(self.measure_names)}); build it again with measures that include it"
                )
        known = [MEASURES[name] for name in chosen if name in MEASURES]
        # An index whose weights are gone still serves the measures that need none.
        embedders = self.embedders if set(needed_features(known)) & set(EMBEDDED) else None
        every = make_measures(chosen, self.preparation, device, embedders=embedders)
        made = [m for m in every if aligning or m.stage == "in place"]
        if not made:
            raise ConfigurationError("only measures that align were named; name one that compares cases as they lie")
        for measure in made:
            if isinstance(measure, FittedMeasure):
                measure.use(self._fit_of(measure))
            if isinstance(measure, AligningMeasure):
                measure.use_index(self)
        return made

    def remember(self, cases: Iterable[Case]) -> None:
        """Keeps the training images that are in memory, for what needs the images themselves and not their features."""
        self.in_memory.update((case.id, case) for case in cases if case.volume is not None)

    def case(self, position: int) -> Case:
        """The training case at this position in `entries`, as it was read; a mask that a segmenter made is no file.

        Raises:
            InputError: the image was given in memory, and the cohort is not at hand (`remember`).
        """
        entry = self.entries[position]
        if not entry.in_memory:
            return Case(entry.id, entry.images, entry.mask_file, entry.patient)
        if entry.id not in self.in_memory:
            found = f"holds '{entry.id}' as an image that was given in memory, which is gone"
            raise InputError(self.folder, found, "Give the same images again instead of the index, or use files")
        return self.in_memory[entry.id]

    def has_features_of(self, name: str) -> bool:
        """True where the index stores all features that the measure of this name reads."""
        return name in MEASURES and set(MEASURES[name].needs) <= set(self.feature_names)

    def _fit_of(self, measure: FittedMeasure) -> dict[str, np.ndarray]:
        """The arrays that the measure learns from this cohort, learnt once and stored in `fits/`."""
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


def settings_of_segmenter(segmenter: Segmenter | None) -> dict[str, Any] | None:
    """A segmenter's settings as they read back from JSON; None without a segmenter."""
    return None if segmenter is None else json.loads(json.dumps(segmenter.settings()))
