"""The names that a request may carry: ids, tags, models, sessions, file extensions.

An id is only looked up among the known cases. The patterns limit what a lookup sees, and what becomes part of a file
name when an image or a label is added. All text of a request is brought into Unicode's composed form before a route
sees it, as the ids were.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, urlencode

from fastapi import HTTPException
from pydantic import AfterValidator, StringConstraints
from pydantic_core import PydanticCustomError

from replica_detection.io.paths import composed
from replica_detection_server.incoming.request_faults import FORMS, OURS

# Cohorts take every file name as id, so a lookup may hold spaces and letters of any language, but no path.
KNOWN_ID = r"^[^/\\\x00-\x1f\x7f]{1,255}$"
NEW_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
TAG = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
TASK = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
FORMS[NEW_ID] = "use letters A to Z, digits, '.', '_' and '-', at most 128; the first is a letter or digit"
FORMS[TAG] = "use letters A to Z, digits, '_' and '-', at most 64; the first is a letter or digit"
SESSION = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
# Clients send the parameter that they do not use empty.
NONE = Literal[""]

# Windows opens a device under these names, whatever the extension.
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}

LABELS = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".png")
QUERIES = (".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".jpg", ".jpeg", ".dcm")
ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar")

MAX_JSON = 64 * 1024
MAX_DEPTH = 16


def _no_dots(name: str) -> str:
    if name in (".", ".."):
        raise PydanticCustomError(OURS, "names a folder")
    return name


def _new(name: str) -> str:
    if ".." in name or name.endswith(".") or name.split(".", 1)[0].lower() in DEVICES:
        raise PydanticCustomError(OURS, "cannot be a file name")
    return name


KnownId = Annotated[str, StringConstraints(pattern=KNOWN_ID), AfterValidator(_no_dots)]
NewId = Annotated[str, StringConstraints(pattern=NEW_ID), AfterValidator(_new)]
Tag = Annotated[str, StringConstraints(pattern=TAG), AfterValidator(_new)]
TaskName = Annotated[str, StringConstraints(pattern=TASK)]
SessionId = Annotated[str, StringConstraints(pattern=SESSION)]


def extension(filename: str | None, allowed: tuple[str, ...]) -> str:
    """The longest of `allowed` that an uploaded file's name ends with, in lower case; nothing else of the name is used.

    Raises:
        HTTPException: 422 where it ends with none of them.
    """
    name = PurePosixPath((filename or "").replace("\\", "/")).name.lower()
    found = max((e for e in allowed if name.endswith(e)), key=len, default=None)
    if found is None:
        raise HTTPException(422, f"The file's name must end with one of {', '.join(allowed)}.")
    return found


def json_object(text: str, what: str) -> dict[str, Any]:
    """A form field that holds a JSON object.

    Raises:
        HTTPException: 422 where it is none, is larger than MAX_JSON or deeper than MAX_DEPTH, or holds what could not
            be written out again: NaN, infinity, half of a surrogate pair.
    """
    if len(text) > MAX_JSON:
        raise HTTPException(422, f"{what} is larger than {MAX_JSON // 1024} KiB.")
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise HTTPException(422, f"{what} is no JSON.") from None
    if not isinstance(value, dict):
        raise HTTPException(422, f"{what} must be a JSON object.")
    if fault := json_fault(value):
        raise HTTPException(422, f"{what} {fault}.")
    return dict(composed_json(value))


def composed_json(value: Any) -> Any:
    """A parsed JSON value with all its texts in Unicode's composed form (NFC)."""
    if isinstance(value, str):
        return composed(value)
    if isinstance(value, dict):
        return {composed(key): composed_json(part) for key, part in value.items()}
    return [composed_json(part) for part in value] if isinstance(value, list) else value


def composed_query(query: bytes) -> bytes:
    """The parameters of an address in the composed form; the very same bytes where they are in it already."""
    given = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    made = [(composed(name), composed(value)) for name, value in given]
    return query if made == given else urlencode(made).encode()


def json_fault(value: Any, depth: int = 0, deepest: int = MAX_DEPTH) -> str:
    """The reason why a parsed JSON value could not be written out again, as a clause; empty where it could."""
    if depth > deepest:
        return f"is nested deeper than {deepest} levels"
    if isinstance(value, float) and not math.isfinite(value):
        return "holds a number that JSON does not have"
    if isinstance(value, str):
        return "holds text that is not valid Unicode" if re.search("[\ud800-\udfff\x00]", value) else ""
    parts: Any = ()
    if isinstance(value, dict):
        if len({composed(key) for key in value}) < len(value):
            return "holds a name twice, in two spellings of its accents"
        parts = (*value, *value.values())
    elif isinstance(value, list):
        parts = value
    return next((fault for part in parts if (fault := json_fault(part, depth + 1, deepest))), "")
