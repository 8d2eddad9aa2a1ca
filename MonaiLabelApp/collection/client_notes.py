"""Notes of clients on images and labels: bounded, and never a replacement for the server's own information."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from replica_detection_server.errors import InvalidRequestError
from replica_detection_server.incoming.names import json_fault

# Names under which the server describes an image or label, its own and those of MONAI Label's clients.
_OF_MONAI_LABEL = (
    "checksum",
    "ext",
    "id",
    "image",
    "label",
    "name",
    "path",
    "session",
    "session_id",
    "strategy",
    "tag",
)
_OF_THE_SCORES = (
    "index_version",
    "levels_flagged",
    "nearest_training_id",
    "replica_reason",
    "replica_score",
    "replica_verdict",
    "score",
)
RESERVED = frozenset((*_OF_MONAI_LABEL, *_OF_THE_SCORES, "notes", "replica_note", "training", "ts", "user", "verdict"))
LARGEST_BYTES, MOST, LONGEST_NAME, DEEPEST = 32 * 1024, 1000, 100, 8


def require_own_names(notes: Mapping[str, Any], present: Mapping[str, Any]) -> dict[str, Any]:
    """The notes without what a client read from the server and sends back unchanged.

    Args:
        present: what the server says of the image or label now.

    Raises:
        InvalidRequestError: for a note under a name that is the server's, with another value.
    """
    taken = sorted(name for name in notes if name in RESERVED and notes[name] != present.get(name))
    if taken:
        raise InvalidRequestError(f"The server itself says {', '.join(taken)}: give these notes other names.")
    return {name: value for name, value in notes.items() if name not in RESERVED}


def require_bounded(notes: Mapping[str, Any]) -> None:
    """Refuses (422) notes on one image or label that are too many, too large or too deep, all together."""
    if len(notes) > MOST:
        raise InvalidRequestError(f"There may be {MOST} notes on one image or label at most.")
    if any(len(name) > LONGEST_NAME for name in notes):
        raise InvalidRequestError(f"The name of a note may have {LONGEST_NAME} letters at most.")
    # First the depth: writing out what is too deep fails.
    if fault := json_fault(dict(notes), deepest=DEEPEST):
        raise InvalidRequestError(f"The notes cannot be kept: the value {fault}.")
    if len(json.dumps(notes, ensure_ascii=False, default=str).encode()) > LARGEST_BYTES:
        raise InvalidRequestError(f"All notes on one image or label may have {LARGEST_BYTES // 1024} KiB at most.")


def with_what_is_known(stored: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Stored notes as they are handed out: under each reserved name what the server knows, or nothing.

    Args:
        name: of the image's or label's file.
    """
    found = {key: value for key, value in stored.items() if key not in RESERVED}
    if isinstance(stored.get("ts"), int):
        found["ts"] = stored["ts"]
    if isinstance(stored.get("user"), str):
        found["user"] = stored["user"]
    if isinstance(stored.get("strategy"), dict):  # MONAI Label's own launch counts with it
        found["strategy"] = stored["strategy"]
    return {**found, "name": name}
