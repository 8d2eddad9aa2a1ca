"""Limits on the heavy requests that run at once and that may wait; further ones are refused until later.

Requests wait in the event loop, not in a worker thread, so light routes stay quick while the queue is full.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar

from anyio import from_thread
from fastapi import Depends, Request

from replica_detection_server.errors import CallerGoneError, UnavailableError
from replica_detection_server.settings.launch_settings import WAITING

RUNNING = 2
RETRY_AFTER_SECONDS = 5

# Tells, in the thread of a computation, if its caller has gone away; None where that is unknown.
CALLER_GONE: ContextVar[Callable[[], bool] | None] = ContextVar("CALLER_GONE", default=None)


class Queue:
    """At most `running` at once and `waiting` behind them."""

    def __init__(self, running: int = RUNNING, waiting: int = WAITING):
        self.places = running + waiting
        self.taken = 0
        self._free = asyncio.Semaphore(running)
        self._began: dict[int, float] = {}
        self._numbers = itertools.count()

    @property
    def running(self) -> int:
        """Number of requests that compute now."""
        return len(self._began)

    @property
    def oldest_seconds(self) -> float:
        """Seconds that the longest of them has been running, 0 without any; shows a stuck queue."""
        return max((time.monotonic() - began for began in self._began.values()), default=0.0)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Holds a place; starts when one of the running ones ends.

        Raises:
            UnavailableError: the queue is full.
        """
        if self.taken >= self.places:
            raise UnavailableError(
                f"The server is busy: {self.taken} requests are running or waiting. Try again later.",
                RETRY_AFTER_SECONDS,
            )
        self.taken += 1
        try:
            async with self._free:
                number = next(self._numbers)
                self._began[number] = time.monotonic()
                try:
                    yield
                finally:
                    del self._began[number]
        finally:
            self.taken -= 1


@asynccontextmanager
async def _place(request: Request) -> AsyncIterator[None]:
    queue: Queue | None = getattr(request.app.state, "queue", None)
    if queue is None:
        queue = request.app.state.queue = Queue()
    async with queue.slot():
        # A computation without a caller only delays the others.
        if await request.is_disconnected():
            raise CallerGoneError
        CALLER_GONE.set(lambda: from_thread.run(request.is_disconnected))
        yield


async def _heavy(request: Request) -> AsyncIterator[None]:
    async with _place(request):
        yield


async def _heavy_if_sync(request: Request, run_sync: bool = False) -> AsyncIterator[None]:
    if not run_sync:
        yield
        return
    async with _place(request):
        yield


# Dependencies of routes. scope="function": the place is free again before the reply is sent, so that a slow download
# does not hold it.
heavy = Depends(_heavy, scope="function")
heavy_if_sync = Depends(_heavy_if_sync, scope="function")
