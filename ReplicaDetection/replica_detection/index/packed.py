"""A feature of all cases as one array on disk, mapped into memory by every process that reads it.

Zarr reads a row in about a millisecond, which is too slow for what every query reads of every case. The processes of a
machine share the pages of a mapped file, and the system drops them where memory is short, so memory does not grow with
the cohort.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

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

    def write(file: IO[bytes]) -> None:
        descr = np.lib.format.dtype_to_descr(dtype)
        header = {"descr": descr, "fortran_order": False, "shape": tuple(int(n) for n in shape)}
        np.lib.format.write_array_header_1_0(file, header)
        for block in blocks():
            file.write(np.ascontiguousarray(block, dtype).data)

    found = _mapped(path, shape, dtype)
    if found is None:
        # A read-only folder, a full disk, a disk without locks: memory serves.
        with suppress(OSError, NotImplementedError):
            write_once(path, write, lambda: _mapped(path, shape, dtype) is not None)
            found = _mapped(path, shape, dtype)
    if found is None:
        found = np.concatenate([np.asarray(block, dtype) for block in blocks()])
        found.flags.writeable = False
    return found


def write_once(path: Path, write: Callable[[IO[bytes]], None], whole: Callable[[], bool]) -> None:
    """Writes a file that several processes may want to write: one does, and the others wait.

    Args:
        path: of the file; its folder is made.
        write: fills it.
        whole: True where it is there and can be read.

    Raises:
        OSError, NotImplementedError: it cannot be written, or its disk knows no locks.
    """
    from filelock import FileLock

    path.parent.mkdir(exist_ok=True)
    with FileLock(path.parent / ".lock"):
        if whole():  # by another process in the meantime
            return
        # Nobody else writes now: these are of processes that were killed.
        for left in path.parent.iterdir():
            if is_temporary(left.name):
                left.unlink()
        with atomic_write(path, "wb") as f:
            write(f)


def _mapped(path: Path, shape: Sequence[int], dtype: np.dtype) -> np.ndarray | None:
    """The array in the file; None where there is none, or another one."""
    try:
        array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError):
        return None
    return array if array.shape == tuple(shape) and array.dtype == dtype else None
