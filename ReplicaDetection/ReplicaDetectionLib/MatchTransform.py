"""MatchTransform: moves the second image onto the first by a transform node; no voxel is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ReplicaDetectionLib.CasePair import CasePair
from ReplicaDetectionLib.Nodes import matrixOf, removeNode

MODES = ("compared", "aligned")


class MatchTransform:
    """Moves the image of the second row onto that of the first, whose file's coordinates are the scene's.

    `compared`: as the measures saw the pair (the identity where both files share their geometry); `aligned`: by the
    alignment that was found. Which of the two images moves says nothing about which one is synthetic.

    Attributes:
        node: the vtkMRMLLinearTransformNode over the second image, None while nothing is shown.
        onMoved: called after the mode changed.
    """

    def __init__(self, scene: Any):
        self.scene = scene
        self.node: Any = None
        self.onMoved: list[Callable[[], None]] = []
        self._matrices: dict[str, np.ndarray] = {}
        self._mode, self._wanted, self._words = "compared", "aligned", ""

    def show(self, pair: CasePair, swapped: bool) -> None:
        """Makes the node for a pair; `swapped`: the training image is the first. Keeps the mode that was chosen
        last."""
        self.clear()
        training = {"compared": pair.placement}
        if pair.alignment is not None:
            training["aligned"] = np.array(pair.alignment.matrix, np.float64)
            self._words = pair.alignment.words
        self._matrices = {mode: np.linalg.inv(m) if swapped else m for mode, m in training.items()}
        self._mode = self._wanted if self._wanted in self._matrices else "compared"
        self.node = self.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Placement")
        self.node.SetMatrixTransformToParent(matrixOf(self.matrix))

    @property
    def matrix(self) -> np.ndarray:
        """(4, 4): a point of the second image's file to the scene, mm RAS+."""
        return self._matrices.get(self._mode, np.eye(4))

    @property
    def matrices(self) -> dict[str, np.ndarray]:
        """The same for each mode that this pair has."""
        return dict(self._matrices)

    @property
    def mode(self) -> str:
        return self._mode

    def setMode(self, mode: str) -> None:
        """Raises ValueError for a mode that is none of MODES, and for "aligned" where no alignment was found."""
        if mode not in MODES:
            raise ValueError(f"unknown placement '{mode}'; known: {', '.join(MODES)}")
        if mode not in self._matrices:
            raise ValueError("no alignment was found for this pair")
        self._wanted = self._mode = mode
        self.node.SetMatrixTransformToParent(matrixOf(self.matrix))
        for call in self.onMoved:
            call()

    @property
    def canAlign(self) -> bool:
        return "aligned" in self._matrices

    @property
    def words(self) -> str:
        """Description of the alignment: "mirrored left-right, rotated 11.4 degrees"; "" without one."""
        return self._words

    def clear(self) -> None:
        removeNode(self.scene, self.node)
        self.forget()

    def forget(self) -> None:
        self.node, self._matrices, self._mode, self._words = None, {}, "compared", ""
