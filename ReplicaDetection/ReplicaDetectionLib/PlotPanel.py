"""PlotPanel: how near the set comes to the training images, beside real cases that the generator never saw."""

from __future__ import annotations

from typing import Any

import slicer

from replica_detection.results.schema import Histogram
from ReplicaDetectionLib.Panel import Panel, number, quietly
from ReplicaDetectionLib.Translation import _


class PlotPanel(Panel):
    """Works on `logic.plot`. Reads the ratios only once the panel is opened; blinded, it shows nothing."""

    def __init__(self, session: Any, logic: Any):
        super().__init__(session)
        self.logic = logic
        self._histograms: list[Histogram] = []
        self._plot: Any = None
        self._view: Any = None
        self.widget.connect("contentsCollapsed(bool)", lambda collapsed: self._refresh())
        self.ui.measureBox.connect("currentIndexChanged(int)", lambda index: self._draw())
        session.sourceChanged.connect(self._forget)
        session.caseChanged.connect(self._refresh)
        self._refresh()

    def forgetScene(self) -> None:
        """The scene was closed: the chart and its view are gone."""
        self._view = None
        self._draw()

    def _forget(self) -> None:
        if self.session.source is None:
            self._histograms = []
            with quietly(self.ui.measureBox):
                self.ui.measureBox.clear()
        self._refresh()

    def _refresh(self) -> None:
        if self.widget.collapsed:
            return
        if self.session.source is not None and not self._histograms and not self.session.blinded:
            self.session.readHistograms(self._show)
        self._draw()

    def _show(self, histograms: list[Histogram]) -> None:
        self._histograms = histograms
        with quietly(self.ui.measureBox):
            self.ui.measureBox.clear()
            for histogram in histograms:
                self.ui.measureBox.addItem(histogram.measure or _("All measures together"), histogram.measure)
        self._draw()

    def _draw(self) -> None:
        index = self.ui.measureBox.currentIndex
        drawn = not self.session.blinded and 0 <= index < len(self._histograms)
        self.ui.measureBox.setEnabled(drawn)
        self.ui.plotFrame.setVisible(drawn)
        if not drawn:
            self.logic.plot.clear()
            blinded = _("Shown after the blinded reading.")
            self.ui.plotNote.setText(blinded if self.session.blinded else _("Open a source with results."))
            return
        histogram, pair = self._histograms[index], self.session.pair
        chart = self.logic.plot.show(histogram, pair.synthetic.id if pair is not None else "")
        self._plotView().SetPlotChartNodeID(chart.GetID())
        self.ui.plotNote.setText(self._note(histogram))

    def _note(self, histogram: Histogram) -> str:
        cases, null = (sum(v is not None for v in values) for values in (histogram.synthetic, histogram.null))
        note = _("{cases} synthetic cases and {null} real ones that the generator never saw.")
        note = note.format(cases=cases, null=null)
        if histogram.threshold is None:
            return note
        below, above = (
            _("At or below {threshold}: at least suspicious."),
            _("At or above {threshold}: at least suspicious."),
        )
        return f"{note} {(below if histogram.measure else above).format(threshold=number(histogram.threshold))}"

    def _plotView(self) -> Any:
        """The plot's own view node; made on first use, for a closed scene takes it away."""
        if self._plot is None:
            self._plot = slicer.qMRMLPlotWidget()
            self._plot.setMRMLScene(slicer.mrmlScene)
            self._plot.setMinimumHeight(240)
            self.ui.plotFrame.layout().addWidget(self._plot)
        if self._view is None:
            self._view = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotViewNode", "Replica Detection plot")
            self._plot.setMRMLPlotViewNode(self._view)
        return self._view
