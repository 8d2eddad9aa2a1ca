"""A process that computes for the server, so that a computation can be ended without ending the server.

    python -m replica_detection_server.computing.worker

The first line of input is the configuration, each further line a request. A request is answered by two lines of output:
the start of its computation, and the result. All are JSON. The process also reports the progress of the null. It ends
with its input, so it never outlives the server.
"""

from __future__ import annotations

import faulthandler
import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from replica_detection.errors import ReplicaDetectionError
from replica_detection.results.schema import Job, to_json
from replica_detection_server.computing.computations import COMPUTATIONS, prepare
from replica_detection_server.computing.services import Services, services_of
from replica_detection_server.settings.configuration import Configuration

# Seconds between two looks for a new index, which is then prepared for the next comparison.
IDLE_SECONDS = 2.0


def main() -> int:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of a library must not be read as an answer
    faulthandler.enable()
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read_to_the_end, args=(lines,), daemon=True).start()
    with suppress(AttributeError, OSError):
        os.nice(2)  # the server's own answers go first
    one_at_a_time = threading.Lock()

    def say(**words: Any) -> None:
        with one_at_a_time:
            print(json.dumps(words), file=out, flush=True)

    def tell_null(job: Job | None, version: str, size: int) -> None:
        say(null=None if job is None else to_json(job), version=version, size=size)

    services = services_of(Configuration.from_json(lines.get()))
    services.engine.tell_null = tell_null
    import monai.transforms  # noqa: F401  the first image needs it, and it takes seconds

    while True:
        # Without an index, or with one that cannot be used, there is nothing to prepare; requests are told why.
        with suppress(ReplicaDetectionError):
            services.engine.prepare()
        with suppress(queue.Empty):
            say(**answer(services, json.loads(lines.get(timeout=IDLE_SECONDS)), lambda: say(began=True)))


def answer(services: Services, request: dict[str, Any], begin: Callable[[], None]) -> dict[str, Any]:
    """The answer to a request: `value` and `file`, or `refused`, or `failed` with the place, or `memory`."""
    from replica_detection_server.incoming.error_responses import kind_of, known_refusal
    from replica_detection_server.records.redaction import where

    try:
        given = request["arguments"]
        if isinstance(given, str):  # too long for a line
            given = json.loads(Path(given).read_text(encoding="utf-8"))
        prepare(services, request["task"])
        begin()
        found = COMPUTATIONS[request["task"]](services, **given)
        return {"value": found.value, "file": None if found.file is None else str(found.file)}
    except MemoryError:
        return {"memory": True}
    except Exception as error:
        refusal = known_refusal(error)
        if refusal is None:
            return {"failed": where(error)}
        return {"refused": [kind_of(refusal).__name__, refusal.detail, refusal.retry_after]}


def _read_to_the_end(lines: queue.SimpleQueue[str]) -> None:
    # Not sys.stdin: its lock would keep the interpreter from ending while this thread waits in it.
    held = b""
    while part := os.read(0, 1 << 16):
        *whole, held = (held + part).split(b"\n")
        for line in whole:
            lines.put(line.decode("utf-8"))
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main())
