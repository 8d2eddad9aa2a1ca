"""The options about patients: every command that takes a table takes a pattern, and both reach the cohorts."""

import json

import nibabel as nib
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from replica_detection.cli import app

COMMANDS = typer.main.get_command(app).commands
WITH_PATIENTS = [name for name, command in COMMANDS.items() if any(p.name == "patients" for p in command.params)]


def test_each_command_with_a_table_takes_a_pattern():
    assert {"index", "detect", "duplicates", "memorization", "selftest", "train-encoder", "serve"} <= set(WITH_PATIENTS)
    for name in WITH_PATIENTS:
        assert any("--patient-pattern" in p.opts for p in COMMANDS[name].params), name


@pytest.fixture
def scans(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "scans").mkdir()
    for n in range(6):
        image = nib.Nifti1Image(rng.normal(100, 30, (8, 7, 6)).astype(np.float32), np.eye(4))
        nib.save(image, tmp_path / "scans" / f"{n // 2:03d}_{n}.nii.gz")
    return tmp_path / "scans"


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def patients_of(index):
    return [entry["patient"] for entry in json.loads((index / "index.json").read_text(encoding="utf-8"))["entries"]]


def test_index_with_a_pattern_and_with_a_table_that_fits_in_part(scans, tmp_path):
    index = tmp_path / "a.rdindex"
    done = run("index", scans, "--output", index, "--measures", "mae", "--patient-pattern", r"^(\d+)_", "--strict")
    assert done.exit_code == 0, done.output
    assert patients_of(index) == ["000", "000", "001", "001", "002", "002"]
    table = tmp_path / "p.csv"
    table.write_text("id;patient\n" + "".join(f"{n // 2}_{n};P{n // 2}\n" for n in range(6)), encoding="utf-8")
    done = run("index", scans, "--output", index, "--measures", "mae", "--patients", table)
    assert done.exit_code == 0 and "problem" in done.stderr and "leading zeros" in done.stderr
    done = run("index", scans, "--output", index, "--measures", "mae", "--patients", table, "--strict")
    assert done.exit_code != 0 and "lists no case of this cohort" in str(done.exception)


def test_a_table_and_a_pattern_are_wrong_arguments(scans, tmp_path):
    table = tmp_path / "p.csv"
    table.write_text("id,patient\n000_0,1\n", encoding="utf-8")
    output = tmp_path / "a.rdindex"
    done = run("index", scans, "--output", output, "--patients", table, "--patient-pattern", "(a)")
    assert "either patients or patient_pattern" in str(done.exception)


def test_files_passed_over_stand_in_the_index_and_are_printed(scans, tmp_path):
    for n in range(3):
        (scans / f"{n}.bmp").write_bytes(bytes(50))
    index = tmp_path / "a.rdindex"
    done = run("index", scans, "--output", index, "--measures", "mae")
    assert done.exit_code == 0 and "passed over" in done.stderr and "2 other files .bmp" in done.stderr
    (problem,) = json.loads((index / "index.json").read_text(encoding="utf-8"))["problems"]
    assert problem["path"].endswith("0.bmp") and "passed over" in problem["message"]
    done = run("index", scans, "--output", tmp_path / "b.rdindex", "--measures", "mae", "--strict")
    assert done.exit_code != 0 and "passed over" in str(done.exception)
