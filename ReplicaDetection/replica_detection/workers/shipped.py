"""A function on its way to a worker, and its result on the way back."""

from __future__ import annotations

import os
import pickle
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar
from uuid import uuid4

from replica_detection.util.cores import one_core

T = TypeVar("T")
R = TypeVar("R")


class _Last(threading.local):
    """The function that a thread of this worker unpickled last."""

    key = ""
    function: Callable[..., Any]


_last = _Last()


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """Result of a function, or the error that it raised.

    An error is no failure of the worker: dask and loky would else try again, or take an error that does not unpickle
    for a broken pool.
    """

    result: R | None = None
    error: BaseException | None = None

    def unwrap(self) -> R:
        if self.error is not None:
            raise self.error
        return self.result  # type: ignore[return-value]


@dataclass(frozen=True)
class Shipped(Generic[T, R]):
    """A function in the form in which every worker can load it: functions of a user's script and closures too.

    A worker unpickles it at the first item of a run and then keeps it, so what the function's object keeps (an open
    index) is there for the next item. Each thread of a worker has its own. Relative paths mean on a worker what they
    mean here, where the worker has this working folder too.
    """

    key: str
    function: bytes
    folder: str

    @classmethod
    def of(cls, function: Callable[[T], R]) -> Shipped[T, R]:
        from cloudpickle import dumps

        return cls(uuid4().hex, dumps(function), str(Path.cwd()))

    def __call__(self, item: T) -> Outcome[R]:
        with one_core(), _working_folder(self.folder):
            try:
                if _last.key != self.key:
                    _last.function, _last.key = pickle.loads(self.function), self.key
                return Outcome(_last.function(item))
            except Exception as error:
                return Outcome(error=_portable(error))


_folder_change = threading.Condition()
_tasks_here = 0


@contextmanager
def _working_folder(folder: str) -> Iterator[None]:
    """Runs a task in this folder, if there is one; tasks of another folder wait, for all threads share theirs."""
    global _tasks_here
    if not Path(folder).is_dir():
        yield
        return
    with _folder_change:
        _folder_change.wait_for(lambda: not _tasks_here or Path.cwd() == Path(folder))
        _tasks_here += 1
        os.chdir(folder)
    try:
        yield
    finally:
        with _folder_change:
            _tasks_here -= 1
            _folder_change.notify_all()


def _portable(error: Exception) -> Exception:
    """The error, or a RuntimeError with its words where it does not come out of a pickle as it went in."""
    story = "".join(traceback.format_exception(error))
    try:
        if type(pickle.loads(pickle.dumps(error))) is not type(error):
            raise TypeError("another type")
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In a worker:\n{story}")
    return error
