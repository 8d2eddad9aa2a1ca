"""ServerSource: a replica-detection server, through its client."""

from __future__ import annotations
