"""The comparison of one part of the queries with the whole index, here or in a worker process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.detection.distances import Distances
from replica_detection.detection.queries import IndexPart, Part, QueryBlock
from replica_detection.errors import InputError
from replica_detection.index.training_index import TrainingIndex
from replica_detection.measures import (
    MEASURES,
    AligningMeasure,
    Measure,
    MeasureOutput,
    SearchingMeasure,
    needed_features,
)
from replica_detection.registration.placement import Placement

Advance = Callable[[int], None]


def _no_word(pairs: int) -> None:
    pass


@dataclass(frozen=True)
class Work:
    """All that the parts of a comparison share. Sent to a worker it is a recipe: the worker opens the index itself.

    Args:
        index, measures, across_patients, whole: as `comparison.compare` has them.
        k: neighbourhood of the distance ratio.
    """

    index: TrainingIndex
    measures: tuple[Measure, ...]
    k: int
    across_patients: bool = False
    whole: bool = False
    _refitted: dict[bytes, tuple[Measure, ...]] = field(default_factory=dict, compare=False)

    def __reduce__(self) -> tuple[Any, ...]:
        recipe = _Recipe(
            str(self.index.folder.absolute()),
            self.index.content_id,
            tuple(type(m) for m in self.measures),
            self.measures[0].device if self.measures else "cpu",
            self.k,
            self.across_patients,
            self.whole,
        )
        return _Recipe.made, (recipe,)

    def fitted_without(self, fold: np.ndarray | None) -> tuple[Measure, ...]:
        """The measures, those that are fitted on the cohort refitted without the cases in `fold` ((N,) bool)."""
        if fold is None or fold.all():  # without any case there is nothing to fit, and nothing is compared
            return self.measures
        key = np.packbits(fold).tobytes()
        if key not in self._refitted:
            self._refitted.clear()
            self._refitted[key] = tuple(m.refit_without(self.index, fold) for m in self.measures)
        return self._refitted[key]

    def block(self, part: Part) -> QueryBlock:
        """The cases of a part with their features."""
        return part.load(self.index, self.measures)

    def compared(self, part: Part, advance: Advance = _no_word) -> Distances:
        """Distances of the cases of a part."""
        return self.distances(part, self.block(part), advance)

    def distances(self, part: Part, block: QueryBlock, advance: Advance = _no_word) -> Distances:
        """Distances of a block that is loaded already. Left out (+inf) is what `comparison.compare` leaves out.

        Args:
            advance: called with the number of pairs that were compared.
        """
        index, fold = self.index, part.fold if isinstance(part, IndexPart) else None
        measures = self.fitted_without(fold)
        same_patient = _pairs_of_one_patient(block, index)
        excluded = _own_pairs(block, index) if isinstance(part, IndexPart) else np.zeros(same_patient.shape, bool)
        warnings = list(block.warnings)
        if self.across_patients:
            excluded |= same_patient
        else:
            warnings += _carried_ids(block, same_patient & ~excluded)
        if fold is not None:
            excluded |= fold
        placements: dict[str, list[list[Placement]]] = {}
        outputs = _streamed(block, index, measures, advance) if block.ids else {}
        start = time.perf_counter()
        for sharing in _by_source(measures) if block.ids else ():
            for aligning, output, candidates in _aligned(block, index, sharing, excluded, advance):
                outputs[aligning.name], placements[aligning.name] = output, candidates
        seconds = time.perf_counter() - start
        for m in measures if block.ids else ():
            if isinstance(m, SearchingMeasure):
                outputs[m.name] = m.search(block.features, excluded)
                advance(excluded.size)
        for output in outputs.values():
            output.distances[excluded] = np.inf
        found = Distances.reduced(
            block.ids,
            {m.name: outputs[m.name].distances if block.ids else np.empty(excluded.shape) for m in measures},
            k=self.k,
            patients=index.patients,
            exact_of=[m.name for m in measures if m.level == "voxel"],
            whole=self.whole,
            voxels=block.voxels,
            left_out=tuple(excluded.sum(1).tolist()),
            problems=block.problems,
            warnings=tuple(warnings),
            affines=block.affines,
            seconds_aligning=seconds if placements else 0.0,
        )
        return _described(found, measures, outputs, placements, index)


@dataclass(frozen=True)
class _Recipe:
    folder: str
    content_id: str
    classes: tuple[type[Measure], ...]
    device: str
    k: int
    across_patients: bool
    whole: bool

    def made(self) -> Work:
        for measure in self.classes:  # a worker knows no measure of the user's own, or an earlier one of that name
            MEASURES[measure.name] = measure
        index = TrainingIndex.open(Path(self.folder))
        if index.content_id != self.content_id:
            raise InputError(self.folder, "changed while it was in use", "Start the run again")
        measures = index.measures([m.name for m in self.classes], self.device) if self.classes else []
        return Work(index, tuple(measures), self.k, self.across_patients, self.whole)


def _described(
    found: Distances,
    measures: Sequence[Measure],
    outputs: Mapping[str, MeasureOutput],
    placements: Mapping[str, list[list[Placement]]],
    index: TrainingIndex,
) -> Distances:
    """The distances with what measures say of each query, and with the candidates of those that align."""
    by_measure = dict(found.by_measure)
    for m in measures:
        if m.name in outputs:
            described = m.describe(outputs[m.name], index.ids)
            columns = {name: [_plain(value) for value in values] for name, values in described.items()}
            candidates = tuple(map(tuple, placements.get(m.name, ())))
            by_measure[m.name] = replace(by_measure[m.name], columns=columns, placements=candidates)
    return replace(found, by_measure=by_measure)


def _plain(value: Any) -> Any:
    """A number or text as Python has it, where numpy made it."""
    return value.item() if isinstance(value, np.generic) else value


def _streamed(
    block: QueryBlock, index: TrainingIndex, measures: Sequence[Measure], advance: Advance
) -> dict[str, MeasureOutput]:
    """Outputs of the measures that read the index block by block."""
    chosen = [m for m in measures if not isinstance(m, (SearchingMeasure, AligningMeasure))]
    shape = (len(block.ids), len(index))
    outputs = {m.name: MeasureOutput(np.empty(shape), {}) for m in chosen}
    names = needed_features(chosen)
    on_card = any(m.device != "cpu" for m in chosen)
    for start, training in index.blocks(names) if names else ():
        count = len(training[names[0]])
        if on_card:  # what nobody writes stays on the card for the next measure
            for values in (*block.features.values(), *training.values()):
                values.flags.writeable = False
        for m in chosen:
            distances, details = outputs[m.name].distances, outputs[m.name].details
            distances[:, start : start + count] = m.distances(block.features, training)
            for key, values in m.details(block.features, training).items():
                details.setdefault(key, np.empty(shape, np.float32))[:, start : start + count] = values
            advance(count * len(block.ids))
    return outputs


def _by_source(measures: Sequence[Measure]) -> list[list[AligningMeasure]]:
    """The measures that align, grouped by the search that they share."""
    groups: dict[str, list[AligningMeasure]] = {}
    for m in measures:
        if isinstance(m, AligningMeasure):
            groups.setdefault(m.source, []).append(m)
    return list(groups.values())


def _aligned(
    block: QueryBlock,
    index: TrainingIndex,
    measures: Sequence[AligningMeasure],
    excluded: np.ndarray,
    advance: Advance,
) -> list[tuple[AligningMeasure, MeasureOutput, list[list[Placement]]]]:
    """Outputs of measures that share a search, one query after the other, with each query's candidates."""
    outputs: list[tuple[AligningMeasure, MeasureOutput, list[list[Placement]]]] = [
        (m, MeasureOutput(np.full(excluded.shape, np.inf), {}), []) for m in measures
    ]
    for i, candidates in enumerate(measures[0].candidates_of_all(block.features, index, ~excluded)):
        query = {name: values[i : i + 1] for name, values in block.features.items()}
        for m, output, placements in outputs:
            compared = m.compare(query, candidates, index)
            for distance, placement in compared:
                output.distances[i, placement.training] = distance
            placements.append([placement for _, placement in compared])
            advance(len(index))
    return outputs


def _pairs_of_one_patient(block: QueryBlock, index: TrainingIndex) -> np.ndarray:
    """(Q, N) bool: pairs of one patient, as far as patients are known."""
    training = np.array([e.patient or "" for e in index.entries], dtype=object)
    same = np.zeros((len(block.ids), len(training)), bool)
    for i, patient in enumerate(block.patients):
        if patient is not None:
            same[i] = training == patient
    return same


def _own_pairs(block: QueryBlock, index: TrainingIndex) -> np.ndarray:
    """(Q, N) bool: pairs of a case of the index with itself."""
    position = {id: j for j, id in enumerate(index.ids)}
    own = np.zeros((len(block.ids), len(index)), bool)
    own[np.arange(len(block.ids)), [position[id] for id in block.ids]] = True
    return own


def _carried_ids(block: QueryBlock, same_patient: np.ndarray) -> Iterator[tuple[str, str]]:
    """(case id, text) of the queries that state a training patient's id, as a copied DICOM header does."""
    for id, row in zip(block.ids, same_patient, strict=True):
        if row.any():
            yield id, "the file carries the patient id of a training case; it was compared with that case all the same"
