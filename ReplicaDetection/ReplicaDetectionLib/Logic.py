"""ReplicaDetectionLogic: takes a pair, makes MRML nodes. It owns the displays; the widget reaches them through it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from replica_detection.errors import InputError
from ReplicaDetectionLib.Blinding import NAMES, Blinding
from ReplicaDetectionLib.Cameras import Cameras
from ReplicaDetectionLib.CasePair import CasePair
from ReplicaDetectionLib.CaseReport import ReportContent, fileName, writePage, writeScene
from ReplicaDetectionLib.ComparisonLayout import FIRST, ROWS, SECOND, ComparisonLayout
from ReplicaDetectionLib.MatchTransform import MatchTransform
from ReplicaDetectionLib.Nodes import addVolume, removeNode
from ReplicaDetectionLib.PlacedSurfaces import Peak, PlacedSurfaces
from ReplicaDetectionLib.RatioPlot import RatioPlot
from ReplicaDetectionLib.ShownImage import ShownImage
from ReplicaDetectionLib.SliceComposition import SliceComposition
from ReplicaDetectionLib.SurfaceDisplay import SurfaceDisplay

if TYPE_CHECKING:
    from replica_detection.readers.ratings import Rating


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
        cameras: Cameras
        plot: RatioPlot
        pair: the CasePair on screen, or None
        blinding: the Blinding in use, or None
    """

    def __init__(self, scene: Any, appLogic: Any):
        self.scene = scene
        self.layout = ComparisonLayout(scene, appLogic)
        self.placement = MatchTransform(scene)
        self.composition = SliceComposition(scene, self.layout, self.placement)
        self.surfaces = SurfaceDisplay(scene, self.layout, self.placement)
        self.cameras = Cameras(self.layout)
        self.plot = RatioPlot(scene)
        self.pair: CasePair | None = None
        self.blinding: Blinding | None = None
        self._images: dict[str, ShownImage] = {}
        self.surfaces.onJump.append(self._jump)
        self._position: tuple[float, float, float] | None = None
        self.layout.onLeaving.append(self._remember)
        self.layout.onShown.append(self._settle)

    def showPair(self, pair: CasePair, blinding: Blinding | None = None, *, keepPosition: bool = False) -> None:
        """Puts a pair on the screen in place of the one before.

        Args:
            blinding: neutral names, random side, nothing that tells which image is which.
            keepPosition: slices stay where they are (another match of the same case).
        """
        old = list(self._images.values())
        self.surfaces.clear()
        if blinding is not None:
            self.plot.clear()
        swapped = blinding is not None and blinding.swapped(pair.synthetic.id, pair.training.id)
        self.pair, self.blinding = pair, blinding
        images = [("synthetic", pair.synthetic), ("training", pair.training)]
        self._images = {}
        for row, (role, image) in zip(ROWS, reversed(images) if swapped else images, strict=True):
            name = self._name(row, role)
            volume = addVolume(self.scene, name, image.array, image.affine)
            self._images[row] = ShownImage(role, name, image, volume)
        self.placement.show(pair, swapped)
        self._images[SECOND].volume.SetAndObserveTransformNodeID(self.placement.node.GetID())
        self._label()
        self.composition.show(self._images, keepPosition=keepPosition)
        for before in old:
            removeNode(self.scene, before.volume)
        placed = None
        if pair.surfaces is not None:
            placed = PlacedSurfaces(pair, swapped, self.placement.matrices)
        self.surfaces.show(placed, self._images, pair.surfaces_problem)
        if not keepPosition:
            self._position = None
            self._settle()

    def reveal(self) -> None:
        """Ends the blinding of the pair on screen: shows the true names and keeps the sides."""
        self.blinding = None
        for row, image in self._images.items():
            image.name = self._name(row, image.role)
            image.volume.SetName(image.name)
        self._label()
        self.composition.rename()
        self.surfaces.rename(self._images)

    def clear(self) -> None:
        """Takes everything of the pair out of the scene."""
        self.surfaces.clear()
        self.composition.clear()
        for image in self._images.values():
            removeNode(self.scene, image.volume)
        self.placement.clear()
        self.plot.clear()
        self.pair, self.blinding, self._images = None, None, {}

    def forget(self) -> None:
        """The scene was closed by somebody else: drops all references to nodes that are gone."""
        for display in (self.surfaces, self.composition, self.placement, self.plot):
            display.forget()
        self.layout.register()
        self.pair, self.blinding, self._images = None, None, {}

    def volumes(self) -> tuple[Any, Any] | None:
        """The nodes of the first and the second row; None while nothing is shown."""
        return (self._images[FIRST].volume, self._images[SECOND].volume) if self._images else None

    def names(self) -> tuple[str, str]:
        """Present names of the first and the second image; empty while nothing is shown."""
        return (self._images[FIRST].name, self._images[SECOND].name) if self._images else ("", "")

    def caseName(self) -> str:
        """Present name of the pair, "" while nothing is shown; the blinded code while it is blinded."""
        if self.pair is None:
            return ""
        ids = self.pair.synthetic.id, self.pair.training.id
        return f"{ids[0]} and {ids[1]}" if self.blinding is None else self.blinding.code(*ids)

    def saveScene(self, path: str | Path) -> Path:
        """Writes the scene as .mrb. While blinded, the names of the cases are nowhere in it, or nothing is written.

        Raises:
            InputError: the file cannot be written, or something else in the scene tells a blinded name.
        """
        hidden = () if self.blinding is None or self.pair is None else (self.pair.synthetic.id, self.pair.training.id)
        return writeScene(self.scene, Path(path), hidden)

    def writeReport(
        self, folder: str | Path, pictures: dict[str, np.ndarray], rating: Rating | None = None
    ) -> tuple[Path, Path]:
        """Scene and page of the pair on screen: `<case>.mrb` and `<case>.html` in a folder (made if missing).

        Args:
            pictures: title -> (H, W, 3) uint8, as `CaseReport.grabWindow` gives them.

        Raises:
            InputError: nothing is shown, or a file cannot be written.
        """
        if self.pair is None:
            raise InputError(folder, "would hold an empty report", "Open a case first")
        stem = Path(folder) / fileName(self.caseName())
        placement = self.placement.words if self.placement.mode == "aligned" else ""
        content = ReportContent(
            self.caseName(),
            self.names(),
            self.pair.comparison if self.blinding is None else None,
            placement,
            self.surfaces.statistics(),
            self.surfaces.problem,
            rating,
            pictures,
        )
        # Not with_suffix: a case's name may hold dots.
        scene = self.saveScene(stem.with_name(f"{stem.name}.mrb"))
        return scene, writePage(stem.with_name(f"{stem.name}.html"), content)

    def fit(self) -> None:
        """Fits slices and cameras to the whole pair."""
        self._position = None
        self._settle()

    def _remember(self) -> None:
        if self.pair is not None and self.layout.current:
            self._position = self.composition.position()

    def _settle(self) -> None:
        """Restores the position of the slices, at first the middle of the compared structure, and fits the cameras."""
        if self.pair is None:
            return
        self.composition.fit()
        bounds = self.surfaces.bounds()
        self.composition.jumpTo(self._position or self.surfaces.middle() or self._images[FIRST].centre)
        if bounds is not None:
            self.cameras.fit(bounds)

    def _jump(self, peak: Peak) -> None:
        """Moves slices to just below the surface, because the outermost point of a structure shows nothing."""
        image = self._images[FIRST].image
        depth = float(np.linalg.norm(image.affine[:3, :3], axis=0).min())
        below = np.subtract(peak.ras, depth * np.array(peak.normal))
        voxel = np.linalg.solve(image.affine, [*below, 1.0])[:3]
        right, anterior, superior = (image.affine @ [*np.clip(voxel, 0, np.array(image.array.shape) - 1), 1.0])[:3]
        at = float(right), float(anterior), float(superior)
        self.surfaces.mark(peak.distance, at)
        self.composition.jumpTo(at)
        self.cameras.face(peak.ras, peak.normal)

    def _name(self, row: str, role: str) -> str:
        if self.blinding is not None:
            return NAMES[ROWS.index(row)]
        assert self.pair is not None
        return f"{role.capitalize()} {self.pair.synthetic.id if role == 'synthetic' else self.pair.training.id}"

    def _label(self) -> None:
        self.layout.setLabels(*(i.name[-1] if self.blinding else i.role[0].upper() for i in self._images.values()))
