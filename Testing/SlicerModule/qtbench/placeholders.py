"""The CTK and qMRML widgets that the module's .ui files name: enough of each to be set, read and looked at."""

from __future__ import annotations

import itertools
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets
from PySide6.QtCore import Property, Qt, Signal, Slot

from qtbench.habits import with_habits

_NUMBERS = itertools.count()


def _stored(kind: type, default: Any) -> Property:
    """A property that is only kept."""
    key = f"_stored_{next(_NUMBERS)}"
    return Property(kind, lambda self: getattr(self, key, default), lambda self, value: setattr(self, key, value))


@with_habits
class ctkCollapsibleButton(QtWidgets.QWidget):  # noqa: N801
    """A header with a triangle, and below it what the .ui file puts inside."""

    contentsCollapsed = Signal(bool)
    _HEADER = 24

    def __init__(self, parent: Any = None):
        super().__init__(parent)
        self._text, self._collapsed = "", False
        self.setContentsMargins(2, self._HEADER + 2, 2, 2)

    def _set_text(self, text: str) -> None:
        self._text = text
        self.update()

    def _set_collapsed(self, collapsed: bool) -> None:
        if collapsed == self._collapsed:
            return
        self._collapsed = collapsed
        for child in self.findChildren(QtWidgets.QWidget, options=Qt.FindDirectChildrenOnly):
            child.setVisible(not collapsed)
        self.setMaximumHeight(self._HEADER + 2 if collapsed else 16777215)
        self.contentsCollapsed.emit(collapsed)
        self.update()

    text = Property(str, lambda self: self._text, _set_text)
    collapsed = Property(bool, lambda self: self._collapsed, _set_collapsed)

    def childEvent(self, event: QtCore.QChildEvent) -> None:
        # What the .ui file puts into a collapsed section is hidden too.
        if (
            event.type() == QtCore.QEvent.ChildAdded
            and self.__dict__.get("_collapsed")
            and event.child().isWidgetType()
        ):
            event.child().setVisible(False)
        super().childEvent(event)

    def mousePressEvent(self, event: QtGui.QMouseEvent) -> None:
        if event.position().y() < self._HEADER:
            self._set_collapsed(not self._collapsed)

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        painter = QtGui.QPainter(self)
        painter.fillRect(0, 0, self.width, self._HEADER, QtGui.QColor(222, 226, 232))
        painter.setPen(QtGui.QColor(20, 20, 20))
        painter.drawText(8, 17, ("▸ " if self._collapsed else "▾ ") + self._text)
        painter.end()


@with_habits
class ctkSliderWidget(QtWidgets.QWidget):  # noqa: N801
    """A slider beside a spin box."""

    valueChanged = Signal(float)

    def __init__(self, parent: Any = None):
        super().__init__(parent)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        self._slider, self._box = QtWidgets.QSlider(Qt.Horizontal), QtWidgets.QDoubleSpinBox()
        row.addWidget(self._slider, 1)
        row.addWidget(self._box)
        self._slider.setRange(0, 1000)
        self._box.valueChanged.connect(self._from_box)
        self._slider.valueChanged.connect(self._from_slider)

    def _from_box(self, value: float) -> None:
        span = self._box.maximum - self._box.minimum
        self._slider.blockSignals(True)
        self._slider.setValue(round(1000 * (value - self._box.minimum) / span) if span > 0 else 0)
        self._slider.blockSignals(False)
        self.valueChanged.emit(value)

    def _from_slider(self, step: int) -> None:
        self._box.setValue(self._box.minimum + (self._box.maximum - self._box.minimum) * step / 1000)

    @Slot(float)
    def setValue(self, value: float) -> None:
        self._box.setValue(value)

    value = Property(float, lambda self: self._box.value, lambda self, v: self._box.setValue(v))
    minimum = Property(float, lambda self: self._box.minimum, lambda self, v: self._box.setMinimum(v))
    maximum = Property(float, lambda self: self._box.maximum, lambda self, v: self._box.setMaximum(v))
    singleStep = Property(float, lambda self: self._box.singleStep, lambda self, v: self._box.setSingleStep(v))
    decimals = Property(int, lambda self: self._box.decimals, lambda self, v: self._box.setDecimals(v))
    suffix = Property(str, lambda self: self._box.suffix, lambda self, v: self._box.setSuffix(v))


@with_habits
class ctkRangeWidget(QtWidgets.QWidget):  # noqa: N801
    """Two spin boxes, the lower never above the upper."""

    valuesChanged = Signal(float, float)

    def __init__(self, parent: Any = None):
        super().__init__(parent)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        self._low, self._high = QtWidgets.QDoubleSpinBox(), QtWidgets.QDoubleSpinBox()
        for box in (self._low, self._high):
            row.addWidget(box, 1)
            box.valueChanged.connect(lambda _: self.valuesChanged.emit(self._low.value, self._high.value))
        self._low.valueChanged.connect(lambda value: self._high.setValue(max(value, self._high.value)))
        self._high.valueChanged.connect(lambda value: self._low.setValue(min(value, self._low.value)))

    def _each(self, setter: str, value: Any) -> None:
        for box in (self._low, self._high):
            getattr(box, setter)(value)

    @Slot(float, float)
    def setValues(self, low: float, high: float) -> None:
        self._high.setValue(max(low, high))
        self._low.setValue(low)

    minimumValue = Property(float, lambda self: self._low.value, lambda self, v: self._low.setValue(v))
    maximumValue = Property(float, lambda self: self._high.value, lambda self, v: self._high.setValue(v))
    minimum = Property(float, lambda self: self._low.minimum, lambda self, v: self._each("setMinimum", v))
    maximum = Property(float, lambda self: self._low.maximum, lambda self, v: self._each("setMaximum", v))
    singleStep = Property(float, lambda self: self._low.singleStep, lambda self, v: self._each("setSingleStep", v))
    decimals = Property(int, lambda self: self._low.decimals, lambda self, v: self._each("setDecimals", v))
    suffix = Property(str, lambda self: self._low.suffix, lambda self, v: self._each("setSuffix", v))


@with_habits
class ctkPathLineEdit(QtWidgets.QWidget):  # noqa: N801
    """A path to type; the real one also browses and keeps a history."""

    currentPathChanged = Signal(str)
    Dirs = 1

    def __init__(self, parent: Any = None):
        super().__init__(parent)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        self._line = QtWidgets.QLineEdit()
        row.addWidget(self._line, 1)
        row.addWidget(QtWidgets.QToolButton(text="..."))
        self._line.textChanged.connect(self.currentPathChanged)

    currentPath = Property(str, lambda self: self._line.text, lambda self, v: self._line.setText(v))
    settingKey = _stored(str, "")
    filters = _stored(int, 0)

    def addCurrentPathToHistory(self) -> None:
        self._line.setModified(False)


@with_habits
class qMRMLWidget(QtWidgets.QWidget):  # noqa: N801
    """The root of a module's panel. It hands the scene on only where a .ui file connects it; none of ours does."""

    def __init__(self, parent: Any = None):
        super().__init__(parent)
        self._scene = None

    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene

    def mrmlScene(self) -> Any:
        return self._scene


@with_habits
class qMRMLNodeComboBox(QtWidgets.QWidget):  # noqa: N801
    """Chooses a node of the scene; follows nodes that come and go."""

    currentNodeIDChanged = Signal(str)

    def __init__(self, parent: Any = None):
        super().__init__(parent)
        row = QtWidgets.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        self._box, self._types, self._none, self._scene, self._tags = QtWidgets.QComboBox(), [], False, None, []
        row.addWidget(self._box)
        self._box.currentIndexChanged.connect(lambda _: self.currentNodeIDChanged.emit(self.currentNodeID))

    def setMRMLScene(self, scene: Any) -> None:
        import slicer

        for tag in self._tags:
            self._scene.RemoveObserver(tag)
        self._scene, self._tags = scene, []
        events = ("NodeAddedEvent", "NodeRemovedEvent", "EndCloseEvent")
        if scene is not None:
            kind = slicer.vtkMRMLScene
            self._tags = [scene.AddObserver(getattr(kind, e), lambda *_: self._refresh()) for e in events]
        self._refresh()

    def _refresh(self) -> None:
        kept = self.currentNodeID
        self._box.blockSignals(True)
        self._box.clear()
        if self._none:
            self._box.addItem("None", "")
        for kind in self._types if self._scene else ():
            for i in range(self._scene.GetNumberOfNodesByClass(kind)):
                node = self._scene.GetNthNodeByClass(i, kind)
                if not node.GetHideFromEditors() and (self.showChildNodeTypes or node.GetClassName() == kind):
                    self._box.addItem(node.GetName(), node.GetID())
        self._box.blockSignals(False)
        self.setCurrentNodeID(kept)
        if self.currentNodeID != kept:
            self.currentNodeIDChanged.emit(self.currentNodeID)

    def _set_types(self, types: list[str]) -> None:
        self._types = list(types)
        self._refresh()

    def _set_none(self, enabled: bool) -> None:
        self._none = enabled
        self._refresh()

    nodeTypes = Property("QStringList", lambda self: self._types, _set_types)
    noneEnabled = Property(bool, lambda self: self._none, _set_none)
    showChildNodeTypes = _stored(bool, True)
    addEnabled, removeEnabled, renameEnabled, editEnabled = (_stored(bool, True) for _ in range(4))
    currentNodeID = Property(str, lambda self: self._box.currentData or "", lambda self, v: self.setCurrentNodeID(v))

    def setCurrentNodeID(self, node_id: str) -> None:
        self._box.setCurrentIndex(max(self._box.findData(node_id or ""), 0 if self._none else -1))

    def setCurrentNode(self, node: Any) -> None:
        self.setCurrentNodeID(node.GetID() if node else "")

    def currentNode(self) -> Any:
        return self._scene.GetNodeByID(self.currentNodeID) if self._scene and self.currentNodeID else None


@with_habits
class qMRMLPlotWidget(QtWidgets.QLabel):  # noqa: N801
    """Draws the chart of its plot view node with the bench's own means, once it is shown."""

    def __init__(self, parent: Any = None):
        super().__init__(parent)
        self._node = None

    def setMRMLScene(self, scene: Any) -> None:
        pass

    def setMRMLPlotViewNode(self, node: Any) -> None:
        self._node = node

    def mrmlPlotViewNode(self) -> Any:
        return self._node

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        from bench.views import draw_chart

        chart = self._node.GetPlotChartNode() if self._node is not None and self._node.GetScene() else None
        if chart is not None:
            pixels = draw_chart(chart, (self.size.width(), self.size.height()))
            image = QtGui.QImage(
                pixels.data, pixels.shape[1], pixels.shape[0], pixels.strides[0], QtGui.QImage.Format_RGB888
            )
            painter = QtGui.QPainter(self)
            painter.drawImage(0, 0, image)
            painter.end()


CTK = (ctkCollapsibleButton, ctkSliderWidget, ctkRangeWidget, ctkPathLineEdit)
QMRML = (qMRMLWidget, qMRMLNodeComboBox, qMRMLPlotWidget)
CUSTOM_WIDGETS = CTK + QMRML
