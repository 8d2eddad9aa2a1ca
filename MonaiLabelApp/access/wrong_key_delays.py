"""Delays after wrong keys. Only the refusal waits: a client with a right key never does.

A hashed key must be checked first, see hashing_queue.py.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass

from replica_detection_server.util.addresses import neighbourhood

FREE_TRIES = 5
FIRST_SECONDS, MOST_SECONDS = 0.5, 8.0
# An address is forgotten after this time without a request, or after this many newer addresses.
FORGOTTEN_SECONDS = 900.0
REMEMBERED = 10_000
# Number of refusals that wait at once, in all and for one address; further ones are answered at once, with 429. As many
# as there may be connections, for a refusal that does not wait only brings the next try.
WAITING, WAITING_EACH = 500, 100


@dataclass
class _Tries:
    wrong: int = 0
    last: float = 0.0
    waiting: int = 0


class Delays:
    """Counts wrong keys by address. Used from the event loop alone."""

    def __init__(self) -> None:
        self._tries: OrderedDict[str, _Tries] = OrderedDict()
        self._waiting = 0

    async def wrong_key(self, address: str) -> bool:
        """Notes a wrong key and waits as long as its refusal must; False where too many wait already."""
        tries = self._noted(neighbourhood(address))
        seconds = self.seconds(tries.wrong)
        if not seconds:
            return True
        if self._waiting >= WAITING or tries.waiting >= WAITING_EACH:
            return False
        tries.waiting, self._waiting = tries.waiting + 1, self._waiting + 1
        try:
            await asyncio.sleep(seconds)
        finally:
            tries.waiting, self._waiting = tries.waiting - 1, self._waiting - 1
        return True

    @staticmethod
    def seconds(wrong: int) -> float:
        """Seconds that the refusal of the nth wrong key waits."""
        beyond = wrong - FREE_TRIES
        return min(MOST_SECONDS, FIRST_SECONDS * 2.0 ** min(beyond - 1, 30)) if beyond > 0 else 0.0

    def _noted(self, client: str) -> _Tries:
        now = time.monotonic()
        tries = self._tries.setdefault(client, _Tries())
        self._tries.move_to_end(client)
        if now - tries.last > FORGOTTEN_SECONDS:
            tries.wrong = 0
        tries.wrong, tries.last = tries.wrong + 1, now
        while len(self._tries) > REMEMBERED:
            self._tries.popitem(last=False)
        return tries
