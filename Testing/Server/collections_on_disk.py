"""Made-up collections with masks, and a hardened server with two readers over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from Core import made_masks, made_up
from replica_detection.client import ReplicaClient
from replica_detection.measures import LEVELS, MEASURES
from Server.running import Server, running_server

ANNA, BERND = "key-of-anna-for-these-tests", "key-of-bernd-for-these-tests"
TRAINING, UNSEEN, NEW = 8, 20, 4
COPY, COPIED = "copy_000", "train_003"


@dataclass(frozen=True)
class Collections:
    """Folders as a user has them. Among `studies`, `copy_000` is `train_003` again and the others are new."""

    folder: Path

    @property
    def studies(self) -> Path:
        return self.folder / "studies"

    @property
    def training(self) -> Path:
        return self.folder / "training"

    @property
    def options(self) -> dict[str, object]:
        named = {"validation": "unseen", "masks": "studies_masks", "training_masks": "training_masks"}
        named |= {"validation_masks": "unseen_masks", "api_key_file": "keys"}
        # The feature level, whose fit takes its time, is tested in test_app_encoders.py.
        usual = [m for m in MEASURES.values() if m.by_default and m.level != "feature"]
        usual.sort(key=lambda m: (LEVELS.index(m.level), m.stage == "aligned"))
        folders = {key: self.folder / name for key, name in named.items()}
        return {**folders, "measures": ",".join(m.name for m in usual)}


def make(folder: Path, shape: tuple[int, int, int] = made_up.SHAPE) -> Collections:
    for part, prefix, size, seed in (
        ("training", "train", TRAINING, 0),
        ("unseen", "unseen", UNSEEN, 100),
        ("studies", "syn", NEW, 200),
    ):
        for n, mask in enumerate(made_masks.blobs(seed, size, shape)):
            name = f"{prefix}_{n:03d}.nii.gz"
            made_up.write(folder / part / name, made_up.volume(seed + n, shape))
            made_up.write(folder / f"{part}_masks" / name, mask)
    for part in ("", "_masks"):
        source = folder / f"training{part}" / f"{COPIED}.nii.gz"
        (folder / f"studies{part}" / f"{COPY}.nii.gz").write_bytes(source.read_bytes())
    keys = folder / "keys"
    keys.write_text(f"anna:{ANNA}\nbernd:{BERND}\n", encoding="utf-8")
    keys.chmod(0o600)
    return Collections(folder)


@contextmanager
def reviewing(
    collections: Collections, work: Path, args: Sequence[str] = (), port: int | None = None
) -> Iterator[Server]:
    """The hardened server over the collections, its index made, for readers who see each other's ratings.

    Again with the same `work`: the same data folder.
    """
    work.mkdir(exist_ok=True)
    with running_server(
        collections.studies,
        work=work,
        training=collections.training,
        conf=collections.options,
        hardened=True,
        args=("--ratings-visible", "all", *args),
        port=port,
    ) as server:
        client = ReplicaClient(server.url, key=ANNA)
        for job in client.jobs():
            done = client.wait(job.id, every=0.1)
            assert done.state == "done", f"{done}\n{server.log_text()[-3000:]}"
        yield server


def image_bytes(size: int = 0) -> bytes:
    """A small NIfTI image (.nii), filled up with zeros behind its voxels to `size` bytes."""
    image = nib.Nifti1Image(np.arange(60, dtype=np.uint8).reshape(5, 4, 3), np.eye(4)).to_bytes()
    return image + bytes(max(0, size - len(image)))


def large_image(path: Path, mebibytes: int) -> Path:
    """A file that no compression makes smaller."""
    path.write_bytes(np.random.default_rng(0).bytes(mebibytes * 2**20))
    return path
