"""Masks of a whole cohort: each is given back to the case that it was made of."""

from typing import ClassVar

import nibabel as nib
import numpy as np
import pytest

import replica_detection as rd
from replica_detection.errors import InputError
from replica_detection.io.cohort import Cohort
from replica_detection.segmentation.base import Segmenter


class Bright(Segmenter):
    name = "bright"
    version = 1
    labels: ClassVar = {1: "bright"}

    def segment(self, volume):
        return (volume.array > volume.array.mean()).astype(np.uint8)


@pytest.fixture
def listing(tmp_path):
    """A list whose ids are the names of each other's files."""
    (tmp_path / "a").mkdir()
    rng = np.random.default_rng(0)
    for n in (1, 2):
        image = nib.Nifti1Image(rng.normal(0, 50, (12, 11, 10)).astype(np.float32), np.eye(4))
        nib.save(image, tmp_path / "a" / f"scan{n}.nii.gz")
    path = tmp_path / "list.csv"
    path.write_text("id,image\nscan1,a/scan2.nii.gz\nscan2,a/scan1.nii.gz\n", encoding="utf-8")
    return path


def test_a_mask_comes_back_to_the_case_that_it_was_made_of(listing, tmp_path):
    rd.segment(listing, tmp_path / "m", Bright())
    cohort = Cohort.read(listing, masks=tmp_path / "m")
    for case in cohort.cases:
        image, mask = (nib.load(path).get_fdata() for path in (case.files[0], case.mask))
        np.testing.assert_array_equal(mask > 0, image > image.mean())
    assert len(cohort.problems) == 1


def test_a_mask_never_takes_the_place_of_its_image(listing, tmp_path):
    before = (tmp_path / "a" / "scan1.nii.gz").read_bytes()
    with pytest.raises(InputError, match="is the image itself"):
        rd.segment(tmp_path / "a", tmp_path / "a", Bright())
    assert (tmp_path / "a" / "scan1.nii.gz").read_bytes() == before
    # Nor that of another case, whose file has the name of the mask.
    with pytest.raises(InputError, match="is the image itself"):
        rd.segment(listing, tmp_path / "a", Bright())
    assert (tmp_path / "a" / "scan1.nii.gz").read_bytes() == before
