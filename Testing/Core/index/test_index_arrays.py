"""The same images as arrays and as files: one table; and an index that was built from arrays stands on its own."""

import json

import nibabel as nib
import numpy as np
import pytest

from Core.made_runs import planted_folders
from Core.made_up import volume
from replica_detection.audit.selftest import selftest
from replica_detection.audit.selftest_tables import write_selftest
from replica_detection.detection.detector import detect
from replica_detection.errors import InputError
from replica_detection.index.build import append_cases, build_index, open_or_build, serves
from replica_detection.index.options import IndexOptions
from replica_detection.index.training_index import TrainingIndex
from replica_detection.io.cohort import Cohort
from replica_detection.report import write_report
from replica_detection.report.pair_loader import PairLoader, loader_of_result
from replica_detection.results.result import DetectionResult

MEASURES = ("mae", "ssim", "embedding_cosine", "dice")
MM = (1.0, 1.0, 1.2)


def in_memory(folder, masks=None):
    """The images of a folder as arrays, with their masks."""

    def arrays(where):
        return {f.name.split(".")[0]: np.asarray(nib.load(f).dataobj) for f in sorted(where.glob("*.nii.gz"))}

    images = arrays(folder)
    affines = [nib.load(f).affine for f in sorted(folder.glob("*.nii.gz"))]
    return Cohort.from_arrays(images, affines=affines, masks=None if masks is None else arrays(masks))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(folder, index, result, synthetic cohort) of one detection on files and of one on arrays."""
    folder = planted_folders(tmp_path_factory.mktemp("arrays"), masks=True)
    found = []
    for name, read in (("files", lambda f, m: Cohort.read(f, masks=m)), ("arrays", in_memory)):
        training, synthetic, validation = (
            read(folder / part, folder / f"{part}_masks") for part in ("training", "synthetic", "validation")
        )
        index = build_index(training, folder / f"{name}.rdindex", measures=MEASURES)
        result = detect(synthetic, index, validation=validation)
        result.write(folder / name)
        found.append((folder / name, index, result, synthetic, training))
    return found


def test_arrays_and_files_give_the_same_table(runs):
    (files, *_, files_training), (arrays, *_, arrays_training) = runs
    assert files_training.ids == arrays_training.ids
    for table in ("summary.csv", "matches.csv"):
        text = (files / table).read_text(encoding="utf-8")
        assert "replica" in text and text == (arrays / table).read_text(encoding="utf-8")
    with np.load(files / "neighbors.npz") as a, np.load(arrays / "neighbors.npz") as b:
        assert a.files == b.files
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])


def test_index_of_arrays_verifies_itself_without_files(runs):
    _, index, _, _, training = runs[1]
    opened = TrainingIndex.open(index.folder)
    assert opened.verify() == [] and index.verify() == []
    assert {e.files for e in opened.entries} == {()} and {e.mask for e in opened.entries} == {"array"}
    assert [e.sha256 for e in opened.entries] == [c.checksum() for c in training.cases]
    training.cases[2].volume.array[3, 3, 3] += 1
    try:
        assert index.verify() == [f"{training.ids[2]}: the image in memory changed since it was indexed"]
        assert not serves(opened, training, IndexOptions(measures=MEASURES))
    finally:
        training.cases[2].volume.array[3, 3, 3] -= 1
    assert serves(opened, training, IndexOptions(measures=MEASURES))
    chunk = sorted((index.folder / "features.zarr" / "image").rglob("c/4/*/*/*"))[0]
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-9] + bytes(9))
    try:
        (fault,) = TrainingIndex.open(index.folder).verify()
        assert training.ids[4] in fault and "damaged" in fault
    finally:
        chunk.write_bytes(whole)


def test_report_of_arrays_has_the_pictures_of_the_files(runs, tmp_path):
    pages = []
    for name, (_, index, result, synthetic, _) in zip(("files", "arrays"), runs, strict=True):
        # Opened again: training images are drawn from the index, synthetic ones from the arrays at hand.
        loader = PairLoader(TrainingIndex.open(index.folder), synthetic)
        row = next(c for c in result.summary if c.verdict == "replica")
        pair = loader(row.synthetic_id, row.nearest_training_id)
        assert pair is not None and pair.synthetic_mask is not None
        pages.append((pair, write_report(result, tmp_path / name, loader).read_text(encoding="utf-8")))
    (a, page_a), (b, page_b) = pages
    for field in ("synthetic", "training", "synthetic_mask", "training_mask"):
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field))
    assert page_a.count("data:image") == page_b.count("data:image") > 0
    # Read back from its folder, a result of arrays has no images to draw.
    assert loader_of_result(runs[1][2]) is not None
    assert loader_of_result(DetectionResult.read(runs[1][0])) is None


def test_selftest_on_arrays_equals_the_one_on_files(runs, tmp_path):
    rows = []
    for name, (folder, index, *_) in zip(("files", "arrays"), runs, strict=True):
        validation = Cohort.read(folder.parent / "validation", masks=folder.parent / "validation_masks")
        found = selftest(index, validation, tmp_path / name, copies=1, keep_images=True)
        rows.append(found.rows)
    # Opened again without its arrays, an index has no image to make copies of.
    write_selftest(found, index, tmp_path / "arrays" / "planted", tmp_path)
    assert repr(rows[0]) == repr(rows[1])
    with pytest.raises(InputError, match="given in memory, which is gone"):
        TrainingIndex.open(index.folder).case(0)


def test_index_of_arrays_is_used_again_and_grows(tmp_path):
    arrays = [volume(n) for n in range(6)]
    folder = tmp_path / "x.rdindex"
    options = IndexOptions(measures=["mae"])
    first = open_or_build(Cohort.from_arrays(arrays[:4], spacing=MM), folder, options)
    written = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    assert written["source"] == "<arrays>"
    seen = []
    again = open_or_build(
        Cohort.from_arrays(arrays, spacing=MM), folder, options, progress=lambda stage, done, total: seen.append(done)
    )
    assert len(seen) == 2 and again.ids == (*first.ids, "case_0005", "case_0006")
    assert again.case(0).checksum() and again.case(5).checksum()
    with pytest.raises(
        InputError,
        match=r"<array case_0001>: has the case id .* of another image in the index\. Give the new image another id",
    ):
        append_cases(again, Cohort.from_arrays([volume(77)], spacing=MM))
    same = again.features(range(6), ["image"])["image"]
    fresh = build_index(Cohort.from_arrays(arrays, spacing=MM), tmp_path / "y.rdindex", measures=["mae"])
    np.testing.assert_array_equal(same, fresh.features(range(6), ["image"])["image"])


def test_a_bad_array_among_good_ones_is_listed(tmp_path):
    arrays = [volume(n) for n in range(4)]
    affines = [np.diag([*MM, 1.0])] * 4
    arrays[1][0, 0, 0] = np.inf
    training = Cohort.of(arrays, affines=affines)
    index = build_index(training, tmp_path / "x.rdindex", measures=["mae"])
    assert index.ids == ("case_0001", "case_0003", "case_0004")
    assert [p.path for p in index.problems] == ["images[1] (case_0002)"]
    with pytest.raises(InputError, match="states no geometry"):
        build_index(arrays, tmp_path / "y.rdindex")
