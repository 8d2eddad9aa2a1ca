"""Histograms of the report: synthetic cases against the null, as inline SVG. Needs matplotlib."""

from __future__ import annotations

import io
import math
import re
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from replica_detection.results import wording
from replica_detection.results.result import DetectionResult

SYNTHETIC, NULL, THRESHOLD, INK = "#c2410c", "#64748b", "#111827", "#374151"
_BINS = 36


@dataclass(frozen=True)
class Plot:
    """A histogram: `svg` is the drawing, `description` its content in words."""

    title: str
    subtitle: str
    svg: str
    description: str


def ratio_plots(result: DetectionResult) -> list[Plot]:
    """One histogram of the distance ratio per measure, in the order of the run."""
    plots = []
    for order, measure in enumerate(result.run.measures):
        synthetic = np.array([m.ratio for m in result.matches if m.measure == measure.name], float)
        null = np.array(result.run.null.ratios.get(measure.name, ()), float)
        plots.append(
            _plot(
                title=measure.name,
                subtitle=f"{measure.level} level · smaller = more replica-like",
                prefix=f"m{order}-",
                synthetic=synthetic,
                null=null,
                threshold=measure.threshold,
                flag_low=True,
            )
        )
    return plots


def evidence_plot(result: DetectionResult) -> Plot:
    """Histogram of the combined evidence. Exact copies may have any size, so values far out share one bin."""
    return _plot(
        title="All measures together",
        subtitle="larger = more replica-like",
        prefix="e-",
        synthetic=np.array(result.run.evidence, float),
        null=np.array(result.run.null.evidence, float),
        threshold=result.run.evidence_threshold,
        flag_low=False,
    )


def _plot(
    title: str,
    subtitle: str,
    prefix: str,
    synthetic: np.ndarray,
    null: np.ndarray,
    threshold: float,
    flag_low: bool,
) -> Plot:
    defined = synthetic[~np.isnan(synthetic)]
    left_out = len(synthetic) - len(defined)
    null = null[~np.isnan(null)]
    figure = Figure(figsize=(5.4, 2.9), layout="constrained")
    axes = figure.add_subplot()
    if len(defined) or len(null):
        _histogram(axes, defined, null, threshold, flag_low)
        figure.legend(frameon=False, fontsize=8.5, loc="outside upper left", ncols=3, labelcolor=INK, columnspacing=1.4)
    else:
        axes.text(0.5, 0.5, "no defined value", ha="center", va="center", color=INK, transform=axes.transAxes)
        axes.set_axis_off()
    flagged = int(np.sum(defined <= threshold if flag_low else defined >= threshold))
    side = "at or below" if flag_low else "at or above"
    parts = [f"{wording.count(len(defined), 'synthetic case')}{_median(defined)}", f"{len(null)} null{_median(null)}"]
    parts.append(
        f"{flagged} synthetic {side} the threshold {wording.number(threshold)}"
        if math.isfinite(threshold)
        else "no threshold"
    )
    if left_out:
        parts.append(f"{wording.count(left_out, 'synthetic value')} undefined and not drawn")
    return Plot(title, subtitle, _svg(figure, prefix), "; ".join(parts) + ".")


def _histogram(axes: Axes, synthetic: np.ndarray, null: np.ndarray, threshold: float, flag_low: bool) -> None:
    low, high = (_ratio_range if flag_low else _evidence_range)(synthetic, null, threshold)
    width = (high - low) / _BINS
    edges = np.linspace(low, high, _BINS + 1)
    everything = np.concatenate([synthetic, null])
    under, over = bool((everything < low).any()), bool((everything >= high).any())
    # Cases beyond the axis stand in one bin two bin widths further out.
    values = [
        np.where(v >= high, high + 2.5 * width, np.where(v < low, low - 2.5 * width, v)) for v in (synthetic, null)
    ]
    bins = np.concatenate([low - width * np.array([3, 2]), edges, high + width * np.array([2, 3])]).tolist()
    for v, colour, alpha, label in (
        (values[1], NULL, 0.35, f"null, real cases ({len(null)})"),
        (values[0], SYNTHETIC, 0.55, f"synthetic ({len(synthetic)})"),
    ):
        if len(v):
            weights = np.full(len(v), 100 / len(v))
            axes.hist(v, bins, weights=weights, histtype="stepfilled", color=colour, alpha=alpha, label=label)
            axes.hist(v, bins, weights=weights, histtype="step", color=colour, linewidth=1.1)
    if math.isfinite(threshold):
        axes.axvline(threshold, color=THRESHOLD, linestyle=(0, (5, 3)), linewidth=1.3, label="threshold")
    _label_axis(axes, low, high, width, under, over)
    axes.set_xlabel("distance ratio" if flag_low else "combined evidence", color=INK)
    axes.set_ylabel("% of cases per bin", color=INK)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=9)


def _ratio_range(synthetic: np.ndarray, null: np.ndarray, threshold: float) -> tuple[float, float]:
    known = _finite(synthetic, null, threshold)
    low, high = float(known.min(initial=1)), float(known.max(initial=0))
    if high - low < 1e-6:
        return low - 0.05, high + 0.05
    return low, high + 1e-6 * (high - low)  # bins are half open: the largest value belongs to the last one


def _evidence_range(synthetic: np.ndarray, null: np.ndarray, threshold: float) -> tuple[float, float]:
    """Range that covers the null and the threshold with a margin; at least -4 to 8, the range of z scores."""
    scale = _finite(null, np.empty(0), threshold)
    high = max(8.0, 1.5 * float(scale.max(initial=0)))
    low = min(-4.0, float(scale.min(initial=0)))
    return low, high


def _finite(a: np.ndarray, b: np.ndarray, threshold: float) -> np.ndarray:
    known = np.concatenate([a, b, [threshold]])
    return known[np.isfinite(known)]


def _label_axis(axes: Axes, low: float, high: float, width: float, under: bool, over: bool) -> None:
    """Set ticks inside [low, high), and labels of the bins beyond it where they are not empty."""
    axes.set_xlim(low - (4 if under else 0.5) * width, high + (4 if over else 0.5) * width)
    # A tick at the end would overlap the label of the bin beyond.
    first, last = low + 2 * width * under, high - 2 * width * over
    ticks = [float(t) for t in axes.get_xticks() if first <= t <= last]
    labels = [_tick(t) for t in ticks]
    if over:
        ticks, labels = [*ticks, high + 2.5 * width], [*labels, f"≥ {_tick(high)}"]
    if under:
        ticks, labels = [low - 2.5 * width, *ticks], [f"< {_tick(low)}", *labels]
    axes.set_xticks(ticks, labels)


def _tick(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _median(values: np.ndarray) -> str:
    return f" (median {wording.number(float(np.median(values)), 3)})" if len(values) else ""


def _svg(figure: Figure, prefix: str) -> str:
    """The drawing as an SVG element: no XML header, and ids with a prefix that is unique on the page."""
    FigureCanvasSVG(figure)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{prefix}', text)
    text = re.sub(r'href="#', f'href="#{prefix}', text)
    text = re.sub(r"url\(#", f"url(#{prefix}", text)
    return text.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
