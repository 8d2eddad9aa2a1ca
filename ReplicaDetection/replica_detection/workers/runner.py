"""One interface for every place where work runs; the results are the same bits in all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Protocol, Self, TypeVar

from replica_detection.errors import ConfigurationError
from replica_detection.util.cores import kernel_threads, one_thread

T = TypeVar("T")
R = TypeVar("R")


class Runner(Protocol):
    """Runs a function on items, side by side where it has more than one place. A context manager: it closes at the end.

    `places` is the number of items that run side by side.
    """

    places: int

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[int, R]]:
        """Yields (position of the item, result) in the order in which they finish; nothing for no items.

        `items` is read lazily, with at most two items a place in flight. Elsewhere than in this process, function,
        items and results travel as pickles: keep them small, and let the worker read what is large. The function
        travels with every item, and a worker keeps its copy through the whole call.

        Raises:
            Exception: that of the function, with its type and attributes. What has not begun is cancelled then.
            WorkersLostError: the workers ended again and again, or the cluster is gone.
        """
        ...

    def check(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        """Makes sure that each place sees these files and folders, and runs this version of the package.

        Raises:
            ConfigurationError: a worker has another version, or none.
            InputError: a worker does not see a path.
        """
        ...

    def close(self) -> None:
        """Ends what still runs. The runner can no longer be used."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class InProcess:
    """One item after the other in this process. Libraries have one thread each; the kernels use all cores."""

    places = 1

    def map(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[tuple[int, R]]:
        """See `Runner.map`; nothing is pickled."""
        for position, item in enumerate(items):
            with one_thread():
                result = function(item)
            yield position, result

    def check(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        """See `Runner.check`: what this process sees is seen."""

    def close(self) -> None:
        """Nothing is to be ended."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_workers(workers: object) -> None:
    """Raises ConfigurationError unless it is None, a number of processes, or an address."""
    if workers is None or (isinstance(workers, str) and workers):
        return
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ConfigurationError(
            f"workers must be a number from 1 on, or the address of a dask scheduler; got {workers!r}"
        )


def runner_for(workers: int | str | None, items: int) -> Runner:
    """Runner for that many items.

    Args:
        workers: a number of processes; None for one on each core that this process may use; or the address of the
            scheduler of a running dask cluster, such as "tcp://host:8786".
        items: how many there will be; one item or none runs in this process, unless an address is given.

    Raises:
        ConfigurationError: not a number from 1 on, not an address, nobody answers there, or `distributed` is missing.
    """
    check_workers(workers)
    if isinstance(workers, str):
        from replica_detection.workers.cluster import Cluster

        return Cluster(workers)
    if workers is None:
        workers = kernel_threads()
    if workers == 1 or items <= 1:
        return InProcess()
    from replica_detection.workers.processes import Processes

    return Processes(min(workers, items))
