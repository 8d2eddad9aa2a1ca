"""One dask cluster with two real workers for all tests of this folder."""

from collections.abc import Iterator

import pytest

from replica_detection.workers.cluster import Cluster, local_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("distributed")
    with local_cluster(2) as running:
        yield running
