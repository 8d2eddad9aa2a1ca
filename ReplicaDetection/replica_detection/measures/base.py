"""What a measure is, and the registry of all of them."""

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
    """Compares prepared cases by one number.

    A subclass sets `name`, `level` (one of LEVELS) and `sense` (`distance` or `similarity`) and says in `needs` which
    features it reads. Measures that need the same feature share it in the index.

    Args:
        preparation: how the images were prepared; fixes data range and grid.
        device: `cpu` or a torch device such as `cuda`.
        embedders: what turns images into vectors, for the measures that need one.
    """

    name: ClassVar[str]
    level: ClassVar[str]
    sense: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    # "aligned" where pairs are laid upon each other first.
    stage: ClassVar[str] = "in place"
    # Whether it is used where the user names no measures.
    by_default: ClassVar[bool] = True

    def __init__(self, preparation: Preparation, device: str = "cpu", embedders: Embedders | None = None):
        self.preparation, self.device, self.embedders = preparation, device, embedders or Embedders()

    @property
    def group(self) -> str:
        """Measures of one group see much the same thing and are averaged before groups are combined."""
        return self.level if self.stage == "in place" else f"{self.level} {self.stage}"

    @property
    def needs_mask(self) -> bool:
        return "mask" in self.needs

    @property
    @abstractmethod
    def definition(self) -> str:
        """What the name leaves open, for people: window, data range, units."""

    @abstractmethod
    def features(self, case: PreparedImage) -> dict[str, np.ndarray]:
        """What the index stores for one case, by feature name (each name in `needs`); shapes equal for all cases."""

    @abstractmethod
    def distances(self, queries: Block, training: Block) -> np.ndarray:
        """(Q, N) float64, >= 0, exactly 0 for an exact copy, +inf for a pair that is left out.

        Both arguments are one block of a cohort, never known to be the whole.
        """

    def value(self, distance: float) -> float:
        """The number as the field reports it: a similarity s was ranked as the distance 1 - s."""
        return 1 - distance if self.sense == "similarity" else distance

    def problem(self) -> str | None:
        """Why this measure cannot be used on the prepared grid, or None."""
        return None

    @property
    def saw_training(self) -> bool:
        """Whether it learnt from the training cohort for good: a null made of training cases then errs."""
        return False

    @property
    def is_fitted_on_training(self) -> bool:
        """Whether it learnt something from the training cohort and can be had `without` some cases."""
        return False

    def refit_without(self, training: TrainingRows, left_out: np.ndarray) -> Measure:
        """The measure as it were had the training cases in `left_out` ((N,) bool) not been there."""
        return self

    def details(self, queries: Block, training: Block) -> dict[str, np.ndarray]:
        """Further numbers of each pair, (Q, N) by name, for `describe`."""
        return {}

    def describe(self, found: MeasureOutput, null: np.ndarray, ids: Sequence[str]) -> dict[str, list[Any]]:
        """What else there is to say about each query: columns of Q numbers or texts, None for what is undefined.

        Args:
            found: the queries' distances and details.
            null: (n, N) distances of the null cases, near-duplicates left out.
            ids: of the N training cases.
        """
        return {}


class FittedMeasure(Measure):
    """A measure that is fitted on the training cohort before it compares; the index keeps the fit."""

    @abstractmethod
    def fit(self, training: TrainingRows, left_out: np.ndarray | None = None) -> Mapping[str, np.ndarray]:
        """What is learnt from the training cohort, without the cases in `left_out` ((N,) bool)."""

    @abstractmethod
    def use(self, fit: Mapping[str, np.ndarray]) -> None:
        """Takes what `fit` learnt, perhaps in an earlier run."""

    @property
    def is_fitted_on_training(self) -> bool:
        return True

    def refit_without(self, training: TrainingRows, left_out: np.ndarray) -> Measure:
        again = copy(self)
        again.use(self.fit(training, left_out))
        return again


class SearchingMeasure(FittedMeasure):
    """A measure that looks for its matches in the whole training cohort at once, by an index of its own."""

    @property
    def is_fitted_on_training(self) -> bool:
        return False  # `search` itself leaves out what it is told to

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


class TrainingRows(Protocol):
    """The stored features of a training cohort, as `Measure.fit` reads them; a `TrainingIndex` is one."""

    def __len__(self) -> int: ...

    @property
    def ids(self) -> tuple[str, ...]: ...

    @property
    def patients(self) -> np.ndarray: ...

    def features(self, positions: Sequence[int], names: Iterable[str]) -> Block: ...

    def blocks(self, names: Sequence[str]) -> Iterator[tuple[int, Block]]: ...


class AligningMeasure(Measure):
    """Lays the few training cases that fit best on each query and compares these alone.

    It looks for them in the whole index, instead of taking it block by block. Measures of one `source` share the
    search.
    """

    stage = "aligned"
    source: ClassVar[str]

    def distances(self, queries: Block, training: Block) -> np.ndarray:
        raise NotImplementedError("an aligning measure looks for its pairs itself")

    @abstractmethod
    def place(self, query: Block, index: TrainingRows, allowed: np.ndarray) -> list[Placement]:
        """The candidates of one query (a block of one case) among the training cases in `allowed` (N,) bool."""

    @abstractmethod
    def compare(self, query: Block, placed: Sequence[Placement], index: TrainingRows) -> list[tuple[float, Placement]]:
        """Distance of each candidate, and how it was laid upon the query for that, nearest first."""


def needed_features(measures: Iterable[Measure | type[Measure]]) -> list[str]:
    """Names of the features that any of the measures reads, each once."""
    return list(dict.fromkeys(name for m in measures for name in m.needs))


def features_of(case: PreparedImage, measures: Sequence[Measure]) -> dict[str, np.ndarray]:
    """The features of one case that the measures need, each made once."""
    features: dict[str, np.ndarray] = {}
    for measure in measures:
        if not set(measure.needs) <= set(features):
            features.update(measure.features(case))
    wanted = set(needed_features(measures))
    return {name: array for name, array in features.items() if name in wanted}


MEASURES: dict[str, type[Measure]] = {}


def register(measure: type[Measure]) -> type[Measure]:
    """Class decorator: makes a measure known by its name."""
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
        names: of measures; `default` among them stands for those that are used where no names are given.
        masks: whether the cohort has masks; without them the measures that need one cannot be used.
        embedders: what turns images into vectors; without one the measures that need it cannot be used.

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
            problem = "the training cohort has no masks; give --masks or --segment"
        if problem:
            raise ConfigurationError(f"measure '{name}' cannot be used: {problem}")
        chosen.append(measure)
    if not chosen:
        raise ConfigurationError(f"no measure was named; known: {', '.join(MEASURES)}")
    return chosen
