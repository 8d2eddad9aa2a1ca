"""Progress of a task as lines of the log, of which MONAI Label shows the last twenty."""

from __future__ import annotations

import logging

from replica_detection.progress import Progress
from replica_detection_server.progress import seldom


def logged(task: str) -> Progress:
    """A line every two seconds, at each new stage and at its end."""
    logger = logging.getLogger(f"replica_detection.{task}")
    return seldom(lambda stage, done, total: logger.info("%s: %d of %d", stage, done, total), 2.0)
