"""/health and /ready for containers and load balancers, without a key. No counts, no names, no paths."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from replica_detection_server.computing.queue import Queue
from replica_detection_server.records.access_record import AccessRecord
from replica_detection_server.settings.launch_settings import Settings
from replica_detection_server.util.json_replies import refuse

HEALTH, READY = "/health", "/ready"
# Beyond the time that a computation may take, for its end.
STUCK_MARGIN_SECONDS = 60.0
# Seconds for which an answer of /ready is reused: each check writes to the disk.
KEPT_SECONDS, PATIENCE_SECONDS = 2.0, 5.0
ROOM_BYTES = 256 << 20
WORDS = {
    "index": "the training index is not loaded yet",
    "queue": "a computation has run for longer than it may",
    "disk": "the data folder cannot be written to",
    "space": "the disk of the data folder is nearly full",
    "record": "the file of the access record was removed, and no scan is shown",
}


@dataclass
class Health:
    """Answers the two addresses before authentication; passes everything else to `app`."""

    app: ASGIApp
    application: FastAPI
    _checks: dict[str, bool] = field(default_factory=dict)
    _checked: float = -KEPT_SECONDS
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    _limiter: CapacityLimiter | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in (HEALTH, READY):
            await self.app(scope, receive, send)
        elif scope["method"] not in ("GET", "HEAD"):
            await refuse(scope, receive, send, 405, "Only GET and HEAD.", {"Allow": "GET, HEAD"})
        else:
            checks = {"queue": not self.is_stuck()} if scope["path"] == HEALTH else await self._ready()
            await _answer(checks)(scope, receive, send)

    def is_stuck(self) -> bool:
        """True if a computation has been running for longer than any may."""
        queue: Queue = self.application.state.queue
        settings: Settings = self.application.state.settings
        return queue.oldest_seconds > float(getattr(settings, "compute_seconds", 600)) + STUCK_MARGIN_SECONDS

    async def _ready(self) -> dict[str, bool]:
        async with self._looking:
            if time.monotonic() - self._checked > KEPT_SECONDS:
                self._limiter = self._limiter or CapacityLimiter(2)
                looked = dict.fromkeys(WORDS, False)
                with_patience = asyncio.timeout(PATIENCE_SECONDS)
                try:
                    async with with_patience:
                        looked = await to_thread.run_sync(self._look, limiter=self._limiter, abandon_on_cancel=True)
                except TimeoutError:  # the disk does not answer
                    pass
                self._checks, self._checked = looked, time.monotonic()
            return {**self._checks, "queue": not self.is_stuck()}

    def _look(self) -> dict[str, bool]:
        data = self.application.state.settings.data
        services = getattr(self.application.state, "replica", None)
        record: AccessRecord | None = getattr(self.application.state, "record", None)
        return {
            "index": services is not None and services.engine.training() is not None,
            "queue": True,
            "disk": _can_write(data),
            "space": _has_room(data),
            "record": record is None or record.is_kept,
        }


def _answer(checks: dict[str, bool]) -> JSONResponse:
    wrong = [WORDS[name] for name, good in checks.items() if not good]
    content: dict[str, Any] = {"status": "failing" if wrong else "ok", "checks": checks}
    if wrong:
        content["detail"] = f"{'; '.join(wrong)}.".capitalize()
    return JSONResponse(content, 503 if wrong else 200)


def _can_write(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        return False
    return True


def _has_room(folder: Path) -> bool:
    try:
        return shutil.disk_usage(folder).free >= ROOM_BYTES
    except OSError:
        return False
