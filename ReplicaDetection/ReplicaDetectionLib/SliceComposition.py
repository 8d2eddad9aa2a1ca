"""SliceComposition: what the slice views show, and how two images are laid over each other."""

from __future__ import annotations

from typing import Any

MODES = ("fade", "checkerboard", "difference")


class SliceComposition:
    """Both images in the slice views of a ComparisonLayout.

    Window and level are shared in the comparison's own scale (0 to 1 between each image's `limits`): a change in either
    image moves the other's, so that equal tissue keeps equal grey even where the files are scaled differently.
    """

    def __init__(self, scene: Any, appLogic: Any, layout: Any):
        raise NotImplementedError

    def setWindowRange(self, low: float, high: float) -> None:
        """Grey values from black to white in the comparison's scale; (0, 1) is what the measures saw."""

    def windowRange(self) -> tuple[float, float]: ...

    def setMode(self, mode: str) -> None:
        """What the overlay shows, one of MODES."""

    def setOpacity(self, opacity: float) -> None:
        """Of the second image over the first, 0 to 1 (mode fade)."""

    def opacity(self) -> float: ...

    def blink(self) -> None:
        """Swaps first and second image in the overlay; call it by a timer, about twice a second."""

    def stopBlinking(self) -> None:
        """Back to the opacity that was set."""

    def setCheckerSize(self, mm: float) -> None: ...

    def setDifferenceRange(self, largest: float) -> None:
        """The difference (comparison's scale, up to 1) at which the diverging colours end."""

    def setCrosshair(self, visible: bool) -> None: ...

    def setLinked(self, linked: bool) -> None:
        """Whether scrolling and zooming one view moves the others; the volumes of a row always stay its own."""

    def jumpTo(self, ras: tuple[float, float, float]) -> None:
        """All slice views, and the crosshair, to a point (mm RAS+ of the synthetic image)."""

    def fit(self) -> None:
        """All views to the whole image, both rows alike."""
