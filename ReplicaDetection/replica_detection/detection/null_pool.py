"""The null of a run: holdout and cross-fitted training scans, pooled where they agree. Imports with numpy alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from replica_detection.detection.identity import identical_cases
from replica_detection.statistics.combination import Combination, combined
from replica_detection.statistics.distance_ratio import Nearest, evidence
from replica_detection.statistics.null import fewer_than_needed, near_duplicates, robust_z
from replica_detection.statistics.two_samples import DISAGREEMENT, mann_whitney

if TYPE_CHECKING:
    from replica_detection.detection.distances import Distances
    from replica_detection.index.training_index import TrainingIndex
    from replica_detection.measures import Measure

# Share of the holdout above which leaks make all of it doubtful.
LARGEST_LEAK = 0.5
# Robust z score from which two scans that are each other's nearest are taken for one person's, if nobody says whose.
ONE_PERSON_Z = 4.0
# Fewest training cases that a pair of one person stands out among.
SMALLEST_COHORT = 20


@dataclass(frozen=True)
class NullPool:
    """The null cases of a run.

    Attributes:
        kind: "validation", "cross-fitted" or "pooled".
        ids: of the n null cases, those of the holdout first.
        validation: the number of holdout scans among them.
        values: (n, M) evidence under each measure.
        nearest: (n,) distance to the nearest training case under each measure, +inf where none was compared.
        rows: (n, N) distances to all training cases, where the parts hold them.
        removed: ids left out as copies or near-duplicates of a training case.
        agreement: p value of the test that holdout and training scans agree; NaN where one of them is missing.
        refused: True if more than LARGEST_LEAK of the holdout leaked, so that none of it is used.
        warnings: what a reader must know of this null.
    """

    kind: str
    ids: tuple[str, ...]
    validation: int
    values: np.ndarray
    nearest: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]
    removed: tuple[str, ...] = ()
    agreement: float = float("nan")
    refused: bool = False
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, parts: Sequence[Distances], measures: Sequence[Measure], index: TrainingIndex, *, alpha: float
    ) -> NullPool:
        """Leaves out leaks and near-duplicates, and pools the parts if they agree.

        The holdout is judged by its own spread and, since that says nothing if most of it leaked, by that of the
        training scans among themselves under voxel measures. Whether the two agree is tested on the combined statistic
        (`mann_whitney`, at DISAGREEMENT); if not, the holdout alone is the null, except where it is too small for
        p <= alpha and the training scans lie closer: pooled they decide more, and can only err to the cautious side.

        Args:
            parts: distances of the holdout, of cross-fitted training cases, or of both.
            alpha: error rate of the verdicts.
        """
        levels = tuple(m.level for m in measures)
        groups = tuple(m.group for m in measures)
        cleaned: dict[str, _Part] = {}
        for part in sorted(parts, key=lambda p: p.kind == "validation"):
            reference = cleaned["cross-fitted"].kept_values if "cross-fitted" in cleaned else None
            cleaned[part.kind] = _Part.of(part, measures, index, levels, reference)
        used: dict[str, _Part] = {kind: cleaned[kind] for kind in ("validation", "cross-fitted") if kind in cleaned}
        warnings = [text for part in used.values() for text in part.warnings()]
        refused = "validation" in used and used["validation"].mostly_leaked
        if refused:
            del used["validation"]
        used = {kind: part for kind, part in used.items() if part.size}
        agreement = float("nan")
        if len(used) == 2:
            both = [part.kept_values for part in used.values()]
            agreement, closer = _agreement(both, groups)
            if agreement < DISAGREEMENT:
                pooled = not closer and fewer_than_needed(used["validation"].size, alpha)
                warnings.append(_disagree(len(both[0]), agreement, closer=closer, pooled=pooled))
                if not pooled:
                    del used["cross-fitted"]
        warnings += _patients(index, used)
        kept = list(used.values())
        return cls(
            kind="pooled" if len(used) == 2 else next(iter(used), parts[0].kind),
            ids=tuple(id for part in kept for id in part.kept_ids),
            validation=used["validation"].size if "validation" in used else 0,
            values=np.concatenate([part.kept_values for part in kept] or [np.empty((0, len(measures)))]),
            nearest={
                m.name: np.concatenate([p.distances.by_measure[m.name].near.distance[p.kept] for p in kept] or [_NONE])
                for m in measures
            },
            rows=_rows(kept, measures, len(index.ids)),
            removed=tuple(id for part in cleaned.values() for id in part.removed_ids),
            agreement=agreement,
            refused=refused,
            warnings=tuple(warnings),
        )


_NONE = np.empty(0)


def _rows(kept: Sequence[_Part], measures: Sequence[Measure], training_cases: int) -> dict[str, np.ndarray]:
    """(n, N) distances of the null cases under each measure of which all parts hold them."""
    rows = {}
    for m in measures:
        tables = [(part.distances.by_measure[m.name].rows, part.kept) for part in kept]
        known = [table[cases] for table, cases in tables if table is not None]
        if len(known) == len(tables):
            rows[m.name] = np.concatenate([np.empty((0, training_cases)), *known])
    return rows


@dataclass(frozen=True)
class _Part:
    """Null cases of one origin: their evidence (n, M), and which of them are identical or leaked, (n,) bool.

    `kept` are the positions of the others, in order of their ids, so that no sum depends on the order of a cohort. A
    case that could be compared with no training case (no mask, all of its own patient) is not kept either.
    """

    distances: Distances
    values: np.ndarray
    identical: np.ndarray
    leaked: np.ndarray
    kept: np.ndarray

    @classmethod
    def of(
        cls,
        distances: Distances,
        measures: Sequence[Measure],
        index: TrainingIndex,
        levels: tuple[str, ...],
        reference: np.ndarray | None,
    ) -> _Part:
        near = [distances.by_measure[m.name].near for m in measures]
        values = np.stack([evidence(n.ratio) for n in near], 1) if near else np.empty((len(distances.ids), 0))
        same = identical_cases(distances, index, measures)
        far = np.zeros(len(values), bool)
        if distances.kind == "cross-fitted":
            same = _of_other_patients(same, distances, index)
            far = _of_one_person(distances, near, values, levels, index)
        identical = np.array([bool(cases) for cases in same], bool)
        far |= near_duplicates(values, levels, values[~identical])
        if reference is not None:
            voxel = [level == "voxel" for level in levels]
            far |= near_duplicates(values[:, voxel], ("voxel",) * sum(voxel), reference[:, voxel])
        leaked = identical | far
        kept = np.flatnonzero(~leaked & np.isfinite(values).any(1)).tolist()
        kept.sort(key=lambda i: distances.ids[i])
        return cls(distances, values, identical, leaked, np.array(kept, int))

    @property
    def kept_values(self) -> np.ndarray:
        values: np.ndarray = self.values[self.kept]
        return values

    @property
    def kept_ids(self) -> list[str]:
        return [self.distances.ids[i] for i in self.kept]

    @property
    def removed_ids(self) -> list[str]:
        return [id for id, leaked in zip(self.distances.ids, self.leaked, strict=True) if leaked]

    @property
    def size(self) -> int:
        return len(self.kept)

    @property
    def mostly_leaked(self) -> bool:
        return int(self.leaked.sum()) > LARGEST_LEAK * len(self.leaked)

    def warnings(self) -> Iterator[str]:
        """Texts on what was left out of the null; leaks first, so that a refusal is the first of all."""
        origin, a = ("validation", "a") if self.distances.kind == "validation" else ("training", "another")
        total, leaks = len(self.leaked), int(self.leaked.sum())
        if leaks:
            text = (
                f"{leaks} of {total} {origin} cases lie unusually near to {a} training case, as "
                f"copies do ({int(self.identical.sum())} identical) and are left out of the null "
                f"({_named(self.removed_ids)})"
            )
            if origin == "validation" and self.mostly_leaked:
                text = (
                    f"THE VALIDATION SCANS ARE NOT USED: {text}: more than half of them, so that none can be trusted "
                    "to be unseen; give scans that the generator never saw"
                )
            yield text
        apart = total - self.size - leaks
        if apart and (origin == "validation" or apart < total):
            yield (
                f"{apart} of {total} {origin} cases could be compared with no training case and are no null "
                "cases (no mask, an empty one, or all of their own patient)"
            )


def _named(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + (" ..." if len(ids) > 5 else "")


def _of_other_patients(same: list[list[int]], distances: Distances, index: TrainingIndex) -> list[list[int]]:
    """`same` without the training cases of the query's own patient; the queries are cases of the index."""
    position, patients = {id: j for j, id in enumerate(index.ids)}, index.patients
    own = [patients[position[id]] for id in distances.ids]
    return [[j for j in cases if patients[j] != mine] for cases, mine in zip(same, own, strict=True)]


def _of_one_person(
    distances: Distances, near: Sequence[Nearest], values: np.ndarray, levels: tuple[str, ...], index: TrainingIndex
) -> np.ndarray:
    """(n,) bool: training cases without a patient that seem to be scans of one person, two and two.

    Each is the nearest of the other, and both lie more than ONE_PERSON_Z robust standard deviations nearer than usual,
    under most voxel measures. Such a pair would stand in the null twice.
    """
    unusual = robust_z(np.nan_to_num(values, nan=-np.inf), values, SMALLEST_COHORT) > ONE_PERSON_Z
    row = {id: i for i, id in enumerate(distances.ids)}
    row_of = np.array([row.get(id, -1) for id in index.ids])  # of each training case, -1 if it is no null case
    patient = {id: e.patient for id, e in zip(index.ids, index.entries, strict=True)}
    unknown = np.array([patient[id] is None for id in distances.ids])
    votes = []
    for j, found in enumerate(near):
        if levels[j] != "voxel":
            continue
        other = np.where(found.index >= 0, row_of[found.index], -1)
        mutual = (other >= 0) & (other[other] == np.arange(len(other)))
        votes.append(mutual & unusual[:, j] & unusual[other, j] & unknown)
    return np.mean(votes, axis=0) > 0.5 if votes else np.zeros(len(values), bool)


def _agreement(values: Sequence[np.ndarray], groups: tuple[str, ...]) -> tuple[float, bool]:
    """p value of the test that two parts, (n, M) and (m, M), are of one distribution, and if the first lies closer."""
    pooled = np.concatenate(values)
    together = combined(Combination.fit(pooled, groups).null_by_group(pooled))
    first = len(values[0])
    closer = bool(np.nanmedian(together[:first]) > np.nanmedian(together[first:]))
    return mann_whitney(together[:first], together[first:]), closer


def _disagree(size: int, agreement: float, *, closer: bool, pooled: bool) -> str:
    """The warning that holdout and training scans do not agree, and what the null is then."""
    causes = (
        "they may hold scans of training patients, or copies of training scans that were moved"
        if closer
        else "they may come from another scanner, or training scans of one person may have different patient ids"
    )
    used = (
        "they are too few to decide alone, so both are the null, which makes verdicts cautious"
        if pooled
        else "these validation scans alone are the null"
    )
    return (
        f"the {size} validation scans lie {'closer to' if closer else 'further from'} the training cohort than its own "
        f"scans of different patients do (p = {agreement:.2g}): {causes}; {used}"
    )


def _patients(index: TrainingIndex, used: Mapping[str, _Part]) -> Iterator[str]:
    """Warnings about the patients of the training cases, which the null rests on."""
    known = [e.patient for e in index.entries]
    if len(known) > 1 and known[0] is not None and len(set(known)) == 1:
        yield (
            f"all {len(known)} training cases have one patient id (anonymised files often do), so that none can be "
            "compared with another patient: give the true patients with --patients, or take each file for a patient of "
            "its own with --patient-pattern '(.+)'"
        )
    if "cross-fitted" in used and len(known) > 1 and not any(known):
        yield (
            "the patients of the training cases are not known: several scans of one person would make the null too "
            "close, and copies would be missed; name the patients with --patients"
        )
