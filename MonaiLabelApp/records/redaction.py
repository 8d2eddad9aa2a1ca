"""Logs without patients: messages of MONAI Label name images and folders, so only their place in the code is kept."""

from __future__ import annotations

import html
import json
import logging
import logging.config
import logging.handlers
import re
import traceback
from collections.abc import Iterable
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Any

from replica_detection_server.records.log_sampling import Sampler
from replica_detection_server.util.named_files import open_regular

OURS = ("replica_detection", "replica_detection_server", "uvicorn")
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
MAX_BYTES, KEPT = 5 << 20, 5
# What MONAI Label's jobs print, each kind under a name of its own.
OF_JOBS = ("task_train", "task_scoring", "task_batch_infer")
# No client causes these lines, and an administrator needs each of them.
NEVER_COUNTED = ("replica_detection_server.serving.reloading",)
# Text of a caller cannot break a line of the log.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class WithoutPatients(logging.Filter):
    """Removes the text of every record that is not ours, and the message of every exception."""

    def __init__(self, scrub: Scrub):
        super().__init__()
        self.scrub = scrub
        self.repeated = Sampler("warnings")

    def filter(self, record: logging.LogRecord) -> bool:
        ours = record.name.split(".")[0] in OURS
        if not ours and record.levelno < logging.WARNING:
            return False
        if isinstance(record.args, tuple):
            record.args = tuple(type(a).__name__ if isinstance(a, BaseException) else a for a in record.args)
        message = record.getMessage() if ours else f"said something (line {record.lineno})"
        # uvicorn passes on what ends an application as text.
        if message.startswith("Traceback"):
            message = "a traceback without its message: see the line before"
        if record.exc_info and record.exc_info[1] is not None:
            message += f": {where(record.exc_info[1])}"
        # A record comes twice, for the console and the file; the first pass already made it one line.
        message = _CONTROL.sub(lambda found: repr(found.group())[1:-1], self.scrub.text(message))
        record.msg, record.args, record.exc_info, record.exc_text = message, (), None, None
        record.stack_info = None
        return self._is_not_too_much(record)

    def _is_not_too_much(self, record: logging.LogRecord) -> bool:
        """Warnings from one place that come again and again are counted: a client can cause some without a key."""
        if record.levelno < logging.WARNING or record.levelno >= logging.CRITICAL or record.name in NEVER_COUNTED:
            return True
        # Once for the console and the file.
        if "admitted" not in record.__dict__:
            said = self.repeated.summary()
            record.__dict__["admitted"] = self.repeated.admits(f"{record.name} line {record.lineno}")
            if said:
                record.msg = f"{said}; {record.msg}"
        return bool(record.__dict__["admitted"])


class LogFile(logging.handlers.RotatingFileHandler):
    """A log that rotates, in a regular file; it never waits for a pipe or device of that name."""

    def reopen(self) -> None:
        """Continues in the file that has the name now. Raises OSError; then the old one stays in use."""
        opened = self._open()
        self.acquire()
        try:
            before, self.stream = self.stream, opened
        finally:
            self.release()
        if before is not None:
            before.close()

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding=self.encoding, opener=open_regular)


def log_files() -> list[LogFile]:
    """The log files that the server writes."""
    handlers = [handler for name in ("", *OF_JOBS) for handler in logging.getLogger(name).handlers]
    return [handler for handler in dict.fromkeys(handlers) if isinstance(handler, LogFile)]


class Scrub:
    """Replaces each known folder by a name.

    Args:
        folders: absolute path -> what to write instead, such as "<studies>".
    """

    def __init__(self, folders: Iterable[tuple[str, str]]):
        # The longest first: a folder may lie inside another.
        self.names = {path.rstrip("/\\"): name for path, name in sorted(folders, key=lambda f: -len(f[0]))}
        self.names.pop("", None)
        # JSON writes the backslashes of Windows twice, and other letters as numbers; HTML has its own & and quotes.
        for path, name in list(self.names.items()):
            as_html = html.escape(path)
            for written in (
                path.replace("\\", "\\\\"),
                json.dumps(path)[1:-1],
                as_html,
                as_html.replace("&#x27;", "&#39;"),
            ):
                self.names.setdefault(written, name)
        whole = "|".join(re.escape(path) for path in sorted(self.names, key=len, reverse=True))
        self._pattern = re.compile(rf"(?:{whole})(?![^/\\\"'\s,;:)\]}}><&])") if whole else None

    def text(self, text: str) -> str:
        return self._pattern.sub(lambda found: self.names[found.group()], text) if self._pattern else text

    def body(self, body: bytes) -> bytes:
        """The same for a reply in UTF-8; bytes that are none are passed on."""
        return self.text(body.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def where(error: BaseException) -> str:
    """The kind of an exception and the functions it passed, without its message, which may name a patient."""
    steps = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in _frames(error.__traceback__)]
    return f"{type(error).__name__} at " + " < ".join(reversed(steps[-6:]))


def configuration(folder: Path, scrub: Scrub) -> dict[str, Any]:
    """For `logging.config.dictConfig` and uvicorn: one line each to the console and to a file that rotates.

    What MONAI Label's jobs print is kept as it is, in a file of its own: it may name cases and folders.
    """
    handlers = ("console", "file")
    kept = {"formatter": "line", "filters": ["without_patients"]}
    rotates = {"()": LogFile, "maxBytes": MAX_BYTES, "backupCount": KEPT, "encoding": "utf-8"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"without_patients": {"()": WithoutPatients, "scrub": scrub}},
        "formatters": {"line": {"format": FORMAT}},
        "handlers": {
            "console": {"class": "logging.StreamHandler", **kept},
            "file": {"filename": str(folder / "server.log"), **rotates, **kept},
            "jobs": {"filename": str(folder / "jobs.log"), "formatter": "line", **rotates},
        },
        "root": {"level": "INFO", "handlers": list(handlers)},
        "loggers": {
            "uvicorn.access": {"level": "CRITICAL"},
            "replica_detection_server": {"level": "INFO"},
            **{name: {"level": "INFO", "handlers": ["jobs"], "propagate": False} for name in OF_JOBS},
            # It has a way of its own to the console, where it shows functions of Python.
            "timeloop": {"filters": ["without_patients"]},
        },
    }


def _frames(trace: TracebackType | None) -> list[traceback.FrameSummary]:
    return list(traceback.extract_tb(trace))
