"""Commands that open a result work from any folder, also after a move; a page with pictures is kept."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import replica_detection as rd
from Core.made_up import volume, write
from replica_detection.cli import app

SHAPE = (10, 9, 8)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run whose paths were typed relatively, in which one image is a copy, with its page."""
    folder = tmp_path_factory.mktemp("made")
    for part, seeds in (("train", range(12)), ("unseen", range(50, 70)), ("syn", range(100, 103))):
        for n, seed in enumerate(seeds):
            write(folder / part / f"{part}{n}.nii", volume(seed, SHAPE))
    write(folder / "syn" / "copy.nii", volume(2, SHAPE))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = rd.detect(
            "syn", rd.build_index("train", "res/index.rdindex", measures=["mae", "rmse"]), validation="unseen"
        )
        result.write("res")
        result.write_report("res/report")
    assert pictures(folder / "res") > 0
    return folder


def pictures(result: Path) -> int:
    return (result / "report" / "index.html").read_text(encoding="utf-8").count("data:image/jpeg")


def command(*words: object) -> str:
    """The output of a command that must not fail."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("moved", [False, True])
def test_every_command_finds_the_inputs_of_a_result(made, tmp_path, monkeypatch, moved):
    root = made
    if moved:
        root = shutil.copytree(made, tmp_path / "elsewhere")
        (made / "syn").rename(made / "hidden")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    try:
        before = pictures(root / "res")
        command("report", root / "res")
        assert pictures(root / "res") == before
        command("filter", root / "res", "--output", tmp_path / "kept")
        assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == [
            "manifest.csv",
            *(f"syn{n}.nii" for n in range(3)),
        ]
        command("memorization", root / "res", "--output", tmp_path / "memorization")
    finally:
        if moved:
            (made / "hidden").rename(made / "syn")


@pytest.mark.parametrize("gone", ["syn", "res/index.rdindex"])
def test_a_page_with_pictures_is_kept_where_they_cannot_be_drawn_again(made, tmp_path, gone):
    root = shutil.copytree(made, tmp_path / "elsewhere")
    (made / "syn").rename(made / "hidden")
    try:
        shutil.rmtree(root / gone)
        if gone != "syn":
            shutil.move(made / "res", made / "res_hidden")
        before = (root / "res" / "report" / "index.html").read_bytes()
        done = CliRunner().invoke(app, ["report", str(root / "res")])
        told = " ".join(done.output.split())
        assert done.exit_code == 1 and "does not exist any more" in told
        assert (root / "res" / "report" / "index.html").read_bytes() == before
        shutil.rmtree(root / "res" / "report")
        command("report", root / "res")  # without an older page there is one without pictures
        assert pictures(root / "res") == 0
    finally:
        (made / "hidden").rename(made / "syn")
        if gone != "syn":
            shutil.move(made / "res_hidden", made / "res")


def test_images_that_were_replaced_are_not_filtered_as_those_of_the_run(made, tmp_path):
    root = shutil.copytree(made, tmp_path / "elsewhere")
    write(root / "syn" / "syn1.nii", volume(2, SHAPE) + np.float32(1))  # a copy, under the name of a novel image
    (made / "syn").rename(made / "hidden")
    try:
        command("filter", root / "res", "--output", tmp_path / "kept")
    finally:
        (made / "hidden").rename(made / "syn")
    assert sorted(p.name for p in (tmp_path / "kept").glob("*.nii")) == ["syn0.nii", "syn2.nii"]
    manifest = (tmp_path / "kept" / "manifest.csv").read_text(encoding="utf-8")
    assert "syn1,0,its image is no longer there as it was compared" in manifest
