"""A feature of all cases as one array on disk, mapped into memory by every process that reads it.

Zarr reads a row in about a millisecond, which is too slow for what every query reads of every case. The processes of a
machine share the pages of a mapped file, and the system drops them where memory is short, so memory does not grow with
the cohort.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from replica_detection.util.files import atomic_write, is_temporary

Blocks = Callable[[], Iterable[np.ndarray]]


def packed(path: Path, shape: Sequence[int], dtype: np.dtype, blocks: Blocks) -> np.ndarray:
    """The array in a `.npy` file, mapped read-only; written first where it is not there.

    Of several processes that want to write it, one does and the others wait. A killed writer leaves no file under this
    name.

    Args:
        path: of the file; its folder is made.
        shape, dtype: of the array. A file of another shape or type is written again.
        blocks: return the array in parts along the first axis, in order.

    Returns:
        An array in memory where the file cannot be written.
    """
    found = _mapped(path, shape, dtype)
    if found is None:
        try:
            _write(path, shape, dtype, blocks)
            found = _mapped(path, shape, dtype)
        except (OSError, NotImplementedError):  # a read-only folder, a full disk, a disk without locks
            pass
    if found is None:
        found = np.concatenate([np.asarray(block, dtype) for block in blocks()])
        found.flags.writeable = False
    return found


def _mapped(path: Path, shape: Sequence[int], dtype: np.dtype) -> np.ndarray | None:
    """The array in the file; None where there is none, or another one."""
    try:
        array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return None
    return array if array.shape == tuple(shape) and array.dtype == dtype else None


def _write(path: Path, shape: Sequence[int], dtype: np.dtype, blocks: Blocks) -> None:
    from filelock import FileLock

    path.parent.mkdir(exist_ok=True)
    with FileLock(path.parent / ".lock"):
        if _mapped(path, shape, dtype) is not None:  # by another process in the meantime
            return
        # Nobody else writes now: these are of processes that were killed.
        for left in path.parent.iterdir():
            if is_temporary(left.name):
                left.unlink()
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": tuple(int(n) for n in shape),
        }
        with atomic_write(path, "wb") as f:
            np.lib.format.write_array_header_1_0(f, header)
            for block in blocks():
                f.write(np.ascontiguousarray(block, dtype).data)
