"""Words and numbers of the report, as a reader sees them. Every sentence speaks of resemblance and of nothing more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from replica_detection.results.pair import Pair
from replica_detection.results.result import (
    IDENTICAL,
    NO_MASK,
    NO_MEASURE,
    REPEATED_TRAINING,
    SAME_PATIENT,
    SMALL_NULL,
    CaseSummary,
    DetectionResult,
    NullInfo,
)
from replica_detection.results.schema import Comparison, Detail, WorklistItem
from replica_detection.statistics.two_samples import DISAGREEMENT

MISSING = "–"
SYMBOLS = {"replica": "■", "suspicious": "▲", "undecided": "◆", "novel": "○", "undefined": "–"}
LEVELS = {
    "voxel": "grey values, point by point",
    "feature": "vectors that describe the image's structure, by an embedding",
    "segmentation": "shape of a segmented structure",
}
# One sentence for each reason of a verdict that rests on something else than a p value.
REASONS = {
    IDENTICAL: (
        "The same voxels as training case {training}, or a mirrored or turned copy of it; this needs no statistics."
    ),
    SMALL_NULL: (
        "No real case of the null is closer to its nearest training case than this image is to {training}, but the "
        "null is too small, or empty, to call this more than chance. Not cleared: a person should look."
    ),
    NO_MASK: "Not judged: only masks were compared, and the image has no mask, or an empty one.",
    SAME_PATIENT: (
        "Not judged: every case that it could be compared with carries its own patient id, as exports with replaced "
        "ids sometimes do. Give a table of patients."
    ),
    REPEATED_TRAINING: (
        "Not judged: its nearest training cases are identical to each other, so that no ratio of distances exists. "
        "Remove duplicates from the training cohort."
    ),
    NO_MEASURE: "Not judged: under no measure are there enough real cases to compare with. Give more validation scans.",
}
READERS_FLAG = (
    "Readers rated images of a run beside their nearest training cases; a synthetic image is flagged when it lies "
    "closer to a training case than the threshold that follows from these ratings."
)
READERS_VERDICTS = {
    "replica": "At or below the threshold that best separates the images that readers called replicas from the others.",
    "suspicious": (
        "Above that threshold, but inside its 95 % interval: other rated images might have given a "
        "threshold that calls it a replica. A person should look."
    ),
    "undecided": "Not used here: readers' thresholds need no null.",
    "novel": "Above the interval. “Novel” does not mean that nothing about a patient can be learned from the image.",
    "undefined": "No measure with a readers' threshold could be computed. Not judged.",
}
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float, digits: int = 4) -> str:
    """`digits` significant digits; NaN is a dash, an exact 0 or 1 has no decimals."""
    if math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value in (0, 1):
        return str(int(value))
    if 1e-3 <= abs(value) < 1e5:
        decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        return f"{value:.{min(decimals, digits)}f}".replace("-", "−")
    return _scientific(value)


def plain_number(value: Any) -> str:
    """A number as `number` writes it, a text as it is, None as a dash."""
    if value is None:
        return MISSING
    return number(float(value)) if isinstance(value, (int, float)) else str(value)


def details(columns: Mapping[str, Any]) -> tuple[Detail, ...]:
    """The further numbers of a measure for one case as texts, from `DetectionResult.details_of`."""
    return tuple(Detail(name.replace("_", " "), plain_number(value)) for name, value in columns.items())


def probability(p: float) -> str:
    """A p or q value: three decimals, four below 0.01, scientific below 1e-4; NaN is a dash.

    Smaller values than 1e-6 are not distinguished: a tail fitted on tens of cases does not support it.
    """
    if math.isnan(p):
        return MISSING
    if p == 0 or p >= 1:
        return number(p)
    if p < 1e-6:
        return "< 10⁻⁶"
    if p < 1e-4:
        return _scientific(p)
    return f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def score(value: float) -> str:
    """A score in [0, 1] with three decimals; a value below 1 that would round to 1 is `> 0.999`."""
    if math.isnan(value):
        return MISSING
    return "> 0.999" if 0.9995 <= value < 1 else f"{value:.3f}"


def percent(share: float) -> str:
    text = f"{100 * share:.1f}"
    return f"{text.removesuffix('.0')}\N{NO-BREAK SPACE}%"


def duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return MISSING
    if seconds < 100:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def date(created: str) -> str:
    """An ISO date as `2026-03-01 14:05 UTC`; anything else as it is."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    return f"{moment:%Y-%m-%d %H:%M} {moment.tzname() or ''}".strip()


def plain(value: Any) -> str:
    """A setting of any JSON type as one line of text."""
    if value is None:
        return "none"
    if isinstance(value, str):
        return value or MISSING
    if isinstance(value, float):
        return number(value)
    if isinstance(value, dict):
        return "; ".join(f"{key}: {plain(v)}" for key, v in value.items()) or MISSING
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value)) or MISSING
    return str(value)


def count(n: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def outcome(result: DetectionResult) -> str:
    """The one sentence on top of the page."""
    total = len(result.summary)
    if not total:
        return "No synthetic image was compared."
    replicas, suspicious, undecided, undefined = (
        result.count(v) for v in ("replica", "suspicious", "undecided", "undefined")
    )
    if undefined == total:
        return f"None of {count(total, 'synthetic image')} could be judged."
    identical = sum(c.reason == IDENTICAL for c in result.summary)
    if replicas:
        text = f"{replicas} of {count(total, 'synthetic image')} "
        text += "is a replica of a training case" if replicas == 1 else "are replicas of a training case"
        if identical:
            text += " (identical to it)" if identical == replicas else f" ({identical} identical to it)"
    else:
        text = f"None of {count(total, 'synthetic image')} was found to be a replica of a training case"
    if suspicious:
        text += f"; {suspicious}{' more' if replicas else ''} {_is(suspicious)} suspicious"
    elif not replicas and not undecided:
        text += ", and none is suspicious"
    if undecided:
        text += f"; {undecided} {_is(undecided)} undecided, since there are too few real cases to compare with"
    if undefined:
        text += f"; {undefined} could not be judged"
    return text + "."


def reason(case: CaseSummary | Comparison | WorklistItem) -> str:
    """The sentence on why the verdict rests on something else than a p value; "" where it does not."""
    text = REASONS.get(case.reason, case.reason)
    return text.replace("{training}", case.nearest_training_id or "(none named)")


def null_sentence(null: NullInfo) -> str:
    """The null that the p values rest on, in one sentence or two."""
    if not null.size:
        return "No real cases were left to compare with, so that no p value could be given."
    p = probability(null.agreement)
    if null.kind == "pooled":
        text = (
            f"{count(null.validation, 'real validation case')} that the generator never saw, and "
            f"{count(null.cross_fitted, 'training case')}, each compared with those of other patients."
        )
        if math.isnan(null.agreement):
            return text
        if null.agreement < DISAGREEMENT:
            return f"{text} The training cases lie closer ({_equals(p)}), which makes verdicts cautious."
        return f"{text} The two agree ({_equals(p)})."
    if null.kind == "validation":
        text = f"{count(null.size, 'real validation case')} that the generator never saw."
        if math.isnan(null.agreement):
            return text
        return f"{text} Training cases compared across patients disagree with them ({_equals(p)}) and were not used."
    if null.kind == "cross-fitted":
        return (
            f"{count(null.size, 'training case')}, each compared with parts of the training cohort that hold neither "
            "the case itself nor its patient (cross-fitted). No validation case is part of the null."
        )
    return f"{count(null.size, 'case')} ({null.kind})."


def flag_sentence(null: NullInfo) -> str:
    """The condition under which an image is flagged, in one sentence."""
    others = {
        "validation": "real images that the generator never saw lie to theirs",
        "cross-fitted": "training cases of different patients lie to each other",
        "pooled": "real images that the generator never saw, and training cases of different patients, lie to theirs",
    }.get(null.kind, "real cases do that were compared in the same way")
    return f"A synthetic image is flagged when it lies closer to one training case than {others}."


def resolution_sentence(null: NullInfo) -> str:
    """The smallest p value that a null of this size can give, and what the undecided images lack."""
    if not null.size:
        return "None: there is no null."
    smallest = probability(1 / (null.size + 1))
    if null.tail_fitted:
        text = f"{smallest} by counting; smaller ones come from a generalized Pareto tail fitted to the null."
    else:
        text = f"{smallest}, by counting; no tail was fitted."
    return f"{text} {missing_sentence(null)}".strip()


def undecided_reason(null: NullInfo) -> str:
    """The reason why images are undecided, as a part of a sentence."""
    if not null.size:
        return "there is no real image of the null to compare with"
    return "closer to a training image than every real image of the null, which is too small to say more"


def missing_sentence(null: NullInfo) -> str:
    """The number of validation scans that would settle the undecided images, in one sentence; "" where none lack."""
    if not null.missing:
        return ""
    return f"{count(null.missing, 'more validation scan')} would settle the undecided images."


def millimetres(value: float) -> str:
    """One decimal from 10 mm on, else two; NaN is a dash."""
    return MISSING if math.isnan(value) else f"{value:.{1 if value >= 10 else 2}f}"


def no_surfaces(pair: Pair) -> str:
    """The reason why there are no surfaces to compare; "" if there are, or if no masks were given."""
    if pair.synthetic_mask is None or pair.training_mask is None or pair.synthetic.ndim != 3:
        return ""
    names = ("synthetic mask", "mask of the training case")
    empty = [name for name, mask in zip(names, pair.masks, strict=True) if mask is None]
    if len(empty) == 2:
        return "No surfaces: both masks are empty."
    return f"No surfaces: the {empty[0]} is empty." if empty else ""


def _is(number_of_images: int) -> str:
    return "is" if number_of_images == 1 else "are"


def _equals(p: str) -> str:
    return f"p {p}" if p.startswith("<") else f"p = {p}"


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.replace('-', '−')}×10{str(int(exponent)).translate(_SUPERSCRIPT)}"
