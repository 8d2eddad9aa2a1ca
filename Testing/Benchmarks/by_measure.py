"""`python Testing/Benchmarks/by_measure.py RESULT TRUTH [RESULT TRUTH ...]`: what each measure finds, by kind of copy.

RESULT is an output folder of `replica-detection detect`, TRUTH a CSV `synthetic_id,kind,training_id,transform` (kind:
replica or novel) that says which synthetic image is a changed copy of which training image. For each measure and
change: the share flagged (p <= alpha), the share whose nearest training image is the right one, and the AUROC of the
ratio against the novel images; means over the pairs of arguments.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from replica_detection.results.result import DetectionResult

Shares = tuple[float, float, float]


def by_measure(result: DetectionResult, truth: Sequence[dict[str, str]]) -> dict[tuple[str, str], Shares]:
    """(flagged, right match, AUROC) by measure and change; for `novel` the last two are NaN."""
    found: dict[tuple[str, str], Shares] = {}
    for measure in dict.fromkeys(m.measure for m in result.matches):
        rows = {m.synthetic_id: m for m in result.matches if m.measure == measure}
        novel = [_score(rows[t["synthetic_id"]].ratio) for t in truth if t["kind"] == "novel"]
        for change in dict.fromkeys(t["transform"] for t in truth):
            group = [(rows[t["synthetic_id"]], t) for t in truth if t["transform"] == change]
            flagged = np.mean([m.p_value <= result.run.alpha for m, _ in group])
            right = np.mean([m.nearest_training_id == t["training_id"] for m, t in group])
            area = _auroc([_score(m.ratio) for m, _ in group], novel)
            known = group[0][1]["kind"] == "replica"
            found[measure, change] = (float(flagged), float(right), area) if known else (float(flagged), np.nan, np.nan)
    return found


def _score(ratio: float) -> float:
    return -np.inf if np.isnan(ratio) else -ratio


def _auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Probability that a positive lies above a negative; ties count one half."""
    p, n = np.array(positive)[:, None], np.array(negative)[None]
    return float((p > n).mean() + 0.5 * (p == n).mean())


def main(words: Sequence[str]) -> int:
    if not words or len(words) % 2:
        print(__doc__)
        return 2
    runs = []
    for folder, table in zip(words[::2], words[1::2], strict=True):
        with Path(table).open(encoding="utf-8") as f:
            runs.append(by_measure(DetectionResult.read(Path(folder)), list(csv.DictReader(f))))
    measures = list(dict.fromkeys(m for m, _ in runs[0]))
    changes = sorted(dict.fromkeys(c for _, c in runs[0]), key=lambda change: change == "novel")
    print("| change | " + " | ".join(f"`{m}`" for m in measures) + " |")
    print("|---" * (len(measures) + 1) + "|")
    for change in changes:
        cells = [np.mean([run[m, change] for run in runs], 0) for m in measures]
        print(f"| {change} | " + " | ".join(_cell(c) for c in cells) + " |")
    copies = [change for change in changes if change != "novel"]
    cells = [np.mean([run[m, c] for run in runs for c in copies], 0) for m in measures]
    print("| mean of the copies | " + " | ".join(_cell(c) for c in cells) + " |")
    return 0


def _cell(shares: np.ndarray) -> str:
    return " ".join(f"{share:.2f}" for share in shares if not np.isnan(share))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
