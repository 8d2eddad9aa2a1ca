"""LayoutManager: makes the views that the layout node asks for, and one picture of them all."""

from __future__ import annotations

import types
import xml.etree.ElementTree as ElementTree

import numpy as np
import vtk

from bench.views import PlotView, SliceView, ThreeDView

VIEWS = {"vtkMRMLSliceNode": SliceView, "vtkMRMLViewNode": ThreeDView, "vtkMRMLPlotViewNode": PlotView}
# Slicer shows this one before anything else is chosen.
START = (
    '<layout type="horizontal">'
    '<item><view class="vtkMRMLSliceNode" singletontag="Red">'
    '<property name="orientation">Axial</property></view></item>'
    "</layout>"
)


class LayoutManager:
    """Follows `vtkMRMLLayoutNode` as Slicer's own layout manager does, and answers in its words (camelCase)."""

    def __init__(self, app, size: tuple[int, int] = (1280, 720)):
        self.app, self.size = app, size
        self.slices: dict[str, SliceView] = {}
        self.threeDs: dict[str, ThreeDView] = {}
        self.plots: dict[str, PlotView] = {}
        self._shown, self._tree = None, None
        self.node = app.scene.GetFirstNodeByClass("vtkMRMLLayoutNode")
        self.node.AddLayoutDescription(self.node.SlicerLayoutConventionalView, START)
        self._tag = self.node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda *_: self._follow())
        self.setLayout(self.node.SlicerLayoutConventionalView)

    # ------------------------------------------------------------------------------------ as slicer.app.layoutManager()

    @property
    def layout(self) -> int:
        return self.node.GetViewArrangement()

    def setLayout(self, number: int) -> None:
        self.node.SetViewArrangement(number)
        self._follow()

    def layoutLogic(self):
        return types.SimpleNamespace(GetLayoutNode=lambda: self.node)

    def mrmlScene(self):
        return self.app.scene

    def sliceViewNames(self) -> list[str]:
        return list(self.slices)

    def sliceWidget(self, tag: str):
        view = self.slices.get(tag)
        return None if view is None else _SliceWidget(view)

    @property
    def threeDViewCount(self) -> int:
        return len(self.threeDs)

    def threeDWidget(self, which):
        view = self.threeDs.get(which) if isinstance(which, str) else list(self.threeDs.values())[which]
        return None if view is None else _ThreeDWidget(view)

    # ------------------------------------------------------------------------------------------------------- pictures

    def picture(self) -> np.ndarray:
        """(H, W, 3) uint8 of the whole layout, with a thin line between views."""
        return self._draw(self._tree)

    def view(self, tag: str):
        """The view with this tag, of any kind."""
        return self.slices.get(tag) or self.threeDs.get(tag) or self.plots.get(tag)

    def close(self) -> None:
        self.node.RemoveObserver(self._tag)
        for view in [*self.slices.values(), *self.threeDs.values(), *self.plots.values()]:
            view.close()

    def _follow(self) -> None:
        number = self.node.GetViewArrangement()
        description = self.node.GetLayoutDescription(number)
        # A closed scene resets the node; the application then describes its layouts again.
        if not description or (number, description) == self._shown:
            return
        self._shown = number, description
        for views in (self.slices, self.threeDs):
            for view in views.values():
                view.node.SetMappedInLayout(0)
        self._tree = self._build(ElementTree.fromstring(description), self.size)

    def _build(self, element, size: tuple[int, int]):
        if element.tag != "layout":
            return self._make(element, size)
        across = element.get("type", "horizontal") == "horizontal"
        items = element.findall("item")
        weights = np.array([float(i.get("splitSize", 1)) for i in items])
        children = []
        for item, share in zip(items, weights / weights.sum(), strict=True):
            part = (int(size[0] * share), size[1]) if across else (size[0], int(size[1] * share))
            children.append(self._build(item[0], part))
        return across, children

    def _make(self, element, size: tuple[int, int]):
        tag, kind = element.get("singletontag"), element.get("class")
        views = {SliceView: self.slices, ThreeDView: self.threeDs, PlotView: self.plots}[VIEWS[kind]]
        if tag not in views:
            views[tag] = VIEWS[kind](self.app, tag, size)
        view = views[tag]
        view.resize(size)
        node = view.node
        if kind != "vtkMRMLPlotViewNode":
            node.SetMappedInLayout(1)
        for each in element.findall("property"):
            self._apply(node, each.get("name"), each.text)
        return view

    def _apply(self, node, name: str, value: str) -> None:
        if name == "orientation":
            node.SetOrientation(value)
        elif name == "viewlabel":
            node.SetLayoutLabel(value)
        elif name == "viewcolor":
            node.SetLayoutColor(*(int(value[i : i + 2], 16) / 255 for i in (1, 3, 5)))
        elif name == "viewgroup":
            node.SetViewGroup(int(value))

    def _draw(self, tree) -> np.ndarray:
        if not isinstance(tree, tuple):
            pixels = tree.picture().copy()
            pixels[:, -1], pixels[-1] = 90, 90
            if isinstance(tree, SliceView):
                pixels[:4] = [round(255 * c) for c in tree.node.GetLayoutColor()]
            return pixels
        across, children = tree
        return np.concatenate([self._draw(c) for c in children], axis=1 if across else 0)


class _SliceWidget:
    def __init__(self, view: SliceView):
        self._view = view

    def sliceLogic(self):
        return self._view.logic

    def mrmlSliceNode(self):
        return self._view.node

    def mrmlSliceCompositeNode(self):
        return self._view.composite

    def sliceView(self):
        return self._view


class _ThreeDWidget:
    def __init__(self, view: ThreeDView):
        self._view = view

    def mrmlViewNode(self):
        return self._view.node

    def threeDView(self):
        return self._view
