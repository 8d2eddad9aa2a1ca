"""Eight readers at once: no error but "busy", no lost rating, and light pages that do not wait for heavy work.

REPLICA_DETECTION_LOAD_SECONDS sets how long. Latencies are printed (`pytest -s`), not judged: machines differ.
"""

from __future__ import annotations

import os
import random
import threading
import time
import urllib.request
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

from replica_detection.client import ReplicaClient
from replica_detection.errors import ServerBusyError
from Server import collections_on_disk
from Server.collections_on_disk import ANNA, BERND, COPIED, COPY, NEW, TRAINING, Collections
from Server.running import Server

pytestmark = pytest.mark.slow

READERS = 8
SECONDS = float(os.environ.get("REPLICA_DETECTION_LOAD_SECONDS", "20"))
STUDIES = (COPY, *(f"syn_{n:03d}" for n in range(NEW)))
# How often each is asked for: mostly looking and rating, as readers do, and enough comparisons to fill the queue.
MIX = {"compare": 3, "comparison": 2, "worklist": 3, "rate": 5, "download": 3}


@dataclass
class Notes:
    """What happened; each reader has its own."""

    seconds: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    rated: list[str] = field(default_factory=list)
    busy: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)

    def call(self, kind: str, call: Callable[[], object]) -> bool:
        """Whether it succeeded."""
        start = time.monotonic()
        try:
            call()
        except ServerBusyError:
            self.busy[kind] += 1
            return False
        except Exception as error:
            self.errors.append(f"{kind}: {type(error).__name__}: {error}")
            return False
        self.seconds[kind].append((start, time.monotonic()))
        return True


@pytest.fixture(scope="module")
def collections(tmp_path_factory) -> Collections:
    return collections_on_disk.make(tmp_path_factory.mktemp("collections"), (56, 56, 40))


@pytest.fixture(scope="module")
def server(collections, tmp_path_factory):
    with collections_on_disk.reviewing(collections, tmp_path_factory.mktemp("server")) as running:
        yield running


def reader(n: int, server: Server, collections: Collections, until: float, folder: Path) -> Notes:
    """One reader's session; it goes on from one thing to the next without a pause."""
    client = ReplicaClient(server.url, key=(ANNA, BERND)[n % 2])
    notes, choice = Notes(), random.Random(n)
    kinds, weights = list(MIX), list(MIX.values())
    folder.mkdir()
    while time.monotonic() < until:
        kind, study = choice.choices(kinds, weights)[0], choice.choice(STUDIES)
        training = f"train_{choice.randrange(TRAINING):03d}"
        if kind == "compare":
            image = collections.studies / f"{study}.nii.gz"
            mask = collections.folder / "studies_masks" / image.name
            notes.call(kind, lambda image=image, mask=mask: client.compare_file(image, mask=mask))
        elif kind == "comparison":
            notes.call(kind, lambda study=study: client.comparison(study))
        elif kind == "worklist":
            notes.call(kind, lambda: list(client.worklist(page=2)))
        elif kind == "download":
            case = choice.choice((study, f"train:{training}"))
            notes.call(kind, lambda case=case: client.download_image(case, folder))
        else:
            rating_id = str(uuid.uuid4())
            rating = choice.randint(1, 4)
            if notes.call(
                kind,
                lambda: client.rate(study, training, rating, rating_id=rating_id),  # noqa: B023
            ):
                notes.rated.append(rating_id)
    return notes


def watch(server: Server, stop: threading.Event, pause: float = 0.05, path: str = "/info/") -> Notes:
    """Asks for one page all the while, by default MONAI Label's own with information."""
    request = urllib.request.Request(f"{server.url}{path}", headers={"Authorization": f"Bearer {ANNA}"})
    notes = Notes()
    while not stop.is_set():
        notes.call(path, lambda: urllib.request.urlopen(request, timeout=30).read())
        time.sleep(pause)
    return notes


def in_words(spans: list[tuple[float, float]]) -> str:
    seconds = [1e3 * (end - start) for start, end in spans]
    p95 = quantiles(seconds, n=20)[-1] if len(seconds) > 1 else seconds[0]
    return f"{len(seconds):5d} x, median {median(seconds):7.1f} ms, p95 {p95:7.1f} ms, longest {max(seconds):7.1f} ms"


def run(work: Callable[[], Notes], results: list[Notes]) -> threading.Thread:
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    return thread


def test_light_pages_answer_while_one_comparison_runs(server, collections):
    """In the server's own loop a comparison would hold everything up: no page would be answered while it runs."""
    client = ReplicaClient(server.url, key=ANNA)
    client.comparison(COPY)
    stop, watched, compared = threading.Event(), [], Notes()
    watcher = run(lambda: watch(server, stop, 0.01), watched)
    for study in STUDIES:
        compared.call("comparison", lambda study=study: client.comparison(study))
    stop.set()
    watcher.join()
    infos, compares = watched[0].seconds["/info/"], compared.seconds["comparison"]
    during = [span for span in infos if any(start < span[0] and span[1] < end for start, end in compares)]
    print(f"\n/info/ while one comparison runs: {in_words(during)}\ncomparison: {in_words(compares)}")
    assert len(compares) == len(STUDIES) and not watched[0].errors
    # One may slip in before a comparison begins.
    assert len(during) > 2 * len(compares)


def test_more_comparisons_than_places(server):
    """What does not fit into the queue is told to come back, and a client that comes back gets its answer."""
    client = ReplicaClient(server.url, key=ANNA)
    client.comparison(COPY)
    for retries in (0, 4):
        impatient, notes = ReplicaClient(server.url, key=ANNA, retries=retries), Notes()
        together = threading.Barrier(30)

        def ask(client=impatient, notes=notes, together=together) -> Notes:
            together.wait()
            notes.call("comparison", lambda: client.comparison(COPY))
            return notes

        threads = [run(ask, []) for _ in range(30)]
        for thread in threads:
            thread.join()
        assert not notes.errors and len(notes.seconds["comparison"]) + notes.busy["comparison"] == 30
        assert bool(notes.busy) == (retries == 0), f"{notes.busy} after {retries} retries"


def test_eight_readers_at_once(server, collections, tmp_path):
    client = ReplicaClient(server.url, key=ANNA)
    before = {r.rating_id for r in client.ratings(all=True)}
    stop, watched, results = threading.Event(), [], []
    watchers = [run(lambda path=path: watch(server, stop, path=path), watched) for path in ("/info/", "/health")]
    until = time.monotonic() + SECONDS
    readers = [
        run(lambda n=n: reader(n, server, collections, until, tmp_path / str(n)), results) for n in range(READERS)
    ]
    for thread in readers:
        thread.join()
    stop.set()
    for watcher in watchers:
        watcher.join()
    assert len(results) == READERS, "a reader's thread ended with an exception"

    for kind in MIX:
        spans = [span for notes in results for span in notes.seconds[kind]]
        busy = sum(notes.busy[kind] for notes in results)
        print(f"\n{kind:10s} {in_words(spans)}, busy {busy}", end="")
        assert spans, f"no {kind} succeeded in {SECONDS:g} s"
    for path, spans in sorted((path, spans) for notes in watched for path, spans in notes.seconds.items()):
        print(f"\n{path:10s} {in_words(spans)}", end="")
    print(f"\n{server.memory_bytes / 2**20:.0f} MiB at the end")
    assert not [error for notes in (*results, *watched) for error in notes.errors]

    acknowledged = [rating_id for notes in results for rating_id in notes.rated]
    stored = Counter(r.rating_id for r in client.ratings(all=True) if r.rating_id not in before)
    print(f"{len(acknowledged)} ratings acknowledged, {len(stored)} stored")
    assert not set(acknowledged) - set(stored), "ratings were lost"
    assert max(stored.values()) == 1
    # A rating that met a busy server to the last may have been stored; none other may.
    assert len(stored) - len(acknowledged) <= sum(notes.busy["rate"] for notes in results)
    assert client.comparison(COPY).nearest_training_id == COPIED, "the server still works"
