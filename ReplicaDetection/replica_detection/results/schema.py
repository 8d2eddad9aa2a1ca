"""The messages between server and clients as plain dataclasses, and the JSON codec for dataclasses.

The server's routes return these classes; a client converts them with `to_json` and `from_json`. The files of a result
and of a calibration use the same two functions. JSON has no NaN: what is undefined is None. New fields get a default;
any other change raises API_VERSION. A rating is sent as `ratings.Rating`, an alignment as `alignment.Alignment`.
Imports with the standard library alone.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, TypeVar

from replica_detection.preparation.profiles import Preparation
from replica_detection.registration.alignment import Alignment

API_VERSION = 1
T = TypeVar("T")


@dataclass(frozen=True)
class MeasureDescription:
    """A measure that the index serves; `threshold` is the largest ratio called at least suspicious."""

    name: str
    level: str
    sense: str
    definition: str
    threshold: float | None = None


@dataclass(frozen=True)
class IndexDescription:
    """The training cohort that cases are compared with; `version` changes whenever a distance could.

    `preparation` describes how an image is brought onto the grid, so that a client can show two images as they were
    compared; None from an older server. `null_kind` is that of `NullInfo`, "" while it is not known.
    """

    version: str
    cases: int
    profile: str
    grid: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    measures: tuple[MeasureDescription, ...]
    null_kind: str
    null_size: int
    alpha: float
    k: int
    segmenter: str | None = None
    preparation: Preparation | None = None


@dataclass(frozen=True)
class Job:
    """Work in the background. `state`: queued, running, done, failed or cancelled; `total` 0: not known yet.

    `words` is a line on the present stage and its progress, "" after the end; `seconds_left` is an estimate for the
    present stage, None if there is none yet.
    """

    id: str
    kind: str
    state: str
    stage: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    message: str = ""
    words: str = ""
    seconds_left: float | None = None


@dataclass(frozen=True)
class LeftOut:
    """Number of files or folders in the studies' folder that are no studies, for one reason; without names."""

    reason: str
    count: int


@dataclass(frozen=True)
class Status:
    """State of the server.

    `reader`: the caller's name by its token, "" without one. `scored`: number of cases with a score. `authentication`:
    none, key or token. `left_out`: content of the studies' folder that is no study. `index_words`: progress of the
    index while it is built. `sees_all_ratings`: True if the caller may see the ratings of all readers, and so their
    agreement.
    """

    api_version: int
    version: str
    studies: int
    scored: int
    training: int
    authentication: str
    reader: str
    max_upload_bytes: int
    index: IndexDescription | None = None
    jobs: tuple[Job, ...] = ()
    problem: str = ""
    left_out: tuple[LeftOut, ...] = ()
    index_words: str = ""
    sees_all_ratings: bool = True


@dataclass(frozen=True)
class WorklistItem:
    """A synthetic case. Before scoring `verdict` is "" and `score` None; `rating` is the asking reader's latest.

    `reason` is that of `CaseSummary`: "" where the verdict rests on the p value.
    """

    synthetic_id: str
    verdict: str = ""
    score: float | None = None
    nearest_training_id: str = ""
    levels_flagged: tuple[str, ...] = ()
    measures_agreeing: int = 0
    levels_differ: tuple[str, ...] = ()
    rating: int | None = None
    readers: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Worklist:
    """One page: `total` is the number of cases that pass the filter, `offset` that of the first item here."""

    total: int
    offset: int
    items: tuple[WorklistItem, ...]
    index_version: str = ""


@dataclass(frozen=True)
class NeighborItem:
    """A training case near the query under one measure."""

    rank: int
    training_id: str
    value: float | None
    distance: float | None


@dataclass(frozen=True)
class Detail:
    """A further number or text of a measure for one case, such as the memorization index MI."""

    name: str
    text: str


@dataclass(frozen=True)
class MeasureResult:
    """The query under one measure, with its nearest training cases."""

    measure: str
    level: str
    nearest_training_id: str
    value: float | None
    distance: float | None
    ratio: float | None
    p_value: float | None
    q_value: float | None
    verdict: str
    neighbors: tuple[NeighborItem, ...] = ()
    details: tuple[Detail, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """One image against the training cohort.

    The q values of a case of the worklist are those of the whole set; an uploaded image is a set of one. `reason` is
    that of `CaseSummary`: "" where the verdict rests on the p value.
    """

    synthetic_id: str
    verdict: str
    score: float | None
    nearest_training_id: str
    levels_flagged: tuple[str, ...]
    levels_differ: tuple[str, ...]
    measures: tuple[MeasureResult, ...]
    index_version: str
    warnings: tuple[str, ...] = ()
    alignment: Alignment | None = None
    alignment_words: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Histogram:
    """Ratios of the scored set and of the null, for a plot; for `measure` "" the overall evidence."""

    measure: str
    synthetic_ids: tuple[str, ...]
    synthetic: tuple[float | None, ...]
    null: tuple[float | None, ...]
    threshold: float | None


@dataclass(frozen=True)
class SurfaceStatistics:
    """Distances in mm from one surface to the other, weighted by area."""

    mean: float
    p95: float
    maximum: float
    maximum_at: tuple[float, float, float]


@dataclass(frozen=True)
class SurfaceReply:
    """A pair's surfaces: `forth` from the synthetic to the training one, `back` the other way, `symmetric` both."""

    forth: SurfaceStatistics
    back: SurfaceStatistics
    symmetric: SurfaceStatistics


@dataclass(frozen=True)
class RatingReceipt:
    """Sent after the rating is on the server's disk; sending the same `rating_id` again has no effect."""

    rating_id: str
    reader: str
    created: str


@dataclass(frozen=True)
class ReaderAgreement:
    """Two readers over the cases that both rated. Kappas are None where they are undefined (no variation).

    The first three are of the four-point scale (quadratic weights), the last two of replica (3, 4) or not.
    """

    readers: tuple[str, str]
    cases: int
    percent_agreement: float | None
    kappa: float | None
    weighted_kappa: float | None
    replica_agreement: float | None = None
    replica_kappa: float | None = None


@dataclass(frozen=True)
class ThresholdItem:
    """A ratio threshold from the readers; `method`: balanced-accuracy or youden; all other figures are cross-validated,
    the interval is that of the balanced accuracy. `measure` "overall": minus the combined evidence."""

    measure: str
    method: str
    threshold: float | None
    balanced_accuracy: float | None
    sensitivity: float | None
    specificity: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class AgreementReport:
    """Summary of the ratings: agreement of each pair of readers, and thresholds by the consensus."""

    readers: tuple[str, ...]
    cases: int
    replicas: int
    pairs: tuple[ReaderAgreement, ...]
    thresholds: tuple[ThresholdItem, ...]
    note: str = ""


@dataclass(frozen=True)
class ErrorReply:
    """An error of the server: the reason and, if it helps, the remedy."""

    detail: str


def number(value: float | None) -> float | None:
    """None for NaN and infinity, which JSON lacks."""
    return None if value is None or not math.isfinite(value) else float(value)


def nan_for_none(value: float | None) -> float:
    """The inverse of `number`: NaN for None."""
    return math.nan if value is None else float(value)


def to_json(value: Any) -> Any:
    """Dataclasses, and containers of them, as what `json.dumps` takes; NaN and infinity become None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if type(value).__module__ == "numpy":
        value = value.item()  # a scalar; this module does not import numpy
    return number(value) if isinstance(value, float) else value


def from_json(kind: type[T], data: Any, *, own_file: bool = False) -> T:
    """A dataclass from the output of `json.loads`.

    Args:
        own_file: how strictly to read. False, for messages: unknown fields are ignored, since a newer server may send
            more of them. True, for files that this version wrote itself: an unknown field is an error, and None for a
            number is NaN, as `to_json` writes it.

    Raises:
        ValueError: a field without default is missing or has another type.
    """
    return typing.cast(T, _Reader(own_file).read(kind, data, kind.__name__))


@dataclass(frozen=True)
class _Reader:
    own_file: bool

    def read(self, kind: Any, data: Any, where: str) -> Any:
        """`data` as a value of `kind`; `where` names it in errors."""
        if dataclasses.is_dataclass(kind):
            return self._object(kind, data, where)
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if origin in (typing.Union, types.UnionType):
            if data is None and type(None) in inner:
                return None
            return self.read(next(k for k in inner if k is not type(None)), data, where)
        if origin is tuple:
            return self._tuple(inner, data, where)
        if origin in (list, dict):
            _expect(origin, data, where)
            if origin is list:
                return [self.read(inner[0], d, f"{where}[{i}]") for i, d in enumerate(data)]
            return {k: self.read(inner[1], d, f"{where}[{k!r}]") for k, d in data.items()}
        if kind is float and self.own_file and data is None:
            return math.nan
        if kind is float and isinstance(data, int) and not isinstance(data, bool):
            return float(data)
        if kind is Any or (isinstance(data, kind) and not (kind is int and isinstance(data, bool))):
            return data
        raise ValueError(f"{where}: expected {kind.__name__}, found {data!r}")

    def _object(self, kind: Any, data: Any, where: str) -> Any:
        _expect(dict, data, where)
        hints = typing.get_type_hints(kind)
        fields = dataclasses.fields(kind)
        unknown = sorted(data.keys() - {f.name for f in fields})
        if self.own_file and unknown:
            raise ValueError(f"{where}: has an unknown field '{unknown[0]}'")
        known = {}
        for f in fields:
            if f.name in data:
                known[f.name] = self.read(hints[f.name], data[f.name], f"{where}.{f.name}")
            elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise ValueError(f"{where}: lacks '{f.name}'")
        return kind(**known)

    def _tuple(self, inner: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
        _expect(list, data, where)
        kinds = [inner[0]] * len(data) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) != len(data):
            raise ValueError(f"{where}: expected {len(kinds)} entries, found {len(data)}")
        return tuple(self.read(k, d, f"{where}[{i}]") for i, (k, d) in enumerate(zip(kinds, data, strict=True)))


def _expect(kind: type, data: Any, where: str) -> None:
    if not isinstance(data, kind):
        name = "an object" if kind is dict else "a list"
        raise ValueError(f"{where}: expected {name}, found {type(data).__name__}")
