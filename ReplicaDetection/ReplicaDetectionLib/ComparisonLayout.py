"""ComparisonLayout: the module's own layouts, and the views that they hold.

Views are named by row ("First", "Second"), never by their content: a blinded scene must not show which is which.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ReplicaDetectionLib.Nodes import ROW_COLORS

FIRST, SECOND, OVERLAY = "First", "Second", "Overlay"
ROWS = (FIRST, SECOND)
PLANES = ("Axial", "Sagittal", "Coronal")
LARGE = "Large"
#: Layout name -> id on Slicer's layout node. Slicer's own ids end below 100, other extensions count up from there.
LAYOUTS = {"rows": 7410, "overlay": 7411, "single": 7412, "flat": 7413}
#: Slices of one group scroll and zoom together; Slicer's own views are in group 0.
VIEW_GROUP = 741
_OVERLAY_COLOR = (0.75, 0.75, 0.75)
_BACKGROUND = (0.10, 0.10, 0.14), (0.22, 0.22, 0.30)


class ComparisonLayout:
    """Registers the layouts on the layout node and finds their views.

    - `rows`: two rows (first, second image) of axial, sagittal, coronal and 3D;
    - `overlay`: one image over the other in three planes, and 3D;
    - `single`: one large plane of the overlay, and 3D;
    - `flat`: two 2D images side by side, and the overlay.

    Attributes:
        onLeaving: called before `set` shows another layout.
        onShown: called whenever `set` has shown a layout: its views may be new.
    """

    def __init__(self, scene: Any, appLogic: Any):
        self.scene, self.appLogic = scene, appLogic
        self.onLeaving: list[Callable[[], None]] = []
        self.onShown: list[Callable[[], None]] = []
        self._labels = {FIRST: "S", SECOND: "T", OVERLAY: "O"}
        self.register()

    def register(self) -> None:
        """Registers all layouts with the layout node; again after a scene was closed, which keeps only ids."""
        node = self._node()
        if node is None:  # no views: a test of the application without its main window
            return
        for name, number in LAYOUTS.items():
            text = _DESCRIPTIONS[name]()
            if node.IsLayoutDescription(number):
                node.SetLayoutDescription(number, text)
            else:
                node.AddLayoutDescription(number, text)

    def set(self, name: str) -> None:
        """Shows a layout by name. Raises ValueError for a name that is none of LAYOUTS."""
        if name not in LAYOUTS:
            raise ValueError(f"unknown layout '{name}'; known: {', '.join(LAYOUTS)}")
        for call in self.onLeaving:
            call()
        self.register()
        self._node().SetViewArrangement(LAYOUTS[name])
        _letViewsTakeTheirSize()
        self._dressViews()
        for call in self.onShown:
            call()

    @property
    def current(self) -> str:
        """Name of the layout that is shown; "" for a layout of another module."""
        node = self._node()
        shown = None if node is None else node.GetViewArrangement()
        return next((name for name, number in LAYOUTS.items() if number == shown), "")

    def setPlane(self, plane: str) -> None:
        """Sets the plane (one of PLANES) that the layout `single` shows. Raises ValueError for another."""
        if plane not in PLANES:
            raise ValueError(f"unknown plane '{plane}'; known: {', '.join(PLANES)}")
        node = self.sliceNode(OVERLAY, LARGE)
        if node is not None and node.GetOrientation() != plane:
            node.SetOrientation(plane)

    def setLabels(self, first: str, second: str) -> None:
        """Sets the labels of the views of each row; one or two letters."""
        self._labels.update({FIRST: first, SECOND: second})
        self._dressViews()

    def sliceNode(self, row: str, plane: str) -> Any | None:
        """The slice view's node (rows FIRST, SECOND and OVERLAY), None before a layout made it."""
        return self.scene.GetSingletonNode(f"Replica{row}{plane}", "vtkMRMLSliceNode")

    def sliceNodes(self, row: str) -> list[Any]:
        """All slice views of a row that exist."""
        planes = (*PLANES, LARGE) if row == OVERLAY else PLANES
        return [node for node in (self.sliceNode(row, plane) for plane in planes) if node is not None]

    def sliceLogic(self, node: Any) -> Any | None:
        return self.appLogic.GetSliceLogicByLayoutName(node.GetLayoutName())

    def viewNode(self, row: str) -> Any | None:
        """The 3D view's node of a row."""
        return self.scene.GetSingletonNode(f"Replica{row}3D", "vtkMRMLViewNode")

    def cameraNode(self, row: str) -> Any | None:
        """The camera of a row's 3D view; None before the view was shown."""
        view = self.viewNode(row)
        if view is None:
            return None
        cameras = self.scene.GetNodesByClass("vtkMRMLCameraNode")
        cameras.UnRegister(None)
        every = (cameras.GetItemAsObject(i) for i in range(cameras.GetNumberOfItems()))
        return next((c for c in every if c.GetLayoutName() == view.GetLayoutName()), None)

    def _node(self) -> Any:
        return self.scene.GetFirstNodeByClass("vtkMRMLLayoutNode")

    def _dressViews(self) -> None:
        for row in (*ROWS, OVERLAY):
            for node in self.sliceNodes(row):
                node.SetLayoutLabel(self._labels[row])
                node.SetLayoutColor(*ROW_COLORS.get(row, _OVERLAY_COLOR))
            view = self.viewNode(row)
            if view is not None:
                view.SetLayoutLabel(self._labels[row])
                view.SetBoxVisible(False)
                view.SetAxisLabelsVisible(False)
                view.SetBackgroundColor(*_BACKGROUND[0])
                view.SetBackgroundColor2(*_BACKGROUND[1])
                view.SetOrientationMarkerType(view.OrientationMarkerTypeAxes)
                view.SetOrientationMarkerSize(view.OrientationMarkerSizeSmall)
                view.SetLinkedControl(True)


def _letViewsTakeTheirSize() -> None:
    """Lets the application handle events: new views get their size then, and a fit before that would be wrong."""
    import slicer

    application = getattr(slicer, "app", None)
    if application is not None:
        application.processEvents()


def _stack(direction: str, *items: str, weights: tuple[int, ...] = ()) -> str:
    shares = [f' splitSize="{w}"' for w in weights] or [""] * len(items)
    inner = "".join(f"<item{share}>{item}</item>" for share, item in zip(shares, items, strict=True))
    return f'<layout type="{direction}" split="true">{inner}</layout>'


def _slice(row: str, name: str, orientation: str) -> str:
    color = "#" + "".join(f"{round(255 * c):02X}" for c in ROW_COLORS.get(row, _OVERLAY_COLOR))
    properties = {"orientation": orientation, "viewlabel": row[0], "viewcolor": color, "viewgroup": str(VIEW_GROUP)}
    return _view("vtkMRMLSliceNode", f"Replica{row}{name}", properties)


def _threeD(row: str) -> str:
    return _view("vtkMRMLViewNode", f"Replica{row}3D", {"viewlabel": row[0], "viewgroup": str(VIEW_GROUP)})


def _view(kind: str, tag: str, properties: dict[str, str]) -> str:
    inner = "".join(f'<property name="{n}" action="default">{v}</property>' for n, v in properties.items())
    return f'<view class="{kind}" singletontag="{tag}">{inner}</view>'


def _rows() -> str:
    rows = [_stack("horizontal", *(_slice(row, p, p) for p in PLANES), _threeD(row)) for row in ROWS]
    return _stack("vertical", *rows)


def _overlay() -> str:
    axial, sagittal, coronal = (_slice(OVERLAY, p, p) for p in PLANES)
    return _stack("vertical", _stack("horizontal", axial, _threeD(OVERLAY)), _stack("horizontal", sagittal, coronal))


def _single() -> str:
    return _stack("horizontal", _slice(OVERLAY, LARGE, "Axial"), _threeD(OVERLAY), weights=(650, 350))


def _flat() -> str:
    return _stack("horizontal", *(_slice(row, "Axial", "Axial") for row in (*ROWS, OVERLAY)))


_DESCRIPTIONS = {"rows": _rows, "overlay": _overlay, "single": _single, "flat": _flat}
