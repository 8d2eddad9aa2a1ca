"""The self-test's table, plot and examples as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.audit.planted_copies import intensity_range
from replica_detection.audit.planted_verdicts import UNSEEN, SelfTest, SelfTestRow
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.volume import read_volume
from replica_detection.util.csv_tables import estimate_columns, write_csv
from replica_detection.util.files import atomic_write

_COLUMNS = ("kind", "images", *estimate_columns("flagged", "replica", "right_case"), "auroc", "undecided")


def write_selftest(found: SelfTest, index: TrainingIndex, images: Path, folder: Path) -> None:
    """Writes `selftest.csv`, `selftest_by_measure.csv`, `selftest.png` and `examples.png` into `folder`.

    Args:
        images: where the copies lie, for the examples.
    """
    rows = [
        {"kind": r.kind, "images": r.images, "flagged": r.flagged, "replica": r.replica, "right_case": r.right,
         "auroc": r.auroc, "undecided": r.undecided}
        for r in found.rows
    ]  # fmt: skip
    write_csv(folder / "selftest.csv", _COLUMNS, rows)
    by_measure = (
        {"kind": r.kind, "measure": name, "images": r.images, "flagged": flagged}
        for r in found.rows
        for name, flagged in r.by_measure.items()
    )
    columns = ("kind", "measure", "images", *estimate_columns("flagged"))
    write_csv(folder / "selftest_by_measure.csv", columns, by_measure)
    for name, drawing in (("selftest.png", _plot(found.rows)), ("examples.png", _examples(found, index, images))):
        with atomic_write(folder / name, "wb") as f:
            drawing.savefig(f, format="png", dpi=130)


def _plot(rows: Sequence[SelfTestRow]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.34 * len(rows) + 1.2), layout="constrained")
    axes = figure.add_subplot()
    place = np.arange(len(rows))[::-1]
    value = np.array([r.flagged.value for r in rows])
    errors = np.array([[r.flagged.value - r.flagged.low, r.flagged.high - r.flagged.value] for r in rows]).T
    colours = ["#64748b" if r.kind == UNSEEN else "#c2410c" for r in rows]
    axes.barh(place, value, color=colours, alpha=0.75)
    axes.errorbar(value, place, xerr=np.nan_to_num(np.maximum(errors, 0)), fmt="none", ecolor="#111827", capsize=2)
    axes.axvline(rows[0].flagged.value, color="#64748b", linestyle="--", linewidth=1)
    axes.set_yticks(place, [f"{r.kind} ({r.images})" for r in rows])
    axes.set(xlim=(0, 1.02), xlabel="share flagged, with 95 % interval; dashed: false positives on unseen cases")
    return figure


def _examples(found: SelfTest, index: TrainingIndex, images: Path) -> Any:
    """The first copy of each kind beside its original, both cut through the middle, in one grey window."""
    from matplotlib.figure import Figure

    files = {p.name.split(".")[0]: p for p in sorted((images / "images").iterdir())}
    first: dict[str, tuple[str, str]] = {}
    for case, (kind, training_id) in found.truth.items():
        if kind != UNSEEN:
            first.setdefault(kind, (case, training_id))
    positions = {id: n for n, id in enumerate(index.ids)}
    figure = Figure(figsize=(1.7 * len(first), 3.8), layout="constrained")
    axes = figure.subplots(2, len(first), squeeze=False)
    for column, (kind, (case, training_id)) in enumerate(first.items()):
        original = read_volume(index.case(positions[training_id])).array
        low, high = intensity_range(original)
        for row, array in enumerate((original, read_volume(files[case]).array)):
            plane = array if array.ndim == 2 else array[:, :, array.shape[2] // 2]
            axes[row, column].imshow(plane.T, cmap="gray", vmin=low, vmax=high, origin="upper")
            axes[row, column].set_axis_off()
        axes[0, column].set_title(kind, fontsize=8)
    figure.supxlabel("above: training image; below: the copy", fontsize=8)
    return figure
