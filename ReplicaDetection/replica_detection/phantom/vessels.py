"""The circle of Willis as a tree of tapering tubes along smooth random curves, with its common variants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from replica_detection.phantom.base import Grid

# Distance between samples along a vessel, mm: well below a voxel, so that tubes are smooth and without gaps.
_STEP_MM = 0.35
# Radius of the smallest vessels, mm.
_SMALLEST_MM = 0.4


@dataclass(frozen=True)
class Vessel:
    """Samples along a centreline: `points` (P, 3) mm, `radii` (P,) mm, `path_mm` (P,) from the entry of the blood."""

    name: str
    points: np.ndarray
    radii: np.ndarray
    path_mm: np.ndarray


@dataclass(frozen=True)
class Tubes:
    """Tubes on a grid, all (X, Y, Z): `opacity` from 0 to 1 with partial volume, `path_mm` of the blood from its entry,
    `mask` uint8."""

    opacity: np.ndarray
    path_mm: np.ndarray
    mask: np.ndarray


def random_tree(rng: np.random.Generator) -> tuple[Vessel, ...]:
    """One person's random arteries at the base of the brain, in template mm (origin at the anterior commissure).

    Variants: absent A1 (7 %), hypoplastic A1, absent PCom of one side (30 %), hypoplastic PCom, fetal PCA, dominant
    vertebral artery, early or late bifurcation of M1, a third M2 branch, ACom of any width, tortuosity. Never
    both PComs, nor a PCom and an A1, are absent, so that the tree is of one piece.
    """
    plan = _Plan(rng)
    _carotids(plan)
    _basilar(plan)
    _posterior(plan)
    return tuple(plan.vessels)


def draw(vessels: tuple[Vessel, ...], grid: Grid) -> Tubes:
    """Vessels with points in world mm as tubes on a grid.

    The mask holds the voxels whose centre lies within the radius, and those that a centreline runs through, so that
    arteries thinner than a voxel stay connected.
    """
    points = np.concatenate([v.points for v in vessels])
    radii = np.concatenate([v.radii for v in vessels]).astype(np.float32)
    paths = np.concatenate([v.path_mm for v in vessels]).astype(np.float32)
    distance, nearest = _nearest_sample(points.astype(np.float32), radii, grid)

    # The share of a voxel inside a tube falls about linearly with the distance to the wall; a tube thinner than a
    # voxel cannot fill one, whatever the distance.
    size = float(np.mean(grid.spacing_mm))
    radius = radii[nearest]
    fill = np.clip((2 * radius / size) ** 1.5, 0, 1)
    opacity = np.clip(0.5 - distance / size, 0, 1) * np.where(distance < size, fill, 0)
    mask = distance <= 0
    voxel = np.rint((points - grid.origin_mm) / grid.spacing_mm).astype(np.int64)
    inside = np.all((voxel >= 0) & (voxel < grid.shape), axis=1)
    mask[tuple(voxel[inside].T)] = True
    return Tubes(opacity.astype(np.float32), paths[nearest], mask.astype(np.uint8))


class _Plan:
    """Vessels of one person, collected while they are drawn, with the variants that were chosen."""

    def __init__(self, rng: np.random.Generator):
        self.rng, self.vessels = rng, list[Vessel]()
        self.tortuosity = float(rng.uniform(0.5, 1.7))
        self.calibre = float(np.exp(rng.normal(0, 0.07)))
        first = int(rng.choice([1, -1]))
        self.pcom = {
            first: str(rng.choice(["absent", "thin", "normal", "fetal"], p=[0.30, 0.25, 0.25, 0.20])),
            -first: str(rng.choice(["thin", "normal", "fetal"], p=[0.45, 0.40, 0.15])),
        }

    def curve(
        self, name: str, controls: list, radii: tuple[float, float], start_path: float = 0.0, jitter: float = 1.3
    ) -> Vessel:
        """Add a vessel along a smooth curve through control points (K, 3) in mm; all but the two ends are jittered.

        `radii` are those at its two ends, `start_path` is the blood's path (mm) to its start.
        """
        from scipy.interpolate import CubicSpline, PchipInterpolator

        nodes = np.array(controls, float)
        nodes[1:-1] += self.rng.normal(0, jitter, nodes[1:-1].shape)
        chord = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(nodes, axis=0), axis=1))])
        fine = np.linspace(0, chord[-1], max(8, int(chord[-1] / _STEP_MM)))
        points = CubicSpline(chord, nodes)(fine) if len(nodes) > 3 else PchipInterpolator(chord, nodes)(fine)
        share = fine / chord[-1]
        for wave in (12.0, 6.0):
            amplitude = 0.075 * wave * self.tortuosity
            phase, direction = self.rng.uniform(0, 2 * np.pi), self.rng.normal(0, 0.6, 3)
            swing = np.sin(2 * np.pi * fine / (wave * self.rng.uniform(0.8, 1.4)) + phase)
            points = points + (amplitude * swing * np.sin(np.pi * share))[:, None] * direction
        length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
        even = np.linspace(0, length[-1], int(length[-1] / _STEP_MM) + 2)
        points = np.stack([np.interp(even, length, points[:, i]) for i in range(3)], axis=1)
        pulse = 1 + 0.06 * np.sin(even / 4 + self.rng.uniform(0, 6))
        radius = (radii[0] + (radii[1] - radii[0]) * even / even[-1]) * self.calibre * pulse
        vessel = Vessel(name, points, np.maximum(radius, _SMALLEST_MM), start_path + even)
        self.vessels.append(vessel)
        return vessel

    def named(self, name: str) -> Vessel:
        """The vessel of this name."""
        return next(v for v in self.vessels if v.name == name)


def _side(sign: int, *points: tuple[float, float, float]) -> list[list[float]]:
    """The points, given for the right side, on the side of `sign`: 1 right, -1 left."""
    return [[sign * x, y, z] for x, y, z in points]


def _end(vessel: Vessel, share: float = 1.0) -> tuple[list[float], float]:
    """Point (mm) and path (mm) at a share of the vessel's length."""
    i = round(share * (len(vessel.points) - 1))
    return list(vessel.points[i]), float(vessel.path_mm[i])


def _carotids(plan: _Plan) -> None:
    """ICA with siphon, ophthalmic artery, MCA, ACA and ACom of both sides."""
    rng = plan.rng
    # With an A1 and a PCom missing, the circle would fall in two.
    may_miss = 0.0 if "absent" in plan.pcom.values() else 0.1
    missing_a1 = int(rng.choice([0, 1, -1], p=[1 - may_miss, may_miss / 2, may_miss / 2]))
    thin_a1 = int(rng.choice([0, 1, -1], p=[0.7, 0.15, 0.15]))
    middle = np.array([rng.normal(0, 1.0), 13 + rng.normal(0, 1.2), -14 + rng.normal(0, 1.0)])
    gap = rng.uniform(1.6, 3.0)
    junctions = {}
    for sign in (1, -1):
        wobble = rng.normal(0, 0.8, 3) * plan.tortuosity
        siphon = rng.uniform(-1.5, 1.5)
        carotid = plan.curve(
            f"ICA {sign}",
            _side(
                sign,
                (27, -10, -62),
                (27, -9, -52),
                (25, -5, -45),
                (16, 2, -42),
                (12, 3 + siphon, -36),
                (12, 1 - siphon, -31),
                (13, 11 + siphon, -29.5),
                (11.5, 14.5 + siphon, -25),
                (10.5, 9, -21.5),
                (11 + wobble[0], 4 + wobble[1], -15.5 + wobble[2]),
            ),
            (2.5, 1.8),
            jitter=0.8,
        )
        terminus, path = _end(carotid)
        knee, knee_path = _end(carotid, 0.80)
        plan.curve(
            f"ophthalmic {sign}",
            [knee, *_side(sign, (15, 26, -27), (22, 38, -30), (26, 52, -31))],
            (0.65, 0.45),
            knee_path,
        )
        _middle_cerebral(plan, sign, terminus, path)
        junction = middle + np.array([sign * gap / 2, 0, 0])
        junctions[sign] = list(junction)
        if sign != missing_a1:
            width = 0.55 if sign == thin_a1 else 1.1
            bend = [(terminus[0] + junction[0]) / 2, (terminus[1] + junction[1]) / 2 - 1, -13 + rng.normal(0, 1.5)]
            plan.curve(f"A1 {sign}", [terminus, bend, junctions[sign]], (width, width * 0.95), path, jitter=0.6)
    wide, wave = rng.uniform(0.5, 1.0) if not missing_a1 else 1.0, rng.normal(0, 0.8)
    plan.curve(
        "ACom",
        [junctions[1], list(middle + np.array([0, wave, 0.5])), junctions[-1]],
        (wide, wide),
        110.0,
        0.2,
    )
    for sign in (1, -1):
        _anterior_cerebral(plan, sign, junctions[sign])


def _anterior_cerebral(plan: _Plan, sign: int, start: list[float]) -> None:
    """A2 with its callosomarginal and frontopolar branches, on one side."""
    shift, tilt = plan.rng.normal(0, 1.2), plan.rng.normal(0, 2.0)
    second = plan.curve(
        f"A2 {sign}",
        [
            start,
            *_side(
                sign,
                (2.2, 21 + tilt, -8),
                (2.0, 32 + tilt, 0),
                (2.2, 35 + shift, 10),
                (2.0, 29 + shift, 21),
                (2.2, 18, 29),
            ),
        ],
        (1.0, 0.6),
        115.0,
        1.0,
    )
    branch, path = _end(second, plan.rng.uniform(0.35, 0.5))
    plan.curve(
        f"callosomarginal {sign}", [branch, *_side(sign, (3, 43, 6), (4, 46, 18), (4.5, 41, 32))], (0.7, 0.5), path
    )
    low, low_path = _end(second, plan.rng.uniform(0.2, 0.3))
    plan.curve(f"frontopolar {sign}", [low, *_side(sign, (3, 42, -5), (4, 52, 0), (5, 58, 8))], (0.55, 0.42), low_path)


def _middle_cerebral(plan: _Plan, sign: int, terminus: list[float], path: float) -> None:
    """M1, its bifurcation at a random place, two or three M2 branches over the insula, and M3 ends."""
    rng = plan.rng
    reach = rng.uniform(24, 37)
    rise = rng.normal(0, 1.5)
    fork = (reach, 3 + rng.normal(0, 1.5), -14 + rise)
    trunk = plan.curve(
        f"M1 {sign}",
        [terminus, *_side(sign, (17, 6, -15 + rise), ((17 + reach) / 2, 6, -13.5 + rise), fork)],
        (1.45, 1.2),
        path,
        0.8,
    )
    start, start_path = _end(trunk)
    upper: list[tuple[float, float, float]] = [
        (37, 8, -7),
        (39.5, 9, 1),
        (40.5, 12, 9),
        (45, 14, 13),
        (53, 15, 17),
        (57, 12, 27),
    ]
    lower: list[tuple[float, float, float]] = [
        (38, -3, -9),
        (41, -11, -2),
        (42, -19, 5),
        (47, -27, 9),
        (55, -33, 13),
        (58, -42, 22),
    ]
    centre: list[tuple[float, float, float]] = [
        (38, 3, -8),
        (40.5, 0, 2),
        (41.5, -4, 12),
        (47, -6, 15),
        (56, -8, 21),
        (58, -13, 32),
    ]
    branches: dict[str, list[tuple[float, float, float]]] = {"superior": upper, "inferior": lower}
    if rng.random() < 0.65:
        branches["middle"] = centre
    for name, controls in branches.items():
        wander = rng.normal(0, 1.2, 3)
        shifted = [(x + 0.3 * wander[0], y + wander[1], z + wander[2]) for x, y, z in controls]
        main = plan.curve(f"M2 {name} {sign}", [start, *_side(sign, *shifted)], (0.95, 0.5), start_path, 1.4)
        twig, twig_path = _end(main, rng.uniform(0.4, 0.6))
        away = np.array([sign * rng.uniform(9, 14), rng.normal(4, 8), rng.uniform(4, 16)])
        half = np.array(twig) + away * [0.35, 0.5, 0.6]
        plan.curve(f"M3 {name} {sign}", [twig, list(half), list(np.array(twig) + away)], (0.65, 0.42), twig_path, 1.0)
    temporal, temporal_path = _end(trunk, rng.uniform(0.35, 0.6))
    plan.curve(
        f"anterior temporal {sign}",
        [temporal, *_side(sign, (33, 14, -20), (42, 15, -26), (50, 8, -27))],
        (0.6, 0.42),
        temporal_path,
    )


def _basilar(plan: _Plan) -> None:
    """Vertebral pair, basilar artery, superior cerebellar arteries, AICA and PICA."""
    rng = plan.rng
    dominance = float(np.clip(rng.normal(0, 0.22), -0.6, 0.6))
    union = [rng.normal(0, 1.5), -18 + rng.normal(0, 1), -45 + rng.normal(0, 2)]
    tip = [rng.normal(0, 1.2), -12 + rng.normal(0, 0.8), -18.5 + rng.normal(0, 1.2)]
    sway = rng.normal(0, 1.8) * plan.tortuosity
    for sign in (1, -1):
        radius = 1.45 * (1 + sign * dominance)
        vertebral = plan.curve(
            f"VA {sign}",
            [*_side(sign, (16, -34, -68), (13, -27, -59), (7, -21, -51)), union],
            (radius, radius),
            0.0,
            1.2,
        )
        if rng.random() < 0.75:
            start, path = _end(vertebral, 0.45)
            plan.curve(
                f"PICA {sign}", [start, *_side(sign, (16, -36, -54), (14, -48, -52), (9, -58, -48))], (0.6, 0.42), path
            )
    basilar = plan.curve(
        "basilar",
        [union, [sway, -14, -37], [-sway * 0.6, -11.5, -28], tip],
        (1.75 - 0.1 * abs(dominance), 1.5),
        35.0,
        0.6,
    )
    for sign in (1, -1):
        start, path = _end(basilar, 0.9)
        plan.curve(
            f"SCA {sign}",
            [start, *_side(sign, (9, -14, -21), (18, -22, -20), (19, -34, -19), (12, -46, -17))],
            (0.7, 0.42),
            path,
        )
        if rng.random() < 0.8:
            start, path = _end(basilar, rng.uniform(0.25, 0.5))
            plan.curve(
                f"AICA {sign}", [start, *_side(sign, (11, -17, -38), (22, -25, -37), (33, -36, -40))], (0.55, 0.4), path
            )


def _posterior(plan: _Plan) -> None:
    """P1, PCom and PCA of both sides; one side's PCom may be missing, one may feed the PCA (fetal)."""
    rng = plan.rng
    tip, tip_path = _end(plan.named("basilar"))
    for sign in (1, -1):
        kind = plan.pcom[sign]
        joint = [sign * (12 + rng.normal(0, 1)), -14 + rng.normal(0, 1), -15 + rng.normal(0, 1)]
        p1 = 0.5 if kind == "fetal" else 1.1
        half = [(tip[0] + joint[0]) / 2, -12.0, -15.5]
        plan.curve(f"P1 {sign}", [tip, half, joint], (p1, p1), tip_path, 0.6)
        carotid, carotid_path = _end(plan.named(f"ICA {sign}"), 0.93)
        if kind != "absent":
            width = {"thin": 0.45, "normal": 0.7, "fetal": 1.05}[kind]
            middle = [(carotid[0] + joint[0]) / 2 + sign * rng.normal(0, 1), -4.0, (carotid[2] + joint[2]) / 2 - 1.0]
            plan.curve(f"PCom {sign}", [carotid, middle, joint], (width, width), carotid_path, 0.7)
        path = carotid_path + 18 if kind == "fetal" else tip_path + 12
        posterior = plan.curve(
            f"PCA {sign}",
            [
                joint,
                *_side(sign, (19, -22, -13), (20, -34, -9), (16, -46, -4), (18, -60, 0), (15, -74, 5), (14, -86, 6)),
            ],
            (1.1, 0.5),
            path,
            1.3,
        )
        start, path = _end(posterior, rng.uniform(0.5, 0.62))
        plan.curve(
            f"parieto-occipital {sign}",
            [start, *_side(sign, (11, -60, 8), (10, -72, 16), (9, -82, 24))],
            (0.65, 0.45),
            path,
        )
        start, path = _end(posterior, rng.uniform(0.3, 0.4))
        plan.curve(
            f"temporal {sign}", [start, *_side(sign, (30, -42, -12), (38, -52, -11), (42, -62, -8))], (0.6, 0.42), path
        )


def _nearest_sample(points: np.ndarray, radii: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance (mm) of each voxel centre to the nearest tube, and the index of its sample; 9 mm where far."""
    spacing, origin = np.array(grid.spacing_mm, np.float32), np.array(grid.origin_mm, np.float32)
    distance, nearest = np.full(grid.shape, 9.0, np.float32), np.zeros(grid.shape, np.int32)
    flat, owner = distance.ravel(), nearest.ravel()
    for low, high in ((0.0, 0.8), (0.8, 1.6), (1.6, 9.0)):
        chosen = np.flatnonzero((radii >= low) & (radii < high))
        if not len(chosen):
            continue
        reach = np.ceil((radii[chosen].max() + 0.9) / spacing).astype(int)
        # Squared distances and flat indices are sums over the axes: each axis is computed alone, then they are added.
        squares: np.ndarray = np.zeros(1, np.float32)
        index: np.ndarray = np.zeros(1, np.int64)
        strides = (grid.shape[1] * grid.shape[2], grid.shape[2], 1)
        for axis in range(3):
            position = points[chosen, axis]
            base = np.rint((position - origin[axis]) / spacing[axis]).astype(np.int64)
            voxel = base[:, None] + np.arange(-reach[axis], reach[axis] + 1)
            gap = voxel * spacing[axis] + origin[axis] - position[:, None]
            gap = np.where((voxel >= 0) & (voxel < grid.shape[axis]), gap, np.inf).astype(np.float32)
            shape = [len(chosen), 1, 1, 1]
            shape[axis + 1] = -1
            squares = squares + (gap * gap).reshape(shape)
            index = index + (voxel * strides[axis]).reshape(shape)
        gap = np.sqrt(squares) - radii[chosen][:, None, None, None]
        valid = gap < 1.2
        sample = np.broadcast_to(chosen[:, None, None, None], valid.shape)[valid]
        index, gap = index[valid], gap[valid]
        np.minimum.at(flat, index, gap)
        winner = gap == flat[index]
        owner[index[winner]] = sample[winner]
    return distance, nearest
