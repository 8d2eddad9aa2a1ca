"""The options that say where work runs: `--workers`, `--scheduler`, `--cluster`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from replica_detection.cli.console import errors


@contextmanager
def work_places(workers: int | None, scheduler: str | None, cluster: int | None) -> Iterator[int | str | None]:
    """The places for work, as `DetectionOptions.workers` has them; a cluster of this machine lives as long as this.

    Prints the address of a cluster's dashboard. Raises typer.BadParameter where several places are named, and
    ConfigurationError where nobody answers at the address.
    """
    if sum(place is not None for place in (workers, scheduler, cluster)) > 1:
        raise typer.BadParameter("give one of --workers, --scheduler and --cluster")
    if scheduler is not None:
        from replica_detection.workers.cluster import Cluster

        with Cluster(scheduler) as found:
            _told(found.dashboard)
        yield scheduler
    elif cluster is not None:
        from replica_detection.workers.cluster import local_cluster

        with local_cluster(cluster) as started:
            _told(started.dashboard)
            yield started.address
    else:
        yield workers


def _told(dashboard: str | None) -> None:
    if dashboard:
        errors.print(f"dask dashboard: {dashboard}")
