"""Limits on the parts of a form: reading many large fields would hold up everybody."""

from __future__ import annotations

from typing import Any

from starlette import requests
from starlette.formparsers import MultiPartParser

from replica_detection_server.incoming.names import MAX_JSON

# A session takes the slices of a series as files; of fields no route has more than three.
MAX_FILES, MAX_FIELDS = 2048, 20
# A field holds at most an object of MAX_JSON letters; what is a little larger is refused by its route, by name.
MAX_FIELD = 2 * MAX_JSON


class BoundedParser(MultiPartParser):
    """Starlette's, whatever limits it is asked for. Its own let a form hold 1,000 fields of 1 MiB."""

    def __init__(self, headers: Any, stream: Any, **limits: Any):
        super().__init__(
            headers, stream, **{**limits, "max_files": MAX_FILES, "max_fields": MAX_FIELDS, "max_part_size": MAX_FIELD}
        )


def bound() -> None:
    """Makes all requests of this process read their forms so. The parser is asked for by Starlette's own name: of the
    versions of FastAPI that this server works with, some cannot be told limits."""
    requests.MultiPartParser = BoundedParser  # type: ignore[misc]
