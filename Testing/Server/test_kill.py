"""The server is killed in the middle of ratings: every rating that it acknowledged is there afterwards, none twice."""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

from replica_detection.client import ReplicaClient
from replica_detection.errors import UnreachableError
from Server import collections_on_disk
from Server.collections_on_disk import ANNA, BERND, COPIED, NEW

pytestmark = pytest.mark.slow

READERS = 4
ROUNDS = 2


@dataclass(frozen=True)
class Sent:
    """A rating by the owner of a key."""

    key: str
    study: str
    rating: int
    rating_id: str

    def send(self, url: str) -> None:
        client = ReplicaClient(url, key=self.key, retries=0)
        client.rate(self.study, COPIED, self.rating, rating_id=self.rating_id)


def rate_until_it_fails(url: str, key: str, acknowledged: list[Sent], unanswered: list[Sent]) -> None:
    for n in range(100_000):
        sent = Sent(key, f"syn_{n % NEW:03d}", 1 + n % 4, str(uuid.uuid4()))
        try:
            sent.send(url)
        except UnreachableError:
            unanswered.append(sent)
            return
        acknowledged.append(sent)


def test_no_acknowledged_rating_is_lost_when_the_server_is_killed(tmp_path):
    collections = collections_on_disk.make(tmp_path / "collections")
    acknowledged: list[Sent] = []
    unanswered: list[Sent] = []
    for _ in range(ROUNDS):
        before = len(acknowledged)
        with collections_on_disk.reviewing(collections, tmp_path / "server") as server:
            readers = [
                threading.Thread(target=rate_until_it_fails, args=(server.url, key, acknowledged, unanswered))
                for key in (ANNA, BERND) * (READERS // 2)
            ]
            for thread in readers:
                thread.start()
            end = time.monotonic() + 60
            while len(acknowledged) - before < 50 and time.monotonic() < end:
                time.sleep(0.01)
            server.process.kill()
            for thread in readers:
                thread.join(60)
            assert len(acknowledged) - before >= 50 and not any(thread.is_alive() for thread in readers)

    with collections_on_disk.reviewing(collections, tmp_path / "server") as server:
        client = ReplicaClient(server.url, key=ANNA)
        stored = Counter(rating.rating_id for rating in client.ratings(all=True))
        assert not {sent.rating_id for sent in acknowledged} - set(stored), "acknowledged ratings were lost"
        assert set(stored.values()) == {1}
        # The readers send again what was not answered, under the same id: whatever became of it, it counts once.
        assert len(unanswered) == ROUNDS * READERS
        for sent in unanswered:
            sent.send(server.url)
        everything = Counter(rating.rating_id for rating in client.ratings(all=True))
    assert set(everything) == {sent.rating_id for sent in (*acknowledged, *unanswered)}
    assert set(everything.values()) == {1}
    print(f"{len(acknowledged)} acknowledged, {len(stored)} found after {ROUNDS} kills, {len(everything)} in the end")
