"""write_report: a result as one HTML page that holds all it shows and opens from disk with no network."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from replica_detection.progress import Progress, silent
from replica_detection.report import tables
from replica_detection.results import wording
from replica_detection.results.pair import Pair
from replica_detection.results.result import (
    FLAGGED,
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
# All pictures of slices as they lie, as many again aligned, and all of surfaces; base64 adds a third.
_PICTURES_BYTES, _SURFACES_BYTES = 7_000_000, 6_000_000
_PICTURE_BYTES = 400_000
MAX_PAIRS = 50


@dataclass(frozen=True)
class Section:
    """A flagged case with its nearest training case; `picture` is None where it could not be made.

    `moved` says how the training image was laid on the synthetic one, "" where the pair was not aligned; `aligned`
    shows the pair so, None where nothing had to be moved. `surfaces` is None where the two masks are not both there;
    `no_surfaces` then says which one is empty, if one is. `details` is what measures say of the case beyond their
    match.
    """

    anchor: str
    case: CaseSummary
    score: str
    flagged_by: str
    levels_differ: str
    agreement: str
    picture: Picture | None
    aligned: Picture | None
    moved: str
    surfaces: SurfacePicture | None
    no_surfaces: str
    rows: list[tables.MatchRow]
    details: list[tuple[str, str]]


@dataclass(frozen=True)
class Skipped:
    """A file that took no part."""

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
    """Writes `folder/index.html` (the folder is made if missing) and returns its path.

    The page holds all that it shows and opens from disk with no network. `result.write_report(folder)` is the same.

    Args:
        result: a finished run, or the folder that it was written into.
        folder: where the page goes; an older page is replaced at once, when the new one is whole.
        pair: gives the two images of (synthetic id, training id), and as third argument, where there is one, the
            alignment by which the training image is to be moved; None where there is no picture, which the page says.
            Without it the pictures are of the index and the images that the result was made from; where these are no
            longer there, the page has no pictures and says so.
        max_pairs: so many flagged cases get a section with pictures, highest score first; the page says how many are
            left out.
        progress: called with ("drawing", sections done, sections in all).

    Raises:
        InputError: `result` is a folder without a whole result.

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
    html = _render(result, sections, sum(c.verdict in FLAGGED for c in result.summary))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "index.html"
    with atomic_write(path) as f:
        f.write(html)
    return path


def no_pictures(*_: object) -> None:
    """A pair source without pictures."""


def pictured(result: DetectionResult, max_pairs: int = MAX_PAIRS) -> list[CaseSummary]:
    """The cases of which a page shows pictures, beside their nearest training case."""
    return [c for c in result.worklist() if c.verdict in FLAGGED][: max(0, max_pairs)]


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
        moved = pair(*ids, alignment) if alignment is not None and not alignment.in_place else None
        sections.append(
            Section(
                f"case-{i + 1}",
                case,
                wording.score(case.score),
                tables.flagged_by(case, matches),
                tables.levels_differ(case),
                tables.agreement(matches, case.nearest_training_id),
                pictures.draw(images, _share(_PICTURES_BYTES, cases)) if images is not None else None,
                pictures.draw(moved, _share(_PICTURES_BYTES, cases)) if moved is not None else None,
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


def _render(result: DetectionResult, sections: list[Section], flagged: int) -> str:
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
        flagged=flagged,
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
