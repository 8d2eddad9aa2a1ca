"""The report: a result as one self-contained HTML page that opens from disk without a network."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from replica_detection.errors import InputError
from replica_detection.progress import Progress, silent
from replica_detection.report import tables
from replica_detection.results import wording
from replica_detection.results.pair import Pair
from replica_detection.results.result import (
    FLAGGED,
    TO_REVIEW,
    VERDICTS,
    CaseSummary,
    CohortInfo,
    DetectionResult,
)
from replica_detection.util.files import atomic_write
from replica_detection.version import __version__

if TYPE_CHECKING:
    from replica_detection.report.pictures import Picture
    from replica_detection.report.surfaces import SurfacePicture

PairSource = Callable[..., Pair | None]

_HERE = Path(__file__).parent
# Limits for all pictures of slices, the same again for aligned pairs, and for all surfaces; base64 adds a third.
_PICTURES_BYTES, _SURFACES_BYTES = 7_000_000, 6_000_000
_PICTURE_BYTES = 400_000
_PICTURE = '<img src="data:image/'
MAX_PAIRS = 50


@dataclass(frozen=True)
class Section:
    """A flagged or undecided case with its nearest training case; `picture` is None where an image is missing.

    `transform` describes in words how the training image was aligned to the synthetic one, "" where it was not;
    `aligned` is the picture after alignment, None where the transform is the identity. `surfaces` is None where a mask
    is missing or empty; `no_surfaces` then names the empty one. `details` are further values of the measures.
    """

    anchor: str
    case: CaseSummary
    score: str
    flagged_by: str
    levels_differ: str
    agreement: str
    picture: Picture | None
    aligned: Picture | None
    transform: str
    surfaces: SurfacePicture | None
    no_surfaces: str
    rows: list[tables.MatchRow]
    details: list[tuple[str, str]]


@dataclass(frozen=True)
class Skipped:
    """A file that was left out."""

    cohort: str
    path: str
    reason: str


def write_report(
    result: DetectionResult | str | os.PathLike[str],
    folder: str | os.PathLike[str],
    pair: PairSource | None = None,
    *,
    max_pairs: int = MAX_PAIRS,
    progress: Progress = silent,
) -> Path:
    """Write `folder/index.html` and return its path.

    The page is self-contained and opens from disk without a network. `result.write_report(folder)` does the same.

    Args:
        result: a finished run, or the folder that it was written to.
        folder: for the page; it is created where it is missing, and an older page is replaced atomically. A page of the
            same run with pictures that can no longer be drawn is kept.
        pair: returns the two images of (synthetic id, training id); a third argument is the alignment by which the
            training image is to be resampled. It returns None where there is no picture, and the page says so. None:
            images come from the index and the synthetic cohort of the result; where these are missing, the page has no
            pictures and says so.
        max_pairs: number of flagged cases with pictures, highest score first; the page states how many have none.
        progress: called with ("drawing", sections done, sections in all).

    Raises:
        InputError: `result` is a folder without a complete result, or an older page was kept.

    Example:
        ```python
        import numpy as np
        import replica_detection as rd

        rng = np.random.default_rng(0)
        training, unseen = rng.random((12, 16, 16, 16)), rng.random((10, 16, 16, 16))
        images = np.concatenate([training[:1], rng.random((3, 16, 16, 16))])
        training, unseen, images = (rd.Cohort.from_arrays(a, spacing=1) for a in (training, unseen, images))
        index = rd.build_index(training, "training.rdindex", measures=["mae", "ssim"])
        result = rd.detect(images, index, validation=unseen)
        page = rd.write_report(result, "report")
        assert page.name == "index.html"
        ```
    """
    if not isinstance(result, DetectionResult):
        result = DetectionResult.read(result)
    if pair is None:
        from replica_detection.report.pair_loader import loader_of_result

        pair = loader_of_result(result) or no_pictures
    sections = _sections(result, pictured(result, max_pairs), pair, progress)
    html = _render(result, sections, sum(c.verdict in TO_REVIEW for c in result.summary))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    if any(s.picture is None and s.case.nearest_training_id for s in sections):
        _require_no_worse(path, html, result)
    with atomic_write(path) as f:
        f.write(html)
    return path


def _require_no_worse(path: Path, html: str, result: DetectionResult) -> None:
    """Raises InputError where the page at `path` is of the same run and has more pictures than the new one."""
    try:
        old = path.read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        return
    kept, drawn = (page.count(_PICTURE) for page in (old, html))
    if kept > drawn and wording.date(result.run.created) in old:
        found = f"was kept: it has {kept} pictures, a new page {drawn}, for images of this run are not found any more"
        advice = "Put the images and the index back, or delete the page to have one without these pictures"
        raise InputError(path, found, advice)


def no_pictures(*_: object) -> None:
    """A pair source without pictures."""


def pictured(result: DetectionResult, max_pairs: int = MAX_PAIRS) -> list[CaseSummary]:
    """The cases whose pictures a page shows: flagged ones first, then undecided ones, each by falling score."""
    cases = [c for c in result.worklist() if c.verdict in TO_REVIEW]
    return sorted(cases, key=lambda c: c.verdict not in FLAGGED)[: max(0, max_pairs)]


def _sections(
    result: DetectionResult,
    cases: list[CaseSummary],
    pair: PairSource,
    progress: Progress,
) -> list[Section]:
    from replica_detection.report import pictures, surfaces

    by_case = tables.matches_by_case(result)
    sections = []
    for i, case in enumerate(cases):
        matches = list(by_case.get(case.synthetic_id, {}).values())
        ids = (case.synthetic_id, case.nearest_training_id)
        images = pair(*ids) if case.nearest_training_id else None
        alignment = result.alignment(*ids)
        resampled = pair(*ids, alignment) if alignment is not None and not alignment.in_place else None
        sections.append(
            Section(
                f"case-{i + 1}",
                case,
                wording.score(case.score),
                tables.flagged_by(case, matches),
                tables.levels_differ(case),
                tables.agreement(matches, case.nearest_training_id),
                pictures.draw(images, _share(_PICTURES_BYTES, cases)) if images is not None else None,
                pictures.draw(resampled, _share(_PICTURES_BYTES, cases)) if resampled is not None else None,
                "" if alignment is None else alignment.words,
                surfaces.surface_picture(images, _share(_SURFACES_BYTES, cases)) if images is not None else None,
                wording.no_surfaces(images) if images is not None else "",
                tables.match_rows(matches, case.nearest_training_id),
                tables.detail_rows(result, case.synthetic_id),
            )
        )
        progress("drawing", i + 1, len(cases))
    return sections


def _share(total: int, cases: list[CaseSummary]) -> int:
    return min(_PICTURE_BYTES, total // max(1, len(cases)))


def _render(result: DetectionResult, sections: list[Section], to_review: int) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from replica_detection.report import figures, pictures

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(wording=wording, Markup=Markup)
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    return environment.get_template("report.html").render(
        css=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        result=result,
        run=result.run,
        counts={v: result.count(v) for v in VERDICTS},
        outcome=wording.outcome(result),
        rows=tables.worklist(result, {s.case.synthetic_id: s.anchor for s in sections}),
        sections=sections,
        to_review=to_review,
        copied=tables.most_copied(result),
        skipped=_skipped(result),
        evidence=figures.evidence_plot(result),
        ratios=figures.ratio_plots(result),
        difference=pictures.DIFFERENCE_RANGE,
        outlines=[f"rgb{c}" for c in (pictures.SYNTHETIC_OUTLINE, pictures.TRAINING_OUTLINE)],
        version=__version__,
    )


def _skipped(result: DetectionResult) -> list[Skipped]:
    cohorts: list[tuple[str, CohortInfo | None]] = [
        ("synthetic", result.run.synthetic),
        ("training", result.run.training),
        ("validation", result.run.validation),
    ]
    return [Skipped(name, path, reason) for name, c in cohorts if c is not None for path, reason in c.skipped]
