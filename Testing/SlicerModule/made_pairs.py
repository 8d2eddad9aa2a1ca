"""Made-up pairs for tests: a ball, and the same ball with a bulge at a known place, on any two geometries."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from replica_detection.registration.alignment import Alignment
from replica_detection.results.schema import Comparison, Detail, MeasureResult, NeighborItem
from ReplicaDetectionLib.CasePair import CaseImage, CasePair
from ReplicaDetectionLib.PairMaking import ReadImage, placementOf, surfacesOf

SIZE = 56
LIMITS = (0.0, 100.0)
MIDDLE, RADIUS = np.array([28.0, 28.0, 28.0]), 14.0
# The bulge stands out of the ball's front (A) by about 6 mm; its colour of grey is that of the ball.
BULGE, BULGE_RADIUS = np.array([28.0, 42.0, 30.0]), 6.0
INSIDE, OUTSIDE = 80.0, 30.0


def mask(bulge: bool) -> np.ndarray:
    at = np.indices((SIZE, SIZE, SIZE)).astype(np.float32)
    inside = _ball(at, MIDDLE, RADIUS)
    return (inside | _ball(at, BULGE, BULGE_RADIUS) if bulge else inside).astype(np.uint8)


def image(inside: np.ndarray, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    """Grey values in the comparison's scale times `scale`; the right half is a little brighter, to tell sides."""
    rng = np.random.default_rng(seed)
    grey = np.where(inside > 0, INSIDE, OUTSIDE) + rng.normal(0, 1, inside.shape)
    grey[SIZE // 2 :] += 6
    return (grey * scale).astype(np.float32)


def affine(origin=(-28.0, -28.0, -28.0), signs=(1, 1, 1)) -> np.ndarray:
    matrix = np.diag([*signs, 1.0]).astype(float)
    matrix[:3, 3] = origin
    return matrix


def read(
    case_id: str, bulge: bool, matrix: np.ndarray | None = None, *, seed: int = 0, scale: float = 1.0, masked=True
) -> ReadImage:
    """An image whose grid is its own."""
    inside, matrix = mask(bulge), affine() if matrix is None else matrix
    limits = LIMITS[0] * scale, LIMITS[1] * scale
    return ReadImage(CaseImage(case_id, image(inside, seed, scale), matrix, limits), matrix, inside if masked else None)


def comparison(synthetic_id: str = "syn_0007", training_id: str = "patient_0042", **changes) -> Comparison:
    near = tuple(NeighborItem(n, f"{training_id}{'' if n == 1 else f'_{n}'}", 0.9, 0.1 * n) for n in range(1, 4))
    measure = MeasureResult("dice", "segmentation", training_id, 0.91, 0.09, 0.3, 0.001, 0.004, "replica", near)
    said = (Detail("MI", "4.200"), Detail("nearest layer 1", "<other>"))
    feature = replace(measure, measure="memorization_index", level="feature", details=said)
    measures, flagged = (measure, feature), ("feature", "segmentation")
    found = Comparison(synthetic_id, "replica", 0.998, training_id, flagged, (), measures, "v1")
    return replace(found, **changes)


def pair(
    *,
    training_affine: np.ndarray | None = None,
    training_scale: float = 1.0,
    alignment: Alignment | None = None,
    same: bool = False,
    masked: bool = True,
    ids: tuple[str, str] = ("syn_0007", "patient_0042"),
) -> CasePair:
    """The synthetic image has the bulge, the training image has not (`same`: it has it too)."""
    synthetic = read(ids[0], True, seed=1, masked=masked)
    training = read(ids[1], same, training_affine, seed=2, scale=training_scale, masked=masked)
    surfaces, problem = surfacesOf(synthetic, training, alignment)
    return CasePair(
        comparison(*ids),
        synthetic.image,
        training.image,
        placementOf(synthetic, training),
        surfaces,
        problem,
        alignment,
    )


def bulge_tip() -> np.ndarray:
    """mm RAS+ of the synthetic image, where its surface is furthest from the ball's."""
    towards = (BULGE - MIDDLE) / np.linalg.norm(BULGE - MIDDLE)
    return BULGE + BULGE_RADIUS * towards - 28.0


def bulge_height() -> float:
    """mm from the tip of the bulge to the ball."""
    return float(np.linalg.norm(BULGE - MIDDLE) + BULGE_RADIUS - RADIUS)


def mirrored() -> Alignment:
    """Mirrored left-right about the middle of the ball, which is the origin."""
    matrix = np.diag([-1.0, 1.0, 1.0, 1.0])
    return Alignment(
        tuple(map(tuple, matrix.tolist())), (True, False, False), 1.0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 0.99, 0.6, 0.98
    )


def _ball(at: np.ndarray, middle: np.ndarray, radius: float) -> np.ndarray:
    return sum((at[i] - middle[i]) ** 2 for i in range(3)) < radius**2


def flat_pair() -> CasePair:
    """Two 2D images of 40 x 30 pixels: a bright square (200 of 255 in the comparison's scale) and a darker one."""
    images = []
    for name, grey in (("xray_s", 200.0), ("xray_t", 120.0)):
        array = np.full((40, 30, 1), 20.0, np.float32)
        array[10:30, 8:22] = grey
        images.append(CaseImage(name, array, np.diag([-1.0, -1.0, 1.0, 1.0]), (0.0, 255.0)))
    return CasePair(comparison(*(i.id for i in images)), *images, surfaces_problem="Surfaces need 3D images.")


def pair_with_two_bulges() -> CasePair:
    """Both images have the ball; the synthetic one a large bulge in front and a smaller one behind."""
    synthetic = read("syn_0009", True, seed=1)
    at = np.indices((SIZE, SIZE, SIZE)).astype(np.float32)
    assert synthetic.mask is not None
    both = synthetic.mask | _ball(at, np.array([28.0, 14.0, 28.0]), 4.0).astype(np.uint8)
    synthetic = replace(synthetic, mask=both)
    training = read("patient_0042", False, seed=2)
    surfaces, problem = surfacesOf(synthetic, training, None)
    return CasePair(
        comparison("syn_0009"), synthetic.image, training.image, surfaces=surfaces, surfaces_problem=problem
    )


def pair_of(synthetic: ReadImage, training: ReadImage, alignment: Alignment | None = None) -> CasePair:
    surfaces, problem = surfacesOf(synthetic, training, alignment)
    placement = placementOf(synthetic, training)
    ids = synthetic.image.id, training.image.id
    return CasePair(comparison(*ids), synthetic.image, training.image, placement, surfaces, problem, alignment)


def mirrored_copies() -> tuple[ReadImage, ReadImage]:
    """A lopsided image and its copy, mirrored left-right about the origin: voxel i becomes voxel 56 - i."""
    at = np.indices((SIZE, SIZE, SIZE)).astype(np.float32)
    inside = (_ball(at, MIDDLE, RADIUS) | _ball(at, np.array([43.0, 28.0, 28.0]), 6.0)).astype(np.uint8)
    grey = image(inside)

    def mirror(array: np.ndarray) -> np.ndarray:
        other = np.zeros_like(array)
        other[1:] = array[:0:-1]
        return other

    images = [(grey, inside, "syn_0007"), (mirror(grey), mirror(inside), "patient_0042")]
    synthetic, training = (ReadImage(CaseImage(name, g, affine(), LIMITS), affine(), m) for g, m, name in images)
    return synthetic, training


def mirrored_from(training_affine: np.ndarray) -> Alignment:
    """`mirrored`, for a training file with coordinates of its own."""
    matrix = np.array(mirrored().matrix) @ affine() @ np.linalg.inv(training_affine)
    return replace(mirrored(), matrix=tuple(map(tuple, matrix.tolist())))
