"""The command line as a user meets it: a real process, its output, its exit code, its files."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from Core.bad_inputs import make_bad_folder
from Core.made_up import cohort, volume, write
from replica_detection.cli.console import with_flags

# One test runs all measures; the others, which look at files and messages, need no embedding fitted in each process.
FEW = ("--measures", "mae,ssim", "--no-align")


def run(*words, env=None, **options):
    command = [sys.executable, "-m", "replica_detection", *map(str, words)]
    environment = {**os.environ, "COLUMNS": "200", **(env or {})}
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=300, env=environment, **options)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    cohort(folder / "training", 24)
    cohort(folder / "unseen", 20, 500, "unseen")
    cohort(folder / "synthetic", 3, 902, "new")
    noise = np.random.default_rng(0).normal(0, 30, volume(5).shape).astype("f4")
    write(folder / "synthetic" / "copy.nii.gz", volume(5) + noise)
    return folder


def test_detect_from_folders_to_tables_and_report(data, tmp_path):
    output = tmp_path / "Ergebnis ü"
    done = run("detect", data / "synthetic", "--training", data / "training", "--validation", data / "unseen",
               "--output", output)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 replicas" in done.stdout
    assert "Traceback" not in done.stderr
    names = {p.name for p in output.iterdir()}
    assert names == {
        "summary.csv",
        "matches.csv",
        "neighbors.npz",
        "alignments.json",
        "detection.json",
        "places.json",
        "report",
        "index.rdindex",
    }
    with (output / "summary.csv").open(encoding="utf-8") as f:
        rows = {r["synthetic_id"]: r for r in csv.DictReader(f)}
    assert rows["copy"]["verdict"] == "replica"
    assert rows["copy"]["nearest_training_id"] == "case_005"
    assert (output / "report" / "index.html").stat().st_size > 20_000

    again = run("detect", data / "synthetic", "--training", data / "training", "--output", output)
    assert again.returncode == 0, again.stderr
    assert "cross-fitted" in again.stdout

    (output / "report" / "index.html").unlink()
    page = run("report", output)
    assert page.returncode == 0, page.stderr
    assert "data:image" in (output / "report" / "index.html").read_text("utf-8")


def test_index_then_detect_append_and_verify(data, tmp_path):
    folder = tmp_path / "x.rdindex"
    built = run("index", data / "training", "--output", folder, "--measures", "mae,rmse", "--verify")
    assert built.returncode == 0, built.stderr
    assert "24 cases" in built.stdout and "Verified" in built.stdout
    more = cohort(tmp_path / "more", 2, 700, "later")
    appended = run("index", more, "--output", folder, "--append")
    assert "26 cases" in appended.stdout, appended.stderr
    found = run("detect", data / "synthetic", "--index", folder, "--output", tmp_path / "r")
    assert found.returncode == 0, found.stderr
    refused = run("detect", data / "synthetic", "--index", folder, "--output", tmp_path / "r", "--measures", "dice")
    assert refused.returncode == 2
    assert "not built for measure 'dice'" in refused.stderr
    assert "with --measures that include it" in refused.stderr


def test_duplicates_inside_one_cohort_and_across_two(data, tmp_path):
    scans = cohort(tmp_path / "scans", 20)
    write(scans / "again.nii.gz", volume(7))
    done = run("duplicates", scans, "--output", tmp_path / "d", *FEW)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "d" / "duplicates.csv").open(encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert (rows[0]["first_id"], rows[0]["second_id"], rows[0]["verdict"]) == ("again", "case_007", "identical")
    assert (tmp_path / "d" / "pairs" / "001.jpg").stat().st_size > 1000
    across = run("duplicates", data / "training", data / "synthetic", "--output", tmp_path / "e", *FEW)
    assert across.returncode == 0, across.stderr
    assert "copy" in across.stdout and "case_005" in across.stdout


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["detect", "nowhere", "--training", "nowhere", "--output", "x"], 1, "nowhere"),
        (["detect", "DATA", "--output", "x"], 2, "--index or --training"),
        (["detect", "DATA", "--training", "DATA", "--output", "x", "--k", "0"], 2, "--k"),
        (["detect", "DATA", "--training", "DATA", "--output", "x", "--measures", "psnr"], 2, "unknown measure 'psnr'"),
        (["detect", "DATA", "--training", "DATA", "--output", "x", "--profile", "elbow"], 2, "unknown profile"),
        (["detect", "DATA", "--training", "DATA", "--output", "x", "--alpha", "7"], 2, "--alpha"),
        (["detect", "DATA", "--index", "nowhere.rdindex", "--output", "x"], 1, "this folder as --output"),
        (["report", "nowhere"], 1, "nowhere"),
        (["index"], 2, "training"),
        (["fly"], 2, "fly"),
    ],
)
def test_wrong_arguments_give_a_message_and_the_right_code(data, tmp_path, words, code, message):
    words = [str(data / "training") if w == "DATA" else w for w in words]
    done = run(*words, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in re.sub(r"[\s│]+", " ", done.stderr)
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("segmenter and training_masks are for training images", "--segment and --training-masks are for training"),
        ("embedding and slice_embedding are for training images", "--embedding and --slice-embedding are for"),
        ("the training cohort has no masks; give masks or a segmenter", "no masks; give --masks or --segment"),
        ("at has 2 numbers for 1 results", "--at has 2 numbers for 1 results"),
        ("give real images as validation", "give real images with --validation"),
    ],
)
def test_messages_name_options_and_not_arguments(message, shown):
    assert shown in with_flags(message)


def test_help_teaches_without_loading_anything_heavy():
    done = run("detect", "--help")
    assert done.returncode == 0
    for word in ("--validation", "replica", "suspicious", "Example"):
        assert word in done.stdout
    code = (
        "import sys, replica_detection.cli, replica_detection.io.cohort, replica_detection.results.result; "
        "print([m for m in ('torch','monai','numba','zarr','SimpleITK','matplotlib','scipy') if m in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert loaded.stdout.strip() == "[]"


def test_terminal_without_unicode_is_no_reason_to_fail(data, tmp_path):
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run(
        "detect", data / "synthetic", "--training", data / "training", "--output", tmp_path / "ü", *FEW, env=plain
    )
    assert done.returncode == 0, done.stderr
    assert "Report:" in done.stdout
    assert (tmp_path / "ü" / "summary.csv").is_file()


def test_unwritable_output_is_one_message(data, tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    done = run("detect", data / "synthetic", "--training", data / "training", "--output", tmp_path / "file")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "file" in done.stderr


def test_interrupt_leaves_no_half_written_file(tmp_path):
    training = cohort(tmp_path / "training", 60)
    command = [sys.executable, "-m", "replica_detection", "detect", str(training), "--training", str(training),
               "--output", str(tmp_path / "out"), *FEW]  # fmt: skip
    # A test run in the background ignores Ctrl-C, and its children would inherit that.
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    journal = tmp_path / "out" / "index.rdindex.partial" / "entries.jsonl"
    deadline = time.time() + 120
    while not (journal.is_file() and journal.stat().st_size) and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Stopped" in messages
    assert "Traceback" not in messages
    left = {p.name for p in (tmp_path / "out").iterdir()}
    assert left <= {"index.rdindex.partial", "index.rdindex"}
    assert not list(tmp_path.rglob("*.tmp"))


def test_hundreds_of_bad_files_neither_stop_a_run_nor_show_a_traceback(data, tmp_path):
    """Every kind of bad file among good ones: the good ones are judged, each bad one is listed; --strict stops."""
    synthetic = tmp_path / "synthetic"
    bad = make_bad_folder(synthetic)
    assert bad >= 100
    for n in range(3):
        write(synthetic / f"good_{n}.nii.gz", volume(n) + 5)
    words = ["detect", synthetic, "--training", data / "training", "--output", tmp_path / "out", *FEW]
    done = run(*words)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "Warning" not in done.stderr
    with (tmp_path / "out" / "summary.csv").open(encoding="utf-8") as f:
        judged = {r["synthetic_id"]: r["verdict"] for r in csv.DictReader(f)}
    assert {f"good_{n}": "replica" for n in range(3)}.items() <= judged.items()
    skipped = json.loads((tmp_path / "out" / "detection.json").read_text("utf-8"))["synthetic"]["skipped"]
    assert len(skipped) >= 100
    assert all(message.endswith(".") and len(message) > 20 for _, message in skipped)
    strict = run(*words, "--strict")
    assert strict.returncode == 1
    assert "Traceback" not in strict.stderr
