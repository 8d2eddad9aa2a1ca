"""numpy arrays on a torch device, and what all torch code here shares: full float32, filters as matrix products."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch

from replica_detection.errors import ConfigurationError

# Share of the free memory of a GPU that arrays may take between calls; on the CPU so many bytes.
SHARE, ON_CPU = 0.5, 2**30
# Two buffers of pinned memory, each of so many bytes, through which arrays travel.
BUFFER = 32 * 2**20
# What the temporaries of one batch may take on the device.
BATCH_BYTES = 512 * 2**20


def checked(device: str) -> str:
    """`device` ("cpu", "cuda", "cuda:1") if torch can use it; ConfigurationError otherwise."""
    if device == "cpu":
        return device
    number = device.removeprefix("cuda").removeprefix(":") or "0"
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not number.isdecimal() or int(number) >= found:
        raise ConfigurationError(f"The device {device!r} cannot be used: torch finds {found} CUDA devices here.")
    return device


class Residents:
    """Arrays on one device. Those that nobody may write stay there until they are freed or others need the room.

    An array counts as read-only if neither it nor the array that owns its memory is writeable, as of a file that was
    mapped for reading. It is known by its address, shape and type.
    """

    def __init__(self, device: str):
        self.device = torch.device(device)
        on_card = self.device.type == "cuda"
        self.room = int(SHARE * torch.cuda.mem_get_info(self.device)[0]) if on_card else ON_CPU
        self._kept: OrderedDict[tuple, tuple[torch.Tensor, weakref.finalize]] = OrderedDict()
        self._lock = threading.RLock()
        self._buffers: list[tuple[torch.Tensor, torch.cuda.Event | None]] = []

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """A tensor of the same shape and type; it must not be written."""
        owner = _owner(array)
        with self._lock:
            if owner is None or not self.keeps(array):
                return self._uploaded(array)
            key = array.ctypes.data, array.shape, array.strides, array.dtype.str
            if key not in self._kept:
                while self._kept and sum(t.nbytes for t, _ in self._kept.values()) + array.nbytes > self.room:
                    self._kept.popitem(last=False)[1][1].detach()
                self._kept[key] = self._uploaded(array), weakref.finalize(owner, self._forget, key)
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def keeps(self, array: np.ndarray) -> bool:
        """True if `tensor` leaves this array on the device: it is read-only and takes at most half of the room."""
        return _owner(array) is not None and array.nbytes <= self.room // 2

    def pieces(self, array: np.ndarray, rows: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """At most `rows` rows at a time, with their places; the array as a whole stays on the device if it may."""
        whole = self.tensor(array) if self.keeps(array) else None
        for start in range(0, len(array), rows):
            place = slice(start, min(start + rows, len(array)))
            yield place, self._uploaded(array[place]) if whole is None else whole[place]

    def gathered(self, array: np.ndarray, rows: np.ndarray) -> torch.Tensor:
        """`array[rows]`; of an array that cannot stay on the device, only these rows travel, each once."""
        if self.keeps(array):
            return self.tensor(array).index_select(0, torch.from_numpy(rows).to(self.device))
        needed, inverse = np.unique(rows, return_inverse=True)
        return self._uploaded(array[needed]).index_select(0, torch.from_numpy(inverse).to(self.device))

    def _forget(self, key: tuple) -> None:
        with self._lock:
            self._kept.pop(key, None)

    def _uploaded(self, array: np.ndarray) -> torch.Tensor:
        """A copy on the device; large ones go through pinned memory, one buffer filled while the other travels."""
        if array.nbytes < BUFFER // 8:
            return torch.tensor(array, device=self.device)
        on_card = self.device.type == "cuda"
        with self._lock:
            if not self._buffers:
                made = [torch.empty(BUFFER, dtype=torch.uint8, pin_memory=on_card) for _ in range(2)]
                self._buffers = [(buffer, torch.cuda.Event() if on_card else None) for buffer in made]
            source = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            there = torch.empty(array.nbytes, dtype=torch.uint8, device=self.device)
            for number, start in enumerate(range(0, array.nbytes, BUFFER)):
                buffer, left = self._buffers[number % 2]
                if left is not None:
                    left.synchronize()  # what it held has arrived
                part = source[start : start + BUFFER]
                buffer.numpy()[: len(part)] = part
                there[start : start + len(part)].copy_(buffer[: len(part)], non_blocking=True)
                if left is not None:
                    left.record(torch.cuda.current_stream(self.device))
        kind = torch.from_numpy(np.empty(0, array.dtype)).dtype
        return there.view(kind).reshape(array.shape)


@cache
def residents(device: str) -> Residents:
    """The arrays on a device, one for each device and process."""
    return Residents(device)


def _owner(array: np.ndarray) -> np.ndarray | None:
    """The array that owns the memory; None if somebody may write it."""
    while not array.flags.writeable:
        if not isinstance(array.base, np.ndarray):
            return array
        array = array.base
    return None


@contextmanager
def full_float32() -> Iterator[None]:
    """Keep matrix products out of TF32, whose ten bits of mantissa spoil covariances and positions."""
    matmul = torch.backends.cuda.matmul
    # The old switch and the new one must not be mixed: torch refuses.
    name, exact = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    before = getattr(matmul, name)
    setattr(matmul, name, exact)
    try:
        yield
    finally:
        setattr(matmul, name, before)


def filtered(images: torch.Tensor, bands: Sequence[torch.Tensor]) -> torch.Tensor:
    """`(B, X, Y[, Z])` filtered along every axis by one matrix each: on a GPU far quicker than a convolution of one
    channel."""
    *outer, last = bands
    images = images @ last.T
    if len(outer) == 2:
        images = outer[1] @ images
    shape = images.shape
    return (outer[0] @ images.flatten(2)).reshape(shape[0], -1, *shape[2:])


def gaussian_bands(shape: Sequence[int], sigma: float, truncate: float, device: str) -> list[torch.Tensor]:
    """Matrices for `filtered`, float64: `scipy.ndimage.gaussian_filter` of mode "nearest"; an axis of one voxel stays
    as it is."""
    return [_gaussian_band(n, sigma, truncate, device) for n in shape]


@cache
def _gaussian_band(length: int, sigma: float, truncate: float, device: str) -> torch.Tensor:
    radius = int(truncate * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    band = np.zeros((length, length))
    at = np.arange(length)
    for offset, weight in zip(offsets, weights / weights.sum(), strict=True):
        np.add.at(band, (at, np.clip(at + offset, 0, length - 1)), weight)
    return torch.from_numpy(band).to(device)
