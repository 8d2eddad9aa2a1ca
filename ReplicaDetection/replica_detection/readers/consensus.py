"""The readers' consensus on synthetic images, and the measures' values of these images. Needs numpy alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from replica_detection.errors import ConfigurationError
from replica_detection.readers.ratings import REPLICA_FROM, Rating, latest
from replica_detection.results.result import DetectionResult

# Halfway between "similar, but another anatomy" and "nearly the same anatomy".
CUT = REPLICA_FROM - 0.5
OVERALL = "overall"


def _majority(values: np.ndarray) -> bool:
    yes = int((values >= REPLICA_FROM).sum())
    return bool(values.mean() >= CUT) if 2 * yes == len(values) else 2 * yes > len(values)


# Each takes the ratings of one pair, one for each reader.
RULES: dict[str, Callable[[np.ndarray], bool]] = {
    "majority": _majority,
    "any": lambda values: bool((values >= REPLICA_FROM).any()),
    "all": lambda values: bool((values >= REPLICA_FROM).all()),
    "mean": lambda values: bool(values.mean() >= CUT),
}


@dataclass(frozen=True)
class Consensus:
    """The readers' consensus on one synthetic image.

    It is a replica if any of its rated pairs is one. `mean` is the largest mean rating of these pairs, `training_ids`
    are the training cases that it was rated beside, `readers` is the number of people who rated it.
    """

    synthetic_id: str
    replica: bool
    mean: float
    training_ids: tuple[str, ...]
    readers: int


def consensus(ratings: Sequence[Rating], rule: str = "majority") -> dict[str, Consensus]:
    """The consensus on each rated synthetic image.

    A pair is a replica by the rule `majority` if more than half of its readers rate it REPLICA_FROM or more (if exactly
    half do, if the mean rating is 2.5 or more); by `any` if at least one reader does; by `all` if all readers do; by
    `mean` if the mean rating is 2.5 or more.

    Raises:
        ConfigurationError: an unknown rule.
    """
    if rule not in RULES:
        raise ConfigurationError(f"unknown consensus rule '{rule}'; known: {', '.join(RULES)}")
    by_case: dict[str, dict[str, list[Rating]]] = defaultdict(lambda: defaultdict(list))
    for rating in latest(ratings):
        by_case[rating.synthetic_id][rating.training_id].append(rating)
    by_image = {}
    for case, pairs in by_case.items():
        values = [np.array([r.rating for r in of_pair], float) for of_pair in pairs.values()]
        by_image[case] = Consensus(
            case,
            any(RULES[rule](v) for v in values),
            max(float(v.mean()) for v in values),
            tuple(pairs),
            len({r.reader for of_pair in pairs.values() for r in of_pair}),
        )
    return by_image


def resolved(ratings: Sequence[Rating], result: DetectionResult) -> tuple[list[Rating], list[str]]:
    """Ratings of the result's images, and the synthetic ids that are not in the result.

    A rating without a training case (in a table written by hand) is assigned to the nearest case of the result.
    """
    nearest = {case.synthetic_id: case.nearest_training_id for case in result.summary}
    known = [
        replace(r, training_id=r.training_id or nearest[r.synthetic_id]) for r in ratings if r.synthetic_id in nearest
    ]
    unknown = dict.fromkeys(r.synthetic_id for r in ratings if r.synthetic_id not in nearest)
    return known, list(unknown)


def replica_likeness(result: DetectionResult) -> dict[str, dict[str, float]]:
    """For `overall` and each measure: synthetic id -> a number, smaller = more replica-like, NaN where undefined.

    A measure's distance ratio; for `overall` the negative combined evidence.
    """
    by_name = {OVERALL: {c.synthetic_id: -e for c, e in zip(result.summary, result.run.evidence, strict=True)}}
    for match in result.matches:
        by_name.setdefault(match.measure, {})[match.synthetic_id] = match.ratio
    return by_name


def labelled(values: dict[str, float], labels: dict[str, Consensus]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) values and (n,) bool labels of the rated images whose value is defined, in the order of the labels."""
    cases = [c for c in labels if not math.isnan(values.get(c, math.nan))]
    return np.array([values[c] for c in cases], float), np.array([labels[c].replica for c in cases], bool)
