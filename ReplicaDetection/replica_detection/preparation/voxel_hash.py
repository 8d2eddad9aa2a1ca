"""A hash of an image that survives file formats, mirroring and turns by right angles. Imports with numpy alone."""

from __future__ import annotations

import hashlib

import numpy as np

# Voxels that are mixed at once: it bounds the memory.
_AT_ONCE = 2**22


def hash_of_voxels(array: np.ndarray) -> str:
    """A hash of the values (as float32) that is equal for the mirror images of an array and its right-angled turns.

    Along each axis every plane gets a number that does not depend on the order of the voxels inside it: the sum, modulo
    2^64, of their mixed bits. Mirroring reverses such a row of numbers and a turn exchanges rows, so the smaller of
    each row and its reverse, sorted, is the same for all of them. Two arrays with equal numbers in all planes of all
    axes hold the same voxels, short of images made for the purpose.

    Args:
        array: of any shape and number type; 0 and -0 are the same.
    """
    values = np.asarray(array)
    rows = [np.zeros(size, np.uint64) for size in values.shape]
    step = max(1, _AT_ONCE // max(1, values[:1].size))
    for start in range(0, len(values), step):
        mixed = _mixed(values[start : start + step])
        for axis, row in enumerate(rows):
            sums = mixed.sum(axis=tuple(a for a in range(mixed.ndim) if a != axis), dtype=np.uint64)
            if axis == 0:
                row[start : start + step] = sums
            else:
                row += sums
    either_way = (min(row.astype("<u8").tobytes(), row[::-1].astype("<u8").tobytes()) for row in rows)
    digest = hashlib.blake2b(digest_size=16)
    for content in sorted(either_way):
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def _mixed(values: np.ndarray) -> np.ndarray:
    """The bits of each value as float32, mixed to 64 bits: the finalizer of SplitMix64 (Steele et al., OOPSLA 2014)."""
    plain = np.ascontiguousarray(values, np.float32) + np.float32(0)  # -0 becomes 0
    z = plain.view(np.uint32).astype(np.uint64)
    z += np.uint64(0x9E3779B97F4A7C15)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z
