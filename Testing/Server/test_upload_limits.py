"""How large an upload may be: by the launch, else by the training images, however they are stored."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")

from Core import made_up
from Core.made_dicom import write_series
from replica_detection_server.computing.services import Services
from replica_detection_server.routes import upload_limits as made
from replica_detection_server.routes.upload_limits import (
    FACTOR,
    LEAST_VOXELS,
    upload_limits,
    voxels_of,
)
from replica_detection_server.settings.configuration import Configuration
from replica_detection_server.settings.launch_settings import Settings
from replica_detection_server.uploads.limits import UploadLimits
from Server.made_uploads import SHAPE, voxels, whole_files


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small images of tests are above the least."""
    monkeypatch.setattr(made, "LEAST_VOXELS", 10)


def state_for(folder: Path, **given: str) -> SimpleNamespace:
    (folder / "studies").mkdir(exist_ok=True)
    configuration = Configuration.of(folder / "studies", {"data": str(folder / "data"), **given})
    return SimpleNamespace(replica=Services(configuration))


@pytest.mark.parametrize("name", [n for n in sorted(whole_files()) if n != "deflated.dcm"])
def test_headers_of_every_format_tell_the_size(tmp_path, name):
    (tmp_path / name).write_bytes(whole_files()[name])
    size = {"png": 1200, "jpg": 1200, "dcm": 480}.get(name.rpartition(".")[2], voxels().size)
    assert voxels_of([tmp_path / name]) == size


def test_the_largest_training_image_decides(tmp_path):
    made_up.write(tmp_path / "training" / "a.nii.gz", made_up.volume(0, (10, 10, 10)))
    made_up.write(tmp_path / "training" / "b" / "b.nii.gz", made_up.volume(1, (30, 20, 10)))
    (tmp_path / "training" / "broken.nii.gz").write_bytes(b"no image")
    assert upload_limits(state_for(tmp_path, training=str(tmp_path / "training"))) == UploadLimits.of(FACTOR * 6000)


def test_a_series_counts_as_one_image(tmp_path):
    stack = np.random.default_rng(0).integers(0, 99, (8, 12, 10)).astype(np.int16)
    (tmp_path / "training" / "p1").mkdir(parents=True)
    write_series(tmp_path / "training" / "p1", stack, [(0, 0, z) for z in range(8)])
    assert upload_limits(state_for(tmp_path, training=str(tmp_path / "training"))).max_voxels == FACTOR * stack.size


def test_a_list_of_training_images(tmp_path):
    made_up.write(tmp_path / "scans" / "a.nii.gz", made_up.volume(0, (9, 8, 7)))
    (tmp_path / "training.csv").write_text("id,image\na,scans/a.nii.gz\nb,scans/gone.nii.gz\n", encoding="utf-8")
    assert upload_limits(state_for(tmp_path, training=str(tmp_path / "training.csv"))).max_voxels == FACTOR * 504


def test_an_index_alone_knows_the_size_also_where_its_images_are_gone(tmp_path):
    from replica_detection_server.comparison import tasks

    scans = made_up.cohort(tmp_path / "training", 3)
    given = {"training": str(scans), "index": str(tmp_path / "x.rdindex"), "data": str(tmp_path / "data")}
    (tmp_path / "studies").mkdir()
    tasks.build_index(Configuration.of(tmp_path / "studies", {**given, "measures": "mae"}))
    state = state_for(tmp_path, index=str(tmp_path / "x.rdindex"), measures="mae")
    known = upload_limits(state)
    assert known.max_voxels == FACTOR * np.prod(made_up.SHAPE)
    assert upload_limits(state) is known  # looked through once
    for path in scans.iterdir():
        path.unlink()
    fresh = state_for(tmp_path, index=str(tmp_path / "x.rdindex"), measures="mae")
    assert upload_limits(fresh).max_voxels >= np.prod(made_up.SHAPE)


def test_the_launch_goes_before_the_training_images(tmp_path):
    made_up.write(tmp_path / "training" / "a.nii.gz", made_up.volume(0, (10, 10, 10)))
    state = state_for(tmp_path, training=str(tmp_path / "training"))
    state.settings = Settings(data=tmp_path, max_upload_voxels=123)
    assert upload_limits(state) == UploadLimits.of(123)
    state.settings = Settings(data=tmp_path)
    assert upload_limits(state) == UploadLimits.of(FACTOR * 1000)


def test_the_least_is_an_ordinary_volume():
    assert LEAST_VOXELS == 256**3 and len(SHAPE) == 3
    assert upload_limits(None) == UploadLimits.of(10)
