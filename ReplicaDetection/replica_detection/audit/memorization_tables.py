"""Metrics of one synthetic set or several as a table and as curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.audit.memorization import SetFigure
from replica_detection.audit.memorization_metrics import AS_PUBLISHED, SIZE_MATCHED
from replica_detection.util.csv_tables import estimate_columns, write_csv
from replica_detection.util.files import atomic_write

_COLUMNS = ("set", "at", "basis", "figure", "variant", *estimate_columns("value"), "expected", "cases", "note")
_SHARES = ("N_copies", "N_mem")
_HELP = {
    "N_copies": "share of synthetic cases\nnearer to training than unseen ones",
    "N_mem": "share of training cases\nwith a synthetic case that near",
    "AuthPct": "AuthPct, %",
    "CT": "CT score (below 0: copying)",
    "FID": "Fréchet distance to training",
    "MS-SSIM": "MS-SSIM inside the set",
    "MI": "mean memorization index",
    "ONI": "mean overfit/novelty index",
}


@dataclass(frozen=True)
class AssessedSet:
    """One synthetic set with its figures; `at`: where it stands on the axis (iterations, training cases) or None."""

    name: str
    at: float | None
    figures: tuple[SetFigure, ...]


def write_set_metrics(sets: Sequence[AssessedSet], folder: Path, *, variant: str = SIZE_MATCHED) -> None:
    """Writes `memorization.csv` (both variants) and `memorization.png` (curves of one) into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = (
        {
            "set": one.name,
            "at": math.nan if one.at is None else one.at,
            "basis": row.basis,
            "figure": row.figure.name,
            "variant": row.figure.variant,
            "value": row.figure.estimate,
            "expected": row.figure.expected,
            "cases": row.figure.cases,
            "note": row.figure.note,
        }
        for one in sets
        for row in one.figures
    )
    write_csv(folder / "memorization.csv", _COLUMNS, rows)
    with atomic_write(folder / "memorization.png", "wb") as f:
        _curves(sets, variant).savefig(f, format="png", dpi=150)


def shown(one: AssessedSet, variant: str) -> list[SetFigure]:
    """The figures of one variant; those that have no other are always among them."""
    other = AS_PUBLISHED if variant == SIZE_MATCHED else SIZE_MATCHED
    return [row for row in one.figures if row.figure.variant != other]


def _curves(sets: Sequence[AssessedSet], variant: str) -> Any:
    from matplotlib.figure import Figure as Drawing

    numbered = all(s.at is not None for s in sets)
    ordered = sorted(sets, key=lambda s: s.at or 0.0) if numbered else list(sets)
    x = np.array([s.at for s in ordered] if numbered else range(len(ordered)), float)
    defined = [r for s in ordered for r in shown(s, variant) if not math.isnan(r.figure.estimate.value)]
    panels = [name for name in _HELP if any(r.figure.name == name for r in defined)]
    columns = min(4, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    drawing = Drawing(figsize=(4.2 * columns, 3.5 * rows), layout="constrained")
    axes = drawing.subplots(rows, columns, squeeze=False).ravel()
    for ax, name in zip(axes, panels, strict=False):
        _panel(ax, name, ordered, x, variant)
        ax.set_title(_HELP[name], fontsize=10)
        ax.grid(alpha=0.3)
        if not numbered:
            ax.set_xticks(x, [s.name for s in ordered], rotation=30, ha="right", fontsize=8)
    drawing.supxlabel("dashed: what new images would give; dotted: real images in the place of synthetic", fontsize=9)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    return drawing


def _panel(ax: Any, name: str, sets: Sequence[AssessedSet], x: np.ndarray, variant: str) -> None:
    found = [{(r.basis, r.figure.name): r.figure for r in shown(s, variant)} for s in sets]
    for basis in dict.fromkeys(b for f in found for b, n in f if n == name):
        figures = [f.get((basis, name)) for f in found]
        value, low, high = (
            np.array([getattr(f.estimate, part) if f else math.nan for f in figures])
            for part in ("value", "low", "high")
        )
        errors = np.nan_to_num(np.maximum([value - low, high - value], 0))
        drawn = ax.errorbar(x, value, errors, fmt="o-", capsize=3, label=basis.removeprefix("vectors: "), alpha=0.85)
        reference = [f.get((basis, f"{name} of unseen")) or f.get((basis, f"{name} of training")) for f in found]
        if any(reference):
            of_real = [r.estimate.value if r else math.nan for r in reference]
            ax.plot(x, of_real, ":", color=drawn.lines[0].get_color())
        expected = [f.expected if f else math.nan for f in figures]
        if not np.isnan(expected).all():
            ax.plot(x, expected, "--", color="grey", linewidth=1)
    if name in _SHARES:
        ax.set_ylim(-0.03, 1.03)
    ax.legend(frameon=False, fontsize=8)
