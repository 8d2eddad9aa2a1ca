"""Near-duplicates inside one real cohort, as a table of pairs and a picture of each."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from replica_detection.atomic import atomic_write
from replica_detection.detection import Judged, Options, detect_within
from replica_detection.index import TrainingIndex
from replica_detection.progress import Progress, silent
from replica_detection.results import FLAGGED

VERDICTS = {"replica": "near-duplicate", "suspicious": "suspicious"}


@dataclass(frozen=True)
class DuplicatePair:
    """Two cases of a cohort that are nearer to each other than different patients are.

    `verdict`: `identical` (prepared images equal under every measure), `near-duplicate` (q <= alpha) or `suspicious`
    (p <= alpha). `values` holds each measure's value for the pair.
    """

    first_id: str
    second_id: str
    verdict: str
    score: float
    values: dict[str, float]


def find_duplicates(
    index: TrainingIndex, *, options: Options | None = None, progress: Progress = silent
) -> tuple[list[DuplicatePair], Judged]:
    """Every case against the cases of other patients; a pair is named once, most alike first.

    The null is the cohort itself without its outliers, so it needs no other data; it takes for granted that most
    cases have no duplicate.
    """
    found, judged = detect_within(index, options=options, progress=progress)
    position = {id: i for i, id in enumerate(index.ids)}
    row = {id: i for i, id in enumerate(found.ids)}
    pairs: dict[tuple[str, str], DuplicatePair] = {}
    definitions = {m.name: m for m in judged.measures}
    for case in judged.summary:
        if case.verdict not in FLAGGED or not case.nearest_training_id:
            continue
        first, second = sorted((case.synthetic_id, case.nearest_training_id))
        i, j = row[case.synthetic_id], position[case.nearest_training_id]
        distances = {name: float(d[i, j]) for name, d in found.by_measure.items()}
        values = {n: 1 - d if definitions[n].sense == "similarity" else d for n, d in distances.items()}
        verdict = "identical" if not any(distances.values()) else VERDICTS[case.verdict]
        pair = DuplicatePair(first, second, verdict, case.score, values)
        if (first, second) not in pairs or pairs[first, second].score < pair.score:
            pairs[first, second] = pair
    return sorted(pairs.values(), key=lambda p: (p.verdict != "identical", -p.score)), judged


def write_duplicates(pairs: list[DuplicatePair], folder: Path, picture: Callable[[str, str], bytes | None]) -> None:
    """Writes `duplicates.csv` (a row for each pair) and `pairs/NN.jpg`, numbered as the rows are."""
    folder.mkdir(parents=True, exist_ok=True)
    measures = list(pairs[0].values) if pairs else []
    pictures = folder / "pairs"
    for old in pictures.glob("*.jpg") if pictures.is_dir() else ():
        old.unlink()
    with atomic_write(folder / "duplicates.csv") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(["number", "first_id", "second_id", "verdict", "score", *measures])
        for number, pair in enumerate(pairs, 1):
            row = [number, pair.first_id, pair.second_id, pair.verdict, pair.score]
            writer.writerow([*row, *(pair.values[m] for m in measures)])
            drawn = picture(pair.first_id, pair.second_id)
            if drawn is not None:
                pictures.mkdir(exist_ok=True)
                with atomic_write(pictures / f"{number:03d}.jpg", "wb") as g:
                    g.write(drawn)
