"""Caches between requests: the content of files that other processes replace, and recent results."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Generic, TypeVar

from replica_detection.errors import ReplicaDetectionError

K = TypeVar("K")


class FileCache(Generic[K]):
    """The content of files that another process may replace; the file that is written last shows the change."""

    def __init__(self, mark: Path, read: Callable[[], K]):
        self._mark, self._read = mark, read
        self._lock = threading.Lock()
        self._state: object = None
        self._value: K | None = None

    def now(self) -> K | None:
        """The present content; the previous one while a new one is being moved into place; None without any."""
        with self._lock:
            state = self._stat()
            while state is not None and state != self._state:
                try:
                    value = self._read()
                except ReplicaDetectionError:
                    if self._stat() == state:
                        raise
                else:
                    self._state, self._value = state, value
                # Replaced while it was read: what was read may be of both.
                state = self._stat()
            return self._value

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            status = self._mark.stat()
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns


class LruCache(Generic[K]):
    """The results of the last few computations; two requests for the same one at once compute it once."""

    def __init__(self, size: int):
        self._size = size
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, K] = OrderedDict()
        self._making: dict[Hashable, threading.Lock] = {}

    def get(self, key: Hashable, make: Callable[[], K]) -> K:
        with self._lock:
            making = self._making.setdefault(key, threading.Lock())
        with making:
            with self._lock:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    return self._kept[key]
            try:
                value = make()
            finally:
                with self._lock:
                    self._making.pop(key, None)
            with self._lock:
                self._kept[key] = value
                while len(self._kept) > self._size:
                    self._kept.popitem(last=False)
            return value
