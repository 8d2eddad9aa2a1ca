"""SliceComposition: both images in the slice views, side by side and as an overlay."""

from __future__ import annotations

from typing import Any

import numpy as np

from ReplicaDetectionLib.ComparisonLayout import FIRST, OVERLAY, PLANES, ROWS, SECOND, ComparisonLayout
from ReplicaDetectionLib.DerivedVolumes import checkerboard, difference, onGridOf
from ReplicaDetectionLib.MatchTransform import MatchTransform
from ReplicaDetectionLib.Nodes import DIVERGING, addVolume, colorTable, removeNode, setVoxels
from ReplicaDetectionLib.ShownImage import ShownImage

MODES = ("fade", "checkerboard", "difference")


class SliceComposition:
    """Both images in the slice views of a ComparisonLayout.

    Window and level are shared in the comparison's own scale (0 to 1 between each image's `limits`): a change in either
    image moves the other's, so that equal tissue keeps equal grey even where the files are scaled differently.
    """

    def __init__(self, scene: Any, layout: ComparisonLayout, placement: MatchTransform):
        self.scene, self.layout, self.placement = scene, layout, placement
        self._images: dict[str, ShownImage] = {}
        self._derived: dict[str, Any] = {}
        self._observed: list[tuple[Any, int]] = []
        self._window, self._mode, self._opacity = (0.0, 1.0), "fade", 0.5
        self._checker, self._range = 15.0, 0.3
        self._linked, self._crosshair, self._blinking, self._following = True, True, False, False
        layout.onShown.append(self._dress)
        placement.onMoved.append(self._renewDerived)

    # ------------------------------------------------------------------------------------------------------- one pair

    def show(self, images: dict[str, ShownImage], *, keepPosition: bool = False) -> None:
        """Puts two images (by row) into the views; keeps mode, opacity and window."""
        self._stopObserving()
        old, self._derived = self._derived, {}
        self._images = images
        self._blinking = False
        self._applyWindow()
        for image in images.values():
            self._observe(image.volume.GetDisplayNode())
        self._dress()
        for node in old.values():
            removeNode(self.scene, node)
        if not keepPosition:
            self.fit()

    def rename(self) -> None:
        """The images go by other names now."""
        if "difference" in self._derived:
            self._derived["difference"].SetName(self._derivedName("difference"))

    def clear(self) -> None:
        """Empties the views and takes the derived volumes out of the scene."""
        self._stopObserving()
        for node in self._derived.values():
            removeNode(self.scene, node)
        self.forget()
        self._dress()

    def forget(self) -> None:
        """The nodes are gone already."""
        self._images, self._derived, self._observed, self._blinking = {}, {}, [], False

    # ---------------------------------------------------------------------------------------------------- grey values

    def setWindowRange(self, low: float, high: float) -> None:
        """Grey values from black to white in the comparison's scale; (0, 1) is the range that was compared."""
        self._window = (float(low), max(float(high), float(low) + 1e-6))
        self._applyWindow()

    def windowRange(self) -> tuple[float, float]:
        return self._window

    # -------------------------------------------------------------------------------------------------------- overlay

    def setMode(self, mode: str) -> None:
        """Sets the content of the overlay, one of MODES. Raises ValueError for another."""
        if mode not in MODES:
            raise ValueError(f"unknown mode '{mode}'; known: {', '.join(MODES)}")
        self._mode, self._blinking = mode, False
        self._dress()

    @property
    def mode(self) -> str:
        return self._mode

    def setOpacity(self, opacity: float) -> None:
        """Sets the opacity of the second image over the first, 0 to 1 (mode fade)."""
        self._opacity, self._blinking = min(1.0, max(0.0, float(opacity))), False
        self._applyOpacity(self._opacity)

    def opacity(self) -> float:
        return self._opacity

    def blink(self) -> None:
        """Swaps first and second image in the overlay; call it by a timer, about twice a second."""
        if self._mode != "fade":
            self.setMode("fade")
        composites = filter(None, map(self._composite, self.layout.sliceNodes(OVERLAY)))
        second = any(c.GetForegroundOpacity() > 0.5 for c in composites)
        self._applyOpacity(0.0 if self._blinking and second else 1.0)
        self._blinking = True

    def stopBlinking(self) -> None:
        """Restores the opacity that was set."""
        self._blinking = False
        self._applyOpacity(self._opacity)

    def setCheckerSize(self, mm: float) -> None:
        """Sets the side of a checkerboard square, mm."""
        mm = max(1.0, float(mm))
        if mm != self._checker:
            self._checker = mm
            self._renewDerived("checkerboard")

    def setDifferenceRange(self, largest: float) -> None:
        """The difference (comparison's scale, up to 1) at which the diverging colours end."""
        self._range = min(1.0, max(0.01, float(largest)))
        node = self._derived.get("difference")
        if node is not None:
            node.GetDisplayNode().SetWindowLevelMinMax(-self._range, self._range)

    def differenceRange(self) -> float:
        return self._range

    # ----------------------------------------------------------------------------------------------------- navigation

    def setCrosshair(self, visible: bool) -> None:
        self._crosshair = bool(visible)
        self._applyCrosshair()

    def setLinked(self, linked: bool) -> None:
        """Links the views: scrolling and zooming one moves the others. Each row keeps its own volume."""
        self._linked = bool(linked)
        for row in (*ROWS, OVERLAY):
            for node in self.layout.sliceNodes(row):
                self._link(self._composite(node))

    def jumpTo(self, ras: tuple[float, float, float]) -> None:
        """Moves all slice views and the crosshair to a point (mm RAS+ of the scene)."""
        for row in (*ROWS, OVERLAY):
            for node in self.layout.sliceNodes(row):
                node.JumpSliceByOffsetting(*ras)
        node = self.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        if node is not None:
            node.SetCrosshairRAS(*ras)

    def position(self) -> tuple[float, float, float]:
        """The point where the slices of the present layout cross, mm RAS+ of the scene."""
        row = OVERLAY if self.layout.current in ("overlay", "single") else FIRST
        crosshair = self.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        at = list(crosshair.GetCrosshairRAS()) if crosshair is not None else [0.0, 0.0, 0.0]
        for node in self.layout.sliceNodes(row):
            if not node.IsMappedInLayout():
                continue
            toRas = node.GetSliceToRAS()
            # The axis that this slice cuts across; an oblique one counts for the nearest.
            axis = int(np.argmax([abs(toRas.GetElement(i, 2)) for i in range(3)]))
            at[axis] = toRas.GetElement(axis, 3)
        return float(at[0]), float(at[1]), float(at[2])

    def fit(self) -> None:
        """Fits all views to the whole first image, both rows alike."""
        if not self._images:
            return
        for plane in PLANES:
            leader = self._fitted(self.layout.sliceNode(FIRST, plane))
            follower = self.layout.sliceNode(SECOND, plane)
            if leader is not None and follower is not None:
                _copyField(leader, follower)
            self._fitted(self.layout.sliceNode(OVERLAY, plane))
        for node in self.layout.sliceNodes(OVERLAY):
            self._fitted(node)

    def _fitted(self, node: Any) -> Any | None:
        logic = None if node is None else self.layout.sliceLogic(node)
        if logic is None:
            return None
        logic.FitSliceToBackground()
        logic.SnapSliceOffsetToIJK()
        return node

    # ------------------------------------------------------------------------------------------------------- inside

    def _dress(self) -> None:
        """Volumes, opacity, links and crosshair of all views that exist."""
        background, foreground = self._layers()
        for row in (*ROWS, OVERLAY):
            for node in self.layout.sliceNodes(row):
                composite = self._composite(node)
                if composite is None:
                    continue
                self._link(composite)
                own = self._images.get(row)
                composite.SetBackgroundVolumeID(background if row == OVERLAY else own and own.volume.GetID())
                composite.SetForegroundVolumeID(foreground if row == OVERLAY else None)
                composite.SetLabelVolumeID(None)
        self._applyOpacity(self._opacity)
        self._applyCrosshair()

    def _layers(self) -> tuple[str | None, str | None]:
        """Node ids of the overlay's background and foreground."""
        if not self._images:
            return None, None
        if self._mode == "fade":
            return self._images[FIRST].volume.GetID(), self._images[SECOND].volume.GetID()
        return self._derivedNode(self._mode).GetID(), None

    def _derivedNode(self, kind: str) -> Any:
        if kind not in self._derived:
            grid = self._images[FIRST].image.affine
            node = addVolume(self.scene, self._derivedName(kind), self._derivedArray(kind), grid)
            self._derived[kind] = node
            if kind == "difference":
                colors = colorTable(self.scene, "Signed difference", DIVERGING)
                node.GetDisplayNode().SetAndObserveColorNodeID(colors.GetID())
                node.GetDisplayNode().SetWindowLevelMinMax(-self._range, self._range)
            else:
                self._applyWindow()
                self._observe(node.GetDisplayNode())
        return self._derived[kind]

    def _derivedName(self, kind: str) -> str:
        names = " - ".join(self._images[row].name for row in ROWS)
        return names if kind == "difference" else "Checkerboard"

    def _derivedArray(self, kind: str) -> np.ndarray:
        first, second = self._images[FIRST].image, self._images[SECOND].image
        moved = onGridOf(first, second, self.placement.matrix)
        return difference(first, moved) if kind == "difference" else checkerboard(first, moved, self._checker)

    def _renewDerived(self, only: str = "") -> None:
        for kind, node in self._derived.items():
            if only in ("", kind):
                setVoxels(node, self._derivedArray(kind))

    def _composite(self, node: Any) -> Any | None:
        logic = self.layout.sliceLogic(node)
        return None if logic is None else logic.GetSliceCompositeNode()

    def _link(self, composite: Any) -> None:
        composite.SetLinkedControl(self._linked)
        # Without this, choosing a volume in a linked view would put it into the other row as well.
        volumes = composite.BackgroundVolumeFlag | composite.ForegroundVolumeFlag
        composite.SetInteractionFlagsModifier(composite.GetInteractionFlagsModifier() & ~volumes)

    def _applyOpacity(self, opacity: float) -> None:
        for node in self.layout.sliceNodes(OVERLAY):
            composite = self._composite(node)
            if composite is not None:
                composite.SetForegroundOpacity(opacity if self._mode == "fade" else 0.0)

    def _applyCrosshair(self) -> None:
        node = self.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        if node is not None:
            shown = self._crosshair and bool(self._images)
            node.SetCrosshairMode(node.ShowIntersection if shown else node.NoCrosshair)

    def _applyWindow(self) -> None:
        self._following = True
        for volume, limits in self._windowed():
            low, high = (limits[0] + w * (limits[1] - limits[0]) for w in self._window)
            display = volume.GetDisplayNode()
            if not np.allclose((display.GetWindowLevelMin(), display.GetWindowLevelMax()), (low, high)):
                display.SetAutoWindowLevel(False)
                display.SetWindowLevelMinMax(low, high)
        self._following = False

    def _windowed(self) -> list[tuple[Any, tuple[float, float]]]:
        shown = [(i.volume, i.image.limits) for i in self._images.values()]
        if "checkerboard" in self._derived:
            shown.append((self._derived["checkerboard"], self._images[FIRST].image.limits))
        return shown

    def _observe(self, display: Any) -> None:
        import vtk

        self._observed.append((display, display.AddObserver(vtk.vtkCommand.ModifiedEvent, self._follow)))

    def _stopObserving(self) -> None:
        for display, tag in self._observed:
            display.RemoveObserver(tag)
        self._observed = []

    def _follow(self, display: Any, event: str) -> None:
        """Follows a change of window or level of one image: sets the other in the comparison's scale."""
        if self._following:
            return
        for volume, (low, high) in self._windowed():
            if volume.GetDisplayNode() is display and high > low:
                ends = (display.GetWindowLevelMin(), display.GetWindowLevelMax())
                wanted = tuple((end - low) / (high - low) for end in ends)
                if not np.allclose(wanted, self._window):
                    self.setWindowRange(*wanted)


def _copyField(leader: Any, follower: Any) -> None:
    """The same place and magnification in another view, which may have another size."""
    field, size, own = leader.GetFieldOfView(), leader.GetDimensions(), follower.GetDimensions()
    follower.GetSliceToRAS().DeepCopy(leader.GetSliceToRAS())
    follower.UpdateMatrices()
    scale = [field[i] / max(size[i], 1) for i in range(2)]
    follower.SetFieldOfView(scale[0] * own[0], scale[1] * own[1], field[2])
    follower.SetXYZOrigin(*leader.GetXYZOrigin())
