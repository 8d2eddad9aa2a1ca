"""`import replica_detection`: results of images in memory that are copied, filtered and assessed; wrong arguments."""

import copy
import gc
import pickle
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import replica_detection as rd
from replica_detection.audit.filtering import MANIFEST

MEASURES = ["mae", "ssim"]


def cohort(count: int, seed: int, *, first: np.ndarray | None = None) -> rd.Cohort:
    images = np.random.default_rng(seed).random((count, 16, 16, 16), np.float32)
    if first is not None:
        images[0] = first
    return rd.Cohort.from_arrays(images, spacing=1)


def detected() -> rd.DetectionResult:
    training = cohort(12, 0)
    images = cohort(4, 1, first=training.cases[0].volume.array)
    return rd.detect(images, training, validation=cohort(10, 2), measures=MEASURES)


@pytest.fixture
def made() -> rd.DetectionResult:
    return detected()


def test_copies_of_a_result_hold_its_index_and_its_pickle_says_that_it_is_gone():
    made = detected()  # no fixture, which would hold it
    folder = Path(made.run.index)
    copies = [copy.copy(made), copy.deepcopy(made)]
    index = copy.deepcopy(made.inputs.index)
    packed, pickled_index = pickle.dumps(made), pickle.dumps(made.inputs.index)
    kept = rd.filter_replicas(made).kept_ids
    assert kept == ("case_0002", "case_0003", "case_0004")
    del made
    gc.collect()
    for copied in copies:
        assert rd.filter_replicas(copied).kept_ids == kept
    read = pickle.loads(packed)
    assert read.summary == copies[0].summary and read.inputs is None
    with pytest.raises(rd.InputError, match="were images in memory"):
        rd.filter_replicas(read)
    del copied, copies, read
    gc.collect()
    assert folder.is_dir() and index.features([0], ["image"])["image"].shape == (1, 16, 16, 16)
    other = pickle.loads(pickled_index)
    del index
    gc.collect()
    assert not folder.exists(), "the temporary index outlives its last copy"
    with pytest.raises(rd.IndexFormatError, match="is damaged"):
        other.features([0], ["image"])


def test_images_in_memory_are_not_copied_and_this_is_said_before_any_work(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stages = []
    with pytest.raises(rd.InputError, match=r"have no files to copy.*copy=False"):
        rd.filter_replicas(made, "kept", progress=lambda stage, done, total: stages.append(stage))
    assert not stages and not list(tmp_path.iterdir())
    rd.filter_replicas(made, "kept", copy=False)
    assert [p.name for p in (tmp_path / "kept").iterdir()] == [MANIFEST]


def test_a_moved_cohort_has_its_own_masks(made, tmp_path):
    """The folder of masks that a run on files noted is not asked of the images that the caller gives."""
    made.run.options["masks"] = str(tmp_path / "masks")
    made.write(tmp_path / "result")
    images = made.inputs.synthetic
    assert rd.filter_replicas(tmp_path / "result", images=images, keep_duplicates=True).cases == len(images)


def test_sets_in_memory_have_names_of_their_own(made):
    assert [s.name for s in rd.assess_set([made, made], measures=["mae"]).sets] == ["set 1", "set 2"]


def test_nothing_is_ignored_in_silence(made, tmp_path):
    images, index = made.inputs.synthetic, made.inputs.index
    masks = np.ones((4, 16, 16, 16), np.uint8)
    with pytest.raises(rd.ConfigurationError, match="a Cohort has its own masks"):
        rd.detect(images, index, masks=masks)
    with pytest.raises(rd.ConfigurationError, match="no validation was given"):
        rd.detect(images, index, validation_masks=masks)
    for run in (lambda **k: rd.detect(images, index, **k), lambda **k: rd.find_duplicates(index, **k)):
        with pytest.raises(rd.ConfigurationError, match="an index has its own"):
            run(patients="patients.csv")
    for run in (rd.find_duplicates, lambda c, **k: rd.selftest(c, images, tmp_path / "new", **k)):
        with pytest.raises(rd.ConfigurationError, match="either options or measures"):
            run(images, options=rd.DetectionOptions(), measures=["mae"])
    assert not (tmp_path / "new").exists()


def test_a_list_of_patients_is_of_one_cohort(made, tmp_path):
    """Of two cohorts of one size it would give the patients of one to the other."""
    scans = [nib.Nifti1Image(c.volume.array, np.eye(4)) for c in made.inputs.synthetic.cases]
    people = ["a", "b", "c", "d"]
    runs = (
        lambda: rd.detect(scans, scans, validation=scans, patients=people, measures=["mae"]),
        lambda: rd.find_duplicates(scans, scans, patients=people, measures=["mae"]),
        lambda: rd.selftest(scans, scans, tmp_path / "new", patients=people, measures=["mae"]),
    )
    for run in runs:
        with pytest.raises(rd.ConfigurationError, match="patients is a list, and there are two cohorts"):
            run()
    index = rd.build_index(scans, tmp_path / "x.rdindex", patients=people, measures=["mae"])
    assert [e.patient for e in index.entries] == people


@pytest.mark.parametrize("given", [{"patients": {"a": "p"}}, {"patients": ["p"]}, {"masks": np.ones((4, 4, 4))}])
def test_patients_and_masks_of_files_are_files(tmp_path, given):
    (tmp_path / "a.nii.gz").write_bytes(b"")
    with pytest.raises(rd.ConfigurationError, match="of images in files is of type"):
        rd.Cohort.of(tmp_path, **given)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 5.5}, "k is 5.5: it must be a whole number"),
        ({"k": "5"}, "k is '5': it must be a whole number"),
        ({"alpha": "small"}, "alpha is small: it must lie between"),
        ({"null_size": 0}, "null_size is 0: it must be at least 1"),
        ({"calibration": "calibration.json"}, "read the file first, with Calibration.read"),
    ],
)
def test_options_of_a_wrong_kind_are_named(options, said):
    with pytest.raises(rd.ConfigurationError, match=said):
        rd.DetectionOptions(**options)


def test_numpy_numbers_are_numbers():
    assert rd.DetectionOptions(k=np.int64(5), alpha=np.float32(0.05)).k == 5


def test_ratings_of_another_kind_are_named(made):
    with pytest.raises(rd.ConfigurationError, match="ratings holds a dict: give objects of class Rating"):
        rd.calibrate(made, [{"synthetic_id": "case_0001", "rating": 4}])
    with pytest.raises(rd.ConfigurationError, match="a threshold needs images of both kinds"):
        rd.calibrate(made, rd.Rating("r1", "anna", "case_0001", "", 4))


def test_cases_are_appended_to_the_folder_of_an_index(tmp_path):
    first, later = cohort(4, 0), cohort(6, 0)
    rd.build_index(first, tmp_path / "x.rdindex", measures=["mae"])
    later = rd.Cohort(later.source, (*first.cases, *later.cases[4:]))
    assert len(rd.append_cases(tmp_path / "x.rdindex", later)) == 6
