"""The same run with poorer masks."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from Core.made_masks import blobs
from Core.made_runs import planted_folders, planted_run
from replica_detection.audit.mask_quality import (
    AS_GIVEN,
    DEGRADATIONS,
    degraded_masks,
    write_mask_quality,
)
from replica_detection.errors import ConfigurationError
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = planted_folders(tmp_path_factory.mktemp("masks"), masks=True)
    result = planted_run(folder, masks=True)
    index = TrainingIndex.open(folder / "result" / "index.rdindex")
    synthetic = Cohort.read(folder / "synthetic", masks=folder / "synthetic_masks")
    return result, index, synthetic, degraded_masks(result, index, synthetic)


def test_degradations_do_what_their_names_say():
    mask, rng = blobs(3, 1, (30, 28, 26))[0].astype(bool), np.random.default_rng(0)
    small, large = DEGRADATIONS["eroded by 1"](mask, rng), DEGRADATIONS["dilated by 1"](mask, rng)
    assert (small < mask).any() and (small <= mask).all() and (mask <= large).all() and (mask < large).any()
    assert (DEGRADATIONS["eroded by 2"](mask, rng) <= small).all()
    noisy = DEGRADATIONS["border noise 50 %"](mask, rng)
    border = large & ~small
    assert (noisy[~border] == mask[~border]).all()
    assert (noisy[border] != mask[border]).mean() == pytest.approx(0.5, abs=0.05)


def test_masks_as_given_reproduce_the_run(run):
    result, _, _, rows = run
    given = {r.measure: r for r in rows if r.degradation == AS_GIVEN}
    assert set(given) == {m.name for m in result.run.measures if m.level == "segmentation"}
    flagged = {c.synthetic_id for c in result.summary if c.verdict in ("replica", "suspicious")}
    for name, row in given.items():
        own = {m.synthetic_id: m for m in result.matches if m.measure == name}
        assert (row.dice_with_given, row.nearest_kept) == (1, 1)
        assert row.median_ratio == pytest.approx(np.median([m.ratio for m in own.values()]))
        threshold = result.run.definitions[name].threshold
        assert row.flagged_replicas == pytest.approx(np.mean([own[c].ratio <= threshold for c in flagged]))


def test_worse_masks_find_less(run):
    _, _, _, rows = run
    dice = {r.degradation: r for r in rows if r.measure == "dice"}
    assert dice[AS_GIVEN].flagged_replicas > 0.9 > dice["eroded by 2"].flagged_replicas
    assert dice["eroded by 2"].dice_with_given < dice["eroded by 1"].dice_with_given < 1
    assert dice["eroded by 2"].median_ratio > dice[AS_GIVEN].median_ratio


def test_readers_replicas_are_the_reference_where_they_are_given(run):
    result, index, synthetic, rows = run
    chosen = {c.synthetic_id: c.synthetic_id < "copy_04" for c in result.summary[:12]}
    other = degraded_masks(result, index, synthetic, chosen)
    assert [r.median_ratio for r in other] == [r.median_ratio for r in rows]
    threshold = result.run.definitions["dice"].threshold
    ratios = {m.synthetic_id: m.ratio for m in result.matches if m.measure == "dice"}
    assert other[0].flagged_others == np.mean([ratios[c] <= threshold for c, yes in chosen.items() if not yes])


def test_without_a_threshold_nothing_is_flagged_and_nothing_is_cleared(run):
    """A null too small for a threshold; an undecided image is neither a replica nor another one."""
    result, index, synthetic, rows = run
    measures = tuple(replace(m, threshold=np.nan) for m in result.run.measures)
    found = degraded_masks(replace(result, run=replace(result.run, measures=measures)), index, synthetic)
    assert all(np.isnan([r.flagged_replicas, r.flagged_others]).all() for r in found)
    assert [r.auroc for r in found] == [r.auroc for r in rows]
    replicas = [c.synthetic_id for c in result.summary if c.verdict == "replica"]
    summary = tuple(replace(c, verdict="undecided") if c.synthetic_id == replicas[0] else c for c in result.summary)
    known = {c.synthetic_id: c.verdict in ("replica", "suspicious") for c in summary if c.verdict != "undecided"}
    undecided = degraded_masks(replace(result, summary=summary), index, synthetic)
    assert repr(undecided) == repr(degraded_masks(result, index, synthetic, known))


def test_a_mask_that_vanishes_has_no_surface_and_no_overlap(run):
    result, index, synthetic, _ = run
    DEGRADATIONS["gone"] = lambda mask, rng: np.zeros_like(mask)
    try:
        rows = degraded_masks(result, index, synthetic)
    finally:
        del DEGRADATIONS["gone"]
    gone = {r.measure: r for r in rows if r.degradation == "gone"}
    assert (gone["asd"].cases, gone["asd"].left_out, gone["asd"].dice_with_given) == (0, 18, 0)
    assert (gone["dice"].cases, gone["dice"].median_ratio, gone["dice"].flagged_replicas) == (18, 1, 0)


def test_table_and_plot(run, tmp_path):
    rows = run[-1]
    write_mask_quality(rows, tmp_path / "new")
    table = list(csv.DictReader((tmp_path / "new" / "mask_quality.csv").open(encoding="utf-8")))
    assert len(table) == len(rows) == len(DEGRADATIONS) * 5
    assert (tmp_path / "new" / "mask_quality.png").read_bytes()[:4] == b"\x89PNG"


def test_a_run_without_masks_cannot_be_asked(tmp_path):
    result = planted_run(planted_folders(tmp_path))
    index = TrainingIndex.open(tmp_path / "result" / "index.rdindex")
    with pytest.raises(ConfigurationError, match="no measure of masks"):
        degraded_masks(result, index, Cohort.read(tmp_path / "synthetic"))
