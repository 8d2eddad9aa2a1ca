"""A cohort without a usable image says which files it left out, and why each."""

from pathlib import Path

import numpy as np
import pytest

from Core.made_up import volume, write
from replica_detection.errors import InputError
from replica_detection.index.build import build_index
from replica_detection.io.cohort import Cohort, Problem
from replica_detection.preparation.loading import nothing_usable, sample_volumes

SHAPE = (7, 6, 5)
FAULTY = {
    "blank": np.zeros(SHAPE, np.int16),
    "4d": np.stack([volume(0, SHAPE)] * 4, -1),
    "nan": np.where(np.arange(210).reshape(SHAPE) == 3, np.nan, volume(0, SHAPE)),
}
REASONS = {"blank": "has the value 0 in all", "4d": "is 4D, 4 time points or channels", "nan": "has 1 of 210 voxels"}


@pytest.mark.parametrize("kind", FAULTY)
def test_no_readable_training_image_names_the_first_files_and_the_reason(tmp_path, kind):
    for n in range(5):
        write(tmp_path / "training" / f"t{n}.nii.gz", FAULTY[kind])
    with pytest.raises(InputError) as found:
        build_index(tmp_path / "training", tmp_path / "x.rdindex", measures=["mae"])
    text = str(found.value)
    assert text.startswith(f"{tmp_path / 'training'}: holds no image that can be used (5 files left out. ")
    assert f"t0.nii.gz, t1.nii.gz, t2.nii.gz and 2 more: {REASONS[kind]}" in text
    assert "t3.nii" not in text and not list(tmp_path.glob("*.rdindex"))


def test_each_reason_is_told_and_a_good_file_behind_bad_ones_is_found(tmp_path):
    for n, (kind, array) in enumerate(FAULTY.items()):
        write(tmp_path / kind / f"t{n}.nii.gz", array)
    (tmp_path / "4d" / "t9.nii.gz").write_bytes(b"")
    cohort = Cohort.read(tmp_path)
    with pytest.raises(InputError) as found:
        list(sample_volumes(cohort))
    text = str(found.value)
    assert "4 files left out" in text and "and 1 more reason)" in text
    assert all(f"{Path(kind) / f't{n}.nii.gz'}: " in text for n, kind in enumerate(FAULTY) if kind != "nan")
    with pytest.raises(InputError, match="4D, 4 time points"):
        list(sample_volumes(cohort, strict=True))
    write(tmp_path / "z.nii.gz", volume(1, SHAPE))
    assert len(list(sample_volumes(Cohort.read(tmp_path), size=1))) == 1
    many = Cohort.read(tmp_path)
    assert [v.array.shape for v in sample_volumes(many, size=2)] == [SHAPE]


def test_without_a_known_reason_nothing_is_said_in_brackets(tmp_path):
    assert "(" not in str(nothing_usable(tmp_path, ())).removeprefix(str(tmp_path))
    one = nothing_usable(tmp_path, [Problem("elsewhere/a.nii", "is empty. Copy it.")] * 2)
    assert "(1 file left out. elsewhere/a.nii: is empty. Copy it)" in str(one)
