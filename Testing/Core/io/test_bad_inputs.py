"""No input ends in anything but a clean result or an InputError that names the file and says what to do."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from Core.bad_inputs import BadInput, attempt, make_bad_folder, make_bad_inputs
from replica_detection.errors import InputError
from replica_detection.io.cohort import Cohort
from replica_detection.io.volume import read_volume, write_volume


@pytest.fixture(scope="module")
def bad_inputs(tmp_path_factory: pytest.TempPathFactory) -> list[BadInput]:
    return make_bad_inputs(tmp_path_factory.mktemp("bad"))


def test_there_are_many_different_ones(bad_inputs: list[BadInput]):
    names = [bad.name for bad in bad_inputs]
    assert len(names) == len(set(names)) >= 300


def test_each_is_read_or_explained_and_nothing_is_printed(bad_inputs: list[BadInput], capfd, caplog, recwarn):
    faults = []
    for bad in bad_inputs:
        try:
            count = attempt(bad)
        except InputError as error:
            text = str(error)
            if bad.culprit == "works":
                faults.append(f"{bad.name}: {text}")
            elif bad.expect not in text or (bad.culprit or bad.path.name) not in text or len(error.advice) < 10:
                faults.append(f"{bad.name}: expected {bad.expect!r}, got {text}")
        except Exception as error:
            faults.append(f"{bad.name}: {type(error).__name__} {error}")
        else:
            if bad.culprit != "works" or count != 1:
                faults.append(f"{bad.name}: read {count} cases")
    printed = capfd.readouterr()
    assert not faults, "\n".join(faults)
    assert printed.out + printed.err == "" and caplog.records == []
    assert [str(warning.message) for warning in recwarn] == []


def test_good_cases_among_bad_ones_are_kept(tmp_path: Path):
    count = make_bad_folder(tmp_path)
    rng = np.random.default_rng(0)
    arrays = {f"good_{i}": rng.integers(0, 100, (6, 5, 4)).astype(np.int16) for i in range(3)}
    for name, array in arrays.items():
        write_volume(tmp_path / f"{name}.nii.gz", array, np.eye(4))
    cohort = Cohort.read(tmp_path)
    read, refused = {}, []
    for case in cohort.cases:
        try:
            read[case.id] = read_volume(case)
        except InputError:
            refused.append(case.id)
    assert sorted(read) == sorted(arrays)
    assert all(np.array_equal(read[name].array, arrays[name]) for name in arrays)
    assert len(refused) + len(cohort.problems) == count >= 200
    with pytest.raises(InputError):
        Cohort.read(tmp_path, strict=True)


def test_faulty_nrrd_files_read_at_once_do_not_end_the_process(tmp_path):
    """The library below ITK writes its messages into one place for all threads."""
    header = "NRRD0004\ntype: float\ndimension: 3\nsizes: 4 4 4\nspace: LPS\nspace directions: (1,0,0) (0,1) (0,0,1)\n"
    for n in range(40):
        (tmp_path / f"{n}.nrrd").write_bytes(f"{header}encoding: raw\n\n".encode() + bytes(256))
    script = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from replica_detection.errors import InputError
from replica_detection.io.volume import read_volume
def read(path):
    try:
        read_volume(path)
    except InputError:
        return 1
    return 0
files = sorted(Path(sys.argv[1]).iterdir()) * 60
with ThreadPoolExecutor(8) as pool:
    print(sum(pool.map(read, files)))
"""
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, encoding="utf-8")
    assert (run.returncode, run.stdout.strip()) == (0, str(40 * 60)), run.stderr[-500:]
