"""Eight readers at work while the server is killed and started again: no acknowledged rating is lost or doubled.

REPLICA_DETECTION_LOAD_SECONDS sets how long they work. Latencies are printed (`pytest -s`), not judged.
"""

from __future__ import annotations

import os
import random
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

from replica_detection.client import ReplicaClient
from replica_detection.errors import ServerBusyError, ServerError, UnreachableError
from Server import collections_on_disk
from Server.collections_on_disk import ANNA, BERND, COPIED, COPY, NEW, Collections
from Server.running import free_port

pytestmark = pytest.mark.slow

READERS = 8
SECONDS = float(os.environ.get("REPLICA_DETECTION_LOAD_SECONDS", "20"))
STUDIES = (COPY, *(f"syn_{n:03d}" for n in range(NEW)))


@dataclass
class Reader:
    """One reader who rates, looks and compares without a pause. A rating without an answer is sent again."""

    number: int
    url: str
    collections: Collections
    folder: Path
    acknowledged: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)

    def work(self, stop: threading.Event) -> None:
        client = ReplicaClient(self.url, key=(ANNA, BERND)[self.number % 2], retries=0)
        choice = random.Random(self.number)
        unanswered: list[tuple[str, int, str]] = []
        while not stop.is_set() or unanswered:
            kind = "rate" if unanswered else choice.choices(("rate", "look", "compare"), (6, 3, 1))[0]
            if kind == "rate" and not unanswered:
                unanswered.append((choice.choice(STUDIES), choice.randint(1, 4), str(uuid.uuid4())))
            try:
                if kind == "rate":
                    study, rating, rating_id = unanswered[-1]
                    client.rate(study, COPIED, rating, rating_id=rating_id)
                    self.acknowledged.append(unanswered.pop()[2])
                elif kind == "look":
                    client.download_image(choice.choice(STUDIES), self.folder)
                    list(client.worklist())
                else:
                    client.compare_file(self.collections.studies / f"{choice.choice(STUDIES)}.nii.gz")
                self.calls[kind] += 1
            except (UnreachableError, ServerBusyError):
                self.calls["busy or away"] += 1
                time.sleep(0.1)
            except ServerError as error:
                self.errors.append(f"{kind}: {error.status} {error}")
                if kind == "rate":
                    unanswered.pop()


def watch_health(url: str, stop: threading.Event, seconds: list[float], errors: list[str]) -> None:
    while not stop.is_set():
        start = time.perf_counter()
        try:
            urllib.request.urlopen(f"{url}/health", timeout=30).read()
            seconds.append(time.perf_counter() - start)
        except urllib.error.HTTPError as error:
            errors.append(f"/health: {error.code}")
        except OSError:  # it was killed and is not back yet
            pass
        time.sleep(0.05)


def test_readers_go_on_after_the_server_was_killed(tmp_path):
    collections = collections_on_disk.make(tmp_path / "collections")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    readers = [Reader(n, url, collections, tmp_path / f"reader-{n}") for n in range(READERS)]
    for reader in readers:
        reader.folder.mkdir()
    stop, health, health_errors = threading.Event(), [], []
    threads = [threading.Thread(target=reader.work, args=(stop,)) for reader in readers]
    threads.append(threading.Thread(target=watch_health, args=(url, stop, health, health_errors)))
    try:
        with collections_on_disk.reviewing(collections, tmp_path / "server", port=port) as server:
            for thread in threads:
                thread.start()
            time.sleep(SECONDS / 2)
            before = sum(len(reader.acknowledged) for reader in readers)
            server.process.kill()
        with collections_on_disk.reviewing(collections, tmp_path / "server", port=port) as server:
            time.sleep(SECONDS / 2)
            stop.set()
            for thread in threads:
                thread.join(120)
            assert not any(thread.is_alive() for thread in threads)
            stored: Counter[str] = Counter()
            for key in (ANNA, BERND):
                mine = ReplicaClient(server.url, key=key).ratings(all=True)
                stored |= Counter(rating.rating_id for rating in mine)
    finally:
        stop.set()
    acknowledged = [rating_id for reader in readers for rating_id in reader.acknowledged]
    calls = sum((reader.calls for reader in readers), Counter())
    p95 = 1e3 * quantiles(health, n=20)[-1]
    print(
        f"\n{dict(calls)}; {before} ratings acknowledged before the kill, {len(acknowledged)} in all, "
        f"{len(stored)} stored; /health {len(health)} x, median {1e3 * median(health):.1f} ms, p95 {p95:.1f} ms"
    )
    assert not health_errors and not [error for reader in readers for error in reader.errors]
    assert 0 < before < len(acknowledged)
    assert set(stored) == set(acknowledged), "a rating was lost, or one was stored that was never answered"
    assert set(stored.values()) == {1}, "a rating was stored twice"
