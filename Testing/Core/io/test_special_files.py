"""Pipes and devices among the files: they are never opened, for opening one may wait for ever."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from Core import made_up
from Core.made_dicom import write_series
from replica_detection.errors import InputError
from replica_detection.io.cohort import Cohort
from replica_detection.io.volume import read_mask, read_volume
from replica_detection.readers.rating_tables import read_ratings
from replica_detection.segmentation import make_segmenter

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")

SECONDS = 20


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket may have a hundred letters
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


@pytest.fixture(params=[pipe, device, listening])
def put(request) -> Callable[[Path], Path]:
    """Makes a special file at a path, where its folder is made as well."""

    def make(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        request.param(path)
        return path

    return make


def soon(call: Callable[[], object]) -> object:
    """The result of a call, or its error; the test fails where the call waits."""
    found: list[object] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert not thread.is_alive(), "it opened the file and waits"
    if raised:
        raise raised[0]
    return found[0]


def test_among_the_images(put, tmp_path):
    folder = made_up.cohort(tmp_path / "images", 2)
    put(folder / "bad.nii.gz")
    put(folder / "bad.dcm")
    put(folder / "IM0001")
    cohort = soon(lambda: Cohort.read(folder))
    assert isinstance(cohort, Cohort)
    assert cohort.ids == ("case_000", "case_001")
    assert {Path(p.path).name for p in cohort.problems} == {"bad.nii.gz", "bad.dcm"}
    assert all("not a regular file" in problem.message for problem in cohort.problems)


def test_beside_the_slices_of_a_series(put, tmp_path):
    stack = np.random.default_rng(0).integers(0, 1000, (4, 12, 10)).astype(np.int16)
    write_series(tmp_path / "series", stack, [(0.0, 0.0, 2.0 * n) for n in range(4)])
    put(tmp_path / "series" / "IM9999")
    put(tmp_path / "series" / "9999.dcm")
    cohort = soon(lambda: Cohort.read(tmp_path / "series"))
    assert isinstance(cohort, Cohort) and len(cohort) == 1
    assert "9999.dcm" not in {file.name for file in cohort.cases[0].files}


def test_among_the_masks(put, tmp_path):
    folder = made_up.cohort(tmp_path / "images", 2)
    made_up.cohort(tmp_path / "masks", 1)
    put(tmp_path / "masks" / "case_001.nii.gz")
    cohort = soon(lambda: Cohort.read(folder, masks=tmp_path / "masks"))
    assert isinstance(cohort, Cohort) and [case.mask is None for case in cohort.cases] == [False, True]


@pytest.mark.parametrize("name", ["bad.nii.gz", "bad.nii", "bad.nrrd", "bad.mha", "bad.png", "bad.dcm", "bad"])
def test_as_an_image(put, tmp_path, name):
    path = put(tmp_path / name)
    with pytest.raises(InputError, match="not a regular file"):
        soon(lambda: read_volume(path))


def test_as_a_slice_or_a_mask(put, tmp_path):
    path = put(tmp_path / "1.dcm")
    with pytest.raises(InputError, match="not a regular file"):
        soon(lambda: read_volume([path, path]))
    like = read_volume(made_up.write(tmp_path / "like.nii.gz", made_up.volume(0)))
    with pytest.raises(InputError, match="not a regular file"):
        soon(lambda: read_mask(put(tmp_path / "mask.nii.gz"), like))


def test_in_lists(put, tmp_path):
    made_up.cohort(tmp_path / "images", 1)
    put(tmp_path / "bad.nii.gz")
    table = tmp_path / "table.csv"
    table.write_text("id,image,mask\na,images/case_000.nii.gz,bad.nii.gz\nb,bad.nii.gz,\n", encoding="utf-8")
    cohort = soon(lambda: Cohort.read(table))
    assert isinstance(cohort, Cohort) and [(c.id, c.mask) for c in cohort.cases] == [("a", None)]
    assert len(cohort.problems) == 2


@pytest.mark.parametrize("name", ["table.csv", "table.tsv", "dataset.json"])
def test_as_a_list(put, tmp_path, name):
    path = put(tmp_path / name)
    with pytest.raises(InputError, match="not a regular file"):
        soon(lambda: Cohort.read(path))


def test_as_patients_ratings_or_weights(put, tmp_path):
    folder = made_up.cohort(tmp_path / "images", 1)
    path = put(tmp_path / "special.csv")
    for call in (
        lambda: Cohort.read(folder, patients=path),
        lambda: read_ratings(path),
        lambda: make_segmenter(f"network:{path}"),
    ):
        with pytest.raises(InputError, match="not a regular file"):
            soon(call)


def test_among_the_studies_of_a_server(put, tmp_path):
    """They are no studies, and no masks of studies."""
    pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")
    from replica_detection_server.collection import cohorts
    from replica_detection_server.settings.configuration import Configuration

    training = made_up.cohort(tmp_path / "training", 1)
    studies = made_up.cohort(tmp_path / "studies", 2)
    made_up.cohort(tmp_path / "masks", 1)
    put(studies / "bad.nii.gz")
    put(tmp_path / "masks" / "case_001.nii.gz")
    given = {"training": str(training), "masks": str(tmp_path / "masks"), "data": str(tmp_path / "data")}
    configuration = Configuration.of(studies, given)
    cohort = soon(lambda: cohorts.studies(configuration))
    assert isinstance(cohort, Cohort) and cohort.ids == ("case_000", "case_001")
    assert [case.mask is None for case in cohort.cases] == [False, True]
