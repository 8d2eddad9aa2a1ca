"""Search for the training cases whose embedding is most similar to that of a query, by FAISS."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from replica_detection.embedding import Embedder
from replica_detection.index.packed import write_once
from replica_detection.measures.feature import unit
from replica_detection.util.files import atomic_write

if TYPE_CHECKING:
    import faiss

# Up to this number of cases the search is exact; beyond, it looks into the most similar of some lists of cases.
EXACT = 100_000
# Cases a list, cases of each list from which the lists are made, and lists that a query looks into.
CASES_A_LIST, SAMPLE, PROBED = 1_000, 64, 64
# The recall is measured on some training cases, as the share of their nearest that the lists find.
RECALL_CASES, RECALL_NEAREST = 200, 100

# Returns parts of (N, F), what the index stores of the images for the embedder, in the order of the index.
Described = Callable[[], Iterable[np.ndarray]]


class SimilarCases:
    """The training cases by their vectors, of length 1 each: the inner product is the cosine of `embedding_cosine`.

    The FAISS index is a file that is mapped into memory, so the processes of a machine share it.

    Args:
        path: of the file, made where it is missing; what it holds stays in memory where it cannot be written.
        cases: number of training cases.
        embedder, described: make the vectors.
    """

    def __init__(self, path: Path, cases: int, embedder: Embedder, described: Described):
        self.path, self.cases, self.embedder, self.described = path, cases, embedder, described
        self.recall = 1.0
        found = self._opened()
        if found is None:
            # Outside the lock: a second process at the same time builds the same.
            found = self._built()
            with suppress(OSError, NotImplementedError):
                self._write(found)
        self.index: faiss.Index = found

    @property
    def definition(self) -> str:
        """Kind of the search, with the share of the nearest cases that it finds."""
        if self.cases <= EXACT:
            return "exact search"
        return f"inverted lists, recall {self.recall:.3f} of the {RECALL_NEAREST} nearest"

    def nearest(self, described: np.ndarray, allowed: np.ndarray, count: int) -> np.ndarray:
        """Positions of the `count` most similar allowed cases, most similar first; fewer where there are fewer.

        Args:
            described: (F,), what the index would store of the query.
            allowed: (N,) bool.
        """
        import faiss

        module: Any = faiss  # FAISS's stubs do not know its arguments
        selector = module.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
        found = self._search(self.index, self._vectors(described[None]), count, selector)[0]
        return np.asarray(found[found >= 0])

    def _vectors(self, described: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(unit(self.embedder.project(described)), np.float32)

    def _search(self, index: faiss.Index, vectors: np.ndarray, count: int, selector: Any = None) -> np.ndarray:
        import faiss

        module: Any = faiss  # FAISS's stubs do not know the keywords
        if self.cases <= EXACT:
            return index.search(vectors, count, params=module.SearchParameters(sel=selector))[1]
        return index.search(vectors, count, params=module.SearchParametersIVF(sel=selector, nprobe=PROBED))[1]

    def _opened(self) -> faiss.Index | None:
        """The index in the file; None where there is none, or a damaged one."""
        import faiss

        module: Any = faiss
        try:
            self.recall = float(json.loads(self._notes.read_text(encoding="utf-8"))["recall"])
        except (OSError, ValueError, KeyError):
            return None
        for flags in (module.IO_FLAG_MMAP_IFC, 0):  # not every system maps it
            with suppress(RuntimeError, TypeError):  # TypeError: a path that is no UTF-8
                index = module.read_index(str(self.path), flags)
                return index if index.ntotal == self.cases else None
        return None

    @property
    def _notes(self) -> Path:
        return self.path.with_suffix(".json")

    def _write(self, index: faiss.Index) -> None:
        import faiss

        module: Any = faiss

        def write(file: Any) -> None:
            writer = module.PyCallbackIOWriter(file.write)
            faiss.write_index(index, writer)
            del writer  # flushes

        write_once(self.path, write, lambda: self._opened() is not None)
        with atomic_write(self._notes) as f:
            json.dump({"recall": self.recall}, f)

    def _built(self) -> faiss.Index:
        import faiss

        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)  # makes it repeatable
        try:
            return self._flat() if self.cases <= EXACT else self._lists()
        finally:
            faiss.omp_set_num_threads(threads)

    def _flat(self) -> faiss.Index:
        import faiss

        index = None
        for block in self.described():
            vectors = self._vectors(block)
            index = index or faiss.IndexFlatIP(vectors.shape[1])
            index.add(vectors)
        assert index is not None
        return index

    def _lists(self) -> faiss.Index:
        """Inverted lists (Sivic and Zisserman, ICCV 2003) of all vectors; measures their recall."""
        import faiss

        count = -(-self.cases // CASES_A_LIST)
        sample = self._sample(SAMPLE * count)
        size = sample.shape[1]
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(size), size, count, faiss.METRIC_INNER_PRODUCT)
        index.train(sample)
        asked = sample[:: max(1, len(sample) // RECALL_CASES)]
        best, nearest = np.empty((len(asked), 0)), np.empty((len(asked), 0), np.int64)
        for block in self.described():
            vectors = self._vectors(block)
            best = np.hstack([best, asked @ vectors.T])
            nearest = np.hstack([nearest, np.tile(np.arange(len(vectors)) + index.ntotal, (len(asked), 1))])
            index.add(vectors)
            kept = np.argpartition(-best, min(RECALL_NEAREST, best.shape[1]) - 1)[:, :RECALL_NEAREST]
            best, nearest = np.take_along_axis(best, kept, 1), np.take_along_axis(nearest, kept, 1)
        found = self._search(index, asked, nearest.shape[1])
        self.recall = float(np.mean([np.isin(a, b).mean() for a, b in zip(nearest, found, strict=True)]))
        return index

    def _sample(self, count: int) -> np.ndarray:
        """Vectors of `count` cases, evenly spread."""
        step, seen, parts = max(1, self.cases // count), 0, []
        for block in self.described():
            parts.append(block[-seen % step :: step])
            seen += len(block)
        return self._vectors(np.concatenate(parts))
