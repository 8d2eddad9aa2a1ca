"""Comparison of queries with an index, in parts that run side by side and are kept, so that a killed run goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from replica_detection.detection.distances import Distances
from replica_detection.detection.finished_parts import FinishedParts
from replica_detection.detection.queries import CohortQueries, Part, Queries, QueryBlock
from replica_detection.detection.work import Work
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.case import folders_of
from replica_detection.measures import Measure
from replica_detection.progress import Progress, silent
from replica_detection.workers.runner import InProcess, Runner


def compare(
    queries: Queries,
    index: TrainingIndex,
    measures: Sequence[Measure],
    *,
    k: int = 50,
    across_patients: bool = False,
    whole: bool = False,
    stage: str = "comparing",
    kind: str = "",
    runner: Runner | None = None,
    finished: FinishedParts | None = None,
    progress: Progress = silent,
) -> Distances:
    """Distances of all queries to all cases of the index, under each measure.

    Left out (+inf) are a case of the index with itself, and pairs of one patient if `across_patients`. A worker has at
    most one part of the queries and two blocks of training cases in memory. The result is the same, bit for bit, for
    any number of workers.

    Args:
        k: neighbourhood of the distance ratio, in cases.
        across_patients: compare different patients only, as null cases are. A synthetic image is compared with all:
            one that carries a training patient's id may be a copy of that very patient's scan.
        whole: keep all distances, (Q, N) for each measure, not only the nearest.
        stage: name of the work for `progress`.
        kind: kept in the result, see `Distances`.
        runner: where the parts run; None: here, one after the other.
        finished: parts of an earlier run of the same comparison, and where those of this run are kept.
        progress: called with (stage, pairs done, pairs in all).
    """
    parts = queries.parts(index, measures)
    work = Work(index, tuple(measures), min(k, max(len(index), 1)), across_patients, whole)
    done: dict[int, Distances] = {} if finished is None else finished.read(len(parts))
    meter = _Meter(progress, stage, len(index) * len(measures), [len(part) for part in parts], sum(map(len, parts)))
    meter.start(done)
    todo = [n for n in range(len(parts)) if n not in done]
    runner = runner or InProcess()
    runner.check([index.folder, *(folders_of(queries.cohort.cases) if isinstance(queries, CohortQueries) else ())])
    for n, distances in _results(work, parts, todo, runner, meter):
        done[n] = distances
        meter.finish(n)
        if finished is not None:
            finished.keep(n, distances)
    if not parts:
        empty = QueryBlock((), (), {})
        return Distances.joined([work.distances(_NoCases(), empty)], kind=kind)
    return Distances.joined([done[n] for n in range(len(parts))], kind=kind)


def _results(
    work: Work, parts: Sequence[Part], todo: Sequence[int], runner: Runner, meter: _Meter
) -> Iterator[tuple[int, Distances]]:
    """(number of the part, its distances) in the order in which they finish."""
    if isinstance(runner, InProcess):
        for n, distances in runner.map(lambda n: work.compared(parts[n], meter.advance), todo):
            yield todo[n], distances
    elif any(m.device != "cpu" for m in work.measures):
        # Workers prepare the cases, and the GPU compares them here.
        for n, block in runner.map(work.block, (parts[n] for n in todo)):
            yield todo[n], work.distances(parts[todo[n]], block, meter.advance)
    else:
        for n, distances in runner.map(partial(_compared, work), (parts[n] for n in todo)):
            yield todo[n], distances


def _compared(work: Work, part: Part) -> Distances:
    return work.compared(part)


@dataclass(frozen=True)
class _NoCases:
    def load(self, index: TrainingIndex, measures: Sequence[Measure]) -> QueryBlock:
        return QueryBlock((), (), {})

    def __len__(self) -> int:
        return 0


class _Meter:
    """Counts pairs of cases, and reports them. A part counts whole once it is done, in steps before where it tells."""

    def __init__(self, progress: Progress, stage: str, pairs_of_case: int, sizes: Sequence[int], cases: int):
        self.progress, self.stage, self.sizes = progress, stage, sizes
        self.pairs_of_case, self.total = pairs_of_case, cases * pairs_of_case
        self.whole = self.within = 0

    def start(self, done: Sequence[int] | dict[int, Distances]) -> None:
        self.whole = sum(self.sizes[n] for n in done) * self.pairs_of_case
        self._tell()

    def advance(self, pairs: int) -> None:
        self.within += pairs
        self._tell()

    def finish(self, part: int) -> None:
        self.whole += self.sizes[part] * self.pairs_of_case
        self.within = 0
        self._tell()

    def _tell(self) -> None:
        self.progress(self.stage, min(self.whole + self.within, self.total), self.total)
