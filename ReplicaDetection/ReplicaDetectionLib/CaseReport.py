"""CaseReport: one case as files: the scene (.mrb) and a page (.html) with pictures, measures and the rating."""

from __future__ import annotations

import base64
import html
import re
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.errors import InputError
from replica_detection.readers.ratings import SCALE, Rating
from replica_detection.results.schema import Comparison
from replica_detection.results.wording import MISSING, SYMBOLS, number, probability, reason, score
from replica_detection.util.files import atomic_write, write_advice
from replica_detection.version import __version__
from ReplicaDetectionLib.PlacedSurfaces import SurfaceRow
from ReplicaDetectionLib.Translation import _

_ADVICE = "Choose a folder that you may write to, with room on the disk"


@dataclass(frozen=True)
class ReportContent:
    """Content of the page. While the pair is blinded `comparison` is None, and the page shows no score and no name."""

    title: str
    names: tuple[str, str]
    comparison: Comparison | None
    placement: str
    surfaces: Sequence[SurfaceRow]
    surfacesProblem: str
    rating: Rating | None
    pictures: dict[str, np.ndarray]


def writeScene(scene: Any, path: Path, hidden: Iterable[str] = ()) -> Path:
    """Writes the scene as .mrb; the file is whole or not there.

    Args:
        hidden: names that must be nowhere in it, neither in a node nor in the name of a file.

    Raises:
        InputError: it cannot be written, or something in the scene contains a hidden name.
    """
    _makeFolder(path.parent)
    # Inside an .mrb all files lie in a folder named like the .mrb.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".replica-detection-") as folder:
        written = Path(folder) / path.name
        if not scene.WriteToMRB(str(written)):
            raise InputError(path, "cannot be written", _ADVICE)
        told = _told(written, tuple(hidden))
        if told:
            found = f"would tell the name of a blinded case ({told})"
            raise InputError(path, found, "Take the nodes that you loaded yourself out of the scene")
        written.replace(path)
    return path


def writePage(path: Path, content: ReportContent) -> Path:
    """Writes one self-contained page that prints on one sheet. Raises InputError if it cannot be written."""
    _makeFolder(path.parent)
    try:
        with atomic_write(path) as file:
            file.write(_page(content))
    except OSError as error:
        raise InputError(
            path, f"cannot be written ({error.strerror or error})", write_advice(error, _ADVICE)
        ) from error
    return path


def fileName(title: str) -> str:
    """A file name that is valid on every file system."""
    return re.sub(r"[^\w.-]+", "_", title).strip("._")[:120] or "case"


def grabWindow(renderWindow: Any) -> np.ndarray:
    """(H, W, 3) uint8 of a vtkRenderWindow, first row on top."""
    import vtk
    from vtk.util.numpy_support import vtk_to_numpy

    renderWindow.Render()
    grab = vtk.vtkWindowToImageFilter()
    grab.SetInput(renderWindow)
    grab.ReadFrontBufferOff()
    grab.Update()
    image = grab.GetOutput()
    width, height, _depth = image.GetDimensions()
    pixels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)
    return np.ascontiguousarray(pixels[::-1, :, :3])


def jpeg(picture: np.ndarray, quality: int = 88) -> bytes:
    """A picture (H, W, 3) uint8 as JPEG."""
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

    height, width, _channels = picture.shape
    image = vtk.vtkImageData()
    image.SetDimensions(width, height, 1)
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(picture[::-1]).reshape(-1, 3), deep=True))
    writer = vtk.vtkJPEGWriter()
    writer.WriteToMemoryOn()
    writer.SetQuality(quality)
    writer.SetInputData(image)
    writer.Write()
    return vtk_to_numpy(writer.GetResult()).tobytes()


def _makeFolder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(folder, f"cannot be made ({error.strerror or error})", _ADVICE) from error


def _told(path: Path, hidden: tuple[str, ...]) -> str:
    """The member of an .mrb that holds one of the names; "" if none does."""
    # A short name or a number stands in many places by chance; only what names something counts for those.
    loud = [h for h in hidden if len(h) >= 4 and not h.isdigit()]
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            inner = member.partition("/")[2]
            content = archive.read(member)
            names = [inner]
            if member.endswith(".mrml"):
                text = content.decode("utf-8", errors="replace")
                names += [
                    html.unescape(v) for v in re.findall(r'\b(?:name|fileName|description|attributes)="([^"]*)"', text)
                ]
            for each in hidden:
                pattern = re.compile(rf"(?<![^\W_]){re.escape(each)}(?![^\W_])")
                if any(pattern.search(name) for name in names) or (each in loud and each.encode() in content):
                    return inner
    return ""


def _page(content: ReportContent) -> str:
    parts = [_head(content), _pictures(content.pictures), _measures(content), _surfaces(content), _rating(content)]
    note = _(
        "This page speaks of resemblance between two images and of nothing more: it cannot show that nothing about a "
        "patient can be learned from an image. It supports the review of a data set and is no diagnosis."
    )
    when = f"{datetime.now():%Y-%m-%d %H:%M}"
    foot = f"<footer><p>{html.escape(note)}</p><p>Replica Detection {__version__}, {when}</p></footer>"
    body = "\n".join([*parts, foot])
    return f"{_TOP.format(title=html.escape(content.title))}{body}\n</body></html>\n"


def _head(content: ReportContent) -> str:
    lines = [f"<h1>{html.escape(content.title)}</h1>"]
    found = content.comparison
    if found is not None:
        verdict = f"{SYMBOLS.get(found.verdict, '')} {found.verdict}"
        said = [verdict, f"{_('score')} {score(_value(found.score))}"]
        if found.levels_flagged:
            said.append(f"{_('flagged at')} {', '.join(found.levels_flagged)}")
        lines.append(f'<p class="verdict {html.escape(found.verdict)}">{html.escape("; ".join(said))}</p>')
        if found.reason:
            lines.append(f"<p>{html.escape(reason(found))}</p>")
    shown = f"{content.names[0]} | {content.names[1]}"
    if content.placement:
        shown += f" | {content.placement}"
    lines.append(f"<p>{html.escape(shown)}</p>")
    return "\n".join(lines)


def _pictures(pictures: dict[str, np.ndarray]) -> str:
    figures = []
    for title, picture in pictures.items():
        data = base64.b64encode(jpeg(picture)).decode("ascii")
        figures.append(
            f'<figure><img alt="{html.escape(title)}" src="data:image/jpeg;base64,{data}">'
            f"<figcaption>{html.escape(title)}</figcaption></figure>"
        )
    columns = 4 if len(figures) > 6 else 3 if len(figures) > 2 else max(len(figures), 1)
    return f'<div class="pictures" style="grid-template-columns: repeat({columns}, 1fr)">{"".join(figures)}</div>'


def _measures(content: ReportContent) -> str:
    if content.comparison is None:
        return f"<p>{html.escape(_('Scores are hidden until the rating is saved.'))}</p>"
    head = (_("measure"), _("nearest training case"), _("value"), _("distance ratio"), "p", "q", _("verdict"))
    rows = [
        (
            m.measure,
            m.nearest_training_id or MISSING,
            number(_value(m.value)),
            number(_value(m.ratio)),
            probability(_value(m.p_value)),
            probability(_value(m.q_value)),
            f"{SYMBOLS.get(m.verdict, '')} {m.verdict}",
        )
        for m in content.comparison.measures
    ]
    said = [(m.measure, ", ".join(f"{d.name} {d.text}" for d in m.details)) for m in content.comparison.measures]
    lines = [f"<p>{html.escape(f'{measure}: {words}')}</p>" for measure, words in said if words]
    return "\n".join([_table(head, rows), *lines])


def _surfaces(content: ReportContent) -> str:
    if not content.surfaces:
        return f"<p>{html.escape(content.surfacesProblem)}</p>" if content.surfacesProblem else ""
    head = (_("surface distance, mm"), _("mean"), _("median"), "95 %", _("largest"))
    rows = [(r.name, *(f"{v:.2f}" for v in (r.mean, r.median, r.p95, r.maximum))) for r in content.surfaces]
    return _table(head, rows)


def _rating(content: ReportContent) -> str:
    rating = content.rating
    if rating is None:
        return f"<p>{html.escape(_('Not rated.'))}</p>"
    said = f"{_('Rating')} {rating.rating}: {_(SCALE[rating.rating])}"
    by = [rating.reader, rating.created[:16].replace("T", " "), f"{rating.seconds:.0f} s" if rating.seconds else ""]
    if rating.blinded:
        by.append(_("blinded"))
    lines = [f"<p><b>{html.escape(said)}</b> ({html.escape(', '.join(b for b in by if b))})</p>"]
    if rating.comment:
        lines.append(f"<blockquote>{html.escape(rating.comment)}</blockquote>")
    return "\n".join(lines)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _value(value: float | None) -> float:
    return float("nan") if value is None else value


_TOP = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<style>
@page {{ size: A4 landscape; margin: 10mm }}
body {{ font: 13px/1.35 system-ui, sans-serif; color: #17202c; margin: 1.5em auto; max-width: 1180px; padding: 0 1em }}
h1 {{ font-size: 1.35em; margin: 0 0 .2em }}
p {{ margin: .3em 0 }}
.verdict {{ font-weight: 600 }}
.replica {{ color: #a3122f }} .suspicious {{ color: #8a5200 }} .undecided {{ color: #55328f }}
.pictures {{ display: grid; gap: 4px; margin: .6em 0 }}
figure {{ margin: 0 }} figure img {{ width: 100%; display: block }}
figcaption {{ font-size: .85em; color: #55606f }}
table {{ border-collapse: collapse; margin: .6em 0; width: 100% }}
th, td {{ text-align: left; padding: .15em .8em .15em 0; border-bottom: 1px solid #dde3ea }}
blockquote {{ margin: .3em 0; padding-left: .8em; border-left: 3px solid #dde3ea; white-space: pre-wrap }}
footer {{ color: #55606f; font-size: .85em; margin-top: 1em }}
@media print {{ body {{ font-size: 10px; margin: 0; max-width: none }} .pictures {{ max-width: 230mm }} }}
</style></head><body>
"""
