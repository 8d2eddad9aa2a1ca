"""Both collections in one MONAI Label datastore: the studies as ever, the training cases to be read only.

Studies are files of a folder, listed and written as MONAI Label does it, without the ways in which that loses data. A
training case is `train:<id>`; it is read where the index found it, appears in no list, and every write is refused. No
file is made in the training folder.
"""

from __future__ import annotations

import functools
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException
from monailabel.datastore.local import LocalDatastore

from replica_detection.errors import ReplicaDetectionError
from replica_detection_server import notes
from replica_detection_server.cohorts import SUFFIXES, TRAINING, is_study_name, study_id, suffix_of
from replica_detection_server.hardening import names
from replica_detection_server.refusals import refusal

if TYPE_CHECKING:
    from replica_detection.index import TrainingIndex
    from replica_detection.index_writing import Entry

logger = logging.getLogger(__name__)

# What a client may name a new image or label; images that lie in the folder already may be named otherwise.
NEW_ID, TAG = re.compile(names.NEW_ID), re.compile(names.TAG)


def _alone(method: Callable[..., Any]) -> Callable[..., Any]:
    """One thread at a time: while MONAI Label looks which files are there, its table of them is empty for a moment."""

    @functools.wraps(method)
    def call(self: StudiesAndTraining, *arguments: Any, **named: Any) -> Any:
        with self._alone:
            return method(self, *arguments, **named)

    return call


class StudiesAndTraining(LocalDatastore):
    """The datastore of the app.

    Args:
        studies: folder of the synthetic images.
        volumes: where a training case of several files is kept as one; made when it is needed.
        training: the index as it is now, or None where there is none yet.
        watch: whether files that appear or go are noticed, as in the server; a job of MONAI Label only reads.
    """

    def __init__(self, studies: Path, volumes: Path, training: Callable[[], TrainingIndex | None], *, watch: bool):
        self._volumes, self._training = volumes, training
        self._alone, self._converting = threading.RLock(), threading.Lock()
        patterns = [f"*{suffix}" for suffix in SUFFIXES]
        super().__init__(str(studies), extensions=patterns, auto_reload=watch, read_only=not watch)

    # ------------------------------------------------------------------------------------------------------ reading

    def get_image_uri(self, image_id: str) -> str:
        if not is_training(image_id):
            with self._alone:
                return str(super().get_image_uri(image_id))
        entry = self._entry(image_id)
        return "" if entry is None else str(self._single_file(entry))

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        if is_training(image_id):
            return {} if self._entry(image_id) is None else {"training": True}
        with self._alone:
            stored = super().get_image_info(image_id)
            return {**self._image_notes(image_id, stored), "path": stored["path"]} if stored else {}

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """The label's file; of a training case its mask, under any tag, where it came from a file."""
        if not is_training(label_id):
            with self._alone:
                return str(super().get_label_uri(label_id, label_tag))
        entry = self._entry(label_id)
        return "" if entry is None or entry.mask != "file" else entry.files[-1]

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        if is_training(label_id):
            return {}
        with self._alone:
            stored = super().get_label_info(label_id, label_tag)
            return self._label_notes(label_id, label_tag, stored) if stored else {}

    list_images = _alone(LocalDatastore.list_images)
    get_labeled_images = _alone(LocalDatastore.get_labeled_images)
    get_unlabeled_images = _alone(LocalDatastore.get_unlabeled_images)
    get_labels_by_image_id = _alone(LocalDatastore.get_labels_by_image_id)
    datalist = _alone(LocalDatastore.datalist)
    status = _alone(LocalDatastore.status)

    @_alone
    def json(self) -> dict[str, Any]:
        listed: dict[str, Any] = super().json()
        for image_id, found in listed["objects"].items():
            found["image"]["info"] = self._image_notes(image_id, found["image"]["info"])
            for tag, label in found["labels"].items():
                label["info"] = self._label_notes(image_id, tag, label["info"])
        return listed

    def _image_notes(self, image_id: str, stored: dict[str, Any]) -> dict[str, Any]:
        known = self._datastore.objects.get(image_id)
        return {} if known is None else notes.with_what_is_known(stored, self._filename(image_id, known.image.ext))

    def _label_notes(self, label_id: str, tag: str, stored: dict[str, Any]) -> dict[str, Any]:
        known = self._datastore.label(label_id, tag)
        return {} if known is None else notes.with_what_is_known(stored, self._filename(label_id, known.ext))

    def _entry(self, case_id: str) -> Entry | None:
        """The training case, None where the index has no such one, or there is no index."""
        index = self._training()
        return None if index is None else next((e for e in index.entries if TRAINING + e.id == case_id), None)

    def _single_file(self, entry: Entry) -> Path:
        """A training image as MONAI Label sends it: in one file. Others (DICOM series) are written as NIfTI once."""
        images = entry.files[:-1] if entry.mask == "file" else entry.files
        if len(images) == 1 and suffix_of(images[0]):
            return Path(images[0])
        path = self._volumes / f"{entry.sha256}.nii.gz"
        with self._converting:
            if not path.is_file():
                from replica_detection.volume import read_volume, write_volume

                try:
                    volume = read_volume(images)
                except ReplicaDetectionError as error:
                    raise refusal(error) from error
                path.parent.mkdir(parents=True, exist_ok=True)
                write_volume(path, volume.array, volume.affine)
        return path

    # ------------------------------------------------------------------------------------------------------ writing

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Adds a study. Refuses an id that is taken (409): MONAI Label would write over the image that has it."""
        suffix = suffix_of(image_filename)
        if not suffix:
            raise HTTPException(422, f"an image must be one of {', '.join(SUFFIXES)}")
        image_id = image_id or study_id(Path(image_filename).name)
        require_id(image_id)
        notes.require_bounded(image_info or {})
        with self._changing():
            if image_id in self._datastore.objects:
                raise HTTPException(409, f"there is a study '{image_id}' already; give another id with ?image=")
            return str(super().add_image(image_id, image_filename, image_info))

    def remove_image(self, image_id: str) -> None:
        self._known(image_id)
        with self._changing():
            path = self._image_path(image_id)
            if path.is_symlink():
                # MONAI Label would follow the link and delete the image that it only borrows.
                path.unlink()
                self.refresh()
            else:
                super().remove_image(image_id)

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        self._known(image_id)
        require_tag(label_tag)
        if not suffix_of(label_filename):
            raise HTTPException(422, f"a label must be one of {', '.join(SUFFIXES)}")
        notes.require_bounded(label_info or {})
        with self._changing():
            return str(super().save_label(image_id, label_filename, label_tag, label_info))

    def remove_label(self, label_id: str, label_tag: str) -> None:
        self._known(label_id)
        if not self.get_label_uri(label_id, label_tag):
            raise HTTPException(404, f"study '{label_id}' has no label '{label_tag}'")
        with self._changing():
            super().remove_label(label_id, label_tag)

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        self._known(image_id)
        with self._changing():
            known = self._datastore.objects.get(image_id)
            notes.require_bounded({**(known.image.info if known else {}), **info})
            super().update_image_info(image_id, info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        self._known(label_id)
        if not self.get_label_uri(label_id, label_tag):
            raise HTTPException(404, f"study '{label_id}' has no label '{label_tag}'")
        with self._changing():
            notes.require_bounded({**super().get_label_info(label_id, label_tag), **info})
            super().update_label_info(label_id, label_tag, info)

    refresh = _alone(LocalDatastore.refresh)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One change at a time, on top of what another process may have written meanwhile."""
        with self._alone:
            self._init_from_datastore_file()
            yield

    def _known(self, image_id: str) -> None:
        if is_training(image_id):
            raise HTTPException(403, "training cases are read only")
        if not self.get_image_uri(image_id):
            raise HTTPException(404, f"there is no study '{image_id}'")

    def _image_path(self, image_id: str) -> Path:
        name = self._filename(image_id, self._datastore.objects[image_id].image.ext)
        return Path(self._datastore.image_path()) / name

    # ------------------------------------------------------------------------------------------- names of files, ids

    def _to_id(self, file: str) -> tuple[str, str]:
        """MONAI Label takes the extension out wherever it stands in the name; here it is the end, and ids keep dots."""
        suffix = suffix_of(file)
        return (study_id(file), file[len(file) - len(suffix) :]) if suffix else (file, "")

    def _list_files(self, path: str, patterns: Any) -> dict[str, str]:
        return {p.name: p.name for p in sorted(Path(path).iterdir()) if is_study_name(p.name) and p.is_file()}


def is_training(case_id: str) -> bool:
    return case_id.startswith(TRAINING)


def require_id(image_id: str) -> None:
    """Refuses (422, training ids 403) what cannot name a new study."""
    if is_training(image_id):
        raise HTTPException(403, "training cases are read only")
    if not NEW_ID.fullmatch(image_id) or suffix_of(image_id):
        raise HTTPException(422, "an id consists of letters, digits, '.', '_' and '-', and has no extension")


def require_tag(tag: str) -> None:
    if not TAG.fullmatch(tag):
        raise HTTPException(422, "a label's tag consists of letters, digits, '_' and '-'")
