"""/metrics for Prometheus, for admins: requests by route and status, their time, and the state of the server.

No label holds a name: routes are templates, as in the log.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from prometheus_client import CollectorRegistry, Histogram, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client import Counter as Counted
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from replica_detection_server.access.identity import having
from replica_detection_server.computing.queue import Queue
from replica_detection_server.computing.services import Services
from replica_detection_server.incoming.connections import Connections

router = APIRouter(tags=["Replica"])
PREFIX = "replica_detection"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"}
SECONDS = (0.005, 0.02, 0.05, 0.1, 0.5, 1, 5, 20, 60, 300)


class Measured:
    """Counts every request, of any sender and with any answer."""

    def __init__(self, app: ASGIApp, application: FastAPI):
        self.app = app
        self.registry = application.state.metrics = CollectorRegistry()
        named = ("method", "route", "status")
        self._requests = Counted(f"{PREFIX}_requests", "Requests", named, registry=self.registry)
        self._seconds = Histogram(
            f"{PREFIX}_request_seconds", "Time to the answer", ("route",), registry=self.registry, buckets=SECONDS
        )
        self.registry.register(_State(application))
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, start = 0, time.perf_counter()

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            route, method = _template(scope), scope["method"] if scope["method"] in METHODS else "other"
            self._requests.labels(method, route, str(status or 500)).inc()
            self._seconds.labels(route).observe(time.perf_counter() - start)


class _State(Collector):
    """State of the server, looked up for each request of /metrics."""

    def __init__(self, application: FastAPI):
        self.state = application.state

    def collect(self) -> Iterator[Metric]:
        yield from self._load()
        services: Services | None = getattr(self.state, "replica", None)
        if services is None:
            return
        jobs = GaugeMetricFamily(f"{PREFIX}_jobs", "Jobs that this server remembers", labels=("kind", "state"))
        for (kind, state), number in Counter((job.kind, job.state) for job in services.jobs.all()).items():
            jobs.add_metric((kind, state), number)
        yield jobs
        yield GaugeMetricFamily(f"{PREFIX}_ratings", "Ratings stored", value=len(services.ratings.all()))
        index = services.engine.training()
        yield GaugeMetricFamily(f"{PREFIX}_index_loaded", "1 where the index is loaded", value=index is not None)
        yield GaugeMetricFamily(f"{PREFIX}_studies", "Synthetic images", value=len(services.engine.studies().ids))

    def _load(self) -> Iterator[Metric]:
        queue: Queue = self.state.queue
        yield GaugeMetricFamily(f"{PREFIX}_computing", "Requests that compute", value=queue.running)
        yield GaugeMetricFamily(f"{PREFIX}_waiting", "Requests that wait", value=queue.taken - queue.running)
        yield GaugeMetricFamily(f"{PREFIX}_computing_seconds", "Age of the oldest of them", value=queue.oldest_seconds)
        disk = shutil.disk_usage(self.state.settings.data)
        yield GaugeMetricFamily(f"{PREFIX}_disk_free_bytes", "Disk of the data folder", value=disk.free)
        yield GaugeMetricFamily(f"{PREFIX}_disk_bytes", "Disk of the data folder", value=disk.total)
        connections: Connections | None = getattr(self.state, "connections", None)
        if connections is not None:
            yield GaugeMetricFamily(f"{PREFIX}_connections", "Open connections", value=len(connections))
            refused = CounterMetricFamily(f"{PREFIX}_connections_refused", "Connections without a place")
            refused.add_metric((), connections.refused)
            yield refused


@router.get(
    "/metrics",
    summary="Counters for Prometheus",
    dependencies=[Depends(having("admin"))],
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}},
)
def metrics(request: Request) -> Response:
    return Response(generate_latest(request.app.state.metrics), headers={"Content-Type": CONTENT_TYPE})


def _template(scope: Scope) -> str:
    """The route as it is declared; "-" for an unknown one, so that callers cannot create labels."""
    path: Any = getattr(scope.get("route"), "path", "-")
    if scope["path"] in ("/health", "/ready"):
        return str(scope["path"])
    prefixed = scope["path"].startswith("/replica/") and path != "-"
    return f"/replica{path.removeprefix('/replica')}" if prefixed else str(path)
