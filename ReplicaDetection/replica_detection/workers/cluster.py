"""Workers of a dask.distributed cluster: on more than one machine, or on this one."""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

from replica_detection.errors import ConfigurationError, InputError, WorkersLostError
from replica_detection.util.cores import ONE_THREAD
from replica_detection.version import __version__
from replica_detection.workers.processes import interrupts_held
from replica_detection.workers.shipped import Outcome, Shipped

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)

# Seconds to wait for the scheduler's answer, and for the first worker of a cluster that has none yet.
CONNECT_SECONDS = 10
WORKER_SECONDS = 60
# Seconds between two looks at the number of workers.
LOOK_SECONDS = 10
# A task that fails for another reason than its function's error, e.g. a broken connection, runs again this many times.
RETRIES = 2


class Cluster:
    """A running cluster of dask.distributed.

    A worker that is killed costs time and nothing else: dask runs its items on another one. Tasks have one core each,
    also where a worker runs several tasks in threads. An item that has begun on a worker cannot be stopped; when the
    run ends before it, the worker finishes that item and no more.

    Args:
        where: address of the scheduler, such as "tcp://host:8786", or a client, which stays open at the end.

    Raises:
        ConfigurationError: not an address, nobody answers, no worker joins within a minute, or `distributed` is not
            installed.
    """

    def __init__(self, where: str | Any):
        self._own = isinstance(where, str)
        self._client = _connect(where) if isinstance(where, str) else where
        self.address = str(self._client.scheduler.address)
        try:
            self._client.wait_for_workers(1, timeout=WORKER_SECONDS)
        except TimeoutError as error:
            self.close()
            raise ConfigurationError(
                f"The dask cluster at {self.address} has no worker. Start one: dask worker {self.address} --nthreads 1"
            ) from error
        self.places = 1
        self._look(0)

    @property
    def dashboard(self) -> str | None:
        """Address of dask's page that shows the work as it runs; None where the scheduler has none."""
        try:
            return str(self._client.dashboard_link)
        except (KeyError, ValueError):
            return None

    def check(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        """Makes sure that every worker has this version of the package and sees the files and folders.

        Raises:
            ConfigurationError: a worker has another version, or none.
            InputError: a worker does not see a path.
        """
        wanted = [str(Path(path).absolute()) for path in paths]
        found: dict[str, Any] = self._client.run(_look_around, wanted, on_error="return")
        for worker, seen in found.items():
            if isinstance(seen, BaseException):
                raise ConfigurationError(
                    f"Worker {worker} cannot run replica-detection {__version__} ({type(seen).__name__}: {seen}). "
                    "Install the same version on every worker"
                ) from seen
            version, missing = seen
            if version != __version__:
                raise ConfigurationError(
                    f"Worker {worker} has replica-detection {version}, this process {__version__}. "
                    "Install the same version on every worker"
                )
            if missing:
                advice = "The index, the images and the output must lie at the same path on every worker"
                raise InputError(missing[0], f"worker {worker} does not see it", advice)

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[int, R]]:
        """See `Runner.map`."""
        shipped: Shipped[T, R] = Shipped.of(function)
        waiting, run = enumerate(items), uuid4().hex
        sent: dict[Any, int] = {}
        done: SimpleQueue[Any] = SimpleQueue()
        try:
            while True:
                while len(sent) < 2 * self.places and (more := next(waiting, None)) is not None:
                    position, item = more
                    key = f"replica-detection-{run}-{position}"
                    with self._told():
                        future = self._client.submit(shipped, item, key=key, pure=False, retries=RETRIES)
                    sent[future] = position
                    future.add_done_callback(done.put)
                if not sent:
                    return
                future = self._first(done, len(sent))
                with self._told():
                    outcome: Outcome[R] = future.result()
                yield sent.pop(future), outcome.unwrap()
        finally:
            self._cancel(list(sent))

    def _first(self, done: SimpleQueue[Any], sent: int) -> Any:
        for seconds in count():
            try:
                return done.get(timeout=1)
            except Empty:
                if seconds % LOOK_SECONDS == LOOK_SECONDS - 1:
                    self._look(sent)
        raise AssertionError

    def _look(self, sent: int) -> None:
        """Counts the places anew, and says where there are none."""
        with self._told():
            self.places = sum(self._client.nthreads().values())
        if not self.places and sent:
            log.warning("The dask cluster at %s has no worker now; %d items wait for one", self.address, sent)
        self.places = max(1, self.places)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turns the errors of dask itself into words."""
        from concurrent.futures import CancelledError

        try:
            yield
        except (CancelledError, OSError, TimeoutError) as error:
            raise WorkersLostError(
                f"The connection to the dask scheduler at {self.address} was lost, or its work was cancelled there. "
                "What is done is stored: start the scheduler and its workers, and run the same command again"
            ) from error
        except Exception as error:
            raise WorkersLostError(
                f"The dask cluster at {self.address} could not finish an item ({type(error).__name__}: {error}). "
                "What is done is stored: find the cause in the log of its workers, and run the same command again"
            ) from error

    def _cancel(self, futures: list[Any]) -> None:
        if futures and self._client.status == "running":
            try:
                self._client.cancel(futures, force=True)
            except Exception as error:
                log.debug("Cannot cancel: %s", error)

    def close(self) -> None:
        """Leaves the cluster; it goes on."""
        if self._own:
            self._client.close(timeout=2)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def local_cluster(workers: int) -> Iterator[Cluster]:
    """Starts a dask cluster on this machine, and ends it.

    It has `workers` processes of one thread each. They and the dashboard listen on 127.0.0.1 alone, on free ports;
    without bokeh the dashboard says only that it is missing. Workers have no memory limit: dask's would pause and kill
    workers at a share of the machine that one large block may rightly exceed; the memory of a block is bounded by the
    run itself. A killed worker is started anew. A user's script needs no guard of `__main__`.

    Raises:
        ConfigurationError: not a number from 1 on, or `distributed` is not installed.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ConfigurationError(f"the number of workers must be from 1 on; got {workers!r}")
    distributed = _distributed()
    _make_loky_fit()
    from dask import config

    environment = "distributed.nanny.pre-spawn-environ"
    settings = {
        "distributed.worker.multiprocessing-method": "loky",
        environment: {**config.get(environment), **dict.fromkeys(ONE_THREAD, "1")},
    }
    with config.set(settings):
        with interrupts_held():
            cluster = distributed.LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                memory_limit=None,
                silence_logs=logging.ERROR,
            )
        with cluster, distributed.Client(cluster, set_as_default=False) as client:
            yield Cluster(client)


def _distributed() -> Any:
    """The package, which has no types."""
    try:
        return import_module("distributed")
    except ImportError as error:
        raise ConfigurationError(
            'A dask cluster needs the package distributed: pip install "replica-detection[distributed]"'
        ) from error


def _make_loky_fit() -> None:
    """Dask then knows loky's way to start processes, and can kill those that do not end when they are asked to."""
    from multiprocessing.process import BaseProcess

    import loky  # noqa: F401
    from loky.backend.process import LokyProcess

    def kill(process: BaseProcess) -> None:
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, signal.SIGKILL)

    if os.name == "posix":
        LokyProcess.kill = kill


def _connect(address: str) -> Any:
    if not re.fullmatch(r"(tcp|tls|ws|wss|ucx)://.+:\d+", address):
        raise ConfigurationError(
            f"not the address of a dask scheduler: {address!r}. It has the form tcp://host:8786; "
            "the scheduler prints it when it starts"
        )
    distributed = _distributed()
    # A lost connection is told in one sentence; dask would print a traceback of each of its parts.
    for name in ("distributed", "distributed.batched", "distributed.client", "distributed.utils"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    begun = time.monotonic()
    try:
        with interrupts_held():
            return distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False, name="replica-detection")
    except (OSError, TimeoutError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"No dask scheduler answers at {address} (tried for {time.monotonic() - begun:.0f} s): {error}"
        ) from error


def _look_around(paths: list[str]) -> tuple[str, list[str]]:
    """Runs on a worker: version of the package there, and what it does not see of the paths."""
    return __version__, [path for path in paths if not Path(path).exists()]
