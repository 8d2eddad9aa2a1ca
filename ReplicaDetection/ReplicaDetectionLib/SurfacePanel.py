"""SurfacePanel: surfaces, outlines, their distances as colours and numbers, and jumps to large distances."""

from __future__ import annotations

from typing import Any

from ReplicaDetectionLib.ComparisonLayout import ROWS
from ReplicaDetectionLib.Panel import Panel, dressTable, fillTable, quietly
from ReplicaDetectionLib.Parameter import Parameter
from ReplicaDetectionLib.Translation import _


class SurfacePanel(Panel):
    """Works on `logic.surfaces`. Blinded, surfaces and outlines are shown, their distances are not: they are scores.

    Args:
        logic: ReplicaDetectionLogic.
        changed: called after the user changed something that a scene keeps.
    """

    def __init__(self, session: Any, logic: Any, changed: Any):
        super().__init__(session)
        self.logic, self.surfaces, self.changed = logic, logic.surfaces, changed
        ui = self.ui
        dressTable(ui.statisticsTable, wide=0)
        ui.overlaySurfaceBox.addItems(["", ""])
        for box in (ui.visibleBox, ui.outlinesBox, ui.bothBox, ui.heatBox, ui.legendBox):
            box.connect("toggled(bool)", lambda checked: self._apply())
        ui.overlaySurfaceBox.connect("currentIndexChanged(int)", lambda i: self.surfaces.setOverlaySurface(ROWS[i]))
        ui.rangeWidget.connect("valuesChanged(double,double)", self.surfaces.setRange)
        ui.fitRangeButton.connect("clicked()", self._fit)
        ui.thresholdSlider.connect("valueChanged(double)", self._setThreshold)
        ui.largestButton.connect("clicked()", lambda: self._showPeak(self.surfaces.jumpToLargest()))
        ui.nextPeakButton.connect("clicked()", lambda: self._showPeak(self.surfaces.jumpToNext()))
        logic.placement.onMoved.append(self._updateFigures)
        session.caseChanged.connect(self._update)
        self._update()

    def read(self, parameter: Parameter) -> None:
        """Sets the controls from the parameters of a scene."""
        ui = self.ui
        with quietly(ui.visibleBox, ui.outlinesBox, ui.bothBox, ui.heatBox, ui.legendBox):
            ui.visibleBox.setChecked(parameter.surfaces)
            ui.outlinesBox.setChecked(parameter.outlines)
            ui.bothBox.setChecked(parameter.bothOutlines)
            ui.heatBox.setChecked(parameter.heat)
            ui.legendBox.setChecked(parameter.legend)
        self._send()

    def write(self, parameter: Parameter) -> None:
        """Stores the choices of the user in the parameters of a scene."""
        ui = self.ui
        parameter.surfaces = ui.visibleBox.checked
        parameter.outlines = ui.outlinesBox.checked
        parameter.bothOutlines = ui.bothBox.checked
        parameter.heat = ui.heatBox.checked
        parameter.legend = ui.legendBox.checked

    def _apply(self) -> None:
        self._send()
        self.changed()

    def _send(self) -> None:
        ui = self.ui
        self.surfaces.setVisible(ui.visibleBox.checked)
        self.surfaces.setOutlines(ui.outlinesBox.checked, ui.bothBox.checked)
        # The legend goes with the colours.
        self.surfaces.setHeat(ui.heatBox.checked and not self.session.hidden)
        self.surfaces.setLegend(ui.legendBox.checked)
        ui.bothBox.setEnabled(ui.outlinesBox.checked)
        ui.legendBox.setEnabled(ui.heatBox.checked)

    def _update(self) -> None:
        """Another pair is on screen, or none, or its blinding ended."""
        ui, pair = self.ui, self.session.pair
        available = pair is not None and self.surfaces.available
        ui.surfaceControls.setEnabled(available)
        ui.heatControls.setVisible(not self.session.hidden)
        problem = "" if pair is None or available else self.surfaces.problem or _("This pair has no masks.")
        ui.problemLabel.setText(problem)
        ui.problemLabel.setVisible(bool(problem))
        with quietly(ui.overlaySurfaceBox):
            for i, name in enumerate(self.logic.names()):
                ui.overlaySurfaceBox.setItemText(i, name)
        self._send()
        self._updateFigures()

    def _updateFigures(self) -> None:
        ui = self.ui
        ui.peakLabel.setText("")
        figures = [] if self.session.hidden else self.surfaces.statistics()
        rows = [(r.name, *(f"{v:.2f}" for v in (r.mean, r.median, r.p95, r.maximum))) for r in figures]
        fillTable(ui.statisticsTable, rows, (1, 2, 3, 4))
        if figures:
            largest = max(r.maximum for r in figures)
            top = max(1.0, round(largest + 0.5, 1))
            with quietly(ui.rangeWidget, ui.thresholdSlider):
                ui.rangeWidget.maximum = max(top, self.surfaces.range()[1])
                ui.thresholdSlider.maximum = max(top, self.surfaces.threshold())
            self._showRange()

    def _showRange(self) -> None:
        with quietly(self.ui.rangeWidget):
            self.ui.rangeWidget.setValues(*self.surfaces.range())

    def _fit(self) -> None:
        self.surfaces.fitRange()
        self._showRange()

    def _setThreshold(self, mm: float) -> None:
        self.surfaces.setThreshold(mm)
        self.ui.peakLabel.setText("")

    def _showPeak(self, peak: Any) -> None:
        if peak is None:
            self.ui.peakLabel.setText(_("No distance is above the threshold."))
            return
        names = dict(zip(ROWS, self.logic.names(), strict=True))
        where = ", ".join(f"{axis} {abs(v):.0f}" for axis, v in zip(_axes(peak.ras), peak.ras, strict=True))
        self.ui.peakLabel.setText(
            _("{distance} mm, on the surface of {name}, at {where}").format(
                distance=f"{peak.distance:.1f}", name=names[peak.row], where=where
            )
        )


def _axes(ras: tuple[float, float, float]) -> list[str]:
    """R or L, A or P, S or I, as Slicer writes positions."""
    return [positive if v >= 0 else negative for v, (positive, negative) in zip(ras, ("RL", "AP", "SI"), strict=True)]
