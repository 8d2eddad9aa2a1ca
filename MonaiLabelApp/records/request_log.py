"""One line in the log for each request: route, status, time, address, reader, and a code for each case."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from starlette.datastructures import QueryParams
from starlette.types import Scope

from replica_detection_server.access.identity import NOBODY
from replica_detection_server.records.case_codes import CaseCodes
from replica_detection_server.records.log_sampling import Sampler
from replica_detection_server.settings.case_ids import TRAINING
from replica_detection_server.util.addresses import address_of, neighbourhood

logger = logging.getLogger("replica_detection_server.requests")

_IN_QUERY, _WITH_QUERY = ("image", "id", "label"), ("/datastore/", "/infer/")


class RequestLog:
    """Writes the lines. Those of refused requests, and of callers without a name where readers have names, are sampled.

    Args:
        codes: makes the codes of cases; None leaves the cases out.
        named: True if callers have names on this server.
    """

    def __init__(self, codes: CaseCodes | None = None, *, named: bool = False):
        self.codes, self.named = codes, named
        self._refused = Sampler("refused")
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, scope: Scope, status: int, seconds: float) -> None:
        self._say_refused()
        identity: Any = scope.get("state", {}).get("identity", NOBODY)
        address = address_of(scope)
        if (status >= 400 or (self.named and not identity.reader)) and not self._refused.admits(neighbourhood(address)):
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(self._refused.seconds, self._minute_is_over)
            return
        # The route's template, not the path: the path names a case.
        template = getattr(scope.get("route"), "path", "-")
        if scope["path"].startswith("/replica/") and template != "-":
            template = f"/replica{template.removeprefix('/replica')}"
        reader = f" {identity.reader!r}" if identity.reader else ""
        codes = "" if self.codes is None else "".join(f" {self.codes.code(case)}" for case in cases_of(scope))
        who = f"{address}{reader}" + (f" case{codes}" if codes else "")
        logger.info("%s %s %d %.0f ms %s", scope["method"], template, status, seconds * 1000, who)

    def _minute_is_over(self) -> None:
        self._timer = None
        self._say_refused(now=True)

    def _say_refused(self, *, now: bool = False) -> None:
        if said := self._refused.summary(now=now):
            logger.info("%s", said)


def cases_of(scope: Scope) -> list[str]:
    """Ids of the cases that a request names, training cases as `train:<id>`. Those of a route that was found alone."""
    if scope.get("route") is None:
        return []
    return list(dict.fromkeys(case for case in _named(scope) if 0 < len(case) <= 500))


def _named(scope: Scope) -> Iterator[str]:
    path: Mapping[str, Any] = scope.get("path_params", {})
    for name in ("synthetic_id", "case_id"):
        yield str(path.get(name, ""))
    if "training_id" in path:
        yield TRAINING + str(path["training_id"]).removeprefix(TRAINING)
    if scope["path"].startswith(_WITH_QUERY):
        # As the routes read it, which take the last of a name.
        query = QueryParams(scope["query_string"])
        for name in _IN_QUERY:
            yield query.get(name, "")
