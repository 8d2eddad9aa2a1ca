"""Values as JSON takes them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel


def plain(value: Any) -> Any:
    """A value as JSON takes it.

    Arrays and numbers of NumPy become Python's, NaN and infinity null, paths their last part, any collection (the lines
    of a job are a deque) a list. An object without a text of its own becomes null, not Python's notation.
    """
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, BaseModel):
        return plain(dict(value))
    if isinstance(value, Mapping):
        # Copied at once: another thread may change a job.
        return {k if isinstance(k, str) else json.dumps(plain(k)): plain(v) for k, v in list(value.items())}
    if isinstance(value, PurePath):
        return value.name
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "replace")
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Collection):
        return [plain(v) for v in list(value)]
    # Without a __str__ of its own, an object's text is its place in memory or Python's notation.
    return None if type(value).__str__ is object.__str__ else str(value)
