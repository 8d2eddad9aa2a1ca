"""Order in which keys are hashed: wrong keys must not delay a right one.

Only the hash tells them apart. Fairness therefore depends on the client and on the line of the key file that is tried.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from replica_detection_server.access.wrong_key_delays import REMEMBERED

# Number of hashes made at once, and of checks that wait: as many as there may be connections. Waiting costs nothing.
AT_ONCE, WAITING = 2, 500
T = TypeVar("T")


class BusyError(Exception):
    """Too many keys or tokens are being checked."""

    def __init__(self) -> None:
        super().__init__("Too many keys or tokens are being checked. Try again in a moment.")


@dataclass(eq=False)
class _Place:
    """`whose`: the client and the line."""

    whose: tuple[str, str]
    ready: asyncio.Future[None]
    begun: bool = False


class HashingQueue:
    """Makes hashes in threads of their own. Used from the event loop alone.

    Each client has one check at a time. Next is the client that has tried the fewest keys on a line, waiting ones
    included; among equals, the last to arrive. A client that guesses sends its next key after the answer to the last
    one, and so stays behind the others. Where all places are taken, the check that would come last is refused.
    """

    def __init__(self) -> None:
        self._waiting: list[_Place] = []
        self._busy: set[str] = set()
        # Number of keys that were wrong, or are not yet checked, by client and line.
        self._tried: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._limiter: CapacityLimiter | None = None

    async def run(self, client: str, line: str, check: Callable[[], T | None]) -> T | None:
        """Returns the result of `check`; None counts as a wrong key. Raises BusyError where too many wait."""
        place = _Place((client, line), asyncio.get_running_loop().create_future())
        self._note(place.whose)
        self._waiting.append(place)
        self._begin()
        if len(self._waiting) > WAITING:
            # max takes the first of equals, which came first.
            last = max(self._waiting, key=self._tries)
            self._waiting.remove(last)
            last.ready.set_exception(BusyError())
        try:
            await place.ready
            if self._limiter is None:
                self._limiter = CapacityLimiter(AT_ONCE)
            found = await to_thread.run_sync(check, limiter=self._limiter)
        finally:
            if place.begun:
                self._busy.discard(client)
                self._begin()
            elif place in self._waiting:
                self._waiting.remove(place)
        if found is not None:
            self._tried.pop(place.whose, None)
        return found

    def _note(self, whose: tuple[str, str]) -> None:
        self._tried[whose] = self._tried.pop(whose, 0) + 1
        if len(self._tried) > REMEMBERED:
            self._tried.popitem(last=False)

    def _tries(self, place: _Place) -> int:
        return self._tried.get(place.whose, 0)

    def _begin(self) -> None:
        while len(self._busy) < AT_ONCE:
            free = [place for place in reversed(self._waiting) if place.whose[0] not in self._busy]
            if not free:
                return
            chosen = min(free, key=self._tries)
            self._waiting.remove(chosen)
            self._busy.add(chosen.whose[0])
            chosen.begun = True
            if not chosen.ready.done():
                chosen.ready.set_result(None)
