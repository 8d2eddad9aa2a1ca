"""Which files make a cohort, which case ids, masks and patients they get."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from Core.made_dicom import dicom_dataset, save_dicom, write_series
from replica_detection.errors import InputError
from replica_detection.io.cohort import Case, Cohort

PIXELS = np.arange(3 * 8 * 7, dtype=np.int16).reshape(3, 8, 7)


def touch(*paths: Path) -> None:
    """Files whose content the cohort does not look at."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"content")


def test_a_folder_is_searched_in_order_and_only_for_images(tmp_path: Path):
    names = ["b/z.mha", "b/A.NII.GZ", "a.nii", "c.nrrd", "d.nhdr", "e.mhd", "f.png", "g.jpg", "h.JPEG", "v1.2.nii.gz"]
    others = ["notes.txt", "t.csv", "d.raw", "e.zraw", "x.nii.gz.tmp", ".hidden.nii", "._a.nii", ".git/x.nii", "README"]
    touch(*(tmp_path / name for name in [*names, *others, "__MACOSX/y.nii"]))
    cohort = Cohort.read(tmp_path, strict=True)
    assert cohort.ids == ("a", "A", "z", "c", "d", "e", "f", "g", "h", "v1.2")
    assert cohort.cases[0] == Case("a", (tmp_path / "a.nii",))
    assert cohort.problems == cohort.ignored == ()
    assert Cohort.read(tmp_path) == cohort and pickle.loads(pickle.dumps(cohort)) == cohort


def test_series_become_cases_named_by_their_folder(tmp_path: Path):
    line = [(0, 0, 2.0 * i) for i in range(3)]
    write_series(tmp_path / "p1" / "CT", PIXELS, line, SeriesInstanceUID="1.1", PatientID="A")
    write_series(tmp_path / "p2" / "CT", PIXELS, line, SeriesInstanceUID="1.2", PatientID="B")
    write_series(tmp_path / "copy" / "CT2", PIXELS, line, SeriesInstanceUID="1.2", PatientID="B")
    two = tmp_path / "two"
    write_series(two, PIXELS, line, SeriesInstanceUID="1.3", SeriesNumber=4)
    write_series(two, PIXELS, line, SeriesInstanceUID="1.4", SeriesNumber=7, names=["x1", "x2", "1.2.840"])
    write_series(tmp_path / "one", PIXELS[:1], line[:1], SeriesInstanceUID="1.5", names=["slice.IMA"])
    cohort = Cohort.read(tmp_path, strict=True)
    assert cohort.ids == ("CT2", "slice", "p1_CT", "p2_CT", "two_4", "two_7")
    cases = {case.id: case for case in cohort.cases}
    assert cases["two_7"].image == two
    assert [file.name for file in cases["two_7"].files] == ["1.2.840", "x1", "x2"]
    assert cases["slice"].image == tmp_path / "one" / "slice.IMA"
    assert cases["p1_CT"].patient != cases["p2_CT"].patient == cases["CT2"].patient
    assert "A" not in (cases["p1_CT"].patient or "")


def test_scouts_are_ignored_without_being_a_problem(tmp_path: Path):
    write_series(tmp_path / "ct", PIXELS, [(0, 0, i) for i in range(3)])
    scout = dicom_dataset(PIXELS[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    save_dicom(scout, tmp_path / "ct" / "scout.dcm")
    cohort = Cohort.read(tmp_path, strict=True)
    assert cohort.ids == ("ct",) and len(cohort.cases[0].files) == 3
    assert [problem.message for problem in cohort.ignored] == ["is a scout image (localizer)."]


def test_the_first_of_two_files_keeps_the_id(tmp_path: Path):
    touch(tmp_path / "1" / "a.nii.gz", tmp_path / "2" / "a.mha", tmp_path / "2" / "b.mha")
    cohort = Cohort.read(tmp_path)
    assert cohort.ids == ("a", "b") and cohort.cases[0].image == tmp_path / "1" / "a.nii.gz"
    (problem,) = cohort.problems
    assert problem.path == str(tmp_path / "2" / "a.mha") and "two files give the case id 'a'" in problem.message
    with pytest.raises(InputError, match="two files give the case id"):
        Cohort.read(tmp_path, strict=True)


@pytest.mark.parametrize(("separator", "coding"), [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8-sig")])
def test_a_table_gives_ids_masks_and_patients(tmp_path: Path, separator: str, coding: str):
    touch(tmp_path / "images" / "x.nii.gz", tmp_path / "m.nii.gz", tmp_path / "Übung.png")
    write_series(tmp_path / "ct", PIXELS, [(0, 0, i) for i in range(3)])
    rows = [["ID", "Image", "mask", "patient", "age"], ["one", "images/x.nii.gz", "m.nii.gz", "p1", "7"]]
    rows += [["zwei", "Übung.png", "", "", ""], [""], ["three", "ct", "", "p3"], ["bad", "nowhere.nii", "", ""]]
    (tmp_path / "list.csv").write_text("\r\n".join(separator.join(row) for row in rows), coding)
    cohort = Cohort.read(tmp_path / "list.csv")
    first, second, third = cohort.cases
    assert first == Case("one", (tmp_path / "images" / "x.nii.gz",), tmp_path / "m.nii.gz", "p1")
    assert second == Case("zwei", (tmp_path / "Übung.png",))
    assert (third.id, third.patient, len(third.files)) == ("three", "p3", 3)
    assert [problem.path for problem in cohort.problems] == [str(tmp_path / "nowhere.nii")]


def test_a_missing_mask_of_a_table_is_told_and_the_case_stays(tmp_path: Path):
    touch(tmp_path / "x.nii.gz")
    (tmp_path / "list.csv").write_text("id,image,mask\na,x.nii.gz,nowhere.nii\n", encoding="utf-8")
    cohort = Cohort.read(tmp_path / "list.csv")
    assert cohort.cases == (Case("a", (tmp_path / "x.nii.gz",)),)
    assert "the mask of case 'a' does not exist" in cohort.problems[0].message


def test_a_decathlon_folder_is_read_by_its_list(tmp_path: Path):
    touch(*(tmp_path / folder / f"h_{i}.nii.gz" for folder in ("imagesTr", "labelsTr", "imagesTs") for i in (1, 2)))
    training = [{"image": f"./imagesTr/h_{i}.nii.gz", "label": f"./labelsTr/h_{i}.nii.gz"} for i in (2, 1)]
    listing = tmp_path / "dataset.json"
    listing.write_text(json.dumps({"training": training, "test": ["./imagesTs/h_1.nii.gz"]}), encoding="utf-8")
    cohort = Cohort.read(tmp_path, strict=True)
    assert cohort.ids == ("h_2", "h_1") == Cohort.read(listing).ids
    assert cohort.cases[0].mask == tmp_path / "labelsTr" / "h_2.nii.gz"
    listing.write_text(json.dumps({"training": [], "test": ["./imagesTs/h_1.nii.gz"]}), encoding="utf-8")
    assert Cohort.read(listing).cases == (Case("h_1", (tmp_path / "imagesTs" / "h_1.nii.gz",)),)


def test_masks_are_found_by_name_or_stem_even_inside_the_cohort(tmp_path: Path):
    touch(
        *(tmp_path / name for name in ("a.nii.gz", "b.nrrd", "c.png", "masks/a.nii.gz", "masks/b.nii", "masks/x.nii"))
    )
    cohort = Cohort.read(tmp_path, masks=tmp_path / "masks")
    assert cohort.ids == ("a", "b", "c")
    masks = tmp_path / "masks"
    assert [case.mask for case in cohort.cases] == [masks / "a.nii.gz", masks / "b.nii", None]
    (problem,) = cohort.problems
    assert problem.path == str(masks / "x.nii") and "1 of 3 cases" in problem.message and "(first c)" in problem.message
    with pytest.raises(InputError, match="fits no case"):
        Cohort.read(tmp_path, masks=masks, strict=True)
    # With a mask for each case, one too many is told and costs nothing.
    touch(masks / "c.nii")
    assert len(Cohort.read(tmp_path, masks=masks, strict=True).problems) == 1


def test_masks_with_other_names_are_an_error_that_shows_one_of_each(tmp_path: Path):
    touch(tmp_path / "images" / "case_1.nii.gz", tmp_path / "masks" / "seg_1.nii.gz")
    with pytest.raises(InputError, match="mask 'seg_1' and case 'case_1'"):
        Cohort.read(tmp_path / "images", masks=tmp_path / "masks")


def test_patients_come_from_their_own_table(tmp_path: Path):
    touch(tmp_path / "c" / "a.nii", tmp_path / "c" / "b.nii")
    table = tmp_path / "patients.csv"
    table.write_text("id,patient\na,p1\nother,p2\n", encoding="utf-8")
    cohort = Cohort.read(tmp_path / "c", patients=table)
    assert [case.patient for case in cohort.cases] == ["p1", None]
    (problem,) = cohort.problems
    assert "1 of 2 cases" in problem.message and "(first b)" in problem.message and "(first other)" in problem.message
    with pytest.raises(InputError, match="no patient for 1 of 2 cases"):
        Cohort.read(tmp_path / "c", patients=table, strict=True)
    table.write_text("id,patient\nother,p2\n", encoding="utf-8")
    assert "lists no case of this cohort" in Cohort.read(tmp_path / "c", patients=table).problems[0].message


def test_a_patient_table_goes_before_the_patient_of_dicom(tmp_path: Path):
    for name in ("a", "b"):
        write_series(tmp_path / "c" / name, PIXELS, [(0, 0, i) for i in range(3)], PatientID="P")
    (tmp_path / "p.csv").write_text("id,patient\na,mine\n", encoding="utf-8")
    plain = Cohort.read(tmp_path / "c").cases
    a, b = Cohort.read(tmp_path / "c", patients=tmp_path / "p.csv").cases
    assert (a.patient, b.patient) == ("mine", plain[1].patient) and plain[0].patient == plain[1].patient is not None


def test_names_typed_on_another_system_match(tmp_path: Path):
    # macOS writes u + diaeresis, a table typed elsewhere holds one letter.
    touch(tmp_path / "c" / "u\u0308.nii", tmp_path / "m" / "\u00fc.nii")
    (tmp_path / "p.csv").write_text("id,patient\n\u00fc,p1\n", "utf-8")
    (case,) = Cohort.read(tmp_path / "c", masks=tmp_path / "m", patients=tmp_path / "p.csv", strict=True).cases
    assert (case.id, case.patient, case.mask) == ("\u00fc", "p1", tmp_path / "m" / "\u00fc.nii")


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="POSIX permissions")
def test_what_may_not_be_read_is_told():
    folder = Path(tempfile.mkdtemp())
    user = os.geteuid()
    try:
        touch(folder / "a.nii", folder / "locked" / "b.nii", folder / "unreadable")
        folder.chmod(0o755)
        (folder / "locked").chmod(0)
        (folder / "unreadable").chmod(0)
        if user == 0:
            os.seteuid(65534)
        cohort = Cohort.read(folder)
        assert cohort.ids == ("a",)
        assert {Path(problem.path).name for problem in cohort.problems} == {"locked", "unreadable"}
    finally:
        os.seteuid(user)
        (folder / "locked").chmod(0o755)
        shutil.rmtree(folder)


def test_the_light_part_imports_with_numpy_alone():
    heavy = ["pydicom", "nibabel", "SimpleITK", "PIL", "torch", "monai", "scipy", "numba", "zarr", "matplotlib"]
    modules = "sys, replica_detection.io.cohort, replica_detection.io.volume"
    code = f"import {modules}; print([m for m in {heavy} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert result.stdout.strip() == "[]"


def test_the_real_cohorts_have_the_cases_that_they_should(real_data: Path):
    hippocampus = real_data / "hippocampus"
    cohort = Cohort.read(hippocampus, masks=hippocampus / "masks", patients=hippocampus / "patients.csv", strict=True)
    assert len(cohort) == 130 and all(case.mask and case.patient for case in cohort.cases)
    assert len({case.patient for case in cohort.cases}) < 130
    assert Cohort.read(real_data / "head_ct", strict=True).ids == ("ge_human_dicom", "slicer_cthead_dicom")
    assert len(Cohort.read(real_data / "vessels", strict=True)) == 500


def test_binary_images_may_be_their_own_masks(tmp_path):
    for name in ("a", "b"):
        nib.save(
            nib.Nifti1Image(np.eye(4, dtype=np.uint8)[..., None] * np.ones(3, np.uint8), np.eye(4)),
            tmp_path / f"{name}.nii.gz",
        )
    cohort = Cohort.read(tmp_path, masks=tmp_path)
    assert [c.mask for c in cohort.cases] == [c.files[0] for c in cohort.cases]
    assert len(cohort) == 2


def test_masks_that_monai_label_keeps_beside_its_images_are_no_images(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3)), np.eye(4)), tmp_path / "syn_1.nii.gz")
    (tmp_path / "labels" / "final").mkdir(parents=True)
    shutil.copy(tmp_path / "syn_1.nii.gz", tmp_path / "labels" / "final" / "syn_1.nii.gz")
    # Anyone else's folder of that name holds masks of the images, too, and is told.
    assert [p.message[:20] for p in Cohort.read(tmp_path).problems] == ["is taken for a mask,"]
    (tmp_path / "datastore_v2.json").write_text("{}", encoding="utf-8")
    served = Cohort.read(tmp_path)
    assert [c.image.parent for c in served.cases] == [tmp_path] and not served.problems


def test_a_cohort_of_given_files_looks_at_nothing_else(tmp_path):
    for name in ("a.nii.gz", "b.nii.gz", "masks/a.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(np.zeros((3, 3, 3)), np.eye(4)), tmp_path / name)
    found = Cohort.of_files(tmp_path, [tmp_path / "a.nii.gz", tmp_path / "gone.nii.gz"], masks=tmp_path / "masks")
    assert [(c.id, c.mask) for c in found.cases] == [("a", tmp_path / "masks" / "a.nii.gz")]
    assert len(found.problems) == 1
    assert Cohort.of_files(tmp_path, [], masks=tmp_path / "masks").cases == ()
