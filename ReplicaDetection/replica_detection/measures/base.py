"""The interface of a measure, and the registry of all measures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from replica_detection.embedding import Embedders
from replica_detection.errors import ConfigurationError
from replica_detection.preparation.prepare import PreparedImage
from replica_detection.preparation.profiles import Preparation

if TYPE_CHECKING:
    from replica_detection.registration.placement import Placement

# Stacked features of several cases: name -> (cases, ...).
Block = dict[str, np.ndarray]

LEVELS = ("voxel", "feature", "segmentation")
# Stands for all measures that are used where none are named.
DEFAULT = "default"


class Measure(ABC):
    """One number for each pair of prepared cases.

    A subclass sets `name`, `level` (one of LEVELS) and `sense` (`distance` or `similarity`), and lists in `needs` the
    features that it reads. Measures that need the same feature share it in the index.

    Args:
        preparation: of the images; fixes data range and grid.
        device: `cpu` or a torch device such as `cuda`.
        embedders: of images and of slices, for measures that compare vectors.
    """

    name: ClassVar[str]
    level: ClassVar[str]
    sense: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    # "aligned" if the training case is aligned to the query first.
    stage: ClassVar[str] = "in place"
    # True if it is used when the user names no measures.
    by_default: ClassVar[bool] = True

    def __init__(self, preparation: Preparation, device: str = "cpu", embedders: Embedders | None = None):
        self.preparation, self.device, self.embedders = preparation, device, embedders or Embedders()

    @property
    def group(self) -> str:
        """Measures of one group depend strongly on each other and are averaged before groups are combined."""
        return self.level if self.stage == "in place" else f"{self.level} {self.stage}"

    @property
    def needs_mask(self) -> bool:
        return "mask" in self.needs

    @property
    @abstractmethod
    def definition(self) -> str:
        """The details that the name leaves open, for people: window, data range, units."""

    @abstractmethod
    def features(self, case: PreparedImage) -> dict[str, np.ndarray]:
        """The features of one case that the index stores, by name (each in `needs`); shapes equal for all cases."""

    @abstractmethod
    def distances(self, queries: Block, training: Block) -> np.ndarray:
        """(Q, N) float64, >= 0, exactly 0 for an exact copy, +inf for a pair that is left out.

        Both arguments are one block of a cohort, not necessarily all of it.
        """

    def value(self, distance: float) -> float:
        """The number as the literature reports it: a similarity s was ranked as the distance 1 - s."""
        return 1 - distance if self.sense == "similarity" else distance

    @property
    def caution(self) -> str | None:
        """A sentence for the user about how this measure works on this index, or None."""
        return None

    def problem(self) -> str | None:
        """The reason why this measure cannot be used on the prepared grid, or None."""
        return None

    @property
    def saw_training(self) -> bool:
        """True if its embedder was trained on the training cohort, which biases a null made of training cases."""
        return False

    @property
    def is_fitted_on_training(self) -> bool:
        """True if it is fitted on the training cohort and can be refitted without some cases."""
        return False

    def refit_without(self, training: TrainingRows, left_out: np.ndarray) -> Measure:
        """This measure refitted without the training cases in `left_out` ((N,) bool)."""
        return self

    def details(self, queries: Block, training: Block) -> dict[str, np.ndarray]:
        """Further numbers of each pair, (Q, N) by name, for `describe`."""
        return {}

    def describe(self, output: MeasureOutput, ids: Sequence[str]) -> dict[str, list[Any]]:
        """Further columns about each query of a block: Q numbers or texts each, None where undefined.

        Args:
            output: the queries' distances and details.
            ids: of the N training cases.
        """
        return {}

    def against_null(self, columns: dict[str, list[Any]], null: np.ndarray) -> dict[str, list[Any]]:
        """The columns of all queries, with those that compare them with the null.

        Args:
            columns: from `describe`.
            null: (n,) distance of each null case to its nearest training case, +inf where none was compared;
                near-duplicates are left out.
        """
        return columns


class FittedMeasure(Measure):
    """A measure that is fitted on the training cohort first; the index keeps the fit."""

    @abstractmethod
    def fit(self, training: TrainingRows, left_out: np.ndarray | None = None) -> Mapping[str, np.ndarray]:
        """Parameters fitted on the training cohort without the cases in `left_out` ((N,) bool), as named arrays."""

    @abstractmethod
    def use(self, fit: Mapping[str, np.ndarray]) -> None:
        """Sets the parameters that `fit` returned, in this run or an earlier one."""

    @property
    def is_fitted_on_training(self) -> bool:
        return True

    def refit_without(self, training: TrainingRows, left_out: np.ndarray) -> Measure:
        again = copy(self)
        again.use(self.fit(training, left_out))
        return again


class SearchingMeasure(FittedMeasure):
    """A measure that searches the whole training cohort at once, with an index of its own."""

    @property
    def is_fitted_on_training(self) -> bool:
        return False  # `search` itself leaves out the pairs that it is given

    @abstractmethod
    def search(self, queries: Block, left_out: np.ndarray) -> MeasureOutput:
        """Distances (and details) of all queries to all training cases; `left_out` (Q, N) pairs are never a match."""

    def distances(self, queries: Block, training: Block) -> np.ndarray:
        raise NotImplementedError("this measure compares by `search`")


@dataclass(frozen=True)
class MeasureOutput:
    """`distances` (Q, N) as of `Measure.distances`, and `details` by name, (Q, N) each."""

    distances: np.ndarray
    details: dict[str, np.ndarray]


class SimilarRows(Protocol):
    """Search among the embeddings of a training cohort."""

    @property
    def definition(self) -> str: ...

    def nearest(self, described: np.ndarray, allowed: np.ndarray, count: int) -> np.ndarray: ...


class TrainingRows(Protocol):
    """The stored features of a training cohort, as `Measure.fit` reads them; a `TrainingIndex` is one."""

    def __len__(self) -> int: ...

    @property
    def ids(self) -> tuple[str, ...]: ...

    @property
    def patients(self) -> np.ndarray: ...

    def features(self, positions: Sequence[int], names: Iterable[str]) -> Block: ...

    @property
    def embedders(self) -> Embedders: ...

    @property
    def similar(self) -> SimilarRows | None: ...

    def packed(self, name: str) -> np.ndarray: ...

    def blocks(self, names: Sequence[str]) -> Iterator[tuple[int, Block]]: ...


class AligningMeasure(Measure):
    """A measure that aligns the few best training cases to each query and compares only these.

    It searches the whole index instead of reading it block by block. Measures with the same `source` share the search.
    """

    stage = "aligned"
    source: ClassVar[str]

    @abstractmethod
    def use_index(self, index: TrainingRows) -> None:
        """Prepares the search among these training cases, and settles how they are searched."""

    def distances(self, queries: Block, training: Block) -> np.ndarray:
        raise NotImplementedError("an aligning measure looks for its pairs itself")

    @abstractmethod
    def candidates(self, query: Block, index: TrainingRows, allowed: np.ndarray) -> list[Placement]:
        """The candidates for one query (a block of one case) among the training cases in `allowed` (N,) bool."""

    def candidates_of_all(self, queries: Block, index: TrainingRows, allowed: np.ndarray) -> Iterator[list[Placement]]:
        """`candidates` for each query of a block; `allowed` is (Q, N)."""
        for i in range(len(allowed)):
            yield self.candidates({name: values[i : i + 1] for name, values in queries.items()}, index, allowed[i])

    @abstractmethod
    def compare(
        self, query: Block, candidates: Sequence[Placement], index: TrainingRows
    ) -> list[tuple[float, Placement]]:
        """Distance of each candidate with the placement that it was computed for, nearest first."""


def needed_features(measures: Iterable[Measure | type[Measure]]) -> list[str]:
    """Names of the features that any of the measures reads, each once."""
    return list(dict.fromkeys(name for m in measures for name in m.needs))


def features_of(case: PreparedImage, measures: Sequence[Measure]) -> dict[str, np.ndarray]:
    """The features of one case that the measures need, each computed once."""
    features: dict[str, np.ndarray] = {}
    for measure in measures:
        if not set(measure.needs) <= set(features):
            features.update(measure.features(case))
    wanted = set(needed_features(measures))
    return {name: array for name, array in features.items() if name in wanted}


MEASURES: dict[str, type[Measure]] = {}


def register(measure: type[Measure]) -> type[Measure]:
    """Class decorator: adds a measure to MEASURES under its name."""
    MEASURES[measure.name] = measure
    return measure


def make_measures(
    names: Iterable[str] | None,
    preparation: Preparation,
    device: str = "cpu",
    *,
    masks: bool = True,
    embedders: Embedders | None = None,
) -> list[Measure]:
    """The measures of the given names, or all that can be used on this grid.

    Args:
        names: of measures; `default` among them stands for the measures that are used without names.
        masks: True if the cohort has masks; without masks the measures that need them cannot be used.
        embedders: of images and of slices; a measure that needs a missing one cannot be used.

    Raises:
        ConfigurationError: an unknown name, or a named measure that cannot be used here.
    """
    in_order = sorted(MEASURES.values(), key=lambda m: (LEVELS.index(m.level), m.stage == "aligned"))
    every = [measure(preparation, device, embedders) for measure in in_order if measure.by_default]
    usual = [m for m in every if m.problem() is None and (masks or not m.needs_mask)]
    if names is None:
        return usual
    named = dict.fromkeys(n for name in names for n in ([m.name for m in usual] if name == DEFAULT else [name]))
    chosen = []
    for name in named:
        if name not in MEASURES:
            raise ConfigurationError(f"unknown measure '{name}'; known: {', '.join(MEASURES)}")
        measure = MEASURES[name](preparation, device, embedders)
        problem = measure.problem()
        if measure.needs_mask and not masks:
            problem = "the training cohort has no masks; give masks or a segmenter"
        if problem:
            raise ConfigurationError(f"measure '{name}' cannot be used: {problem}")
        chosen.append(measure)
    if not chosen:
        raise ConfigurationError(f"no measure was named; known: {', '.join(MEASURES)}")
    return chosen
