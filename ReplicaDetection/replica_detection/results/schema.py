"""What server and clients say to each other, as plain dataclasses. Imports with numpy alone.

The server's pages take these classes as they are; a client turns them to and from JSON with `to_json` and `from_json`.
JSON has no NaN: what is undefined is None. Fields are only ever added, with a default; else API_VERSION rises.
A rating travels as `ratings.Rating`, an alignment as `alignment.Alignment`.
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

    `preparation` says how an image is brought onto the grid, so that a client can put two images where they were
    compared; None from a server that does not say.
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

    `words` says in a line what it does now and how far it is, "" once it has ended; `seconds_left` is an estimate for
    its present stage, None where there is none yet.
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
    """How many files or folders of the studies' folder are no studies for one reason; no names."""

    reason: str
    count: int


@dataclass(frozen=True)
class Status:
    """The server at a glance. `reader`: who the caller is by its token, "" without one; `scored`: cases of the worklist
    that have a score; `authentication`: none, key or token; `left_out`: what of the studies' folder is no study;
    `index_words`: how far the index is while it is made; `sees_all_ratings`: whether the caller sees what all readers
    said, and so their agreement (a server that does not say so refuses it where it must)."""

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
    """A synthetic case. Before scoring `verdict` is "" and `score` None; `rating` is the asking reader's latest."""

    synthetic_id: str
    verdict: str = ""
    score: float | None = None
    nearest_training_id: str = ""
    levels_flagged: tuple[str, ...] = ()
    measures_agreeing: int = 0
    levels_differ: tuple[str, ...] = ()
    rating: int | None = None
    readers: int = 0


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
    """Something that a measure says of a case beyond its match, such as the memorization index MI."""

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
    """One image against the training cohort. q values of a case of the worklist are those of the whole set, those of
    an uploaded image its own."""

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


@dataclass(frozen=True)
class Histogram:
    """Ratios of the scored set and of the null, for a plot; with `measure` "" the overall evidence."""

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
    """Said once the rating is on the server's disk; sending the same `rating_id` again is harmless."""

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
    """What the ratings say: agreement of each pair of readers, and thresholds by the consensus."""

    readers: tuple[str, ...]
    cases: int
    replicas: int
    pairs: tuple[ReaderAgreement, ...]
    thresholds: tuple[ThresholdItem, ...]
    note: str = ""


@dataclass(frozen=True)
class ErrorReply:
    """Every refusal of the server: what went wrong and, where it helps, what to do."""

    detail: str


def number(value: float | None) -> float | None:
    """None for NaN and infinity, which JSON lacks."""
    return None if value is None or not math.isfinite(value) else float(value)


def to_json(value: Any) -> Any:
    """Dataclasses to what `json.dumps` takes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    return number(value) if isinstance(value, float) else value


def from_json(kind: type[T], data: Any) -> T:
    """A dataclass from what `json.loads` gave. Unknown fields are passed over: a newer server may say more.

    Raises ValueError where a field without default is missing or has another type.
    """
    read = _read(kind, data, kind.__name__)
    return typing.cast(T, read)


def _read(kind: Any, data: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(data, dict):
            raise ValueError(f"{where}: expected an object, found {type(data).__name__}")
        hints = typing.get_type_hints(kind)
        known = {}
        for f in dataclasses.fields(kind):
            if f.name in data:
                known[f.name] = _read(hints[f.name], data[f.name], f"{where}.{f.name}")
            elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise ValueError(f"{where}: lacks '{f.name}'")
        make: Any = kind
        return make(**known)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in inner:
            return None
        return _read(next(k for k in inner if k is not type(None)), data, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise ValueError(f"{where}: expected a list, found {type(data).__name__}")
        kinds = [inner[0]] * len(data) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) != len(data):
            raise ValueError(f"{where}: expected {len(kinds)} entries, found {len(data)}")
        return tuple(_read(k, d, f"{where}[{i}]") for i, (k, d) in enumerate(zip(kinds, data, strict=True)))
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind is Any or (isinstance(data, kind) and not (kind is int and isinstance(data, bool))):
        return data
    raise ValueError(f"{where}: expected {kind.__name__}, found {data!r}")
