"""`registration.optimization` in torch, for CUDA: the same steps and stop rules, all starts of several
queries at once.

Images are sampled in float32; sums and transforms are float64. Derivatives are kept by the twelve parameters of an
affine transform in voxels, from which those of a similarity in any unit of length follow by one small matrix: so starts
in different units (`retrieval.Starts`) go through the same steps together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch.nn.functional import grid_sample, pad

from replica_detection.kernels.arrays_torch import BATCH_BYTES, full_float32
from replica_detection.registration.local_torch import structure
from replica_detection.registration.optimization import PARAMETERS, Limits
from replica_detection.registration.pyramid import Level

# Beyond the border by so many voxels still counts as inside: rounding must not cost a mirrored copy its border voxels.
BORDER = 1e-3
# Fewest voxels that a correlation is taken over.
FEWEST = 8


class TorchTemplate:
    """The structure voxels of a level of a query on a device, with the derivatives for its registration.

    Args:
        image: (X, Y, Z) float32.
        level: of the image.
        device: as torch names it.
    """

    def __init__(self, image: np.ndarray, level: Level, device: str):
        self.level, self.device = level, device
        here = torch.tensor(image, device=device)
        self.inside = structure(here)
        index = self.inside.nonzero()
        self.at = tuple(index.unbind(1))  # unlike a mask, it does not make the host wait for a count
        self.count = len(index)
        centre = (torch.tensor(level.shape, device=device, dtype=torch.float64) - 1) / 2
        position = index - centre
        # Rows for x, y, z and 1: a product with (3, 4) transforms gives the places in the training case.
        self.position = torch.cat([position, torch.ones_like(position[:, :1])], 1).T.float().contiguous()
        # Places run from -1 to 1 between the centres of the first and the last voxel, as `grid_sample` counts: z, y, x.
        self.half = torch.where(centre > 0, centre, 1.0)
        self.within = torch.where(centre > 0, 1 + BORDER / self.half, BORDER).flip(0).float()[:, None]
        flat = [n == 1 for n in level.shape]
        slopes = [torch.zeros_like(here) if f else torch.gradient(here, dim=a)[0] for a, f in enumerate(flat)]
        slope = torch.stack([part[self.at] for part in slopes], 1).double()
        affine = torch.cat([(slope[:, :, None] * position[:, None, :]).flatten(1), slope], 1)
        self.value = here[self.at].double()
        value = self.value[:, None]
        # (n, 27): what weights and samples are summed with.
        self.columns = torch.cat([torch.ones_like(value), value, affine, value**2, value * affine], 1)
        self.active = [2, 3, 4, 5] if flat[2] else list(range(PARAMETERS))
        self._gram = self._hessian_by_affine(affine)

    def _hessian_by_affine(self, affine: torch.Tensor) -> np.ndarray:
        """`optimization._hessian`, by the twelve affine parameters, (12, 12)."""
        if not self.count:
            return np.zeros((12, 12))
        centred = self.value - self.value.mean()
        length = centred.norm().clamp(min=1e-6)
        unit = centred / length
        projected = affine - affine.mean(0) - unit[:, None] * (unit @ affine)
        return np.asarray((projected.T @ projected / length**2).cpu())

    def steps(self, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The damped Gauss-Newton step for starts in a unit of length: `out @ ((onto.T @ gradient) / (values + d))`.

        With the scaled Hessian's eigenvectors V and eigenvalues, and D its diagonal, the solution of
        (H + d D + 1e-12) step = gradient is D^-1/2 V (values + d)^-1 V^T D^-1/2 gradient: no system is solved per step.

        Returns:
            onto (12, 7), by affine parameters, values (7,), out (7, 7).
        """
        x, y, z = (np.array(self.level.spacing) / unit).tolist()
        to_similarity = np.zeros((12, PARAMETERS))
        # Columns: rotations about X, Y, Z, logarithm of the scale, translations; rows: slope i times position j.
        for parameter, (i, j, a, b) in enumerate([(2, 1, y, z), (0, 2, z, x), (1, 0, x, y)]):
            to_similarity[3 * i + j, parameter] = a / b
            to_similarity[3 * j + i, parameter] = -b / a
        to_similarity[[0, 4, 8], 3] = 1
        to_similarity[[9, 10, 11], [4, 5, 6]] = 1 / x, 1 / y, 1 / z
        # A parameter that changes nothing stays as it is, to the last bit: a slice must not leave its plane.
        moving = np.einsum("ip,ij,jp->p", to_similarity, self._gram, to_similarity) > 0
        active = [p for p in self.active if moving[p]]
        to_similarity = to_similarity[:, active]
        hessian = to_similarity.T @ self._gram @ to_similarity + 1e-12 * np.eye(len(active))
        scale = 1 / np.sqrt(np.diag(hessian))
        values, vectors = np.linalg.eigh(hessian * scale * scale[:, None])
        used = len(active)
        onto, out, all_values = np.zeros((12, 7)), np.zeros((7, 7)), np.ones(7)
        onto[:, :used] = to_similarity @ (scale[:, None] * vectors)
        out[active, :used] = scale[:, None] * vectors
        all_values[:used] = values
        return onto, all_values, out


@dataclass(frozen=True)
class Registration:
    """The starts of one query, as `optimization.register` takes them, but for:

    Args:
        training: returns (C, X, Y, Z) float32 on the device, for an array of C of the numbers in `which`.
        matrices, shifts: (S, 3, 3) and (S, 3), in units of `lengths`; they are improved in place.
        lengths: (S, 3), the unit of length along each axis, in mm.
    """

    query: TorchTemplate
    training: Callable[[np.ndarray], torch.Tensor]
    matrices: np.ndarray
    shifts: np.ndarray
    which: np.ndarray
    flips: np.ndarray
    lengths: np.ndarray

    @property
    def row_bytes(self) -> int:
        """A sample takes 12 bytes for its place, 4 for its value, and two float64 for its sums, all twice over."""
        return 64 * self.query.count + 8 * math.prod(self.query.level.shape)


def register(asked: Sequence[Registration], *, iterations: int, limits: Limits) -> list[np.ndarray]:
    """`optimization.register` for starts of several queries at one level, all of them at once."""
    found = [np.zeros((len(one.which), 2)) for one in asked]
    with torch.inference_mode(), full_float32():
        for batch in _batches(asked):
            parts = [asked[n] for n, _ in batch]
            rows = [np.arange(r.start, r.stop) for _, r in batch]
            result = _improved(parts, rows, iterations, limits)
            for (n, _), one, at, values in zip(batch, parts, rows, result, strict=True):
                done = values[: len(at)]
                one.matrices[at], one.shifts[at] = done[:, :9].reshape(-1, 3, 3), done[:, 9:12]
                found[n][at] = done[:, 12:]
    return found


def _batches(asked: Sequence[Registration]) -> Iterator[list[tuple[int, slice]]]:
    """(number of a registration, some of its starts) that fit into the memory of a batch together."""
    batch: list[tuple[int, slice]] = []
    for n, one in enumerate(asked):
        most = max(1, BATCH_BYTES // one.row_bytes)
        for start in range(0, len(one.which) if one.query.count else 0, most):
            part = n, slice(start, min(start + most, len(one.which)))
            joined = [*batch, part]
            longest = max(rows.stop - rows.start for _, rows in joined)
            if batch and len(joined) * longest * max(asked[k].row_bytes for k, _ in joined) > BATCH_BYTES:
                yield batch
                joined = [part]
            batch = joined
    if batch:
        yield batch


class _Templates:
    """Templates of Q queries, filled up to the same number of voxels with some that lie outside of every image."""

    def __init__(self, templates: Sequence[TorchTemplate]):
        most = max(t.count for t in templates)
        self.half, self.within = templates[0].half, templates[0].within
        self.position = torch.stack([pad(t.position, (0, most - t.count), value=1e9) for t in templates])
        self.columns = torch.stack([pad(t.columns, (0, 0, 0, most - t.count)) for t in templates])
        counts = torch.tensor([t.count for t in templates], dtype=torch.float64)
        self.count = counts.to(self.half.device)[:, None]


@dataclass
class _Rows:
    """R starts that still move, equally many of each query; `place` says which they are.

    Those that stopped stay among them, not `alive`, as far as another query has more that move.
    """

    place: torch.Tensor
    alive: torch.Tensor
    volumes: torch.Tensor
    size: torch.Tensor  # (R, 3) sides of a voxel in the start's unit
    flips: torch.Tensor
    onto: torch.Tensor
    values: torch.Tensor
    out: torch.Tensor
    matrix: torch.Tensor
    shift: torch.Tensor
    gradient: torch.Tensor
    best: torch.Tensor
    damping: torch.Tensor
    correlation: torch.Tensor
    share: torch.Tensor

    def at(self, rows: torch.Tensor) -> _Rows:
        return _Rows(*(getattr(self, f.name).index_select(0, rows) for f in fields(self)))

    @property
    def state(self) -> torch.Tensor:
        """(R, 14): matrix, shift, correlation, overlap."""
        return torch.cat([self.matrix.flatten(1), self.shift, self.correlation[:, None], self.share[:, None]], 1)


def _improved(parts: Sequence[Registration], rows: Sequence[np.ndarray], iterations: int, limits: Limits) -> np.ndarray:
    """The starts in `rows` of each part, improved: (Q, R, 14), as `_Rows.state` has them."""
    device, spacing = parts[0].query.device, np.array(parts[0].query.level.spacing)
    templates, longest = _Templates([one.query for one in parts]), max(map(len, rows))
    filled = [at[np.minimum(np.arange(longest), len(at) - 1)] for at in rows]
    steps = []
    for one, at in zip(parts, filled, strict=True):
        units, unit = np.unique(one.lengths[at], axis=0, return_inverse=True)
        of_unit = [spacing / units, *(np.stack(s) for s in zip(*map(one.query.steps, units), strict=True))]
        steps.append([values[unit.reshape(-1)] for values in of_unit])

    def here(of_part: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(of_part).astype(np.float64)).to(device)

    size, onto, values, out = (here(of_part) for of_part in zip(*steps, strict=True))
    matrix, shift, flips = (
        here([getattr(one, name)[at] for one, at in zip(parts, filled, strict=True)])
        for name in ("matrices", "shifts", "flips")
    )
    volumes = torch.cat([one.training(one.which[at]) for one, at in zip(parts, filled, strict=True)])[:, None]
    alive = torch.from_numpy(np.concatenate([np.arange(longest) < len(at) for at in rows])).to(device)
    correlation, share, gradient = _evaluate(templates, volumes, matrix, shift, size)
    moving = _Rows(
        torch.arange(len(alive), device=device), alive, volumes, size, flips, onto, values, out, matrix, shift,
        gradient, _merit(correlation, share, limits.overlap_power), torch.full_like(share, 1e-3), correlation, share,
    )  # fmt: skip
    result = moving.state
    _improve(templates, moving, result, iterations, limits)
    return np.asarray(result.reshape(len(parts), longest, -1).cpu())


def _improve(query: _Templates, rows: _Rows, result: torch.Tensor, iterations: int, limits: Limits) -> None:
    """`optimization._register_one` for all rows; writes their `state` to `result`.

    The one thing that the host waits for is the number of rows that still move, once a step.
    """
    for _ in range(iterations):
        along = (rows.gradient[:, None] @ rows.onto)[:, 0] / (rows.values + rows.damping[:, None])
        step = (rows.out @ along[:, :, None])[:, :, 0]
        moved = rows.matrix @ (_rotation(-step[:, :3]) * torch.exp(-step[:, 3])[:, None, None])
        moved_shift = rows.shift - (moved @ step[:, 4:, None])[:, :, 0]
        correlation, share, gradient = _evaluate(query, rows.volumes, moved, moved_shift, rows.size)
        figure = _merit(correlation, share, limits.overlap_power)
        accepted = rows.alive & _plausible(moved, rows.flips, limits) & (figure > rows.best) & (share >= limits.overlap)
        stopped = accepted & (figure - rows.best < 1e-5)
        one = accepted[:, None]
        rows.best = torch.where(accepted, figure, rows.best)
        rows.matrix = torch.where(one[:, :, None], moved, rows.matrix)
        rows.shift = torch.where(one, moved_shift, rows.shift)
        rows.gradient = torch.where(one, gradient, rows.gradient)
        rows.correlation = torch.where(accepted, correlation, rows.correlation)
        rows.share = torch.where(accepted, share, rows.share)
        smaller, larger = (rows.damping * 0.3).clamp(min=1e-6), (rows.damping * 10).clamp(min=1e-2)
        rows.damping = torch.where(accepted, smaller, larger)
        rows.alive = rows.alive & ~stopped & (accepted | (rows.damping <= 1e3))
        result[rows.place] = rows.state
        by_query = rows.alive.reshape(len(query.position), -1)
        most = int(by_query.sum(1).max())
        if not most:
            return
        if most < by_query.shape[1]:
            order = by_query.int().argsort(dim=1, descending=True, stable=True)[:, :most]
            first = torch.arange(0, by_query.numel(), by_query.shape[1], device=order.device)
            rows = rows.at((order + first[:, None]).flatten())


def _evaluate(
    query: _Templates, volumes: torch.Tensor, matrix: torch.Tensor, shift: torch.Tensor, size: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Correlation (R,), overlap (R,), and the gradient of the correlation by the affine parameters (R, 12)."""
    scaled = (size * query.half)[:, :, None]
    placed = torch.cat([matrix * size[:, None, :], shift[:, :, None]], 2) / scaled
    queries, rows = len(query.position), len(matrix)
    grid = (placed.flip(1).float().reshape(queries, -1, 4) @ query.position).reshape(rows, 3, -1)
    inside = (grid.abs() <= query.within).all(1).double()
    places = grid.transpose(1, 2)[:, None, None]
    sample = grid_sample(volumes, places, padding_mode="border", align_corners=True).flatten(1) * inside
    by_query = (inside.reshape(queries, -1, inside.shape[1]) @ query.columns).reshape(rows, -1)
    by_training = (sample.reshape(queries, -1, sample.shape[1]) @ query.columns[:, :, :14]).reshape(rows, -1)
    tt = (sample[:, None] @ sample[:, :, None])[:, 0, 0]
    n = by_query[:, 0]
    counted = n.clamp(min=1)
    q_mean, t_mean = by_query[:, 1] / counted, by_training[:, 0] / counted
    q_length = (by_query[:, 14] - by_query[:, 1] * q_mean).clamp(min=1e-12).sqrt()
    t_length = (tt - by_training[:, 0] * t_mean).clamp(min=1e-12).sqrt()
    correlation = (by_training[:, 1] - by_query[:, 1] * t_mean) / (q_length * t_length)
    toward = (by_training[:, 2:] - t_mean[:, None] * by_query[:, 2:14]) / t_length[:, None]
    along = (by_query[:, 15:] - q_mean[:, None] * by_query[:, 2:14]) / q_length[:, None]
    enough = n >= FEWEST
    gradient = (toward - correlation[:, None] * along) * (enough / q_length)[:, None]
    share = (n.reshape(queries, -1) / query.count).flatten() * enough
    return torch.where(enough, correlation, -1.0), share, gradient


def _merit(correlation: torch.Tensor, share: torch.Tensor, power: float) -> torch.Tensor:
    return torch.where(correlation > 0, correlation * share**power, correlation)


def _plausible(matrix: torch.Tensor, flips: torch.Tensor, limits: Limits) -> torch.Tensor:
    determinant = (torch.linalg.cross(matrix[:, 0], matrix[:, 1], dim=1) * matrix[:, 2]).sum(1)
    size = determinant.abs() ** (1 / 3)
    trace = (matrix.diagonal(dim1=1, dim2=2) * flips).sum(1)
    turned_little = trace >= size * (1 + 2 * math.cos(math.radians(limits.degrees)))
    return turned_little & (size >= 1 / limits.scale) & (size <= limits.scale)


def _rotation(vectors: torch.Tensor) -> torch.Tensor:
    """Rodrigues' formula for small rotation vectors, (R, 3) to (R, 3, 3)."""
    angle = vectors.norm(dim=1)[:, None, None] / math.pi
    zero = torch.zeros_like(vectors[:, 0])
    x, y, z = vectors.unbind(1)
    k = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).reshape(-1, 3, 3)
    eye = torch.eye(3, dtype=vectors.dtype, device=vectors.device)
    return eye + torch.sinc(angle) * k + 0.5 * torch.sinc(angle / 2) ** 2 * (k @ k)
