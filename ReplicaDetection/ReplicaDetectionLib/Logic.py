"""ReplicaDetectionLogic: a pair in, MRML nodes out. It owns the displays; the widget talks to them through it."""

from __future__ import annotations

from typing import Any

from ReplicaDetectionLib.Blinding import Blinding
from ReplicaDetectionLib.CasePair import CasePair


class ReplicaDetectionLogic:
    """Shows one pair at a time.

    Args:
        scene: the vtkMRMLScene.
        appLogic: `slicer.app.applicationLogic()`.

    Attributes:
        layout: ComparisonLayout
        composition: SliceComposition
        surfaces: SurfaceDisplay
        placement: MatchTransform
        plot: RatioPlot
        pair: the CasePair on screen, or None
        blinding: the Blinding in use, or None
    """

    def __init__(self, scene: Any, appLogic: Any):
        raise NotImplementedError

    def showPair(self, pair: CasePair, blinding: Blinding | None = None, *, keepPosition: bool = False) -> None:
        """Puts a pair on the screen in place of the one before.

        Args:
            blinding: neutral names, random side, nothing that tells which image is which.
            keepPosition: slices stay where they are (another match of the same case).
        """

    def reveal(self) -> None:
        """Ends the blinding of the pair on screen: true names, sides stay where they are."""

    def clear(self) -> None:
        """Takes everything of the pair out of the scene."""

    def forget(self) -> None:
        """The scene was closed by somebody else: drops all references to nodes that are gone."""

    def volumes(self) -> tuple[Any, Any] | None:
        """The nodes of the first and the second row."""

    def names(self) -> tuple[str, str]:
        """What the first and the second image are called at present."""

    def saveScene(self, path: str) -> None:
        """Writes the scene as .mrb. While blinded, the names of the cases are nowhere in it. Raises InputError."""

    def writeReport(self, folder: str, pictures: dict[str, Any], rating: Any = None) -> tuple[Any, Any]:
        """`CaseReport.write` for the pair on screen."""
