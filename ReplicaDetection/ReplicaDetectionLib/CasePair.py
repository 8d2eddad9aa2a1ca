"""CasePair: a synthetic image and one training image, as plain arrays that a thread may read and hand over."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from replica_detection.registration.alignment import Alignment
from replica_detection.results.schema import Comparison
from replica_detection.surfaces.mesh import Mesh


@dataclass(frozen=True)
class CaseImage:
    """One image in the geometry of its own file.

    `array` is (X, Y, Z), a 2D image with Z = 1, any real dtype; `affine` (4, 4) takes a voxel to mm RAS+. `limits` are
    the two intensities that the comparison maps to 0 and 1.
    """

    id: str
    array: np.ndarray
    affine: np.ndarray
    limits: tuple[float, float]

    @property
    def flat(self) -> bool:
        """True for a 2D image."""
        return self.array.shape[2] == 1


@dataclass(frozen=True)
class PairSurfaces:
    """Both surfaces, each in mm RAS+ of its own image's file, and at each vertex the distance in mm to the other one.

    `compared` are the distances (of the synthetic, of the training surface) for the images as they were compared
    (`CasePair.placement`), `aligned` those with the training image moved by the alignment; None without one.
    """

    synthetic: Mesh
    training: Mesh
    compared: tuple[np.ndarray, np.ndarray]
    aligned: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class CasePair:
    """A case as it is shown: its comparison and both images.

    `placement` (4, 4) takes a point of the training file to the point of the synthetic file that it was compared with,
    in mm RAS+; the identity if both files share their geometry. Without surfaces, `surfaces` is None and
    `surfaces_problem` gives the reason. `alignment` is the transform that was found, if one was looked for.
    """

    comparison: Comparison
    synthetic: CaseImage
    training: CaseImage
    placement: np.ndarray = field(default_factory=lambda: np.eye(4))
    surfaces: PairSurfaces | None = None
    surfaces_problem: str = ""
    alignment: Alignment | None = None

    @property
    def flat(self) -> bool:
        return self.synthetic.flat
