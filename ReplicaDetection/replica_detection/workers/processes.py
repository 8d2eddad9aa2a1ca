"""Worker processes of this machine, by loky: no fork, and no guard of `__main__` in a user's script."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe, resource_tracker
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from replica_detection.errors import WorkersLostError
from replica_detection.util.cores import ONE_THREAD, WORKER
from replica_detection.workers.shipped import Outcome, Shipped

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)

# An item is given to a new pool this many times after its pool broke.
TRIES = 3
# Seconds after which a worker without work ends; the next item starts a new one.
IDLE_SECONDS = 60


@dataclass
class _Sent:
    """An item on its way, and the number of pools that broke under it."""

    position: int
    item: Any
    broken: int = 0


class Processes:
    """Worker processes of this machine, with one core each.

    A worker imports its libraries itself, so the pool stays for the next runner of the same number in this process; it
    ends after a minute without work, and with this process, however that ends. Where a worker is killed (mostly for
    lack of memory), the items in flight run again in a new pool, from the second time on with half as many workers.
    Works from any thread.
    """

    def __init__(self, count: int):
        self.places = count
        self._pool: _Pool | None = None

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[int, R]]:
        """See `Runner.map`."""
        shipped: Shipped[T, R] = Shipped.of(function)
        waiting = enumerate(items)
        sent: dict[Future[Outcome[R]], _Sent] = {}
        done: SimpleQueue[Future[Outcome[R]]] = SimpleQueue()

        def send(piece: _Sent) -> None:
            future = self._ready().submit(shipped, piece.item)
            sent[future] = piece
            future.add_done_callback(done.put)

        try:
            while True:
                while len(sent) < 2 * self.places and (more := next(waiting, None)) is not None:
                    send(_Sent(*more))
                if not sent:
                    return
                future = _first(done)
                if isinstance(future.exception(), _broken_pool()):
                    self._renew(sent)
                    again, done = list(sent.values()), SimpleQueue()
                    sent.clear()
                    for piece in again:
                        send(piece)
                    continue
                piece = sent.pop(future)
                yield piece.position, future.result().unwrap()
        except KeyboardInterrupt:
            self._end()
            raise
        finally:
            for future in sent:
                future.cancel()
            if not all(future.done() for future in sent):
                # Its items would keep the cores busy for nobody.
                self._end()

    def _ready(self) -> _Pool:
        if self._pool is None:
            self._pool = _Pool.take(self.places)
        return self._pool

    def _renew(self, sent: dict[Future[Outcome[R]], _Sent]) -> None:
        """Ends the broken pool; counts for each item in flight."""
        self._end()
        for piece in sent.values():
            piece.broken += 1
        worst = max(piece.broken for piece in sent.values())
        if worst >= TRIES:
            positions = ", ".join(str(piece.position) for piece in sent.values() if piece.broken >= TRIES)
            raise WorkersLostError(
                f"Worker processes ended abruptly {TRIES} times while they worked at items {positions}, mostly for "
                "lack of memory. Use fewer workers, or find in the messages above what ended them"
            )
        if worst > 1:
            self.places = max(1, self.places // 2)
        log.warning("A worker process was killed; %d items run again on %d workers", len(sent), self.places)

    def _end(self) -> None:
        if self._pool is not None:
            self._pool.end()
            self._pool = None

    def check(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        """See `Runner.check`: workers of this machine see what this process sees."""

    def close(self) -> None:
        """Leaves the pool to the next runner of this process."""
        if self._pool is not None:
            self._pool.leave()
            self._pool = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Pool:
    """A pool of loky that ends with this process."""

    _spare: _Pool | None = None
    _lock = threading.Lock()

    def __init__(self, count: int):
        from loky import ProcessPoolExecutor

        # A worker gets both when it starts, and keeps them.
        self.kind = (count, *sys.path)
        # The other end closes when this process is gone, in whatever way.
        their_end, self._alive = Pipe(duplex=False)
        self._executor: Any = ProcessPoolExecutor(
            count,
            timeout=IDLE_SECONDS,
            env=dict.fromkeys((*ONE_THREAD, WORKER), "1"),
            initializer=_begin,
            initargs=(their_end,),
        )

    @classmethod
    def take(cls, count: int) -> _Pool:
        """The spare pool if it has that many workers and imports from the same folders, else a new one."""
        with cls._lock:
            spare, cls._spare = cls._spare, None
        if spare is not None and spare.kind == (count, *sys.path):
            return spare
        if spare is not None:
            spare.end()
        return cls(count)

    def leave(self) -> None:
        """Becomes the spare pool; the one before it ends."""
        with self._lock:
            before, _Pool._spare = _Pool._spare, self
        if before is not None:
            before.end()

    def submit(self, function: Callable[[T], R], item: T) -> Future[R]:
        from concurrent.futures import BrokenExecutor, Future

        try:
            with interrupts_held():
                future: Future[R] = self._executor.submit(function, item)
            return future
        except BrokenExecutor as error:
            # A worker was killed while it waited for work.
            failed: Future[R] = Future()
            failed.set_exception(error)
            return failed

    def end(self) -> None:
        """Kills the workers."""
        self._executor.shutdown(wait=True, kill_workers=True)
        self._alive.close()


@atexit.register
def _end_spare() -> None:
    if _Pool._spare is not None:
        _Pool._spare.end()


def _broken_pool() -> type[Exception]:
    from concurrent.futures import BrokenExecutor

    return BrokenExecutor


def _first(done: SimpleQueue[Future[Outcome[R]]]) -> Future[Outcome[R]]:
    """The future that was done first. On Windows a wait without an end cannot be interrupted."""
    while True:
        try:
            return done.get(timeout=1)
        except Empty:
            continue


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Processes that start in here never see Ctrl-C: this process ends them, without a traceback from each."""
    if os.name != "posix":
        yield
        return
    # Python's own tracker unblocks the signal where it starts.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(alive: Connection) -> None:
    """First steps of a worker."""
    from loky import process_executor

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # loky would end a worker that has grown by 300 MB, and with it the training cases that it has read.
    process_executor._USE_PSUTIL = False
    threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()


def _end_with_parent(alive: Connection) -> None:
    try:
        alive.recv_bytes()
    except (EOFError, OSError):
        os._exit(1)
