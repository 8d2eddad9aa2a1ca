"""Errors that the server raises on purpose."""

from __future__ import annotations

from replica_detection.errors import ReplicaDetectionError


class AlreadyRunningError(ReplicaDetectionError):
    """A job of this kind is under way."""
