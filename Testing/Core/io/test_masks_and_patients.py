"""Which mask and which patient a case gets; what fits in part is told."""

from pathlib import Path

import numpy as np
import pytest

import replica_detection as rd
from replica_detection.errors import ConfigurationError, InputError
from replica_detection.io.cohort import Cohort, read_together

MASK_NAMES = [
    "{}.nii.gz", "{}.nrrd", "{}.seg.nrrd", "{}_seg.nii.gz", "{}_mask.png", "{}-label.nrrd", "{}_ROI.nii", "{}.mgz",
]  # fmt: skip


def touch(folder: Path, *names: str) -> Path:
    """A folder of files whose content is not looked at."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"content")
    return folder


def table(path: Path, *rows: str, head: str = "id,patient") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join((head, *rows)), encoding="utf-8")
    return path


def messages(cohort: Cohort) -> list[str]:
    return [problem.message for problem in cohort.problems]


# ---------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("name", MASK_NAMES)
def test_a_mask_has_the_name_of_its_case_or_a_mark_behind_it(tmp_path, name):
    images = touch(tmp_path / "c", "a.nii.gz", "b.nii.gz")
    masks = touch(tmp_path / "m", name.format("a"), name.format("b"))
    cohort = Cohort.read(images, masks=masks, strict=True)
    assert [c.mask for c in cohort.cases] == [masks / name.format("a"), masks / name.format("b")]
    assert cohort.problems == ()


@pytest.mark.parametrize("name", MASK_NAMES[1:])
@pytest.mark.parametrize("image", ["a.nii.gz", "a.nrrd", "a.png"])
def test_two_masks_for_one_case_are_told_and_none_is_taken(tmp_path, name, image):
    """What 3D Slicer saves beside the mask that it loaded: neither the new one nor the old one wins in silence."""
    images = touch(tmp_path / "c", image, "b.nii.gz")
    masks = touch(tmp_path / "m", "a.nii.gz", "b.nii.gz", name.format("a"))
    cohort = Cohort.read(images, masks=masks)
    assert [c.mask for c in cohort.cases] == [None, masks / "b.nii.gz"]
    (message,) = messages(cohort)
    assert "several masks fit case 'a'" in message and name.format("a") in message and "a.nii.gz" in message
    with pytest.raises(InputError, match="several masks fit"):
        Cohort.read(images, masks=masks, strict=True)


def test_two_masks_of_one_name_are_told_by_their_folders(tmp_path):
    images = touch(tmp_path / "c", "a.nii.gz", "b.nii.gz")
    masks = touch(tmp_path / "m", "a.nii.gz", "old/a.nii.gz", "b.nii.gz")
    assert str(Path("old") / "a.nii.gz") in messages(Cohort.read(images, masks=masks))[0]


def test_a_name_that_is_the_id_of_a_case_is_no_mark(tmp_path):
    images = touch(tmp_path / "c", "x.nii.gz", "y_seg.nii.gz")
    masks = touch(tmp_path / "m", "x.nii.gz", "y_seg.nii.gz")
    assert all(c.mask and c.mask.name == c.image.name for c in Cohort.read(images, masks=masks, strict=True).cases)


def test_pictures_that_segment_writes_are_no_masks(tmp_path):
    images = touch(tmp_path / "c", "a.nrrd", "b.nrrd")
    masks = touch(tmp_path / "m", "a.nii.gz", "b.nii.gz", "masks.csv", "previews/a.jpg", "previews/b.jpg")
    cohort = Cohort.read(images, masks=masks, strict=True)
    assert [c.mask for c in cohort.cases] == [masks / "a.nii.gz", masks / "b.nii.gz"] and not cohort.problems


def test_the_id_goes_before_the_name_of_the_file_as_segment_writes_it(tmp_path):
    touch(tmp_path, "a/scan1.nii.gz", "a/scan2.nii.gz", "m/scan1.nii.gz", "m/scan2.nii.gz")
    listing = table(tmp_path / "list.csv", "scan1,a/scan2.nii.gz", "scan2,a/scan1.nii.gz", head="id,image")
    cohort = Cohort.read(listing, masks=tmp_path / "m")
    assert [(c.id, c.mask.name) for c in cohort.cases if c.mask] == [
        ("scan1", "scan1.nii.gz"),
        ("scan2", "scan2.nii.gz"),
    ]
    (message,) = messages(cohort)
    assert "case 'scan1' by its id" in message and "scan2.nii.gz" in message and "1 other case" in message
    with pytest.raises(InputError, match="by its id"):
        Cohort.read(listing, masks=tmp_path / "m", strict=True)


def test_without_a_mask_by_id_the_name_of_the_file_counts_unless_it_is_another_id(tmp_path):
    touch(tmp_path, "a/x1.nii.gz", "a/x2.nii.gz", "m/x1.nii.gz", "m/x2.nii.gz")
    listing = table(tmp_path / "list.csv", "P7,a/x1.nii.gz", "P8,a/x2.nii.gz", head="id,image")
    cohort = Cohort.read(listing, masks=tmp_path / "m", strict=True)
    assert [c.mask.name for c in cohort.cases if c.mask] == ["x1.nii.gz", "x2.nii.gz"] and not cohort.problems
    table(listing, "P7,a/x1.nii.gz", "x1,a/x2.nii.gz", head="id,image")
    # The image of P7 is named x1, but the mask x1 is that of the case x1.
    assert [c.mask and c.mask.name for c in Cohort.read(listing, masks=tmp_path / "m").cases] == [None, "x1.nii.gz"]


def test_masks_that_fit_no_case_are_counted(tmp_path):
    images = touch(tmp_path / "c", "a.nii.gz", "b.nii.gz")
    masks = touch(tmp_path / "m", "a.nii.gz", "b1.nii.gz", "c.nii.gz", "d.nii.gz")
    cohort = Cohort.read(images, masks=masks)
    (message,) = messages(cohort)
    assert "fits no case, and so do 2 other masks" in message and "1 of 2 cases" in message and "(first b)" in message
    with pytest.raises(InputError, match="fits no case"):
        Cohort.read(images, masks=masks, strict=True)


def test_masks_without_a_case_do_not_stop_where_each_case_has_one(tmp_path):
    images = touch(tmp_path / "c", "a.nii.gz")
    masks = touch(tmp_path / "m", "a.nii.gz", "z.nii.gz")
    assert ["fits no case" in m for m in messages(Cohort.read(images, masks=masks, strict=True))] == [True]


def test_a_folder_of_masks_that_fits_nothing_is_an_error_with_both_names(tmp_path):
    images, masks = touch(tmp_path / "c", "p1.nii.gz"), touch(tmp_path / "m", "001_seg.nii.gz")
    with pytest.raises(InputError, match=r"mask '001_seg' and case 'p1' of .*c\."):
        Cohort.read(images, masks=masks)


# ------------------------------------------------------------------------------------------------------------- patients


@pytest.mark.parametrize(
    ("ids", "listed", "cause"),
    [
        (["007", "008", "100"], ["7", "8", "100"], "leading zeros"),
        (["s007", "s08", "s100"], ["s7", "s8", "s100"], "leading zeros"),
        (["7", "8", "100"], ["7.0", "8.0", "100"], "made numbers"),
        (["1234567890", "1234567891", "c"], ["1.23E+09", "1.24e+09", "c"], "shortened"),
        (["Case_a", "Case_b", "c"], ["case_a", "case_b", "c"], "upper and lower case"),
        (["a", "b", "c"], ["a.nii.gz", "b.nii.gz", "c"], "extensions"),
        (["a_1", "a_2", "c"], ["a-1", "a 2", "c"], "spaces, dots, dashes"),
        (["a", "b", "c"], ["x", "y", "c"], ""),
    ],
)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_that_fits_in_part_says_so_and_why(tmp_path, ids, listed, cause, separator):
    images = touch(tmp_path / "c", *(f"{id}.nii.gz" for id in ids))
    rows = [f"{id}{separator}p{n}" for n, id in enumerate(listed)]
    patients = table(tmp_path / "p.csv", *rows, head=f"id{separator}patient")
    cohort = Cohort.read(images, patients=patients)
    assert sorted(c.patient or "" for c in cohort.cases) == ["", "", "p2"]  # nothing is guessed
    (message,) = messages(cohort)
    assert "no patient for 2 of 3 cases" in message and f"(first {ids[0]}, {ids[1]})" in message
    assert f"2 of its ids are no case (first {listed[0]}, {listed[1]})" in message
    assert cause in message and ("it seems" in message) == bool(cause)
    with pytest.raises(InputError, match="no patient for 2 of 3"):
        Cohort.read(images, patients=patients, strict=True)


def test_a_table_that_lists_more_than_the_cohort_is_told_and_stops_nothing(tmp_path):
    images = touch(tmp_path / "c", "a.nii.gz", "b.nii.gz")
    patients = table(tmp_path / "p.csv", "a,1", "b,1", "c,2")
    cohort = Cohort.read(images, patients=patients, strict=True)
    assert [c.patient for c in cohort.cases] == ["1", "1"]
    assert "lists 1 id that is no case (first c)" in messages(cohort)[0]


def test_a_table_is_checked_against_both_cohorts_of_a_run(tmp_path):
    training = touch(tmp_path / "t", "t1.nii.gz", "t2.nii.gz")
    unseen = touch(tmp_path / "v", "v1.nii.gz", "v2.nii.gz")
    path = tmp_path / "p.csv"

    def read(*rows: str, strict: bool = True) -> tuple[list, list, list[str]]:
        a, b = read_together(training, unseen, patients=table(path, *rows), strict=strict)
        return [c.patient for c in a.cases], [c.patient for c in b.cases], messages(a) + messages(b)

    # It may list the training images alone, or both.
    assert read("t1,A", "t2,B") == (["A", "B"], [None, None], [])
    assert read("t1,A", "t2,B", "v1,C", "v2,D") == (["A", "B"], ["C", "D"], [])
    told = read("t1,A", "t2,B", "v1,C", strict=False)[2]
    assert len(told) == 1 and f"1 of 2 cases of {unseen} (first v2)" in told[0]
    told = read("v1,C", "v2,D", strict=False)[2]
    assert len(told) == 1 and f"2 of 2 cases of {training}" in told[0]
    told = read("x1,C", strict=False)[2]
    assert len(told) == 1 and f"lists no case of this cohort ({training})" in told[0]
    told = read("t1,A", "t2,B", "x,C")[2]
    assert len(told) == 1 and "lists 1 id that is no case (first x)" in told[0]
    for rows in (["t1,A"], ["t1,A", "t2,B", "v1,C"]):
        with pytest.raises(InputError, match="no patient for 1 of 2"):
            read(*rows)


def test_beside_an_index_a_table_may_list_its_cases(tmp_path):
    unseen = touch(tmp_path / "v", "v1.nii.gz", "v2.nii.gz")
    patients = table(tmp_path / "p.csv", "t1,A", "t2,B")
    nothing, cohort = read_together(None, unseen, patients=patients, strict=True, known=["t1", "t2"])
    assert nothing is None and cohort is not None and not cohort.problems
    with pytest.raises(InputError, match="lists no case of this cohort"):
        read_together(None, unseen, patients=patients, strict=True, known=["x"])


def test_strict_detect_takes_a_table_of_the_training_images_alone(tmp_path):
    rng = np.random.default_rng(0)
    for folder, name, count in (("t", "t", 12), ("v", "v", 10), ("s", "s", 2)):
        (tmp_path / folder).mkdir()
        for n in range(count):
            np.save(tmp_path / folder / f"{name}{n}.npy", rng.random((9, 8, 7)).astype(np.float32))
    patients = table(tmp_path / "p.csv", *(f"t{n},P{n // 2}" for n in range(12)))
    options = {"measures": ["mae"], "align": False, "strict": True}
    result = rd.detect(tmp_path / "s", tmp_path / "t", validation=tmp_path / "v", patients=patients, **options)
    assert result.run.validation is not None and result.run.validation.skipped == result.run.training.skipped == ()
    table(patients, *(f"t{n},P{n // 2}" for n in range(11)))
    with pytest.raises(InputError, match="no patient for 1 of 12"):
        rd.detect(tmp_path / "s", tmp_path / "t", validation=tmp_path / "v", patients=patients, **options)


# ------------------------------------------------------------------------------------------------------------- pattern


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        (r"^(p\d+)_", ["p1", "p1", "p2"]),
        (r"(?P<visit>v\d)|$", ["v1", "v2", "v1"]),
        (r"^(?P<x>p)(?P<patient>\d+)", ["1", "1", "2"]),
        (r"([^/]+)/[^/]+$", ["A", "B", "A"]),
    ],
)
def test_a_pattern_finds_the_patient_in_the_id_or_the_path(tmp_path, pattern, found):
    images = touch(tmp_path / "c", "A/p1_v1.nii.gz", "B/p1_v2.nii.gz", "A/p2_v1.nii.gz")
    cohort = Cohort.read(images, patient_pattern=pattern, strict=True)
    assert {c.id: c.patient for c in cohort.cases} == dict(zip(["p1_v1", "p1_v2", "p2_v1"], found, strict=True))
    assert cohort.problems == ()
    listing = table(tmp_path / "c" / "l.csv", "p1_v1,A/p1_v1.nii.gz", "p1_v2,B/p1_v2.nii.gz", head="id,image")
    assert [c.patient for c in Cohort.read(listing, patient_pattern=pattern).cases] == found[:2]


def test_a_pattern_that_fits_in_part_or_not_at_all(tmp_path):
    images = touch(tmp_path / "c", "p1_a.nii.gz", "p2_a.nii.gz", "x.nii.gz")
    cohort = Cohort.read(images, patient_pattern=r"^(p\d)_")
    assert [c.patient for c in cohort.cases] == ["p1", "p2", None]
    (message,) = messages(cohort)
    assert "1 of 3 cases that do not fit" in message and "(first x)" in message
    with pytest.raises(InputError, match="1 of 3 cases"):
        Cohort.read(images, patient_pattern=r"^(p\d)_", strict=True)
    with pytest.raises(
        InputError, match=r"no case that fits the patient pattern '\^\(q\)', e\.g\. id 'p1_a', path 'p1_a"
    ):
        Cohort.read(images, patient_pattern="^(q)")


@pytest.mark.parametrize(("pattern", "found"), [("(", "no regular expression"), ("p[0-9]", "has no group")])
def test_a_pattern_that_is_none(tmp_path, pattern, found):
    with pytest.raises(ConfigurationError, match=found):
        Cohort.read(touch(tmp_path / "c", "a.nii"), patient_pattern=pattern)


def test_a_pattern_and_a_table_are_one_too_many(tmp_path):
    patients = table(tmp_path / "p.csv", "a,1")
    with pytest.raises(ConfigurationError, match="either patients or patient_pattern"):
        Cohort.read(touch(tmp_path / "c", "a.nii"), patients=patients, patient_pattern="(a)")


def test_a_pattern_need_not_fit_the_unseen_images(tmp_path):
    training = touch(tmp_path / "t", "p1_a.nii.gz", "p1_b.nii.gz")
    unseen = touch(tmp_path / "v", "x.nii.gz", "y.nii.gz")
    a, b = read_together(training, unseen, patient_pattern=r"^(p\d)_", strict=True)
    assert [c.patient for c in a.cases] == ["p1", "p1"] and [c.patient for c in b.cases] == [None, None]
    assert "2 of 2 cases" in messages(b)[0] and not a.problems


def test_a_pattern_for_images_in_memory():
    images = {f"p{n // 2}_{n}": np.random.default_rng(n).random((4, 4, 4)) for n in range(4)}
    cohort = Cohort.of([*images.values()], spacing=1, ids=[*images], patient_pattern=r"^(p\d)_")
    assert [c.patient for c in cohort.cases] == ["p0", "p0", "p1", "p1"]
