"""Masks among the images, the folders of nnU-Net, and BIDS."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from Core.made_dicom import write_series
from replica_detection.errors import InputError
from replica_detection.io.cohort import Cohort

IMAGE = np.random.default_rng(0).normal(0, 100, (7, 6, 5)).astype(np.float32)
MASK = (IMAGE > 50).astype(np.uint8)


def put(folder: Path, names: list[str], array: np.ndarray = IMAGE) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        kind = nib.Nifti1Pair if name.endswith(".hdr") else nib.Nifti1Image
        nib.save(kind(array, np.eye(4)), folder / name)
    return folder


def touch(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"content")
    return folder


def found(folder: Path, **options) -> tuple[dict[str, str], list[str]]:
    """Image of each case, below the folder, and the messages."""
    cohort = Cohort.read(folder, **options)
    images = {c.id: c.files[0].relative_to(folder).as_posix() for c in cohort.cases}
    return images, [f"{Path(p.path).name} {p.message}" for p in cohort.problems]


@pytest.mark.parametrize("image", ["t00{}", "brain00{}", "m00{}"])  # before and after `masks` in the alphabet
@pytest.mark.parametrize(
    "mask",
    [
        "masks/{}.nii.gz", "labels/{}.nii.gz", "Segmentations/{}.nrrd", "seg/{}_seg.nii.gz", "below/masks/{}.nii",
        "{}_mask.nii.gz", "{}_seg.nii.gz", "{}-label.nii.gz", "{}_label.nrrd", "{}_roi.nii.gz", "{}.seg.nrrd",
        "{}_labels.mha", "other/{}_mask.nii.gz",
    ],
)  # fmt: skip
def test_masks_among_the_images_are_no_images_and_are_told(tmp_path, image, mask):
    names = [image.format(n) for n in range(3)]
    touch(tmp_path, [f"{name}.nii.gz" for name in names] + [mask.format(name) for name in names])
    images, messages = found(tmp_path, strict=True)
    assert images == {name: f"{name}.nii.gz" for name in names}
    (message,) = messages
    assert "taken for a mask" in message and "2 other files" in message and "--masks" in message
    assert Path(mask.format(names[0])).name in message


def test_they_are_masks_where_their_folder_is_given(tmp_path):
    touch(tmp_path / "a", ["x.nii.gz", "y.nii.gz", "masks/x.nii.gz", "masks/y.nii.gz"])
    cohort = Cohort.read(tmp_path / "a", masks=tmp_path / "a" / "masks", strict=True)
    assert [c.mask for c in cohort.cases] == [tmp_path / "a" / "masks" / f"{n}.nii.gz" for n in "xy"]
    touch(tmp_path / "b", ["x.nii.gz", "y.nii.gz", "x_mask.nii.gz", "y_mask.nii.gz"])
    cohort = Cohort.read(tmp_path / "b", masks=tmp_path / "b", strict=True)
    assert [c.mask for c in cohort.cases] == [tmp_path / "b" / f"{n}_mask.nii.gz" for n in "xy"]
    assert not cohort.problems


@pytest.mark.parametrize(
    "names",
    [
        ["face_mask.nii.gz", "head.nii.gz"],  # no image `face`
        ["labels/a.nii.gz", "labels/b.nii.gz"],  # no image outside
        ["mask.nii.gz"],
        ["a/scan_seg.nii.gz", "b/other.nii.gz"],
    ],
)
def test_a_name_alone_makes_no_mask(tmp_path, names):
    touch(tmp_path, names)
    images, messages = found(tmp_path, strict=True)
    assert sorted(images.values()) == sorted(names) and messages == []


def test_a_folder_for_each_case(tmp_path):
    touch(
        tmp_path,
        ["p1/p1_t1.nii.gz", "p1/p1_seg.nii.gz", "p2/p2_t1.nii.gz", "p2/p2_seg.nii.gz", "p3/p3_t1.nii", "p3/seg.nii"],
    )
    images, messages = found(tmp_path, strict=True)
    assert sorted(images) == ["p1_t1", "p2_t1", "p3_t1"] and "2 other files" in messages[0]


def test_a_segmentation_of_slicer_without_its_image_is_told(tmp_path):
    touch(tmp_path, ["a.nii.gz", "b.seg.nrrd"])
    images, messages = found(tmp_path)
    assert images == {"a": "a.nii.gz"} and "no image has its name" in messages[0]
    with pytest.raises(InputError, match="no image has its name"):
        found(tmp_path, strict=True)


@pytest.mark.parametrize("folder", ["gt", "zz"])  # before and after `img` in the alphabet
def test_files_of_one_name_are_told_apart_by_what_they_hold(tmp_path, folder):
    names = [f"{n}.nii.gz" for n in range(5)]
    put(tmp_path / "img", names)
    put(tmp_path / folder, names[1:], MASK)
    put(tmp_path / folder, names[:1], np.zeros_like(MASK))  # an empty mask says nothing
    images, messages = found(tmp_path, strict=True)
    assert set(images.values()) == {f"img/{name}" for name in names}
    assert len(messages) == 1 and "taken for a mask" in messages[0] and "4 other files" in messages[0]


@pytest.mark.parametrize(("image", "mask"), [(".nii.gz", ".nii"), (".nii", ".nii.gz"), (".hdr", ".nii.gz")])
def test_files_of_one_name_and_two_formats(tmp_path, image, mask):
    put(tmp_path, [f"{n}{image}" for n in range(2)])
    put(tmp_path, [f"{n}{mask}" for n in range(2)], MASK)
    images, messages = found(tmp_path, strict=True)
    assert images == {str(n): f"{n}{image}" for n in range(2)} and "taken for a mask" in messages[0]


@pytest.mark.parametrize("array", [IMAGE, MASK])
def test_two_of_one_name_and_kind_are_a_problem_and_the_upper_one_is_kept(tmp_path, array):
    put(tmp_path, ["zz.nii.gz", "aa/zz.nii.gz"], array)
    images, messages = found(tmp_path)
    assert images == {"zz": "zz.nii.gz"}
    assert "two files give the case id 'zz'" in messages[0]
    with pytest.raises(InputError, match="two files"):
        found(tmp_path, strict=True)


# -------------------------------------------------------------------------------------------------------------- nnU-Net


def nnunet(folder: Path, channels: int = 1, cases: int = 3) -> Path:
    images = [f"imagesTr/case_{n:03d}_{c:04d}.nii.gz" for n in range(cases) for c in range(channels)]
    return touch(folder, images + [f"labelsTr/case_{n:03d}.nii.gz" for n in range(cases)])


LISTS = {
    "none": None,
    "second format": {"channel_names": {"0": "MR"}, "labels": {"background": 0}, "file_ending": ".nii.gz"},
    "first format": {
        "training": [
            {"image": f"./imagesTr/case_{n:03d}.nii.gz", "label": f"./labelsTr/case_{n:03d}.nii.gz"} for n in range(3)
        ]
    },
}


@pytest.mark.parametrize("listing", LISTS.values(), ids=LISTS)
def test_nnunet_is_one_case_for_each_image_with_its_label(tmp_path, listing):
    nnunet(tmp_path)
    if listing is not None:
        (tmp_path / "dataset.json").write_text(json.dumps(listing), encoding="utf-8")
    cohort = Cohort.read(tmp_path, strict=True)
    assert cohort.ids == ("case_000", "case_001", "case_002") and cohort.problems == ()
    assert [c.files[0].name for c in cohort.cases] == [f"case_00{n}_0000.nii.gz" for n in range(3)]
    assert [c.mask for c in cohort.cases] == [tmp_path / "labelsTr" / f"case_00{n}.nii.gz" for n in range(3)]


def test_masks_that_are_given_go_before_those_of_the_layout(tmp_path):
    nnunet(tmp_path / "d")
    other = touch(tmp_path / "m", [f"case_00{n}.nii.gz" for n in range(3)])
    cohort = Cohort.read(tmp_path / "d", masks=other)
    assert [c.mask.parent for c in cohort.cases if c.mask] == [other] * 3
    own = Cohort.read(tmp_path / "d", masks=tmp_path / "d" / "labelsTr", strict=True)
    assert [c.mask.parent.name for c in own.cases if c.mask] == ["labelsTr"] * 3


def test_further_channels_are_told(tmp_path):
    nnunet(tmp_path, channels=4)
    images, messages = found(tmp_path)
    assert images == {f"case_00{n}": f"imagesTr/case_00{n}_0000.nii.gz" for n in range(3)}
    assert "further channel of nnU-Net, and so are 8 other files" in messages[0] and "_0001" in messages[0]
    with pytest.raises(InputError, match="further channel"):
        found(tmp_path, strict=True)


def test_the_folder_of_the_images_alone_and_its_labels(tmp_path):
    nnunet(tmp_path)
    images, messages = found(tmp_path / "imagesTr", strict=True)
    assert list(images) == ["case_000", "case_001", "case_002"] and messages == []
    cohort = Cohort.read(tmp_path / "imagesTr", masks=tmp_path / "labelsTr", strict=True)
    assert all(c.mask for c in cohort.cases)


def test_the_test_part_is_left_out_and_told(tmp_path):
    touch(
        nnunet(tmp_path), ["imagesTs/case_100_0000.nii.gz", "imagesTs/case_101_0000.nii.gz", "labelsTs/case_100.nii.gz"]
    )
    images, messages = found(tmp_path, strict=True)
    assert list(images) == ["case_000", "case_001", "case_002"]
    assert len(messages) == 1 and "test part, as do all 2 images" in messages[0]


def test_numbers_at_the_end_are_no_channels(tmp_path):
    touch(tmp_path / "a", ["scan_0000.nii.gz", "scan_0001.nii.gz", "scan_0002.nii.gz"])
    assert list(found(tmp_path / "a", strict=True)[0]) == ["scan_0000", "scan_0001", "scan_0002"]
    touch(tmp_path / "b", ["scan_0000.nii.gz"])
    assert list(found(tmp_path / "b", strict=True)[0]) == ["scan_0000"]
    touch(tmp_path / "c", ["x_0000.nii.gz", "y_0000.nii.gz"])
    assert list(found(tmp_path / "c", strict=True)[0]) == ["x", "y"]


def test_a_list_that_is_damaged_is_told(tmp_path):
    (nnunet(tmp_path) / "dataset.json").write_text("{", encoding="utf-8")
    images, messages = found(tmp_path)
    assert len(images) == 3 and "is not JSON" in messages[0]
    with pytest.raises(InputError, match="is not JSON"):
        found(tmp_path, strict=True)


# ----------------------------------------------------------------------------------------------------------------- BIDS


def test_bids_takes_the_subject_for_the_patient_and_the_anatomy_for_the_images(tmp_path):
    names = [
        f"sub-{s}/ses-{v}/anat/sub-{s}_ses-{v}_{c}.nii.gz" for s in ("01", "B7") for v in (1, 2) for c in ("T1w", "T2w")
    ]
    aside = ["sub-01/ses-1/func/sub-01_ses-1_task-rest_bold.nii.gz", "sub-01/ses-1/dwi/sub-01_ses-1_dwi.nii.gz"]
    derived = ["derivatives/fs/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz"]
    masks = [
        "sub-01/ses-1/anat/sub-01_ses-1_label-lesion_mask.nii.gz",
        "sub-B7/ses-2/anat/sub-B7_ses-2_T1w_dseg.nii.gz",
    ]
    touch(
        tmp_path,
        names + aside + derived + masks + ["participants.tsv", "README", "sub-01/ses-1/anat/sub-01_ses-1_T1w.json"],
    )
    cohort = Cohort.read(tmp_path, strict=True)
    assert sorted(c.files[0].relative_to(tmp_path).as_posix() for c in cohort.cases) == sorted(names)
    assert {c.id: c.patient for c in cohort.cases}["sub-B7_ses-2_T2w"] == "sub-B7"
    assert {c.patient for c in cohort.cases} == {"sub-01", "sub-B7"}
    told = sorted(Path(p.path).name for p in cohort.problems)
    assert told == sorted(Path(n).name for n in (aside[1], derived[0], masks[0]))
    assert any("and so is 1 other file" in p.message for p in cohort.problems)


def test_dicom_that_bids_was_made_from_is_left_out(tmp_path):
    touch(tmp_path, ["sub-1/anat/sub-1_T1w.nii.gz"])
    write_series(tmp_path / "sourcedata" / "sub-1" / "s", np.zeros((3, 5, 4), np.int16), [(0, 0, n) for n in range(3)])
    images, messages = found(tmp_path, strict=True)
    assert list(images) == ["sub-1_T1w"] and "source data of BIDS, and so are 2 other files" in messages[0]


def test_bids_without_sessions_and_with_a_table_that_goes_first(tmp_path):
    touch(tmp_path / "d", ["sub-1/anat/sub-1_T1w.nii.gz", "sub-2/anat/sub-2_T1w.nii.gz"])
    (tmp_path / "p.csv").write_text("id,patient\nsub-1_T1w,x\nsub-2_T1w,x\n", encoding="utf-8")
    assert [c.patient for c in Cohort.read(tmp_path / "d", strict=True).cases] == ["sub-1", "sub-2"]
    assert [c.patient for c in Cohort.read(tmp_path / "d", patients=tmp_path / "p.csv").cases] == ["x", "x"]


def test_a_name_that_begins_like_a_subject_is_no_patient_outside_bids(tmp_path):
    touch(tmp_path, ["sub-volume_1.nii.gz", "sub-volume_2.nii.gz"])
    assert [c.patient for c in Cohort.read(tmp_path, strict=True).cases] == [None, None]
