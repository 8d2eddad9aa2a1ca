"""Progress and failure of a task, as lines of the log for people.

MONAI Label passes on everything that a job prints; the server shows its clients only these lines.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from replica_detection.progress import Progress
from replica_detection_server.util.progress import throttled

TOLD = "replica_detection.told"
# Begin of the last line of a failed job.
FAILED = "failed: "
UNFORESEEN = f"{FAILED}the server's jobs.log says where"


def logged(task: str) -> Progress:
    """A line every two seconds, at each new stage and at its end."""
    logger = logging.getLogger(f"{TOLD}.{task}")
    return throttled(lambda stage, done, total: logger.info("%s: %d of %d", stage, done, total), 2.0)


@contextmanager
def telling_failures(of: str = "") -> Iterator[None]:
    """Logs the reason of a failure in the block, before the exception is printed with its traceback.

    Args:
        of: the image that failed, where others go on.
    """
    from replica_detection_server.incoming.error_responses import known_refusal

    try:
        yield
    except Exception as error:
        refusal = known_refusal(error)
        words = UNFORESEEN if refusal is None else f"{FAILED}{refusal.detail}"
        logging.getLogger(TOLD).error("%s", f"{of} {words}" if of else words)
        raise
