"""SurfaceDisplay: both surfaces, their outlines on the slices, and the distance between them as a heat map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ReplicaDetectionLib.ComparisonLayout import FIRST, OVERLAY, ROWS, SECOND, ComparisonLayout
from ReplicaDetectionLib.MatchTransform import MatchTransform
from ReplicaDetectionLib.Nodes import (
    DISTANCE,
    HEAT,
    ROW_COLORS,
    colorTable,
    polyDataOf,
    removeNode,
)
from ReplicaDetectionLib.PlacedSurfaces import Peak, PlacedSurfaces, SurfaceRow
from ReplicaDetectionLib.ShownImage import ShownImage

# Colours end here at least, so that a copy does not look far off (mm).
LEAST_RANGE = 1.0


class SurfaceDisplay:
    """Surfaces of a pair, each in the 3D view of its row; never one over the other, for a see-through surface would
    change the colours of the one behind it.

    Attributes:
        available: False where the pair has no surfaces; every call then does nothing.
        problem: why it has none.
        onJump: called with each peak that is jumped to.
    """

    def __init__(self, scene: Any, layout: ComparisonLayout, placement: MatchTransform):
        self.scene, self.layout, self.placement = scene, layout, placement
        self.problem = ""
        self.onJump: list[Callable[[Peak], None]] = []
        self._placed: PlacedSurfaces | None = None
        self._models: dict[str, Any] = {}
        self._names: dict[str, str] = {}
        self._marker: Any = None
        self._peaks: list[Peak] | None = None
        self._at = -1
        self._visible, self._outlines, self._both, self._heat, self._legend = True, True, True, True, True
        self._overlayRow, self._range, self._chosenRange, self._threshold = FIRST, (0.0, LEAST_RANGE), False, 0.0
        layout.onShown.append(self._dress)
        placement.onMoved.append(self._move)

    @property
    def available(self) -> bool:
        return self._placed is not None

    # ------------------------------------------------------------------------------------------------------- one pair

    def show(self, placed: PlacedSurfaces | None, images: dict[str, ShownImage], problem: str = "") -> None:
        """Puts the surfaces of a pair into the scene; keeps range, threshold and outlines."""
        self.clear()
        self._placed, self.problem = placed, "" if placed is not None else problem
        if placed is None:
            return
        self._names = {row: images[row].name for row in ROWS}
        if not self._chosenRange:
            self._range = (0.0, max(LEAST_RANGE, self._ninetyFive()))
        for row in ROWS:
            self._models[row] = self._add(row, f"{self._names[row]} surface")
        self._dress()

    def rename(self, images: dict[str, ShownImage]) -> None:
        """The images go by other names now."""
        self._names = {row: images[row].name for row in ROWS}
        for row, model in self._models.items():
            model.SetName(f"{self._names[row]} surface")

    def clear(self) -> None:
        for node in (*self._models.values(), self._marker):
            removeNode(self.scene, node)
        self.forget()

    def forget(self) -> None:
        """The nodes are gone already."""
        self._placed, self._models, self._marker, self._peaks, self._at = None, {}, None, None, -1

    # ---------------------------------------------------------------------------------------------------------- looks

    def setVisible(self, visible: bool) -> None:
        """Surfaces in 3D."""
        self._visible = bool(visible)
        self._dress()

    def setOutlines(self, visible: bool, both: bool = True) -> None:
        """Outlines on the slices; `both`: each row shows both, else its own. The overlay always shows both."""
        self._outlines, self._both = bool(visible), bool(both)
        self._dress()

    def setHeat(self, visible: bool) -> None:
        """Distances as colours, else one plain colour for each image."""
        self._heat = bool(visible)
        self._dress()

    def setOverlaySurface(self, row: str) -> None:
        """Sets the row whose surface the 3D view of the overlay shows: one only, because they would hide each other."""
        if row not in ROWS:
            raise ValueError(f"unknown row '{row}'; known: {', '.join(ROWS)}")
        self._overlayRow = row
        self._dress()

    def setRange(self, low: float, high: float) -> None:
        """Sets the distances (mm) where the colours begin and end. They stay for later cases, until `fitRange`."""
        self._range, self._chosenRange = (float(low), max(float(high), float(low) + 0.01)), True
        self._dress()

    def range(self) -> tuple[float, float]:
        return self._range

    def fitRange(self) -> tuple[float, float]:
        """0 to the 95th percentile of both surfaces; returns it. Later cases are fitted as well, to 1 mm at least."""
        self._chosenRange = False
        if self.available:
            self._range = (0.0, max(0.1, self._ninetyFive()))
        self._dress()
        return self._range

    def setThreshold(self, mm: float) -> None:
        """Hides the parts of a surface closer than this (mm) to the other one; 0 shows all. Peaks lie above it."""
        self._threshold, self._peaks, self._at = max(0.0, float(mm)), None, -1
        self._dress()

    def threshold(self) -> float:
        return self._threshold

    def setLegend(self, visible: bool) -> None:
        self._legend = bool(visible)
        self._dress()

    # -------------------------------------------------------------------------------------------------------- figures

    def statistics(self) -> list[SurfaceRow]:
        """Area-weighted distances in mm as they are shown; empty where there are no surfaces."""
        if self._placed is None:
            return []
        return self._placed.statistics(self.placement.mode, self._names[FIRST], self._names[SECOND])

    def peaks(self) -> list[Peak]:
        """Patches of distances above the threshold (without one: the largest 5 %), the largest first."""
        if self._placed is None:
            return []
        if self._peaks is None:
            self._peaks = self._placed.peaks(self.placement.mode, self._threshold)
        return self._peaks

    def middle(self) -> tuple[float, float, float] | None:
        """The middle of the first surface, mm RAS+ of the scene."""
        if self._placed is None:
            return None
        x, y, z = self._placed.world(self.placement.mode)[FIRST].points.mean(axis=0).tolist()
        return x, y, z

    def bounds(self) -> np.ndarray | None:
        """(2, 3): the corners of the box around both surfaces, mm RAS+ of the scene."""
        if self._placed is None:
            return None
        points = np.concatenate([m.points for m in self._placed.world(self.placement.mode).values()])
        return np.stack([points.min(axis=0), points.max(axis=0)])

    def jumpToLargest(self) -> Peak | None:
        """All views to the largest distance, which is marked; None where there is none."""
        self._at = -1
        return self.jumpToNext()

    def jumpToNext(self, step: int = 1) -> Peak | None:
        """Moves all views to the next smaller peak, after the last to the first. `step` -1: in reverse."""
        peaks = self.peaks()
        if not peaks:
            return None
        self._at = (self._at + step) % len(peaks) if self._at >= 0 or step > 0 else len(peaks) - 1
        peak = peaks[self._at]
        for call in self.onJump:
            call(peak)
        return peak

    def mark(self, distance: float | None, at: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> None:
        """Puts the marker with a distance in mm to a point (mm RAS+ of the scene); None takes it away."""
        import vtk

        if distance is None:
            removeNode(self.scene, self._marker)
            self._marker = None
            return
        if self._marker is None:
            self._marker = self._addMarker()
        self._marker.RemoveAllControlPoints()
        self._marker.AddControlPoint(vtk.vtkVector3d(*at), f"{distance:.1f} mm")

    # --------------------------------------------------------------------------------------------------------- inside

    def _ninetyFive(self) -> float:
        assert self._placed is not None
        p95 = self._placed.comparison(self.placement.mode).symmetric.percentile_95
        return float(np.ceil(10 * p95) / 10) if np.isfinite(p95) else LEAST_RANGE

    def _add(self, row: str, name: str) -> Any:
        surface, outline = (
            self.scene.AddNewNodeByClass("vtkMRMLModelDisplayNode", f"{row} {role} display")
            for role in ("surface", "outline")
        )
        for display in (surface, outline):
            display.SetColor(*ROW_COLORS[row])
            display.SetVisibility2D(display is outline)
            display.SetVisibility3D(display is surface)
        # Facing the light a surface has exactly the legend's colour.
        surface.SetAmbient(0.3)
        surface.SetDiffuse(0.7)
        surface.SetSpecular(0.0)
        surface.SetActiveScalar(DISTANCE, 0)
        surface.SetAndObserveColorNodeID(colorTable(self.scene, "Surface distance (mm)", HEAT).GetID())
        surface.SetScalarRangeFlag(surface.UseManualScalarRange)
        outline.SetScalarVisibility(False)
        # Where both agree, the first shows as a border of the second.
        outline.SetSliceIntersectionThickness(4 if row == FIRST else 2)
        self._dressDisplays(row, surface, outline)
        model = self.scene.CreateNodeByClass("vtkMRMLModelNode")
        model.UnRegister(None)
        model.SetName(name)
        model.SetAndObservePolyData(self._data(row))
        # All of this before the views see the model: they draw it anew at every change.
        for display in (surface, outline):
            model.AddAndObserveDisplayNodeID(display.GetID())
        if row == SECOND:
            model.SetAndObserveTransformNodeID(self.placement.node.GetID())
        return self.scene.AddNode(model)

    def _data(self, row: str) -> Any:
        assert self._placed is not None
        mirrored = row == SECOND and float(np.linalg.det(self.placement.matrix[:3, :3])) < 0
        distances = self._placed.distances(self.placement.mode)[row]
        return polyDataOf(self._placed.own(row), distances, mirrored=mirrored)

    def _addMarker(self) -> Any:
        marker = self.scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Difference")
        marker.CreateDefaultDisplayNodes()
        marker.SetLocked(True)
        display = marker.GetDisplayNode()
        display.SetSelectedColor(1.0, 0.1, 0.9)
        display.SetGlyphScale(2.0)
        display.SetTextScale(3.5)
        # The point lies on the surface: whether that hides it depends on the graphics card.
        display.SetOccludedVisibility(True)
        display.SetOccludedOpacity(1.0)
        return marker

    def _dress(self) -> None:
        for row, model in self._models.items():
            views = self._dressDisplays(row, model.GetNthDisplayNode(0), model.GetNthDisplayNode(1))
            self._dressLegend(model, views)

    def _dressDisplays(self, row: str, surface: Any, outline: Any) -> list[str]:
        """Returns the ids of the 3D views that show the surface."""
        shownIn = [row, OVERLAY] if row == self._overlayRow else [row]
        views = [v.GetID() for v in map(self.layout.viewNode, shownIn) if v is not None]
        _showIn(surface, views, self._visible)
        surface.SetScalarVisibility(self._heat)
        surface.SetScalarRange(*self._range)
        surface.SetThresholdEnabled(self._heat and self._threshold > 0)
        surface.SetThresholdRange(self._threshold, 1e6)
        rows = [*ROWS, OVERLAY] if self._both else [row, OVERLAY]
        slices = [n.GetID() for r in rows for n in self.layout.sliceNodes(r)]
        _showIn(outline, slices, self._outlines)
        return views

    def _dressLegend(self, model: Any, views: list[str]) -> None:
        import slicer

        colors = slicer.vtkSlicerColorLogic
        legend = colors.GetColorLegendDisplayNode(model)
        if legend is not None and list(legend.GetViewNodeIDs()) != views:
            # A view draws a legend only if the view was there first.
            self.scene.RemoveNode(legend)
            legend = None
        wanted = self._visible and self._heat and self._legend and bool(views)
        if legend is None and wanted:
            legend = colors.AddDefaultColorLegendDisplayNode(model)
            legend.SetName(f"{model.GetName()} legend")
            legend.SetTitleText("mm")
            legend.SetLabelFormat("%.1f")
            legend.SetNumberOfLabels(5)
            legend.SetMaxNumberOfColors(256)
            legend.SetPosition(0.96, 0.5)
            legend.SetSize(0.12, 0.5)
            legend.GetTitleTextProperty().SetFontSize(12)
            legend.GetLabelTextProperty().SetFontSize(12)
        if legend is not None:
            _showIn(legend, views, wanted)

    def _move(self) -> None:
        """Updates distances and peaks after the second image moved."""
        self._peaks, self._at = None, -1
        if self._placed is None:
            return
        self.mark(None)
        for row, model in self._models.items():
            model.SetAndObservePolyData(self._data(row))
        if not self._chosenRange:
            self._range = (0.0, max(LEAST_RANGE, self._ninetyFive()))
        self._dress()


def _showIn(display: Any, views: list[str], visible: bool) -> None:
    """Shows a node in these views only. An empty list would mean all views, so it is hidden then."""
    if list(display.GetViewNodeIDs()) != views:
        display.SetViewNodeIDs(views)
    display.SetVisibility(visible and bool(views))
