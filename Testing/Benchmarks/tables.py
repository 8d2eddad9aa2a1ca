"""Peak memory of a comparison against its numbers of queries and training cases, on simulated features.

A full table of distances would take 8 bytes a pair and measure. What is kept of each row is small, and what a part of
the comparison holds has a bound of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SIZES = ((500, 5_000), (2_000, 5_000), (2_000, 20_000))
MEASURES = ("mae", "rmse")

COMPARE = """
import json, resource, sys
from types import SimpleNamespace
import numpy as np
from replica_detection.detection.comparison import compare
from replica_detection.detection.queries import QueryBlock, cut
from replica_detection.measures import make_measures
from replica_detection.preparation.prepare import plan
from replica_detection.preparation.profiles import PROFILES

cases, training, names = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(",")
GRID, ROWS = (8, 8, 8), 1000
volume = SimpleNamespace(array=np.zeros(GRID, np.float32), affine=np.eye(4), spacing=(1.0,) * 3, trusted=True)
measures = make_measures(names, plan(PROFILES["generic"], [volume]))

def simulated(first, count):
    return {"image": np.random.default_rng(first).random((count, *GRID), np.float32)}

class Index:
    '''The part of a TrainingIndex that a comparison reads; its features are drawn when they are asked for.'''
    folder = None
    ids = tuple(f"t{n}" for n in range(training))
    patients = np.arange(training)
    entries = tuple(SimpleNamespace(patient=None) for _ in range(training))
    def __len__(self):
        return training
    def block_rows(self, names, limit=0):
        return ROWS
    def blocks(self, names):
        for start in range(0, training, ROWS):
            yield start, simulated(start, min(ROWS, training - start))

class Part:
    def __init__(self, rows):
        self.rows = rows
    def __len__(self):
        return self.rows.stop - self.rows.start
    def load(self, index, measures):
        ids = tuple(f"q{n}" for n in range(self.rows.start, self.rows.stop))
        return QueryBlock(ids, (None,) * len(ids), simulated(10**6 + self.rows.start, len(ids)))

class Queries:
    def __len__(self):
        return cases
    def parts(self, index, measures):
        return [Part(rows) for rows in cut(cases, index, measures)]

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = compare(Queries(), Index(), measures)
near = found.by_measure[names[0]].near
# The last query against brute force.
last = Queries().parts(Index(), measures)[-1].load(None, None).features["image"][-1]
by_hand = np.concatenate([np.abs(block["image"] - last).mean((1, 2, 3)) for _, block in Index().blocks([])])
assert near.index[-1] == by_hand.argmin() and abs(near.distance[-1] - by_hand.min()) < 1e-6
print(json.dumps([before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))
"""


def report() -> bool:
    """Prints peak memory for growing cohorts; false if it grows by a tenth of what full tables would take."""
    unit = 1 if sys.platform == "darwin" else 1024
    print(f"peak memory of a comparison, simulated features, {', '.join(MEASURES)}")
    peaks = []
    for cases, training in SIZES:
        arguments = [str(cases), str(training), ",".join(MEASURES)]
        command = [sys.executable, "-c", COMPARE, *arguments]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, cwd=Path(__file__).parent)
        before, peak = json.loads(done.stdout)
        tables = cases * training * 8 * len(MEASURES) / 2**20
        peaks.append((peak * unit / 2**20, tables))
        print(
            f"  {cases:5d} x {training:6d} cases: {before * unit / 2**20:5.0f} MiB before, {peaks[-1][0]:5.0f} at the "
            f"peak (full tables alone: {tables:5.0f})"
        )
    growth = (peaks[-1][0] - peaks[0][0]) / (peaks[-1][1] - peaks[0][1])
    print(f"  growth per MiB of full tables: {growth:.3f} MiB (kept: 1 or more)")
    return growth <= 0.1
