"""Votes of single slices for the training case that holds the most similar one (Truong et al., ISBI 2024)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from replica_detection.embedding import Embedder
from replica_detection.embedding.stored import slice_spacing, slices_of
from replica_detection.errors import ConfigurationError
from replica_detection.measures.base import Block, MeasureOutput, SearchingMeasure, TrainingRows, register
from replica_detection.measures.feature import unit
from replica_detection.preparation.prepare import PreparedImage

if TYPE_CHECKING:
    import faiss

# Largest number of slices of a volume, evenly spread.
MOST_SLICES = 64
# A slice is blank if fewer than this share of its pixels is brighter than FOREGROUND (intensities go to 1).
LEAST_FOREGROUND, FOREGROUND = 0.05, 0.05
# A vote counts if it reaches this quantile of the best matches between different patients.
FLOOR_QUANTILE = 0.5
FLOOR_SAMPLE = 2000
# HNSW: neighbours of a node, and breadth of the search when building and when searching.
LINKS, BUILD_BREADTH, SEARCH_BREADTH = 32, 200, 128
RECALL_SAMPLE = 1000


@register
class SliceVotes(SearchingMeasure):
    """Share of the query's slices that vote for a training case in the right order; ranked as 1 minus it.

    Each slice that is not blank votes for the training case with the most similar slice, if their cosine reaches a
    floor: the median best match between different patients of the training cohort. Of the votes for one case, those
    count whose slices follow each other in the order of the query, forwards or backwards (longest increasing
    subsequence). The similarity is their number over the number of the query's slices. The paper counts every vote.

    The search is exact (FAISS, inner product). `describe` adds the share of votes in any order, and the median shift
    of the match in slices.
    """

    name = "slice_votes"
    level = "feature"
    sense = "similarity"
    needs: ClassVar[tuple[str, ...]] = ("slices",)
    by_default = False
    search_index = "exact search"

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.cases = self.depths = np.empty(0, np.int64)
        self.training_cases = 0
        self.floor = 0.0
        self.index: faiss.Index | None = None

    @property
    def embedder(self) -> Embedder:
        if self.embedders.slices is None:
            raise ConfigurationError(f"measure '{self.name}' needs an embedding of slices; give `slice_embedding`")
        return self.embedders.slices

    @property
    def definition(self) -> str:
        return (
            f"share of slices voting in order, by embedding {self.embedder.definition}; at most {MOST_SLICES} slices, "
            f"blank ones (less than {LEAST_FOREGROUND:.0%} foreground) left out, {self.search_index}"
        )

    def problem(self) -> str | None:
        if self.preparation.dimensions != 3:
            return "it compares slices of volumes, and these images are 2D"
        return "no embedding of slices was chosen; give `slice_embedding`" if self.embedders.slices is None else None

    def features(self, case: PreparedImage) -> dict[str, np.ndarray]:
        """`slices`: (S, D) float32 of length 1 each; zeros for a blank slice and for a repeated one."""
        stack = slices_of(case.image, self.preparation)
        chosen = np.unique(np.linspace(0, len(stack) - 1, min(len(stack), MOST_SLICES)).round().astype(int))
        vectors = []
        for number, z in enumerate(chosen):
            blank = np.mean(stack[z] > FOREGROUND) < LEAST_FOREGROUND
            # Padding repeats the edge when a volume is brought onto the grid.
            repeated = number > 0 and np.array_equal(stack[z], stack[chosen[number - 1]])
            vectors.append(None if blank or repeated else self._vector(stack[z]))
        size = next((len(v) for v in vectors if v is not None), None)
        if size is None:
            size = len(self._vector(stack[len(stack) // 2]))
        return {"slices": np.stack([np.zeros(size, np.float32) if v is None else v for v in vectors])}

    def _vector(self, image: np.ndarray) -> np.ndarray:
        vector = self.embedder.embed(image[None], slice_spacing(self.preparation))
        return unit(vector)[0].astype(np.float32)

    def fit(self, training: TrainingRows, left_out: np.ndarray | None = None) -> Mapping[str, np.ndarray]:
        """The slices that are not blank, the case and depth of each, the number of cases, and the floor."""
        vectors, cases, depths = [], [], []
        for start, block in training.blocks(self.needs):
            case, depth = np.nonzero(block["slices"].any(2))
            vectors.append(block["slices"][case, depth])
            cases.append(case + start)
            depths.append(depth)
        fitted = {
            "vectors": np.concatenate(vectors),
            "cases": np.concatenate(cases),
            "depths": np.concatenate(depths),
            "size": np.array([len(training)]),
        }
        return {**fitted, "floor": np.array([_floor(fitted, training.patients)])}

    def use(self, fit: Mapping[str, np.ndarray]) -> None:
        self.cases, self.depths = fit["cases"], fit["depths"]
        self.training_cases, self.floor = int(fit["size"][0]), float(fit["floor"][0])
        self.index = self.built(fit)

    def built(self, fit: Mapping[str, np.ndarray]) -> faiss.Index:
        return flat_index(fit["vectors"])

    def search(self, queries: Block, left_out: np.ndarray) -> MeasureOutput:
        shape = (len(queries["slices"]), self.training_cases)
        share, votes, offsets = np.zeros(shape), np.zeros(shape, np.float32), np.full(shape, np.nan, np.float32)
        compared = np.ones(len(queries["slices"]), bool)
        for q, stack in enumerate(queries["slices"]):
            depths = np.flatnonzero(stack.any(1))
            compared[q] = len(depths) > 0
            if not len(depths):
                continue
            matches, similarity = self._nearest(stack[depths], left_out[q])
            kept = (matches >= 0) & (similarity >= self.floor)
            case, depth, own = self.cases[matches[kept]], self.depths[matches[kept]], depths[kept]
            for v in np.unique(case):
                voted = depth[case == v]
                share[q, v] = in_order(voted) / len(depths)
                votes[q, v] = len(voted) / len(depths)
                offsets[q, v] = np.median(voted - own[case == v])
        distances = np.where(compared[:, None], 1 - share, np.inf)
        return MeasureOutput(distances, {"votes": votes, "offset": offsets})

    def describe(self, output: MeasureOutput, ids: Sequence[str]) -> dict[str, list[Any]]:
        rows, nearest = np.arange(len(output.distances)), output.distances.argmin(1)
        offset = output.details["offset"][rows, nearest]
        return {
            "votes": output.details["votes"][rows, nearest].astype(float).tolist(),
            "offset_slices": [float(v) if np.isfinite(v) else None for v in offset],
        }

    def _nearest(self, vectors: np.ndarray, left_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position and cosine of the most similar stored slice for each vector; -1 where there is none."""
        import faiss

        assert self.index is not None
        parameters = None
        if left_out[self.cases].any():
            allowed = np.flatnonzero(~left_out[self.cases]).astype(np.int64)
            parameters = self.parameters(faiss.IDSelectorBatch(allowed))
        similarity, matches = self.index.search(np.ascontiguousarray(vectors), 1, params=parameters)
        return matches[:, 0], similarity[:, 0]

    def parameters(self, selector: Any) -> Any:
        """FAISS search parameters that restrict a search to the selected slices."""
        import faiss

        search: Any = faiss.SearchParameters  # FAISS's stubs do not know its keywords
        return search(sel=selector)


@register
class SliceVotesHnsw(SliceVotes):
    """`slice_votes` with approximate search (HNSW), for millions of slices; the definition states its recall."""

    name = "slice_votes_hnsw"
    recall = float("nan")

    @property
    def search_index(self) -> str:  # type: ignore[override]
        settings = f"HNSW search ({LINKS} links, breadth {BUILD_BREADTH} and {SEARCH_BREADTH})"
        return settings if np.isnan(self.recall) else f"{settings}, recall {self.recall:.3f} of the nearest slice"

    def fit(self, training: TrainingRows, left_out: np.ndarray | None = None) -> Mapping[str, np.ndarray]:
        fitted = dict(super().fit(training, left_out))
        index = hnsw_index(fitted["vectors"])
        fitted["hnsw"] = to_bytes(index)
        fitted["recall"] = np.array([recall(index, fitted["vectors"])])
        return fitted

    def use(self, fit: Mapping[str, np.ndarray]) -> None:
        super().use(fit)
        self.recall = float(fit["recall"][0])

    def built(self, fit: Mapping[str, np.ndarray]) -> faiss.Index:
        return from_bytes(fit["hnsw"])

    def parameters(self, selector: Any) -> Any:
        import faiss

        module: Any = faiss
        return module.SearchParametersHNSW(sel=selector, efSearch=SEARCH_BREADTH)


def flat_index(vectors: np.ndarray) -> faiss.Index:
    """Index for exact search by inner product in (M, D) float32."""
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors))
    return index


def hnsw_index(vectors: np.ndarray) -> faiss.Index:
    """Index for approximate search by inner product (Malkov and Yashunin 2018); one thread makes it repeatable."""
    import faiss

    index = faiss.IndexHNSWFlat(vectors.shape[1], LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = BUILD_BREADTH, SEARCH_BREADTH
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        index.add(np.ascontiguousarray(vectors))
    finally:
        faiss.omp_set_num_threads(threads)
    return index


def to_bytes(index: faiss.Index) -> np.ndarray:
    """The index as (bytes,) uint8.

    `faiss.serialize_index` does the same, but fails once SimpleITK has been imported after FAISS: both wrap
    `std::vector<uint8_t>` with SWIG, and the later import takes over the type.
    """
    import faiss

    module: Any = faiss  # FAISS's stubs do not know the class
    buffer = BytesIO()
    writer = module.PyCallbackIOWriter(buffer.write)
    faiss.write_index(index, writer)
    del writer  # flushes
    return np.frombuffer(buffer.getvalue(), np.uint8)


def from_bytes(content: np.ndarray) -> faiss.Index:
    """The inverse of `to_bytes`."""
    import faiss

    module: Any = faiss
    return faiss.read_index(module.PyCallbackIOReader(BytesIO(content.tobytes()).read))


def recall(index: faiss.Index, vectors: np.ndarray) -> float:
    """Share of sampled slices for which `index` finds the same nearest other slice as an exact search."""
    sample = np.unique(np.linspace(0, len(vectors) - 1, min(len(vectors), RECALL_SAMPLE)).round().astype(int))
    exact, approximate = (i.search(vectors[sample], 2)[1] for i in (flat_index(vectors), index))
    others = [np.where(matches[:, 0] == sample, matches[:, 1], matches[:, 0]) for matches in (exact, approximate)]
    return float(np.mean(others[0] == others[1]))


def in_order(depths: Sequence[int]) -> int:
    """Length of the longest strictly increasing or strictly decreasing subsequence."""
    return max(_longest_rise(depths), _longest_rise(list(reversed(depths))))


def _longest_rise(depths: Sequence[int]) -> int:
    ends: list[int] = []
    for depth in depths:
        position = bisect_left(ends, depth)
        ends[position : position + 1] = [depth]
    return len(ends)


def _floor(fitted: Mapping[str, np.ndarray], patients: np.ndarray) -> float:
    """FLOOR_QUANTILE of the best cosines of sampled training slices with those of other patients; -1 without any."""
    vectors, owner = fitted["vectors"], patients[fitted["cases"]]
    sample = np.unique(np.linspace(0, len(vectors) - 1, min(len(vectors), FLOOR_SAMPLE)).round().astype(int))
    best = np.full(len(sample), -np.inf)
    for start in range(0, len(vectors), 8192):
        part = slice(start, start + 8192)
        cosines = vectors[sample] @ vectors[part].T
        cosines[owner[sample][:, None] == owner[part][None]] = -np.inf
        best = np.maximum(best, cosines.max(1))
    best = best[np.isfinite(best)]
    return float(np.quantile(best, FLOOR_QUANTILE)) if len(best) else -1.0
