"""Near-duplicates inside one real cohort or across two, as a table of pairs and a picture of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from replica_detection.detection.comparison import Distances, compare
from replica_detection.detection.detector import DetectionOptions, resolve_device
from replica_detection.detection.null_distances import cross_fitted_distances
from replica_detection.detection.queries import CohortQueries, IndexQueries
from replica_detection.detection.verdicts import assign_verdicts
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort
from replica_detection.progress import Progress, silent
from replica_detection.results.result import FLAGGED, Verdicts
from replica_detection.util.csv_tables import write_rows
from replica_detection.util.files import atomic_write

VERDICTS = {"replica": "near-duplicate", "suspicious": "suspicious"}


@dataclass(frozen=True)
class DuplicatePair:
    """Two cases of a cohort that are nearer to each other than different patients are.

    `verdict`: `identical` (equal under every measure), `near-duplicate` (q <= alpha, or so near that the
    case was left out of the null) or `suspicious` (p <= alpha). `values` holds each measure's value for the pair.
    """

    first_id: str
    second_id: str
    verdict: str
    score: float
    values: dict[str, float]


def find_duplicates(
    index: TrainingIndex,
    other: Cohort | None = None,
    *,
    options: DetectionOptions | None = None,
    progress: Progress = silent,
) -> tuple[list[DuplicatePair], Distances, Verdicts]:
    """Every case against the cases of other patients; a pair is named once, most alike first.

    Without `other` inside the indexed cohort, where `first_id` and `second_id` are in order of their names; with it the
    cases of `other` (`second_id`) are looked for in the indexed cohort (`first_id`). The null is the indexed cohort
    against itself, without its outliers: it needs no other data, and most cases are taken to have no duplicate.
    """
    options = options or DetectionOptions()
    measures = index.measures(options.measures, resolve_device(options.device), aligning=options.align)
    if other is None:
        queries = IndexQueries(index, range(len(index)))
        found = null = compare(queries, index, measures, kind="cross-fitted", progress=progress)
    else:
        null = cross_fitted_distances(index, measures, size=options.null_size, progress=progress)
        found = compare(CohortQueries(other, index, strict=options.strict), index, measures, progress=progress)
    verdicts = assign_verdicts(found, null, measures, index, k=options.k, alpha=options.alpha)
    position = {id: i for i, id in enumerate(index.ids)}
    row = {id: i for i, id in enumerate(found.ids)}
    value = {m.name: m.value for m in measures}
    pairs: dict[tuple[str, str], DuplicatePair] = {}
    for case in verdicts.summary:
        near = case.nearest_training_id
        if case.verdict not in FLAGGED or not near:
            continue
        distances = {n: float(d[row[case.synthetic_id], position[near]]) for n, d in found.by_measure.items()}
        ids = (near, case.synthetic_id)
        first, second = ids if other is not None else (min(ids), max(ids))
        # What was too near for the null of this very cohort is no mere suspicion.
        found_out = other is None and case.synthetic_id in verdicts.null.removed
        verdict = "near-duplicate" if found_out else VERDICTS[case.verdict]
        verdict = verdict if any(distances.values()) else "identical"
        values = {n: value[n](d) if math.isfinite(d) else math.nan for n, d in distances.items()}
        pair = DuplicatePair(first, second, verdict, case.score, values)
        if (first, second) not in pairs or pairs[first, second].score < pair.score:
            pairs[first, second] = pair
    return sorted(pairs.values(), key=lambda p: (p.verdict != "identical", -p.score)), found, verdicts


def write_duplicates(pairs: list[DuplicatePair], folder: Path, picture: Callable[[str, str], bytes | None]) -> None:
    """Writes `duplicates.csv` (a row for each pair) and `pairs/NN.jpg`, numbered as the rows are."""
    folder.mkdir(parents=True, exist_ok=True)
    measures = list(pairs[0].values) if pairs else []
    pictures = folder / "pairs"
    for old in pictures.glob("*.jpg") if pictures.is_dir() else ():
        old.unlink()
    with atomic_write(folder / "duplicates.csv") as f:
        write_rows(f, [["number", "first_id", "second_id", "verdict", "score", *measures]])
        for number, pair in enumerate(pairs, 1):
            row = [number, pair.first_id, pair.second_id, pair.verdict, pair.score]
            write_rows(f, [[*row, *(pair.values[m] for m in measures)]])
            drawn = picture(pair.first_id, pair.second_id)
            if drawn is not None:
                pictures.mkdir(exist_ok=True)
                with atomic_write(pictures / f"{number:03d}.jpg", "wb") as g:
                    g.write(drawn)
