"""MadeSource: a collection in memory whose answers a test may delay, refuse or watch."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from functools import lru_cache

import numpy as np

from replica_detection.errors import AccessDeniedError, ReplicaDetectionError
from replica_detection.readers.ratings import Rating
from replica_detection.readers.worklist import Filter, filtered, next_unrated, ordered, with_ratings
from replica_detection.registration.alignment import Alignment
from replica_detection.results.result import IDENTICAL, SMALL_NULL
from replica_detection.results.schema import (
    AgreementReport,
    Comparison,
    Detail,
    Histogram,
    MeasureResult,
    NeighborItem,
    RatingReceipt,
    ReaderAgreement,
    Status,
    ThresholdItem,
    Worklist,
    WorklistItem,
)
from replica_detection.surfaces.distances import compare_surfaces
from ReplicaDetectionLib.CasePair import CaseImage, CasePair, PairSurfaces
from ReplicaDetectionLib.Sources import LoadCancelled, Source

MEASURES = (
    ("ssim", "voxel"),
    ("rmse", "voxel"),
    ("dice", "segmentation"),
    ("asd", "segmentation"),
    ("memorization_index", "feature"),
)
AFFINE = np.diag([-1.5, -1.5, 1.5, 1.0])
AFFINE[:3, 3] = 30.0


@lru_cache
def _shape(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A head with a bleed in it: image (40, 40, 40) float32 and mask uint8. Its place depends on the seed."""
    x, y, z = np.mgrid[:40, :40, :40]
    r = np.random.default_rng(seed)
    image = 40.0 * (((x - 20) / 17) ** 2 + ((y - 20) / 18) ** 2 + ((z - 20) / 16) ** 2 < 1)
    middle, radii = r.uniform(16, 24, 3), r.uniform(4, 8, 3)
    mask = sum(((v - m) / s) ** 2 for v, m, s in zip((x, y, z), middle, radii, strict=True)) < 1
    return (image + 30.0 * mask + r.normal(0, 2, image.shape)).astype(np.float32), mask.astype(np.uint8)


def _image(name: str, seed: int) -> CaseImage:
    return CaseImage(name, _shape(seed)[0], AFFINE, (0.0, 80.0))


class MadeSource(Source):
    """Cases syn_0000, syn_0001, ... by falling score; the match of syn_0007 is train_007.

    Args:
        cases: how many.
        remote: whether it counts as a server.
        masks: whether its pairs have surfaces, which take time to make.
        prefix: what the names of all cases begin with.
        told: whether the status says who may ask for the agreement.

    Attributes:
        problem: an error message for every call until it is "" again.
        hold: while set, reading a pair waits, as a slow server would.
        seconds: how long reading a pair takes.
        apart: whether this reader sees the own ratings alone.
        read: keys of the pairs that were read.
        sent: files that were sent for comparison.
        stored: ratings as they came.
    """

    comparesImages = True

    def __init__(
        self,
        cases: int = 12,
        *,
        remote: bool = True,
        reader: str = "",
        aligned: bool = True,
        masks: bool = True,
        prefix: str = "",
        told: bool = True,
    ):
        self.name = "http://127.0.0.1:8000" if remote else "/data/result"
        self.remote, self.comparesImages, self.aligned, self.masks = remote, remote, aligned, masks
        self.known_reader, self.prefix, self.told = reader, prefix, told
        self.problem, self.seconds = "", 0.0
        self.apart = False
        self.hold = threading.Event()
        self.read: list[tuple[str, str]] = []
        self.sent: list[str] = []
        self.stored: list[Rating] = []
        self._items = tuple(self._item(i, cases) for i in range(cases))

    def _item(self, i: int, cases: int) -> WorklistItem:
        score = 1 - i / max(cases, 1)
        limits = {"replica": 0.8, "suspicious": 0.6, "undecided": 0.55, "novel": -1.0}
        verdict = next(v for v, limit in limits.items() if score > limit)
        reason = SMALL_NULL if verdict == "undecided" else IDENTICAL if i == 2 else ""
        levels = (
            ("voxel", "segmentation") if verdict == "replica" else ("segmentation",) if verdict == "suspicious" else ()
        )
        differ = ("voxel train_001", "segmentation train_002") if i == 1 else ()
        named = f"{self.prefix}syn_{i:04d}", verdict, score, f"{self.prefix}train_{i:03d}"
        return WorklistItem(*named, levels, len(levels), differ, reason=reason)

    def _answer(self) -> None:
        if self.problem:
            raise ReplicaDetectionError(self.problem)

    def status(self) -> Status:
        self._answer()
        count = len(self._items)
        sees_all = not (self.apart and self.told)
        return Status(1, "0.1", count, count, 400, "none", self.known_reader, 10**9, sees_all_ratings=sees_all)

    def worklist(
        self, *, offset=0, limit=50, sort="score", descending=True, verdicts=(), rated="any", reader="", search=""
    ) -> Worklist:
        self._answer()
        chosen = Filter(tuple(verdicts), rated, search)
        items = ordered(filtered(self._rated(reader), chosen, reader), sort, descending=descending)
        return Worklist(len(items), offset, tuple(items[offset : offset + limit]), "v1")

    def next(self, reader="", after="") -> WorklistItem | None:
        self._answer()
        return next_unrated(self._rated(reader), reader, after)

    def _rated(self, reader: str) -> list[WorklistItem]:
        return with_ratings(self._items, self.stored, reader)

    def comparison(self, syntheticId: str, k: int = 10) -> Comparison:
        self._answer()
        item = next(i for i in self._items if i.synthetic_id == syntheticId)
        own = int(syntheticId[-4:])
        measures = []
        for m, (name, level) in enumerate(MEASURES):
            neighbors = tuple(
                NeighborItem(j + 1, f"{self.prefix}train_{own + j + 10 * m * j:03d}", 0.9 - j / 20, 0.1 + j / 20)
                for j in range(k)
            )
            p = min(1.0, 0.01 * (own + 1) * (m + 1))
            said = (Detail("MI", f"{own + 4}"), Detail("nearest", "<train>")) if level == "feature" else ()
            found = (item.nearest_training_id, 0.9, 0.1, 0.4, p, p, item.verdict, neighbors, said)
            measures.append(MeasureResult(name, level, *found))
        return Comparison(
            syntheticId, item.verdict, item.score, item.nearest_training_id, item.levels_flagged, item.levels_differ,
            tuple(measures), "v1", reason=item.reason,
        )  # fmt: skip

    def pair(self, syntheticId, trainingId="", *, progress=lambda *a: None, cancelled=lambda: False) -> CasePair:
        self._answer()
        end = time.monotonic() + self.seconds
        while self.hold.is_set() or time.monotonic() < end:
            progress("reading the training image", 3, 8)
            if cancelled():
                raise LoadCancelled("given up")
            time.sleep(0.005)
        self.read.append((syntheticId, trainingId))
        comparison = self.comparison(syntheticId)
        return self._pair(comparison, trainingId or comparison.nearest_training_id)

    def _pair(self, comparison: Comparison, training: str) -> CasePair:
        seed, other_seed = int(comparison.synthetic_id[-4:]), 1000 + int(training[-3:])
        own, other = _image(comparison.synthetic_id, seed), _image(training, other_seed)
        alignment, surfaces = None, None
        if self.aligned:
            moved = ((1.0, 0.0, 0.0, 4.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
            alignment = Alignment(moved, (False,) * 3, 1.0, (0.0,) * 3, (4.0, 0.0, 0.0), 0.9, 0.7, 1.0)
        if self.masks:
            found = compare_surfaces(_shape(seed)[1], _shape(other_seed)[1], AFFINE)
            distances = (found.first_to_second, found.second_to_first)
            surfaces = PairSurfaces(found.first, found.second, distances, distances if self.aligned else None)
        problem = "" if self.masks else "The synthetic image has no mask."
        return CasePair(comparison, own, other, surfaces=surfaces, surfaces_problem=problem, alignment=alignment)

    def histograms(self) -> list[Histogram]:
        self._answer()
        r = np.random.default_rng(0)
        ids = tuple(i.synthetic_id for i in self._items)
        made = [("", 1.6, r.normal(1, 1, len(ids)), r.normal(0, 1, 60))]
        made += [(name, 0.6, r.uniform(0.2, 1, len(ids)), r.uniform(0.5, 1, 60)) for name, _ in MEASURES]
        return [Histogram(n, ids, tuple(map(float, s)), tuple(map(float, z)), t) for n, t, s, z in made]

    def saveRating(self, rating: Rating) -> RatingReceipt:
        self._answer()
        if rating.rating_id not in {r.rating_id for r in self.stored}:
            self.stored.append(replace(rating, created="2026-01-01T00:00:00+00:00"))
        return RatingReceipt(rating.rating_id, rating.reader, "2026-01-01T00:00:00+00:00")

    def ratings(self, reader="", syntheticId="") -> list[Rating]:
        self._answer()
        latest = {(r.reader, r.synthetic_id, r.training_id): r for r in self.stored}
        return [r for r in latest.values() if reader in ("", r.reader) and syntheticId in ("", r.synthetic_id)]

    def agreement(self) -> AgreementReport:
        self._answer()
        if self.apart:
            raise AccessDeniedError("ask a reviewer", status=403)
        pair = ReaderAgreement(("anna", "ben"), 20, 85.0, 0.7, 0.81)
        threshold = ThresholdItem("dice", "youden", 0.43, 0.9, 0.95, 0.85, 0.8, 0.97)
        return AgreementReport(("anna", "ben"), 20, 6, (pair,), (threshold,), "Consensus: the median of the readers.")

    def compareImage(self, path: str, mask: str = "", k: int = 10) -> Comparison:
        self._answer()
        self.sent += [path, *([mask] if mask else [])]
        return replace(self.comparison("syn_0000"), synthetic_id="image")

    def pairWith(self, comparison, image, trainingId="", mask="") -> CasePair:
        self._answer()
        found = self._pair(replace(comparison, synthetic_id="syn_0000"), trainingId or comparison.nearest_training_id)
        return replace(found, comparison=comparison, synthetic=replace(found.synthetic, id="image"))
