"""RatioPlot: distance ratios of the set and of the null as a chart, with the threshold and the case on screen."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from replica_detection.results.schema import Histogram
from ReplicaDetectionLib.Nodes import removeNode

SYNTHETIC_COLOR, NULL_COLOR = (0.85, 0.45, 0.10), (0.55, 0.60, 0.66)
THRESHOLD_COLOR, CASE_COLOR = (0.75, 0.05, 0.10), (0.05, 0.10, 0.55)


class RatioPlot:
    """A vtkMRMLPlotChartNode with its series and their tables.

    Attributes:
        chart: the chart node, None before the first `show`; a plot view shows it when it is told its id.
    """

    def __init__(self, scene: Any):
        self.scene = scene
        self.chart: Any = None
        self._nodes: list[Any] = []

    def show(self, histogram: Histogram, syntheticId: str = "", *, bins: int = 24) -> Any:
        """Draws one measure; returns the chart node. What was drawn before is replaced.

        Args:
            syntheticId: the case to mark.
            bins: bars over the range of all values; undefined ratios are left out.
        """
        self._clearSeries()
        if self.chart is None:
            self.chart = self.scene.AddNewNodeByClass("vtkMRMLPlotChartNode", "Distance ratios")
        self.chart.SetTitle(histogram.measure or "all measures together")
        self.chart.SetXAxisTitle("distance ratio" if histogram.measure else "evidence")
        self.chart.SetYAxisTitle("cases (%)")
        self.chart.SetLegendVisibility(True)
        synthetic, null = _numbers(histogram.synthetic), _numbers(histogram.null)
        edges = _edges(np.concatenate([synthetic, null]), histogram.threshold, bins)
        tallest = 0.0
        for name, values, color in (("real cases", null, NULL_COLOR), ("synthetic", synthetic, SYNTHETIC_COLOR)):
            if not len(values):
                continue
            percent = 100 * np.histogram(values, edges)[0] / len(values)
            tallest = max(tallest, float(percent.max()))
            self._bars(name, edges, percent, color)
        if histogram.threshold is not None:
            self._line("threshold", histogram.threshold, tallest, THRESHOLD_COLOR, dashed=True)
        own = dict(zip(histogram.synthetic_ids, histogram.synthetic, strict=True)).get(syntheticId)
        if own is not None:
            self._line("this case", own, tallest, CASE_COLOR, dashed=False)
        return self.chart

    def clear(self) -> None:
        """Takes all its nodes out of the scene."""
        self._clearSeries()
        removeNode(self.scene, self.chart)
        self.chart = None

    def forget(self) -> None:
        """The nodes are gone already."""
        self.chart, self._nodes = None, []

    def _clearSeries(self) -> None:
        if self.chart is not None:
            self.chart.RemoveAllPlotSeriesNodeIDs()
        for node in self._nodes:
            removeNode(self.scene, node)
        self._nodes = []

    def _bars(self, name: str, edges: np.ndarray, percent: np.ndarray, color: tuple[float, float, float]) -> None:
        """A staircase: both distributions stay visible where they overlap."""
        x = np.repeat(edges, 2)
        y = np.concatenate([[0.0], np.repeat(percent, 2), [0.0]])
        self._series(name, x, y, color, width=2.5)

    def _line(self, name: str, at: float, top: float, color: tuple[float, float, float], *, dashed: bool) -> None:
        series = self._series(name, np.array([at, at]), np.array([0.0, max(top, 1.0)]), color, width=2.0)
        if dashed:
            series.SetLineStyle(series.LineStyleDash)

    def _series(
        self, name: str, x: np.ndarray, y: np.ndarray, color: tuple[float, float, float], *, width: float
    ) -> Any:
        import vtk
        from vtk.util.numpy_support import numpy_to_vtk

        table = self.scene.AddNewNodeByClass("vtkMRMLTableNode", f"Ratios: {name}")
        for column, values in (("ratio", x), ("percent", y)):
            array = numpy_to_vtk(np.asarray(values, np.float64), deep=True, array_type=vtk.VTK_DOUBLE)
            array.SetName(column)
            table.AddColumn(array)
        series = self.scene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", name)
        series.SetAndObserveTableNodeID(table.GetID())
        series.SetXColumnName("ratio")
        series.SetYColumnName("percent")
        series.SetPlotType(series.PlotTypeScatter)
        series.SetLineStyle(series.LineStyleSolid)
        series.SetMarkerStyle(series.MarkerStyleNone)
        series.SetLineWidth(width)
        series.SetColor(*color)
        self.chart.AddAndObservePlotSeriesNodeID(series.GetID())
        self._nodes += [series, table]
        return series


def _numbers(values: tuple[float | None, ...]) -> np.ndarray:
    return np.array([v for v in values if v is not None and math.isfinite(v)], np.float64)


def _edges(values: np.ndarray, threshold: float | None, bins: int) -> np.ndarray:
    """(bins + 1,) from the smallest to the largest value, the threshold included."""
    every = values if threshold is None else np.append(values, threshold)
    if not len(every):
        return np.linspace(0, 1, bins + 1)
    low, high = float(every.min()), float(every.max())
    margin = 0.02 * (high - low) or 0.5
    return np.linspace(low - margin, high + margin, bins + 1)
