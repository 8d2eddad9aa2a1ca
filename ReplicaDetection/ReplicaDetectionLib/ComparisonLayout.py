"""ComparisonLayout: the module's own layouts, and the views that they hold.

Views are named by row ("First", "Second"), never by what they show: a blinded scene must not tell which is which.
"""

from __future__ import annotations

from typing import Any

FIRST, SECOND = "First", "Second"
ROWS = (FIRST, SECOND)
PLANES = ("Axial", "Sagittal", "Coronal")
#: Layout name -> id on Slicer's layout node. Slicer's own ids end below 100, other extensions count up from there.
LAYOUTS = {"rows": 7410, "overlay": 7411, "single": 7412, "flat": 7413}


class ComparisonLayout:
    """Registers the layouts on the layout node and finds their views.

    - `rows`: two rows (first, second image) of axial, sagittal, coronal and 3D;
    - `overlay`: one image over the other in three planes, and 3D;
    - `single`: one large plane of the overlay, and 3D;
    - `flat`: two 2D images side by side, and the overlay.
    """

    def __init__(self, scene: Any, appLogic: Any):
        raise NotImplementedError

    def register(self) -> None:
        """Tells the layout node all layouts; needed again after the scene was closed, for a scene keeps ids only."""

    def set(self, name: str) -> None:
        """Shows a layout by name. Raises ValueError for a name that is none of LAYOUTS."""

    @property
    def current(self) -> str:
        """Name of the layout that is shown; "" if it is none of this module's."""

    def setPlane(self, plane: str) -> None:
        """Which of PLANES the layout `single` shows."""

    def setLabels(self, first: str, second: str) -> None:
        """What the views of each row are called on the screen."""

    def sliceNode(self, row: str, plane: str) -> Any | None:
        """The slice view's node, None where the present layout never made it. Row "Overlay" is the overlay's."""

    def viewNode(self, row: str) -> Any | None:
        """The 3D view's node of a row."""
