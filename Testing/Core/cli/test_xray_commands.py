"""Every command after a detection, on 2D X-rays as PNG, JPEG and DICOM, from the command line."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import DigitalXRayImageStorageForPresentation, generate_uid

from Core.made_dicom import dicom_dataset, save_dicom
from Core.made_up import volume
from replica_detection import cli

SHAPE = (52, 44)


def save(path: Path, array: np.ndarray, kind: str, person: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "dcm":
        elements = {
            "SOPClassUID": DigitalXRayImageStorageForPresentation,
            "Modality": "DX",
            "SeriesInstanceUID": generate_uid(),
            "PatientID": person,
        }
        save_dicom(dicom_dataset(np.round(array.T).astype(np.int16), **elements), path)
    else:
        Image.fromarray(np.clip(np.round(array.T / 4), 0, 255).astype(np.uint8)).save(path, quality=92)


@pytest.mark.parametrize("kind", ["png", "jpg", "dcm"])
def test_xrays_go_through_every_command(kind, tmp_path, monkeypatch, capsys):
    for n in range(20):
        save(tmp_path / "training" / f"train_{n:02d}.{kind}", volume(n, SHAPE), kind, f"T{n}")
        save(tmp_path / "unseen" / f"unseen_{n:02d}.{kind}", volume(500 + n, SHAPE), kind, f"U{n}")
    for n in range(7):
        save(tmp_path / "synthetic" / f"new_{n}.{kind}", volume(900 + n, SHAPE), kind, f"N{n}")
        copy = volume(n, SHAPE) + np.random.default_rng(n).normal(0, 12, SHAPE)
        save(tmp_path / "synthetic" / f"copy_{n}.{kind}", np.maximum(copy, 0), kind, f"C{n}")

    def run(*words):
        monkeypatch.setattr("sys.argv", ["replica-detection", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        shown = capsys.readouterr()
        assert stop.value.code == 0, shown.err
        return shown.out

    result, unseen = tmp_path / "result", ("--validation", tmp_path / "unseen")
    chosen = ("--profile", "chest-xray", "--measures", "mae,rmse,ssim")
    run("detect", tmp_path / "synthetic", "--training", tmp_path / "training", *unseen, *chosen, "--output", result)
    with (tmp_path / "ratings.csv").open("w") as f:
        f.write("synthetic_id,rating\n" + "".join(f"copy_{n},4\nnew_{n},1\n" for n in range(7)))
    assert "7 of 14 rated images" in run("calibrate", result, "--ratings", tmp_path / "ratings.csv")
    by_readers = ("--index", result / "index.rdindex", "--calibration", result / "calibration.json")
    assert "7 replicas" in run("detect", tmp_path / "synthetic", *by_readers, "--output", tmp_path / "by_readers")
    assert "N_copies" in run("memorization", result, "--output", tmp_path / "memorization")
    assert "7 went by their verdict" in run("filter", result, "--output", tmp_path / "filtered")
    kept = sorted(p.name for p in (tmp_path / "filtered").iterdir())
    assert kept == ["manifest.csv", *(f"new_{n}.{kind}" for n in range(7))]
    options = (*unseen, "--index", result / "index.rdindex", "--copies", "4")
    assert "false-positive rate" in run("selftest", *options, "--output", tmp_path / "selftest")
    rows = {r["kind"]: r for r in csv.DictReader((tmp_path / "selftest" / "selftest.csv").open(encoding="utf-8"))}
    assert rows["exact"]["flagged"] == rows["noise_0.02"]["flagged"] == rows["jpeg"]["flagged"] == "1"
    assert rows["exact"]["right_case"] == "1"
