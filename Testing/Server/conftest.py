"""A server under MONAI Label's own launch over small collections, shared by the tests of the app and its routes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from Server import collections_on_disk
from Server.collections_on_disk import COPIED, Collections
from Server.running import Server, running_server

# Part of the server set: without it the tests of this folder that need no server still run.
if TYPE_CHECKING:
    import requests

# COPIED again, stored with its first axis the other way round and 50 mm further to the right.
MOVED, MOVED_MM = "moved.v1", 50.0


@dataclass(frozen=True)
class Served:
    """A running server, the collections behind it, and what their real scans were before it started."""

    server: Server
    collections: Collections
    before: dict[str, str]

    def __call__(self, method: str, path: str, **how) -> requests.Response:
        import requests

        return requests.request(method, self.server.url + path, timeout=120, **how)

    def json(self, path: str, **params):
        """The answer to a GET, which must be JSON without NaN."""
        reply = self("GET", path, params=params)
        assert reply.status_code == 200, f"{reply.status_code} {reply.text[:500]}"
        return strict_json(reply)


def strict_json(reply: requests.Response):
    def refuse(constant: str):
        raise AssertionError(f"{constant} is no JSON: {reply.text[:300]}")

    return reply.json(parse_constant=refuse)


def checksums(*folders: Path) -> dict[str, str]:
    """Every file and folder below, with the SHA-256 of each file."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for folder in folders
        for path in sorted(folder.rglob("*"))
    }


def until(true: Callable[[], bool], otherwise: str, seconds: float = 10.0) -> None:
    """Waits for what happens just after a reply."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, otherwise
        time.sleep(0.05)


def real_scans(collections: Collections) -> list[Path]:
    names = ("training", "training_masks", "unseen", "unseen_masks")
    return [collections.folder / name for name in names]


def conf(collections: Collections) -> dict[str, object]:
    """The `--conf` pairs of the plain launch."""
    return {key: value for key, value in collections.options.items() if key != "api_key_file"}


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Index and scores are made beforehand; the studies also hold MOVED."""
    pytest.importorskip("monailabel", reason="the server needs it: requirements-server-bare.txt")
    import nibabel as nib
    import numpy as np

    from replica_detection_server.comparison import tasks
    from replica_detection_server.settings.configuration import Configuration

    folder = tmp_path_factory.mktemp("served")
    collections = collections_on_disk.make(folder)
    for part in ("", "_masks"):
        image = nib.load(folder / f"training{part}" / f"{COPIED}.nii.gz")
        affine = image.affine @ np.diag([-1.0, 1, 1, 1])
        affine[0, 3] = image.affine[0, 3] + (image.shape[0] - 1) * image.affine[0, 0] + MOVED_MM
        moved = nib.Nifti1Image(np.asarray(image.dataobj)[::-1], affine)
        nib.save(moved, folder / f"studies{part}" / f"{MOVED}.nii.gz")
    before = checksums(*real_scans(collections))
    given = {"training": collections.training, "data": folder / "data", **conf(collections)}
    tasks.score(Configuration.of(collections.studies, {key: str(value) for key, value in given.items()}))
    with running_server(
        collections.studies,
        work=folder,
        training=collections.training,
        conf=conf(collections),
        # MONAI Label's default, which would score everything at once.
        env={"MONAI_LABEL_AUTO_UPDATE_SCORING": "true"},
    ) as server:
        print(f"ready after {server.ready_seconds:.1f} s, {server.memory_bytes / 2**20:.0f} MiB resident")
        yield Served(server, collections, before)
    assert checksums(*real_scans(collections)) == before, "the server changed the folders of real scans"
