"""Lines for users in the output of MONAI Label's jobs: see `lib/progress.py`.

MONAI Label itself keeps the last lines unchanged, with tracebacks and paths of modules. Those are in jobs.log.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Mapping
from typing import Any

from monailabel.utils.async_tasks.utils import processes

from replica_detection_server.lib.progress import FAILED, TOLD, UNFORESEEN
from replica_detection_server.records.redaction import OF_JOBS

KEPT = 20
# As MONAI Label's jobs write a line: time, process, thread, level, logger and its line, message.
_LINE = re.compile(rf"\[[^\]]*\] \[\d+\] \[[^\]]*\] \[[A-Z]+\] \({re.escape(TOLD)}[.\w]*:\d+\) - (.*)")


class _JobLines(logging.Handler):
    """Keeps the last lines of each job."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, deque[str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        found = _LINE.fullmatch(record.getMessage())
        job = next(iter(processes(record.name.removeprefix("task_"))), None)
        if found is not None and job is not None:
            self.lines.setdefault(job, deque(maxlen=KEPT)).append(found[1])


_told = _JobLines()
for _name in OF_JOBS:
    logging.getLogger(_name).addHandler(_told)


def for_people(job: Mapping[str, Any]) -> dict[str, Any]:
    """A job of MONAI Label as it is shown. A failed one says why."""
    if "details" not in job:  # it has not begun
        return dict(job)
    lines = list(_told.lines.get(job["id"], ()))
    if job["status"] == "ERROR" and not any(FAILED in line for line in lines):
        lines.append(UNFORESEEN)
    return {**job, "details": lines}
