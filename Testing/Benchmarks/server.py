"""One comparison against an index of 400 cases on the real server: what its parts take, and what it does to others."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np

TRAINING, UNSEEN, SHAPE = 400, 40, (48, 48, 48)
COPIED = "train_123"
REPEATS = 5


def report() -> bool:
    """Prints seconds of each part; false where the copied training case is not found, or HTTP says another thing."""
    if importlib.util.find_spec("monailabel") is None:
        print("server: not measured, MONAI Label is not installed (requirements-server-bare.txt)")
        return True
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from replica_detection.client import ReplicaClient
    from Server.running import running_server

    grid = " x ".join(map(str, SHAPE))
    print(f"server: one image against {TRAINING} training cases of {grid} with masks, null of {UNSEEN} unseen cases")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        conf = _collections(folder)
        with running_server(
            folder / "studies", work=folder, training=folder / "training", conf=conf, hardened=True
        ) as server:
            client = ReplicaClient(server.url)
            _say("start to first answer", [server.ready_seconds])
            start = time.perf_counter()
            made = [client.wait(job.id, every=0.2) for job in client.jobs()]
            _say("index and null made", [time.perf_counter() - start])
            image, mask = (folder / part / "copy.nii" for part in ("studies", "studies_masks"))
            inside = _parts(folder, image, mask)
            outside = _over_http(client, image, mask)
            print(f"  {'memory of the server':42s} {server.memory_bytes / 2**20:9.0f} MiB")
    found = outside.measures
    same = [(m.measure, m.value) for m in found] == [(m.measure, m.value) for m in inside]
    right = all(m.nearest_training_id == COPIED and m.distance == 0 for m in found)
    if not (same and right and all(job.state == "done" for job in made)):
        print("  WRONG: the copied training case was not found at distance 0, or not by both ways")
    return same and right


def _parts(folder: Path, image: Path, mask: Path) -> Any:
    """Times the steps of `Detector.detect` one by one in this process, on the server's own index."""
    from replica_detection.detection.comparison import compare
    from replica_detection.detection.detector import Detector
    from replica_detection.detection.queries import CohortQueries
    from replica_detection.detection.verdicts import assign_verdicts
    from replica_detection.index.training_index import TrainingIndex
    from replica_detection.io.cohort import Case, Cohort
    from replica_detection.measures import features_of, needed_features
    from replica_detection.preparation.loading import load_prepared

    index = TrainingIndex.open(folder / "data" / "training.rdindex")
    unseen = Cohort.read(folder / "unseen", masks=folder / "unseen_masks")
    detector = Detector(index, validation=unseen)
    case = Case("copy", (image,), mask)
    cohort = Cohort(image.parent, (case,))

    def prepared():
        return next(load_prepared([case], index.preparation, with_masks=True))[1]

    _timed("read and prepare the image", prepared)
    read = prepared()
    query = _timed("its features", lambda: features_of(read, detector.measures))
    names = needed_features(detector.measures)
    blocks = [block for _, block in index.blocks(names)]
    _timed("read the index", lambda: [None for _ in index.blocks(names)])
    one = {name: array[None] for name, array in query.items()}
    for measure in detector.measures:
        _timed(f"distances: {measure.name}", lambda m=measure: [m.distances(one, block) for block in blocks])
    chosen = {"alpha": detector.options.alpha}
    found = compare(CohortQueries(cohort, index), index, detector.measures, k=detector.options.k)
    _timed("statistics", lambda: assign_verdicts(found, detector.null, detector.measures, index, **chosen))
    result = _timed("whole comparison, in one process", lambda: detector.detect(cohort))
    return result.matches


def _over_http(client: Any, image: Path, mask: Path) -> Any:
    """Times the same over HTTP, and MONAI Label's own page of information meanwhile."""
    seconds: list[float] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            start = time.perf_counter()
            urllib.request.urlopen(f"{client.url}/info/", timeout=30).read()
            seconds.append(time.perf_counter() - start)

    found = _timed("whole comparison, uploaded over HTTP", lambda: client.compare_file(image, mask=mask))
    _timed("page of the status over HTTP", client.status)
    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(REPEATS):
        client.compare_file(image, mask=mask)
    stop.set()
    watcher.join()
    _say("/info/ while comparisons run", seconds)
    return found


def _timed(what: str, call: Callable[[], Any]) -> Any:
    """Prints the median of some calls after a first one; returns what the last one gave."""
    seconds, result = [], call()
    for _ in range(REPEATS):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    _say(what, seconds)
    return result


def _say(what: str, seconds: list[float]) -> None:
    spread = f", p95 {quantiles(seconds, n=20)[-1]:.3f} s" if len(seconds) > REPEATS else ""
    print(f"  {what:42s} {median(seconds):9.3f} s{spread}", flush=True)


def _collections(folder: Path) -> dict[str, Path]:
    """Writes both collections with masks; `studies/copy` is a training case again. Options for the server."""
    from Core import made_up

    for part, prefix, size, seed in (("training", "train", TRAINING, 0), ("unseen", "unseen", UNSEEN, 1000)):
        for n, mask in enumerate(_masks(seed, size)):
            made_up.write(folder / part / f"{prefix}_{n:03d}.nii", made_up.volume(seed + n, SHAPE))
            made_up.write(folder / f"{part}_masks" / f"{prefix}_{n:03d}.nii", mask)
    for part in ("", "_masks"):
        copy = folder / f"studies{part}" / "copy.nii"
        copy.parent.mkdir()
        copy.write_bytes((folder / f"training{part}" / f"{COPIED}.nii").read_bytes())
    named = {"validation": "unseen", "masks": "studies_masks", "training_masks": "training_masks"}
    return {key: folder / value for key, value in {**named, "validation_masks": "unseen_masks"}.items()}


def _masks(seed: int, size: int) -> Iterator[np.ndarray]:
    from Core import made_masks

    for n in range(size):
        yield made_masks.blobs(seed + n, 1, SHAPE)[0]
