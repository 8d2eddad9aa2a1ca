"""Registration of one pair: mirrored axes are given, the similarity transform is found by Gauss-Newton steps (numba).

With q the query, t the training image, W the transform, and all sums and means over the voxels x of the query's
structure for which W(x) lies inside the training image, the merit is

    merit   = rho * overlap^0.25 if rho > 0, else rho
    rho     = sum (q(x) - mean q) (t(W(x)) - mean t) / sqrt(sum (q(x) - mean q)^2 sum (t(W(x)) - mean t)^2)
    overlap = share of the query's structure for which W(x) lies inside

rho is the enhanced correlation coefficient of Evangelidis and Psarakis, "Parametric image alignment using enhanced
correlation coefficient maximization", IEEE TPAMI 2008. The steps are inverse compositional (Baker and Matthews,
"Lucas-Kanade 20 years on", IJCV 2004, section 3.2): the derivatives are those of the query and are computed once for
all its candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit

from replica_detection.registration.pyramid import Level, structure

FAST = {"nnan", "nsz", "reassoc", "contract", "arcp"}
PARAMETERS = 7  # rotations about X, Y, Z, logarithm of the scale, translations along X, Y, Z


@dataclass(frozen=True)
class Template:
    """The structure voxels of a query at one level, with the derivatives for its registration to many training cases.

    `position` (n, 3) is in mm from the centre of the field of view; `value` (n,); `slope` (n, 8) holds the derivatives
    by the parameters, the last column unused; `hessian` (7, 7) of the normalized values; `active` lists the parameters
    in use (in 2D no rotation out of the plane).
    """

    position: np.ndarray
    value: np.ndarray
    slope: np.ndarray
    hessian: np.ndarray
    active: np.ndarray
    level: Level


def template(image: np.ndarray, level: Level) -> Template:
    """The Template of a level of the query's pyramid, (X, Y, Z)."""
    inside = structure(image)
    spacing, shape = np.array(level.spacing), np.array(level.shape)
    flat = [n == 1 for n in level.shape]
    gradient = [
        np.zeros_like(image) if f else np.gradient(image, s, axis=a).astype(np.float32)
        for a, (f, s) in enumerate(zip(flat, level.spacing, strict=True))
    ]
    index = np.argwhere(inside)
    u = (index - (shape - 1) / 2) * spacing
    g = np.stack([part[inside] for part in gradient], 1).astype(np.float64)
    slope = np.zeros((len(u), PARAMETERS + 1))
    slope[:, 0] = g[:, 2] * u[:, 1] - g[:, 1] * u[:, 2]
    slope[:, 1] = g[:, 0] * u[:, 2] - g[:, 2] * u[:, 0]
    slope[:, 2] = g[:, 1] * u[:, 0] - g[:, 0] * u[:, 1]
    slope[:, 3] = (g * u).sum(1)
    slope[:, 4:7] = g
    active = np.array([2, 3, 4, 5] if flat[2] else range(PARAMETERS))
    value = image[inside].astype(np.float64)
    return Template(u, value, slope.astype(np.float32), _hessian(value, slope[:, :PARAMETERS]), active, level)


def _hessian(value: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Gauss-Newton Hessian of half the squared distance between two vectors of mean 0 and length 1, (7, 7)."""
    if not len(value):
        return np.eye(PARAMETERS)
    centred = value - value.mean()
    length = max(float(np.linalg.norm(centred)), 1e-6)
    unit = centred / length
    projected = slope - slope.mean(0) - np.outer(unit, unit @ slope)
    return projected.T @ projected / length**2


@dataclass(frozen=True)
class Limits:
    """Limits of a plausible transform: rotation in degrees, apart from mirroring, scale in both directions, overlap.

    `overlap_power`: the correlation is multiplied by the overlap (a share) to this power, so that a chance agreement of
    two corners does not win.
    """

    degrees: float = 35.0
    scale: float = 1.4
    overlap: float = 0.4
    overlap_power: float = 0.25


def register(
    query: Template,
    training: np.ndarray,
    matrices: np.ndarray,
    shifts: np.ndarray,
    which: np.ndarray,
    flips: np.ndarray,
    *,
    iterations: int,
    limits: Limits,
) -> np.ndarray:
    """Improves many starts in place, on all cores.

    Args:
        query: the fixed image.
        training: (C, X, Y, Z) float32, the same level of training cases.
        matrices: (S, 3, 3), each maps a position of the query to one of the training case, both in mm from their
            centres.
        shifts: (S, 3) mm, added after the matrix.
        which: (S,) indices into `training`.
        flips: (S, 3) diagonal of +1 and -1: the mirrored axes of the start, against which rotation is measured.
        iterations: largest number of steps.

    Returns:
        (S, 2) correlation and overlap (share of the query's structure that lies inside the training grid).
    """
    from replica_detection.kernels.tasks import run

    out = np.zeros((len(which), 2))
    if not len(query.value):
        return out
    run(
        _register_many, len(which), np.ascontiguousarray(query.position.T), query.value,
        np.ascontiguousarray(query.slope.T), query.hessian[np.ix_(query.active, query.active)], query.active,
        np.array(query.level.spacing), training, matrices, shifts, which, flips, iterations,
        limits.degrees, limits.scale, limits.overlap, limits.overlap_power, out,
    )  # fmt: skip
    return out


def merit(registered: np.ndarray, limits: Limits) -> np.ndarray:
    """The number by which starts are compared, (S,): correlation * overlap^overlap_power, of `register`'s output."""
    return registered[:, 0] * registered[:, 1] ** limits.overlap_power


@njit(nogil=True, cache=True)
def _register_many(
    first, end, position, value, slope, hessian, active, spacing, training, matrices, shifts, which, flips, iterations,
    degrees, scale, overlap, power, out,
):  # fmt: skip
    sampled, at = np.empty((6, len(value))), np.empty(len(value), np.int32)
    for s in range(first, end):
        _register_one(
            position, value, slope, hessian, active, spacing, training[which[s]], matrices[s], shifts[s], flips[s],
            iterations, degrees, scale, overlap, power, sampled, at, out[s],
        )  # fmt: skip


@njit(nogil=True, cache=True)
def _register_one(
    position, value, slope, hessian, active, spacing, training, matrix, shift, flip, iterations,
    degrees, scale, overlap, power, sampled, at, out,
):  # fmt: skip
    """Gauss-Newton with Levenberg's damping: a step is accepted only if the merit grows."""
    count = len(active)
    gradient, step = np.zeros(PARAMETERS), np.zeros(PARAMETERS)
    a, b = np.empty((count, count)), np.empty(count)
    moved, moved_shift = np.empty((3, 3)), np.empty(3)
    correlation, share = _sample(position, value, spacing, training, matrix, shift, sampled, at)
    out[0], out[1] = correlation, share
    best = _merit(correlation, share, power)
    if share:
        _gradient(slope, sampled, value, correlation, gradient)
    damping = 1e-3
    for number in range(iterations):
        for i in range(count):
            b[i] = gradient[active[i]]
            for j in range(count):
                a[i, j] = hessian[i, j]
            a[i, i] = a[i, i] * (1 + damping) + 1e-12
        _solve(a, b)
        for i in range(count):
            step[active[i]] = b[i]
        _move(matrix, shift, step, moved, moved_shift)
        accepted = False
        if _plausible(moved, flip, degrees, scale):
            correlation, share = _sample(position, value, spacing, training, moved, moved_shift, sampled, at)
            figure = _merit(correlation, share, power)
            accepted = figure > best and share >= overlap
        if accepted:
            gain = figure - best
            best = figure
            for i in range(3):
                shift[i] = moved_shift[i]
                for j in range(3):
                    matrix[i, j] = moved[i, j]
            out[0], out[1] = correlation, share
            damping = max(damping * 0.3, 1e-6)
            if gain < 1e-5 or number == iterations - 1:
                break
            _gradient(slope, sampled, value, correlation, gradient)
        else:
            damping = max(damping * 10, 1e-2)
            if damping > 1e3:
                break


@njit(cache=True)
def _merit(correlation, share, power):
    return correlation * share**power if correlation > 0 else correlation


@njit(cache=True)
def _plausible(matrix, flip, degrees, scale):
    determinant = (
        matrix[0, 0] * (matrix[1, 1] * matrix[2, 2] - matrix[1, 2] * matrix[2, 1])
        - matrix[0, 1] * (matrix[1, 0] * matrix[2, 2] - matrix[1, 2] * matrix[2, 0])
        + matrix[0, 2] * (matrix[1, 0] * matrix[2, 1] - matrix[1, 1] * matrix[2, 0])
    )
    size = abs(determinant) ** (1 / 3)
    if not (1 / scale <= size <= scale):
        return False
    trace = (matrix[0, 0] * flip[0] + matrix[1, 1] * flip[1] + matrix[2, 2] * flip[2]) / size
    return trace >= 1 + 2 * math.cos(math.radians(degrees))


@njit(cache=True)
def _move(matrix, shift, step, moved, moved_shift):
    """The transform after the inverse of a step: its small rotation is that of Rodrigues' formula.

    In scalars, since numba takes seconds to compile products of matrices.
    """
    x, y, z = -step[0], -step[1], -step[2]
    angle = math.sqrt(x * x + y * y + z * z)
    s, c = 0.0, 0.0
    if angle >= 1e-12:
        s, c = math.sin(angle) / angle, (1 - math.cos(angle)) / angle**2
    rotation = (
        (1 - c * (y * y + z * z), c * x * y - s * z, c * x * z + s * y),
        (c * x * y + s * z, 1 - c * (x * x + z * z), c * y * z - s * x),
        (c * x * z - s * y, c * y * z + s * x, 1 - c * (x * x + y * y)),
    )
    factor = math.exp(-step[3])
    for i in range(3):
        moved_shift[i] = shift[i]
        for j in range(3):
            moved[i, j] = factor * (
                matrix[i, 0] * rotation[0][j] + matrix[i, 1] * rotation[1][j] + matrix[i, 2] * rotation[2][j]
            )
            moved_shift[i] -= moved[i, j] * step[4 + j]


@njit(cache=True)
def _solve(a, b):
    """Solves a x = b, a positive definite, by Cholesky's decomposition; x replaces b."""
    count = len(b)
    for i in range(count):
        for j in range(i + 1):
            total = a[i, j]
            for k in range(j):
                total -= a[i, k] * a[j, k]
            a[i, j] = math.sqrt(max(total, 1e-300)) if i == j else total / a[j, j]
        for k in range(i):
            b[i] -= a[i, k] * b[k]
        b[i] /= a[i, i]
    for i in range(count - 1, -1, -1):
        for k in range(i + 1, count):
            b[i] -= a[k, i] * b[k]
        b[i] /= a[i, i]


@njit(cache=True, fastmath=FAST, error_model="numpy", forceinline=True)
def _sample(position, value, spacing, training, matrix, shift, sampled, at):
    """Correlation and overlap of the pair.

    Inlined by force, as `_gradient` is: a copy of its own, compiled apart, would add up in another order, and the
    process that compiles would get other last digits than those that read its cache.

    Writes into `sampled` (3, n) the training image at the voxels, whether it covers them (1 or 0), and their product
    with the query.
    """
    X, Y, Z = training.shape
    flat = training.reshape(-1)
    m00, m01, m02 = matrix[0, 0] / spacing[0], matrix[0, 1] / spacing[0], matrix[0, 2] / spacing[0]
    m10, m11, m12 = matrix[1, 0] / spacing[1], matrix[1, 1] / spacing[1], matrix[1, 2] / spacing[1]
    m20, m21, m22 = matrix[2, 0] / spacing[2], matrix[2, 1] / spacing[2], matrix[2, 2] / spacing[2]
    s0, s1, s2 = (
        shift[0] / spacing[0] + (X - 1) / 2,
        shift[1] / spacing[1] + (Y - 1) / 2,
        shift[2] / spacing[2] + (Z - 1) / 2,
    )
    # Unsigned: numba need not ask whether an index is negative.
    next_x, next_y, next_z = np.uintp(Y * Z if X > 1 else 0), np.uintp(Z if Y > 1 else 0), np.uintp(1 if Z > 1 else 0)
    last_x, last_y, last_z = np.int32(max(X - 2, 0)), np.int32(max(Y - 2, 0)), np.int32(max(Z - 2, 0))
    # Three loops, the first and the last of which the compiler turns into vector instructions.
    for v in range(len(value)):
        u0, u1, u2 = position[0, v], position[1, v], position[2, v]
        x = m00 * u0 + m01 * u1 + m02 * u2 + s0
        y = m10 * u0 + m11 * u1 + m12 * u2 + s1
        z = m20 * u0 + m21 * u1 + m22 * u2 + s2
        # Tolerance at the border: rounding must not cost a mirrored copy its border voxels.
        outside = (x < -1e-3) | (y < -1e-3) | (z < -1e-3) | (x > X - 0.999) | (y > Y - 0.999) | (z > Z - 0.999)
        x, y, z = min(max(x, 0.0), X - 1.0), min(max(y, 0.0), Y - 1.0), min(max(z, 0.0), Z - 1.0)
        i, j, k = min(np.int32(x), last_x), min(np.int32(y), last_y), min(np.int32(z), last_z)
        sampled[1, v] = 0.0 if outside else 1.0
        sampled[3, v], sampled[4, v], sampled[5, v] = x - i, y - j, z - k
        at[v] = (i * np.int32(Y) + j) * np.int32(Z) + k
    for v in range(len(value)):
        p, fx, fy, fz = np.uintp(at[v]), sampled[3, v], sampled[4, v], sampled[5, v]
        a00 = flat[p] * (1 - fz) + flat[p + next_z] * fz
        a01 = flat[p + next_y] * (1 - fz) + flat[p + next_y + next_z] * fz
        a10 = flat[p + next_x] * (1 - fz) + flat[p + next_x + next_z] * fz
        a11 = flat[p + next_x + next_y] * (1 - fz) + flat[p + next_x + next_y + next_z] * fz
        sampled[0, v] = (a00 * (1 - fy) + a01 * fy) * (1 - fx) + (a10 * (1 - fy) + a11 * fy) * fx
    n, q, t, qq, tt, qt = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for v in range(len(value)):
        w = sampled[1, v]
        m, c = w * sampled[0, v], w * value[v]
        sampled[0, v], sampled[2, v] = m, c
        n += w
        q += c
        t += m
        qq += c * c
        tt += m * m
        qt += c * m
    if n < 8:
        return -1.0, 0.0
    q_length = math.sqrt(max(qq - q * q / n, 1e-12))
    t_length = math.sqrt(max(tt - t * t / n, 1e-12))
    return (qt - q * t / n) / (q_length * t_length), n / len(value)


@njit(cache=True, fastmath=FAST, error_model="numpy", forceinline=True)
def _gradient(slope, sampled, value, correlation, gradient):
    """The gradient of the correlation by the parameters, where the training image was sampled."""
    m, w, c = sampled[0], sampled[1], sampled[2]
    n, q, t, qq, tt = 0.0, 0.0, 0.0, 0.0, 0.0
    for v in range(len(value)):
        n += w[v]
        q += c[v]
        t += m[v]
        qq += c[v] * c[v]
        tt += m[v] * m[v]
    q_mean, t_mean = q / n, t / n
    q_length = math.sqrt(max(qq - n * q_mean * q_mean, 1e-12))
    t_length = math.sqrt(max(tt - n * t_mean * t_mean, 1e-12))
    for p in range(len(gradient)):
        plain, by_query, by_training = 0.0, 0.0, 0.0
        for v in range(len(value)):
            d = np.float64(slope[p, v])
            plain += d * w[v]
            by_query += d * c[v]
            by_training += d * m[v]
        toward = (by_training - t_mean * plain) / t_length
        along = (by_query - q_mean * plain) / q_length
        gradient[p] = (toward - correlation * along) / q_length
