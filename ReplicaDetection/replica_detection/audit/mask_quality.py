"""Effect of poor masks on the segmentation level: the comparison with the synthetic masks eroded, dilated, noisy.

RELICT names mask quality as a limit of its segmentation level and leaves its size open.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from replica_detection.audit.reader_study import Ratings, ratings_and_files
from replica_detection.detection.comparison import compare
from replica_detection.detection.queries import QueryBlock, cut
from replica_detection.detection.run_inputs import as_result, index_of, synthetic_of
from replica_detection.errors import ConfigurationError
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort, Problem
from replica_detection.measures import Measure, features_of, needed_features
from replica_detection.preparation.loading import load_prepared
from replica_detection.preparation.prepare import PreparedImage
from replica_detection.progress import Progress, silent
from replica_detection.readers.consensus import consensus, resolved
from replica_detection.results.result import FLAGGED, DetectionResult
from replica_detection.statistics.distance_ratio import Nearest
from replica_detection.statistics.thresholds import auroc
from replica_detection.util.csv_tables import write_csv
from replica_detection.util.files import atomic_write

AS_GIVEN = "as given"
_COLUMNS = (
    "degradation",
    "measure",
    "cases",
    "left_out",
    "dice_with_given",
    "nearest_kept",
    "median_ratio",
    "flagged_replicas",
    "flagged_others",
    "auroc",
)


def _morphology(name: str, steps: int) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    def change(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        from scipy import ndimage

        return getattr(ndimage, f"binary_{name}")(mask, iterations=steps)

    return change


def _noise(share: float) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    """Each voxel on either side of the border changes sides with probability `share`."""

    def change(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        from scipy import ndimage

        border = ndimage.binary_dilation(mask) & ~ndimage.binary_erosion(mask)
        return mask ^ (border & (rng.random(mask.shape) < share))

    return change


# Steps are voxels of the grid; the border of the image counts as outside for erosion.
DEGRADATIONS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    AS_GIVEN: lambda mask, rng: mask,
    "eroded by 1": _morphology("erosion", 1),
    "eroded by 2": _morphology("erosion", 2),
    "dilated by 1": _morphology("dilation", 1),
    "dilated by 2": _morphology("dilation", 2),
    "border noise 20 %": _noise(0.2),
    "border noise 50 %": _noise(0.5),
}


@dataclass(frozen=True)
class DegradedMasks:
    """A measure with one kind of degraded masks.

    `dice_with_given` is the mean Dice of the degraded and the given mask, `nearest_kept` the share of cases that keep
    their nearest training case; `flagged_` are shares at or below the run's own threshold, among the replicas and
    the other cases of the reference, NaN where the null is too small for a threshold; `left_out` cases have no mask,
    or none that is left.
    """

    degradation: str
    measure: str
    cases: int
    left_out: int
    dice_with_given: float
    nearest_kept: float
    median_ratio: float
    flagged_replicas: float
    flagged_others: float
    auroc: float


@dataclass(frozen=True)
class MaskQuality:
    """Rows for each kind of degradation and measure, the masks as given first."""

    rows: tuple[DegradedMasks, ...]

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Writes `mask_quality.csv` and `mask_quality.png` into `folder` (made if missing)."""
        write_mask_quality(self.rows, Path(folder))


def mask_quality(
    result: DetectionResult | str | os.PathLike[str],
    ratings: Ratings | None = None,
    *,
    rule: str = "majority",
    seed: int = 0,
    progress: Progress = silent,
) -> MaskQuality:
    """Shows how much the segmentation level of a finished run depends on good masks.

    The synthetic images are compared once more with their masks eroded, dilated and made noisy; the training masks
    stay.

    Args:
        result: a finished run, or its folder; its index and images must be where they were.
        ratings: as `calibrate` takes them: the readers' replicas are what is to be found. None: the images that the run
            itself flagged, against those that it did not; undecided ones do not count.
        rule: how several readers become one label.
        seed: another seed makes other noise.
        progress: called with (stage, done, total).

    Returns:
        A row for each kind of degradation and measure; `write(folder)` writes them as a table and a plot.

    Raises:
        ConfigurationError: the run has no measure of the segmentation level.
        InputError: index, images or ratings cannot be read.

    Example:
        ```python
        import numpy as np
        import replica_detection as rd

        rng = np.random.default_rng(0)
        training, images = rng.random((12, 16, 16, 16)), rng.random((4, 16, 16, 16))
        images[0] = training[0]
        training, images = (rd.Cohort.from_arrays(a, spacing=1, masks=a > 0.6) for a in (training, images))
        result = rd.detect(images, training, measures=["dice"])
        quality = rd.mask_quality(result)
        assert quality.rows[0].degradation == "as given"
        ```
    """
    read = as_result(result)
    replicas = None
    if ratings:
        labels = consensus(resolved(ratings_and_files(ratings)[0], read)[0], rule)
        replicas = {case: label.replica for case, label in labels.items()}
    rows = degraded_masks(read, index_of(read), synthetic_of(read), replicas, seed=seed, progress=progress)
    return MaskQuality(tuple(rows))


def degraded_masks(
    result: DetectionResult,
    index: TrainingIndex,
    synthetic: Cohort,
    replicas: dict[str, bool] | None = None,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> list[DegradedMasks]:
    """The segmentation level of a finished run again, with the synthetic masks degraded on the grid of the index.

    Training masks and the null stay as they were: the question is what a poor mask of a synthetic image does.

    Args:
        index: the one that the run used.
        synthetic: its synthetic cohort, with masks if they came from files.
        replicas: which cases are replicas, by readers; cases that are missing do not count. None: the flagged cases of
            the run itself; its undecided cases do not count.

    Raises:
        ConfigurationError: the run has no measure of the segmentation level.
    """
    measures = [m for m in index.measures(None, aligning=False) if m.needs_mask and m.name in result.run.definitions]
    if not measures:
        raise ConfigurationError("this run has no measure of masks; run detect with masks or a segmenter first")
    if replicas is None:
        replicas = {c.synthetic_id: c.verdict in FLAGGED for c in result.summary if c.verdict != "undecided"}
    masks = _given_masks(index, synthetic, progress)
    rows: list[DegradedMasks] = []
    given: dict[str, Nearest] = {}
    for number, (name, degrade) in enumerate(DEGRADATIONS.items()):
        queries = _MaskQueries(index, masks, degrade, seed)
        stage = f"masks {number + 1}/{len(DEGRADATIONS)}"
        found = compare(queries, index, measures, k=result.run.k, stage=stage, progress=progress)
        dice = _mean_dice(queries)
        for m in measures:
            near = found.by_measure[m.name].near
            given.setdefault(m.name, near)
            threshold = result.run.definitions[m.name].threshold
            rows.append(_row(name, m.name, found.ids, near, given[m.name], threshold, replicas, dice))
    return rows


def write_mask_quality(rows: Sequence[DegradedMasks], folder: Path) -> None:
    """Writes `mask_quality.csv` and `mask_quality.png` into `folder` (made if missing)."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "mask_quality.csv", _COLUMNS, (vars(r) for r in rows))
    with atomic_write(folder / "mask_quality.png", "wb") as f:
        _figure(rows).savefig(f, format="png", dpi=150)


@dataclass(frozen=True)
class _GivenMask:
    """The foreground of a case on the grid, eight voxels a byte; None for a case without a mask."""

    id: str
    patient: str | None
    packed: np.ndarray | None

    def unpacked(self, grid: tuple[int, ...]) -> np.ndarray | None:
        if self.packed is None:
            return None
        return np.unpackbits(self.packed, count=int(np.prod(grid))).reshape(grid).astype(bool)


def _given_masks(index: TrainingIndex, synthetic: Cohort, progress: Progress) -> list[_GivenMask]:
    masks = []
    loaded = load_prepared(synthetic.cases, index.preparation, with_masks=True, segmenter=index.segmenter)
    for done, (case, prepared) in enumerate(loaded, 1):
        if not isinstance(prepared, Problem):
            packed = None if prepared.mask is None else np.packbits(prepared.mask > 0)
            masks.append(_GivenMask(case.id, case.patient, packed))
        progress("reading", done, len(synthetic))
    return masks


@dataclass(frozen=True)
class _MaskQueries:
    """Cases of which only the mask is known, degraded on the way."""

    index: TrainingIndex
    masks: Sequence[_GivenMask]
    degrade: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    seed: int

    def __len__(self) -> int:
        return len(self.masks)

    def parts(self, index: TrainingIndex, measures: Sequence[Measure]) -> list[_MaskPart]:
        return [_MaskPart(self, range(part.start, part.stop)) for part in cut(len(self.masks), index, measures)]

    def degraded(self, position: int) -> np.ndarray | None:
        mask = self.masks[position].unpacked(self.index.preparation.grid)
        # A generator for each case, so that its noise does not depend on the size of a block.
        return None if mask is None else self.degrade(mask, np.random.default_rng([self.seed, position]))


@dataclass(frozen=True)
class _MaskPart:
    queries: _MaskQueries
    positions: range

    def __len__(self) -> int:
        return len(self.positions)

    def load(self, index: TrainingIndex, measures: Sequence[Measure]) -> QueryBlock:
        cases = [self.queries.masks[i] for i in self.positions]
        prepared = [
            PreparedImage(np.empty(0, np.float32), None if m is None else m.astype(np.uint8))
            for m in map(self.queries.degraded, self.positions)
        ]
        rows = [features_of(p, measures) for p in prepared]
        features = {n: np.stack([r[n] for r in rows]) for n in needed_features(measures)}
        return QueryBlock(tuple(m.id for m in cases), tuple(m.patient for m in cases), features)


def _mean_dice(queries: _MaskQueries) -> float:
    values = []
    for position, given in enumerate(queries.masks):
        before, after = given.unpacked(queries.index.preparation.grid), queries.degraded(position)
        if before is not None and after is not None and before.any():
            values.append(2 * float((before & after).sum()) / float(before.sum() + after.sum()))
    return float(np.mean(values)) if values else float("nan")


def _row(
    degradation: str,
    measure: str,
    ids: Sequence[str],
    near: Nearest,
    given: Nearest,
    threshold: float,
    replicas: dict[str, bool],
    dice: float,
) -> DegradedMasks:
    known = ~np.isnan(near.ratio)
    counted = np.array([i in replicas for i in ids], bool)
    replica = np.array([replicas.get(i, False) for i in ids], bool)
    flagged = near.ratio <= threshold
    judged = counted & ~np.isnan(threshold)  # without a threshold nothing is flagged, and nothing is cleared

    def share(of: np.ndarray, among: np.ndarray) -> float:
        return float(of[among].mean()) if among.any() else float("nan")

    return DegradedMasks(
        degradation,
        measure,
        int(known.sum()),
        int((~known).sum()),
        dice,
        share(near.index == given.index, given.index >= 0),
        float(np.median(near.ratio[known])) if known.any() else float("nan"),
        share(flagged, judged & replica),
        share(flagged, judged & ~replica),
        auroc(near.ratio[counted], replica[counted]),
    )


def _figure(rows: Sequence[DegradedMasks]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    names = list(dict.fromkeys(r.degradation for r in rows))
    panels = (("auroc", "AUROC of the ratio"), ("flagged_replicas", "replicas still flagged"))
    for axes, (field, title) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        for measure in dict.fromkeys(r.measure for r in rows):
            of_measure = [r for r in rows if r.measure == measure]
            axes.plot(range(len(of_measure)), [getattr(r, field) for r in of_measure], "o-", label=measure, alpha=0.8)
        axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
        axes.set(title=title, ylim=(-0.03, 1.05))
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False)
    return figure
