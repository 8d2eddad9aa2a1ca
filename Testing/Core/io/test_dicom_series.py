"""Which DICOM files are one scan: several folders, shared, empty and single UIDs, objects beside a scan."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import (
    BasicTextSRStorage,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    SecondaryCaptureImageStorage,
)

from Core.made_dicom import dicom_dataset, save_dicom, write_series
from replica_detection.errors import InputError
from replica_detection.io.cohort import Cohort
from replica_detection.io.volume import read_volume

COUNT = 8
STACK = np.random.default_rng(0).integers(0, 900, (COUNT, 7, 6)).astype(np.int16)
LINE = [(0.0, 0.0, 2.5 * i) for i in range(COUNT)]
CORONAL = {"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}
NO_PLACE = {"ImageOrientationPatient": None, "ImagePositionPatient": None}


def write(folder: Path, chosen: slice | list[int] = slice(None), **elements) -> list[Path]:
    """Some slices of the stack, under names of their own in all folders."""
    numbers = list(range(COUNT))[chosen] if isinstance(chosen, slice) else chosen
    return write_series(
        folder,
        STACK[numbers],
        [LINE[i] for i in numbers],
        names=[f"{folder.name}{i}.dcm" for i in numbers],
        each=[{"InstanceNumber": i + 1} for i in numbers],
        **elements,
    )


PARTS = {
    "halves": ([0, 1, 2, 3], [4, 5, 6, 7]),
    "odd and even": ([0, 2, 4, 6], [1, 3, 5, 7]),
    "three": ([0, 1, 2], [3, 4], [5, 6, 7]),
    "one each": tuple([i] for i in range(COUNT)),
    "the last alone": ([0, 1, 2, 3, 4, 5, 6], [7]),
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_a_series_in_several_folders_is_one_case(tmp_path: Path, parts):
    write(tmp_path / "whole" / "p1")
    for i, part in enumerate(parts):
        write(tmp_path / "parts" / "p1" / f"d{i}", list(part))
    (whole,), (joined,) = (Cohort.read(tmp_path / name, strict=True).cases for name in ("whole", "parts"))
    assert joined.id == "p1" and len(joined.files) == COUNT and joined.patient == whole.patient
    assert np.array_equal(read_volume(joined).array, read_volume(whole).array)
    assert np.array_equal(read_volume(joined).affine, read_volume(whole).affine)


@pytest.mark.parametrize("same_objects", [False, True])
def test_a_copy_in_another_folder_is_a_case_of_its_own(tmp_path: Path, same_objects: bool):
    files = write(tmp_path / "a")
    if same_objects:
        (tmp_path / "b").mkdir()
        for file in files[:5]:
            (tmp_path / "b" / file.name).write_bytes(file.read_bytes())
    else:
        write(tmp_path / "b", slice(5))
    cohort = Cohort.read(tmp_path, strict=True)
    assert cohort.ids == ("a", "b") and [len(case.files) for case in cohort.cases] == [COUNT, 5]


@pytest.mark.parametrize(("offset", "count"), [(1.25, 1), (0.9, 0), (1.25, 0)])
def test_two_scans_of_one_uid_with_slices_between_each_other_are_not_joined(tmp_path: Path, offset: float, count: int):
    """`count`: both count their instances from 1; without, the gaps tell, unless they are even: then it is one scan."""
    write(tmp_path / "a")
    each = [{"InstanceNumber": i + 1 if count else i + 21} for i in range(COUNT)]
    write_series(tmp_path / "b", STACK, [(x, y, z + offset) for x, y, z in LINE], each=each)
    cohort = Cohort.read(tmp_path)
    assert len(cohort) == (1 if (offset, count) == (1.25, 0) else 2)
    assert len(cohort.problems) == (0 if (offset, count) == (1.25, 0) else 1)


def test_parts_with_a_gap_between_them_are_told_and_not_joined(tmp_path: Path):
    write(tmp_path / "a", [0, 1, 2])
    write(tmp_path / "b", [6, 7])
    cohort = Cohort.read(tmp_path)
    assert cohort.ids == ("a", "b")
    (problem,) = cohort.problems
    assert str(tmp_path / "a") in problem.message and "scan 'b' holds these 2 alone" in problem.message
    with pytest.raises(InputError, match="do not continue"):
        Cohort.read(tmp_path, strict=True)


DIFFERENCES = {
    "patient": {"PatientID": "another"},
    "study": {"StudyInstanceUID": "1.9"},
    "number": {"SeriesNumber": 7},
    "direction": CORONAL,
    "voxel size": {"PixelSpacing": [0.75, 0.75]},
    "size": {"Rows": 6, "Columns": 7},
}


@pytest.mark.parametrize(("uid", "folders"), list(product(["", "1.2.3"], [1, 2])))
@pytest.mark.parametrize("differs", DIFFERENCES)
def test_an_empty_or_shared_uid_groups_nothing_that_differs(tmp_path: Path, uid: str, folders: int, differs: str):
    shared = {"SeriesInstanceUID": uid, "StudyInstanceUID": "1.8"}
    write(tmp_path / "a", slice(4), **shared)
    places = write(tmp_path / ("b" if folders == 2 else "a"), slice(4, None), **{**shared, **DIFFERENCES[differs]})
    cohort = Cohort.read(tmp_path, strict=True)
    if uid and folders == 1 and differs in ("direction", "voxel size", "size"):
        with pytest.raises(InputError, match=f"differ in {differs}"):  # one UID, one patient: no two scans
            read_volume(cohort.cases[0])
        return
    assert [len(case.files) for case in cohort.cases] == [4, 4] and len(set(cohort.ids)) == 2
    assert set(cohort.cases[1].files) == set(places)
    if differs == "patient":
        assert cohort.cases[0].patient != cohort.cases[1].patient


@pytest.mark.parametrize("uid", ["", "1.2.3"])
@pytest.mark.parametrize(
    "elements",
    [
        {"SOPClassUID": DigitalXRayImageStorageForPresentation, "Modality": "DX", **NO_PLACE},
        {"SOPClassUID": ComputedRadiographyImageStorage, "Modality": "CR"},
        {"SOPClassUID": SecondaryCaptureImageStorage, "Modality": "MG", **NO_PLACE},
    ],
    ids=["dx", "cr", "capture"],
)
def test_radiographs_are_never_a_stack(tmp_path: Path, uid: str, elements: dict):
    for i in range(3):
        own = {"SeriesInstanceUID": uid, "InstanceNumber": i + 1, **elements}
        save_dicom(dicom_dataset(STACK[i], **own), tmp_path / f"view{i}.dcm")
    cohort = Cohort.read(tmp_path, strict=True)
    assert cohort.ids == ("view0", "view1", "view2")
    assert [read_volume(case).array.shape for case in cohort.cases] == [(6, 7)] * 3


@pytest.mark.parametrize("own_study", [False, True])
def test_one_uid_for_each_slice_is_stacked_by_position_and_told(tmp_path: Path, own_study: bool):
    each = [
        {"SeriesInstanceUID": f"1.7.{i}"} | ({"StudyInstanceUID": f"1.6.{i}"} if own_study else {}) for i in range(8)
    ]
    write_series(tmp_path / "anonymous", STACK, LINE, each=each, PatientID="")
    write_series(tmp_path / "plain", STACK, LINE, PatientID="")
    one, plain = Cohort.read(tmp_path, strict=True).cases
    assert one.id == "anonymous" and len(one.files) == COUNT
    assert np.array_equal(read_volume(one).array, read_volume(plain).array)
    assert "each of its 8 files states a series of its own" in read_volume(one).warnings[0]
    assert read_volume(plain).warnings == ()


@pytest.mark.parametrize("case", ["two", "uneven", "one place", "patients", "numbers", "folders"])
def test_single_slices_that_do_not_follow_one_another_stay_images(tmp_path: Path, case: str):
    heights = {"two": [0, 2], "uneven": [0, 2, 17], "one place": [4, 4, 4]}.get(case, [0, 2, 4])
    for i, height in enumerate(heights):
        own = {
            "SeriesInstanceUID": f"1.7.{i}",
            "ImagePositionPatient": [0, 0, height],
            "PatientID": f"P{i}" if case == "patients" else "P",
            "SeriesNumber": i if case == "numbers" else 1,
        }
        folder = tmp_path / (f"d{i}" if case == "folders" else "d")
        folder.mkdir(exist_ok=True)
        save_dicom(dicom_dataset(STACK[i], **own), folder / f"{i}.dcm")
    assert Cohort.read(tmp_path, strict=True).ids == tuple(str(i) for i in range(len(heights)))


COLOUR = np.zeros((7, 6, 3), np.uint8)
# Pixels, elements, and the reason why the object is a problem; without one it is passed over like a report.
FOREIGN = {
    "colour capture": (COLOUR, {"SOPClassUID": SecondaryCaptureImageStorage, **NO_PLACE}, "colour image (RGB)"),
    "grey capture": (STACK[0], {"SOPClassUID": SecondaryCaptureImageStorage, **NO_PLACE}, "kind (SOPClassUID)"),
    "scout without a label": (STACK[0], CORONAL, "differs in direction"),
    "another size": (np.zeros((9, 9), np.int16), {}, "differs in size"),
    "no position": (STACK[0], {"ImagePositionPatient": None}, "differs in stating a position"),
    "scout": (STACK[0], {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, ""),
    "report": (None, {"SOPClassUID": BasicTextSRStorage}, ""),
    "object of a maker": (None, {"SOPClassUID": "1.3.12.2.1107.5.9.1"}, ""),
}


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_object_costs_the_object_and_not_the_scan(tmp_path: Path, kind: str, listed: bool):
    pixels, elements, reason = FOREIGN[kind]
    files = write(tmp_path / "s1")
    write(tmp_path / "s2", SeriesInstanceUID="1.2.5")
    odd = tmp_path / "s1" / "zz.dcm"
    save_dicom(dicom_dataset(pixels, **elements), odd)
    source = tmp_path
    if listed:
        source = tmp_path / "list.csv"
        source.write_text("id,image\ns1,s1\ns2,s2\n", encoding="utf-8")
    cohort = Cohort.read(source)
    assert cohort.ids == ("s1", "s2") and cohort.cases[0].files == tuple(files)
    assert np.array_equal(read_volume(cohort.cases[0]).array, STACK.T - 1024.0)
    if not reason:
        assert [problem.path for problem in cohort.ignored] == [str(odd)] and cohort.problems == ()
        assert Cohort.read(source, strict=True) == cohort
        return
    (problem,) = cohort.problems
    assert problem.path == str(odd) and reason in problem.message
    assert "scan 's1', which keeps its 8 slices" in problem.message
    with pytest.raises(InputError, match="it is no slice of scan 's1'"):
        Cohort.read(source, strict=True)


def test_a_listed_scan_is_named_by_its_id_in_the_list(tmp_path: Path):
    write(tmp_path / "s1")
    save_dicom(dicom_dataset(COLOUR, **NO_PLACE), tmp_path / "s1" / "zz.dcm")
    (tmp_path / "list.csv").write_text("id,image\nmine,s1\n", encoding="utf-8")
    cohort = Cohort.read(tmp_path / "list.csv")
    assert cohort.ids == ("mine",) and "scan 'mine'" in cohort.problems[0].message


def test_a_picture_alone_in_its_series_is_told_when_it_is_read(tmp_path: Path):
    save_dicom(dicom_dataset(COLOUR, **NO_PLACE), tmp_path / "capture.dcm")
    (case,) = Cohort.read(tmp_path, strict=True).cases
    with pytest.raises(InputError, match="is a colour image"):
        read_volume(case)


def test_an_image_without_a_size_is_damaged_and_no_object_of_a_maker(tmp_path: Path):
    write(tmp_path)
    save_dicom(dicom_dataset(STACK[0], Rows=None), tmp_path / "cut.dcm")
    (problem,) = Cohort.read(tmp_path).problems
    assert "states no image size" in problem.message
