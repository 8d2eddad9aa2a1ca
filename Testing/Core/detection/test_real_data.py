"""The pipeline on real scans: planted copies that stay in place are found, people in neither cohort mostly are not."""

import csv

import numpy as np
import pytest
from scipy import ndimage

from Core.made_up import write
from replica_detection.detection.detector import detect
from replica_detection.detection.options import DetectionOptions
from replica_detection.index.build import build_index
from replica_detection.io.cohort import Cohort
from replica_detection.io.volume import read_mask, read_volume
from replica_detection.preparation.profiles import PROFILES

COPIES = {
    "exact": lambda image, rng: image,
    "noise": lambda image, rng: image + rng.normal(0, 0.1 * np.ptp(image), image.shape),
    "contrast": lambda image, rng: 0.6 * image + 0.25 * np.ptp(image),
    "gamma": lambda image, rng: np.clip(image / image.max(), 0, None) ** 1.5,
    "blur": lambda image, rng: ndimage.gaussian_filter(image, 1.5),
    "turned": lambda image, rng: ndimage.rotate(image, 4, (0, 1), reshape=False, order=1, mode="nearest"),
}


@pytest.fixture(scope="module")
def hippocampus(real_data, tmp_path_factory):
    """60 training scans, 40 of other people as validation, 14 new ones and 5 copies of each kind."""
    source = real_data / "hippocampus"
    if not source.is_dir():
        pytest.skip("no hippocampus scans")
    with (source / "patients.csv").open(encoding="utf-8") as f:
        people = {row["id"]: row["patient"] for row in csv.DictReader(f)}
    cases = {c.id: c for c in Cohort.read(source / "images", masks=source / "masks").cases}
    names = list(dict.fromkeys(people[i] for i in cases))
    rng = np.random.default_rng(11)
    rng.shuffle(names)
    by_person = {name: [i for i in cases if people[i] == name] for name in names}
    folder, parts = tmp_path_factory.mktemp("real"), {"training": 60, "validation": 40, "synthetic": 14}
    placed: dict[str, list[str]] = {part: [] for part in parts}
    for name in names:
        part = next((p for p, size in parts.items() if len(placed[p]) < size), None)
        for case in by_person[name] if part else ():
            placed[part].append(case)

    def save(part, name, case, change=lambda image: image):
        volume = read_volume(cases[case])
        write(folder / part / f"{name}.nii.gz", change(volume.array).astype(np.float32), volume.affine)
        mask = (read_mask(cases[case].mask, volume) > 0).astype(np.uint8)
        write(folder / f"{part}_masks" / f"{name}.nii.gz", mask, volume.affine)

    for part in parts:
        for case in placed[part]:
            save(part, f"new_{case}" if part == "synthetic" else case, case)
    truth = {}
    for kind, change in COPIES.items():
        for case in rng.choice(placed["training"], 5, replace=False):
            truth[f"{kind}_{case}"] = str(case)
            save("synthetic", f"{kind}_{case}", str(case), lambda image, change=change: change(image, rng))
    return folder, truth


def read(folder, part):
    return Cohort.read(folder / part, masks=folder / f"{part}_masks")


@pytest.mark.parametrize("measures", [("mae", "rmse", "ssim"), None])
def test_planted_copies_of_real_scans(hippocampus, tmp_path, measures):
    folder, truth = hippocampus
    index = build_index(read(folder, "training"), tmp_path / "x.rdindex", measures=measures)
    result = detect(
        read(folder, "synthetic"),
        index,
        validation=read(folder, "validation"),
        options=DetectionOptions(measures=measures),
    )
    found = {c.synthetic_id: c for c in result.summary}
    flagged = [found[i].verdict in ("replica", "suspicious") for i in truth]
    named = [found[i].nearest_training_id == case for i, case in truth.items()]
    new = [c for c in result.summary if c.synthetic_id.startswith("new_")]
    assert np.mean(flagged) >= 0.95
    assert np.mean(named) >= 0.95
    assert np.mean([c.verdict != "novel" for c in new]) <= 0.2
    exact = [m for m in result.matches if m.synthetic_id.startswith("exact")]
    assert all(m.distance == 0 for m in exact)


def test_uneven_head_ct_is_read_and_its_unevenness_told(real_data, tmp_path):
    source = real_data / "head_ct" / "ge_human_dicom"
    if not source.is_dir():
        pytest.skip("no head CT")
    index = build_index(Cohort.read(source), tmp_path / "ct.rdindex", profile="head-ct")
    texts = " ".join(text for _, text in index.warnings)
    assert "1.08 to 7.00 mm" in texts
    assert "gantry tilt" in texts
    assert index.preparation.intensity == PROFILES["head-ct"].intensity
    image = index.features([0], ["image"])["image"][0]
    assert 0.1 < (image > 0.05).mean() < 0.6
