"""ComparisonPanel: layout, overlay and alignment of the two images."""

from __future__ import annotations

from typing import Any

import qt

from ReplicaDetectionLib.ComparisonLayout import PLANES
from ReplicaDetectionLib.Panel import Panel, quietly
from ReplicaDetectionLib.Parameter import Parameter
from ReplicaDetectionLib.Translation import _

BLINK_MS = 500


class ComparisonPanel(Panel):
    """Works on `logic.layout`, `logic.composition` and `logic.placement`.

    Args:
        logic: ReplicaDetectionLogic.
        changed: called after the user changed something that a scene keeps.
    """

    def __init__(self, session: Any, logic: Any, changed: Any):
        super().__init__(session)
        self.logic, self.changed = logic, changed
        ui = self.ui
        self._layouts = {"rows": ui.rowsButton, "overlay": ui.overlayButton, "single": ui.singleButton}
        for text, plane in zip((_("Axial"), _("Sagittal"), _("Coronal")), PLANES, strict=True):
            ui.planeBox.addItem(text, plane)
        for text, mode in ((_("Both, fading"), "fade"), (_("Checkerboard"), "checkerboard"), ("", "difference")):
            ui.modeBox.addItem(text, mode)
        self._timer = qt.QTimer()
        self._timer.setInterval(BLINK_MS)
        self._timer.connect("timeout()", self._blink)
        for name, button in self._layouts.items():
            button.connect("clicked()", self._layoutSetter(name))
        ui.planeBox.connect("currentIndexChanged(int)", lambda index: self._apply())
        ui.comparedButton.connect("clicked()", lambda: self._place("compared"))
        ui.alignedButton.connect("clicked()", lambda: self._place("aligned"))
        ui.modeBox.connect("currentIndexChanged(int)", lambda index: self._apply())
        ui.opacitySlider.connect("valueChanged(double)", lambda value: self._fade())
        ui.blinkButton.connect("toggled(bool)", self._toggleBlinking)
        for slider in (ui.checkerSlider, ui.differenceSlider):
            slider.connect("valueChanged(double)", lambda value: self._apply())
        ui.windowRange.connect("valuesChanged(double,double)", self.logic.composition.setWindowRange)
        ui.windowButton.connect("clicked()", lambda: ui.windowRange.setValues(0.0, 1.0))
        for box in (ui.linkBox, ui.crosshairBox):
            box.connect("toggled(bool)", lambda checked: self._apply())
        ui.fitButton.connect("clicked()", self.logic.fit)
        session.caseChanged.connect(self._update)
        self._update()

    def read(self, parameter: Parameter) -> None:
        """Sets the controls from the parameters of a scene."""
        ui = self.ui
        with quietly(*self._layouts.values(), ui.planeBox, ui.modeBox, ui.opacitySlider, ui.linkBox, ui.crosshairBox):
            self._layouts.get(parameter.layout, ui.rowsButton).setChecked(True)
            ui.planeBox.setCurrentIndex(max(0, ui.planeBox.findData(parameter.plane)))
            ui.modeBox.setCurrentIndex(max(0, ui.modeBox.findData(parameter.mode)))
            ui.opacitySlider.setValue(parameter.opacity)
            ui.linkBox.setChecked(parameter.linked)
            ui.crosshairBox.setChecked(parameter.crosshair)
        self._send()

    def write(self, parameter: Parameter) -> None:
        """Stores the choices of the user in the parameters of a scene."""
        ui = self.ui
        parameter.layout = self.layout
        parameter.plane = ui.planeBox.currentData
        parameter.mode = ui.modeBox.currentData
        parameter.opacity = ui.opacitySlider.value
        parameter.linked = ui.linkBox.checked
        parameter.crosshair = ui.crosshairBox.checked

    @property
    def layout(self) -> str:
        return next(name for name, button in self._layouts.items() if button.checked)

    def showLayout(self) -> None:
        """Shows the chosen layout; a pair of 2D images has one of its own."""
        pair = self.session.pair
        name = "flat" if pair is not None and pair.flat else self.layout
        if self.logic.layout.current != name:
            self.logic.layout.set(name)
        self._send()

    def stop(self) -> None:
        """Stops blinking when the user leaves the module."""
        self.ui.blinkButton.setChecked(False)

    def _layoutSetter(self, name: str) -> Any:
        def set_() -> None:
            self.showLayout()
            self._apply()

        return set_

    def _apply(self) -> None:
        self._send()
        self.changed()

    def _send(self) -> None:
        """Sends all settings to the displays; unchanged ones cost nothing there."""
        ui, composition = self.ui, self.logic.composition
        mode = ui.modeBox.currentData
        if composition.mode != mode:
            composition.setMode(mode)
        if mode == "checkerboard":
            composition.setCheckerSize(ui.checkerSlider.value)
        if mode == "difference":
            composition.setDifferenceRange(ui.differenceSlider.value)
        if not ui.blinkButton.checked:
            composition.setOpacity(ui.opacitySlider.value)
        composition.setLinked(ui.linkBox.checked)
        composition.setCrosshair(ui.crosshairBox.checked)
        self.logic.layout.setPlane(ui.planeBox.currentData)
        self._updateControls()

    def _fade(self) -> None:
        """Sets the opacity; a move of the slider also ends the blinking."""
        self.ui.blinkButton.setChecked(False)
        self._apply()

    def _toggleBlinking(self, on: bool) -> None:
        if on:
            self._timer.start()
        else:
            self._timer.stop()
            self.logic.composition.stopBlinking()

    def _blink(self) -> None:
        if self.session.pair is not None:
            self.logic.composition.blink()

    def _place(self, mode: str) -> None:
        if self.session.pair is not None:
            self.logic.placement.setMode(mode)
            self._updatePlacement()

    def _update(self) -> None:
        """Another pair is on screen, or none."""
        if self.session.pair is not None:
            self.showLayout()
        else:
            self.ui.blinkButton.setChecked(False)
        self._updateControls()
        self._updatePlacement()

    def _updateControls(self) -> None:
        ui, pair = self.ui, self.session.pair
        flat, mode = pair is not None and pair.flat, ui.modeBox.currentData
        overlaid = flat or self.layout != "rows"
        for button in self._layouts.values():
            button.setEnabled(not flat)
        ui.planeBox.setVisible(self.layout == "single" and not flat)
        ui.overlayBox.setVisible(overlaid)
        shown = {"fade": (ui.opacitySlider, ui.blinkButton), "checkerboard": (ui.checkerSlider,)}
        shown["difference"] = (ui.differenceSlider,)
        labels = {"fade": ui.fadeRowLabel_, "checkerboard": ui.checkerSliderLabel_}
        labels["difference"] = ui.differenceSliderLabel_
        for kind, widgets in shown.items():
            for widget in (*widgets, labels[kind]):
                widget.setVisible(kind == mode)
        names = self.logic.names() if pair is not None else ("", "")
        first, second = names if all(names) else (_("first image"), _("second image"))
        ui.modeBox.setItemText(2, _("Difference ({first} minus {second})").format(first=first, second=second))
        ui.opacitySlider.setToolTip(_("0: only {first}, 1: only {second}").format(first=first, second=second))
        for widget in (ui.windowRange, ui.windowButton, ui.fitButton, ui.blinkButton):
            widget.setEnabled(pair is not None)

    def _updatePlacement(self) -> None:
        ui, placement = self.ui, self.logic.placement
        hidden = self.session.hidden
        ui.placementBox.setTitle(_("Second image") if hidden else _("Training image"))
        ui.placementBox.setEnabled(self.session.pair is not None)
        ui.alignedButton.setEnabled(placement.canAlign)
        with quietly(ui.comparedButton, ui.alignedButton):
            (ui.alignedButton if placement.mode == "aligned" else ui.comparedButton).setChecked(True)
        if self.session.pair is None:
            text = ""
        elif not placement.canAlign:
            text = _("No alignment was computed for this pair.")
        else:
            text = "" if hidden else placement.words
        ui.alignmentLabel.setText(text)
