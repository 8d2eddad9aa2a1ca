"""RatioPlot: distance ratios of the set and of the null as a chart, with the threshold and the case on screen."""

from __future__ import annotations

from typing import Any

from replica_detection.schema import Histogram


class RatioPlot:
    """A vtkMRMLPlotChartNode with its series and tables."""

    def __init__(self, scene: Any):
        raise NotImplementedError

    def show(self, histogram: Histogram, syntheticId: str = "", *, bins: int = 24) -> Any:
        """Draws one measure; `syntheticId`: the case to mark. Returns the chart node (`chart`)."""

    def clear(self) -> None:
        """Takes all its nodes out of the scene."""
