"""The segmentation level through the whole pipeline: masks from files, from a segmenter, or missing."""

from dataclasses import dataclass

import numpy as np
import pytest

from Core.made_up import volume, write
from replica_detection.detection.detector import detect
from replica_detection.detection.options import DetectionOptions
from replica_detection.errors import ConfigurationError, IndexFormatError
from replica_detection.index.build import build_index, serves
from replica_detection.index.options import IndexOptions
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort
from replica_detection.io.volume import Volume, read_volume
from replica_detection.measures.segmentation import has_mask
from replica_detection.report.pair_loader import PairLoader
from replica_detection.segmentation import SEGMENTERS, Segmenter, make_segmenter, register

VOXEL = ("mae", "rmse", "ssim", "ncc_aligned", "lncc_aligned")
FEATURE = ("embedding_cosine", "embedding_rmse", "embedding_pearson")
SEGMENTATION = ["dice", "asd", "asd_surfel", "hd95", "cldice"]


@pytest.fixture(scope="module", autouse=True)
def threshold():
    """A segmenter of a few lines, registered as a user would."""

    @register("bright")
    @dataclass(frozen=True)
    class Bright(Segmenter):
        above: float = 700.0
        name = "bright"
        version = 1
        labels = {1: "bright"}  # noqa: RUF012

        def segment(self, volume: Volume) -> np.ndarray:
            return (volume.array > self.above).astype(np.uint8)

    yield
    del SEGMENTERS["bright"]


def anatomy(seed: int, background: int) -> np.ndarray:
    """Bright structures of one seed over the texture of another."""
    structure = volume(seed) > 700
    return np.where(structure, volume(seed), 0.6 * volume(10_000 + background)).astype(np.float32)


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("masks")
    for n in range(30):
        write(folder / "training" / f"case_{n:03d}.nii.gz", anatomy(n, n))
    for n in range(24):
        write(folder / "validation" / f"unseen_{n:03d}.nii.gz", anatomy(500 + n, 500 + n))
    for n in range(6):
        write(folder / "synthetic" / f"structure_{n:03d}.nii.gz", anatomy(n, 900 + n))
        write(folder / "synthetic" / f"new_{n:03d}.nii.gz", anatomy(700 + n, 700 + n))
    for part in ("training", "validation", "synthetic"):
        for path in (folder / part).iterdir():
            case = Cohort.read(path).cases[0]
            array = read_volume(case).array
            write(folder / f"{part}_masks" / path.name, (array > 700).astype(np.uint8))
    return folder


def read(folder, part, masks=True):
    return Cohort.read(folder / part, masks=folder / f"{part}_masks" if masks else None)


def test_same_structures_in_another_background_are_found_by_the_segmentation_level(cohorts, tmp_path):
    index = build_index(read(cohorts, "training"), tmp_path / "x.rdindex")
    assert index.measure_names == (*VOXEL, *FEATURE, *SEGMENTATION, "dice_aligned")
    assert {e.mask for e in index.entries} == {"file"}
    result = detect(read(cohorts, "synthetic"), index, validation=read(cohorts, "validation"))
    for case in result.summary:
        kind, number = case.synthetic_id.split("_")
        if kind == "structure":
            assert case.verdict == "replica"
            assert "segmentation" in case.levels_flagged
            assert case.nearest_training_id == f"case_{number}"
    assert sum(c.verdict != "novel" for c in result.summary if c.synthetic_id.startswith("new")) <= 1
    exact = [m for m in result.matches if m.measure == "dice" and m.synthetic_id.startswith("structure")]
    assert all(m.value == 1 and m.distance == 0 for m in exact)


def test_segmenter_makes_the_missing_masks_and_is_remembered(cohorts, tmp_path):
    """Made by the segmenter or given as the same masks in files: the same distances."""
    made = build_index(
        read(cohorts, "training", masks=False), tmp_path / "made.rdindex", segmenter=make_segmenter("bright")
    )
    assert {e.mask for e in made.entries} == {"bright"}
    assert made.segmenter_settings == {"name": "bright", "version": 1, "above": 700.0}
    given = build_index(read(cohorts, "training"), tmp_path / "given.rdindex")
    options = DetectionOptions(measures=tuple(SEGMENTATION))
    a = detect(read(cohorts, "synthetic", masks=False), TrainingIndex.open(made.folder), options=options)
    b = detect(read(cohorts, "synthetic"), given, options=options)
    assert a.summary == b.summary
    training = read(cohorts, "training", masks=False)
    assert serves(made, training, IndexOptions(segmenter="bright"))
    assert not serves(made, training, IndexOptions(segmenter=make_segmenter("bright", above=600.0)))
    assert not serves(made, training, IndexOptions())


def test_own_masks_win_over_the_segmenter(cohorts, tmp_path):
    folder = tmp_path / "some_masks"
    write(folder / "case_003.nii.gz", np.pad(np.ones((4, 4, 4), np.uint8), ((5, 15), (5, 19), (5, 11))))
    cohort = Cohort.read(cohorts / "training", masks=folder)
    index = build_index(cohort, tmp_path / "x.rdindex", segmenter=make_segmenter("bright"))
    assert [e.mask for e in index.entries].count("file") == 1
    assert index.features([3], ["mask"])["mask"].sum() == 64


def test_changed_mask_means_another_index(cohorts, tmp_path):
    folder = tmp_path / "one_mask"
    path = write(folder / "case_003.nii.gz", np.pad(np.ones((4, 4, 4), np.uint8), ((5, 15), (5, 19), (5, 11))))
    index = build_index(Cohort.read(cohorts / "training", masks=folder), tmp_path / "x.rdindex")
    assert serves(index, Cohort.read(cohorts / "training", masks=folder), IndexOptions())
    write(path, np.pad(np.ones((4, 4, 4), np.uint8), ((6, 14), (5, 19), (5, 11))))
    assert not serves(index, Cohort.read(cohorts / "training", masks=folder), IndexOptions())


def test_images_without_masks_are_judged_by_the_other_levels_and_said_so(cohorts, tmp_path):
    index = build_index(read(cohorts, "training"), tmp_path / "x.rdindex")
    result = detect(read(cohorts, "synthetic", masks=False), index, validation=read(cohorts, "validation"))
    assert all(m.verdict == "undefined" for m in result.matches if m.level == "segmentation")
    assert all(c.verdict != "undefined" for c in result.summary)
    assert any(w.startswith("dice: 12 of 12 images could not be compared") for w in result.run.warnings)
    no_null = detect(read(cohorts, "synthetic"), index, validation=read(cohorts, "validation", masks=False))
    assert any(w.startswith("dice: no validation scan could be compared") for w in no_null.run.warnings)
    assert no_null.run.null.kind == "pooled"  # training cases have masks: they alone are the null of the masks
    unmasked = no_null.run.null.ratios["dice"][: no_null.run.null.validation]
    assert np.isnan(unmasked).all()
    assert np.isfinite(no_null.run.null.ratios["dice"][no_null.run.null.validation :]).any()


def test_interrupted_build_without_masks_is_not_resumed_with_them(cohorts, tmp_path):
    """Rows written without a mask would stand for empty masks."""

    def stop(stage, done, total):
        if (stage, done) == ("preparing", 10):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_index(read(cohorts, "training", masks=False), tmp_path / "x.rdindex", progress=stop)
    mask = np.pad(np.ones((4, 4, 4), np.uint8), ((5, 15), (5, 19), (5, 11)))
    write(tmp_path / "masks" / "case_020.nii.gz", mask)
    some = Cohort.read(cohorts / "training", masks=tmp_path / "masks")
    masks = build_index(some, tmp_path / "x.rdindex").features(range(30), ["mask"])["mask"]
    assert has_mask(masks).tolist() == [n == 20 for n in range(30)]


def test_segmentation_measures_need_masks(cohorts, tmp_path):
    plain = read(cohorts, "training", masks=False)
    assert build_index(plain, tmp_path / "x.rdindex").measure_names == (*VOXEL, *FEATURE)
    with pytest.raises(ConfigurationError, match="a segmenter"):
        build_index(plain, tmp_path / "y.rdindex", measures=["dice"])


def test_index_of_another_segmenter_version_is_refused(cohorts, tmp_path):
    cohort = read(cohorts, "training", masks=False)
    index = build_index(cohort, tmp_path / "x.rdindex", segmenter=make_segmenter("bright"))
    path = index.folder / "index.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"version": 1', '"version": 0', 1), encoding="utf-8")
    with pytest.raises(IndexFormatError, match="another version of segmenter 'bright'"):
        detect(read(cohorts, "synthetic", masks=False), TrainingIndex.open(index.folder))


def test_pictures_get_both_masks(cohorts, tmp_path):
    index = build_index(read(cohorts, "training"), tmp_path / "x.rdindex")
    pair = PairLoader(index, read(cohorts, "synthetic"))("structure_002", "case_002")
    assert pair is not None
    np.testing.assert_array_equal(pair.synthetic_mask, pair.training_mask)
    assert pair.training_mask.sum() == (volume(2) > 700).sum()
    assert PairLoader(index, read(cohorts, "synthetic", masks=False))("new_001", "case_001").synthetic_mask is None
