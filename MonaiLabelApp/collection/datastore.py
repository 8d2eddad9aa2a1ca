"""Both collections in one MONAI Label datastore: the studies as usual, the training cases read-only.

`studies.py` decides for every list which files are studies, `labels.py` which labels they have. MONAI Label's
`datastore_v2.json` only holds notes on them and never decides which file is opened. A training case
is `train:<id>`; it is read where the index found it, appears in no list, and every write is refused. No file is made in
the training folder.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.datastore import DefaultLabelTag

from replica_detection.errors import InputError
from replica_detection.io.cohort import Case
from replica_detection.io.paths import composed
from replica_detection.util.files import atomic_write
from replica_detection_server.collection import client_notes
from replica_detection_server.collection.datastore_file import DamagedError, DatastoreFile, table_entry
from replica_detection_server.collection.labels import Labels
from replica_detection_server.collection.new_ids import is_training, require_id, require_tag, tag_name
from replica_detection_server.collection.series import Convert, Volumes, file_name_of, single_file
from replica_detection_server.collection.studies import LABELS, Listing, Studies, is_series
from replica_detection_server.errors import ConflictError, ForbiddenError, InvalidRequestError, UnknownNameError
from replica_detection_server.settings.case_ids import SUFFIXES, TRAINING, study_id, suffix_of
from replica_detection_server.util.file_state import NOTES, FileStates

if TYPE_CHECKING:
    from replica_detection.index.entries import Entry
    from replica_detection.index.training_index import TrainingIndex

logger = logging.getLogger(__name__)


def _looked(method: Callable[..., Any]) -> Callable[..., Any]:
    """Runs a method on the files as they are now, one thread at a time."""

    @functools.wraps(method)
    def call(self: StudiesAndTraining, *arguments: Any, **named: Any) -> Any:
        with self._alone:
            self._look()
            return method(self, *arguments, **named)

    return call


class StudiesAndTraining(LocalDatastore):
    """The datastore of the app.

    Args:
        studies: folder of the synthetic images.
        volumes: where a case of several files is kept as one; made when it is needed.
        training: the index as it is now, or None where there is none yet.
        watch: True to write down what is found, as in the server; a job of MONAI Label only reads.
        found: the studies of the folder, where others look at them too.
        convert: writes the volume of a series; in this process where it is not given.
    """

    def __init__(
        self,
        studies: Path,
        volumes: Path,
        training: Callable[[], TrainingIndex | None],
        *,
        watch: bool,
        found: Studies | None = None,
        convert: Convert | None = None,
    ):
        self._studies, self._training, self._writes = found or Studies(studies), training, watch
        self._volumes, self._labels = Volumes(volumes, convert), Labels(self._studies)
        self._alone = threading.RLock()
        self._file = DatastoreFile(studies / NOTES)
        self._seen: tuple[Listing, object, FileStates] | None = None
        self._must_set_aside = False
        # What the administrator should know about the file.
        self.notices: list[str] = []
        # No watcher: every answer looks at the folders, which is quick as long as nothing changed.
        super().__init__(str(studies), extensions=[f"*{suffix}" for suffix in SUFFIXES], read_only=True)
        if watch:
            self._file.sweep()
            self._volumes.keep_only(self._studies.now().by_id)
        self.refresh()

    # ------------------------------------------------------------------------------------------------------ reading

    def has_image(self, image_id: str) -> bool:
        """True if it can be downloaded; nothing is converted for the answer."""
        if is_training(image_id):
            return self._entry(image_id) is not None
        return self._studies.case(image_id) is not None

    def get_image_uri(self, image_id: str) -> str:
        """The image in one file; "" for an unknown id. Raises InvalidRequestError for a damaged series."""
        if not is_training(image_id):
            case = self._studies.case(image_id)
            return "" if case is None else str(single_file(case, self._volumes))
        entry = self._entry(image_id)
        return "" if entry is None else str(self._single_file(entry))

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        if is_training(image_id):
            return {} if self._entry(image_id) is None else {"training": True}
        case = self._studies.case(image_id)
        if case is None:
            return {}
        with self._alone:
            self._look()
            known = self._datastore.objects.get(case.id)
            stored = {} if known is None else dict(known.image.info)
        path = self._volumes.of_study(case) if is_series(case) else case.files[0].resolve()
        return {**client_notes.with_what_is_known(stored, file_name_of(case)), "path": str(path)}

    def get_label_uri(self, label_id: str, label_tag: str) -> str:
        """The label's file; of a training case its mask, under any tag, where it came from a file."""
        if not is_training(label_id):
            path = self._label(composed(label_id), label_tag)
            return "" if path is None else str(path.resolve())
        entry = self._entry(label_id)
        mask = None if entry is None else entry.mask_file
        return "" if mask is None else str(mask)

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]:
        if is_training(label_id):
            return {}
        with self._alone:
            self._look()
            stored = super().get_label_info(composed(label_id), label_tag)
            return self._label_notes(composed(label_id), label_tag, stored) if stored else {}

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]:
        with self._alone:
            self._look()
            return dict(super().get_labels_by_image_id(composed(image_id)))

    list_images = _looked(LocalDatastore.list_images)
    get_labeled_images = _looked(LocalDatastore.get_labeled_images)
    get_unlabeled_images = _looked(LocalDatastore.get_unlabeled_images)
    status = _looked(LocalDatastore.status)

    def json(self) -> dict[str, Any]:
        with self._alone:
            self._look()
            listed: dict[str, Any] = super().json()
            for image_id, found in listed["objects"].items():
                case = self._studies.case(image_id)
                name = found["image"]["info"].get("name", "") if case is None else file_name_of(case)
                found["image"]["info"] = client_notes.with_what_is_known(found["image"]["info"], name)
                for tag, label in found["labels"].items():
                    label["info"] = self._label_notes(image_id, tag, label["info"])
        return listed

    def datalist(self, full_path: bool = True) -> list[dict[str, Any]]:
        """Images with their final label. A series is named by the file that it becomes when it is asked for."""
        pairs = []
        for image_id in self.get_labeled_images():
            case, label = self._studies.case(image_id), self._label(image_id, DefaultLabelTag.FINAL)
            if case is not None and label is not None:
                image = self._volumes.of_study(case) if is_series(case) else case.files[0].resolve()
                pairs.append({"image": str(image), "label": str(label.resolve())})
        return pairs if full_path else [{k: Path(path).name for k, path in pair.items()} for pair in pairs]

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        for image_id in self.get_labeled_images():
            self.get_image_uri(image_id)
        return str(super().get_dataset_archive(limit_cases))

    def _label_notes(self, label_id: str, tag: str, stored: dict[str, Any]) -> dict[str, Any]:
        known = self._datastore.label(label_id, tag)
        return {} if known is None else client_notes.with_what_is_known(stored, self._filename(label_id, known.ext))

    def _entry(self, case_id: str) -> Entry | None:
        """The training case, None where the index has no such one, or there is no index."""
        index = self._training()
        return None if index is None else next((e for e in index.entries if TRAINING + e.id == case_id), None)

    def _single_file(self, entry: Entry) -> Path:
        """A training image as MONAI Label sends it: in one file. Others (DICOM series) are written as NIfTI once."""
        if entry.in_memory:
            found = "was given to the index in memory, not as a file"
            raise InputError(entry.id, found, "Build the index from files to have training images sent")
        images = entry.images
        if len(images) == 1 and suffix_of(images[0].name):
            return images[0]
        return self._volumes.make_training(entry.sha256, images)

    # ------------------------------------------------------------------------------------------------------ writing

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Adds a study. Refuses an id that is taken (409): MONAI Label would write over the image that has it."""
        suffix = suffix_of(image_filename)
        if not suffix:
            raise InvalidRequestError(f"an image must be one of {', '.join(SUFFIXES)}")
        image_id = image_id or study_id(Path(image_filename).name)
        require_id(image_id)
        client_notes.require_bounded(image_info or {})
        with self._changing():
            # Two names that differ in case alone are one file on Windows and macOS.
            if any(known.casefold() == image_id.casefold() for known in self._datastore.objects):
                raise ConflictError(f"there is a study '{image_id}' already; give another id with ?image=")
            target = self._folder / f"{image_id}{suffix}"
            if os.path.lexists(target):
                raise ConflictError(f"a file that is no study has the name of '{image_id}'; give another id")
            _put(image_filename, target)
            info = {**(image_info or {}), "ts": int(time.time()), "name": target.name}
            self._datastore.objects[image_id] = ImageLabelModel(image=DataModel(ext=suffix, info=info))
            try:
                self._update_datastore_file()
            except OSError:
                target.unlink(missing_ok=True)
                raise
        return image_id

    def remove_image(self, image_id: str) -> None:
        """Removes a study and its labels. Of a linked one the link goes, and what it leads to stays."""
        self._known(image_id)
        with self._changing():
            case = self._studies.now().by_id.get(composed(image_id))
            if case is None:
                return
            link = next(
                (p for p in reversed(case.files[0].parents) if p.is_symlink() and self._folder in p.parents), None
            )
            if link is not None and any(link in c.files[0].parents for c in self._cases() if c.id != case.id):
                raise ConflictError("this study lies in a linked folder with others; the administrator can remove it")
            self._labels.remove(case.id)
            for path in [link] if link is not None else case.files:
                path.unlink(missing_ok=True)
            self._remove_empty(case.files[0].parent)
            self._volumes.forget(case.id)
            self.refresh()

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        self._known(image_id)
        require_tag(label_tag)
        suffix, image_id, label_tag = suffix_of(label_filename), composed(image_id), tag_name(label_tag)
        if not suffix:
            raise InvalidRequestError(f"a label must be one of {', '.join(SUFFIXES)}")
        client_notes.require_bounded(label_info or {})
        with self._changing():
            known = self._datastore.objects.get(image_id)
            if known is None:
                raise UnknownNameError(f"there is no study '{image_id}'")
            target = self._labels.folder(label_tag) / f"{image_id}{suffix}"
            _put(label_filename, target)
            self._labels.remove(image_id, label_tag, but=target)  # what it replaces may have another extension
            info = {**(label_info or {}), "ts": int(time.time()), "name": target.name}
            known.labels[label_tag] = DataModel(ext=suffix, info=info)
            self._update_datastore_file()
        return image_id

    def remove_label(self, label_id: str, label_tag: str) -> None:
        self._known_label(label_id, label_tag)
        with self._changing():
            self._labels.remove(composed(label_id), tag_name(label_tag))
            self.refresh()

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        self._known(image_id)
        with self._changing():
            known = self._datastore.objects.get(composed(image_id))
            client_notes.require_bounded({**(known.image.info if known else {}), **info})
            super().update_image_info(composed(image_id), info)

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        self._known_label(label_id, label_tag)
        with self._changing():
            client_notes.require_bounded({**super().get_label_info(composed(label_id), label_tag), **info})
            super().update_label_info(composed(label_id), label_tag, info)

    def refresh(self) -> None:
        """Looks at all files again."""
        with self._alone:
            self._seen = None
            self._look()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One change at a time, on top of what another process may have written meanwhile."""
        with self._alone:
            self._look()
            yield

    def _known(self, image_id: str) -> None:
        if is_training(image_id):
            raise ForbiddenError("training cases are read only")
        if not self.has_image(image_id):
            raise UnknownNameError(f"there is no study '{image_id}'")

    def _known_label(self, label_id: str, label_tag: str) -> None:
        self._known(label_id)
        if not self.get_label_uri(label_id, label_tag):
            raise UnknownNameError(f"study '{label_id}' has no label '{label_tag}'")

    def _remove_empty(self, folder: Path) -> None:
        with suppress(OSError):
            while folder != self._folder and not folder.is_symlink():
                folder.rmdir()
                folder = folder.parent

    # ------------------------------------------------------------------------------------------------- files and notes

    @property
    def _folder(self) -> Path:
        return self._studies.folder

    def _cases(self) -> tuple[Case, ...]:
        return self._studies.now().cohort.cases

    def _label(self, image_id: str, tag: str) -> Path | None:
        tag = tag_name(tag)
        with self._alone:
            self._look()
            known = self._datastore.label(image_id, tag) is not None
        return self._labels.file(image_id, tag) if known else None

    def _look(self) -> None:
        """Updates the table of images and labels from the files, where anything changed."""
        listing = self._studies.now()
        if self._seen is not None:
            before, file, seen = self._seen
            if before is listing and file == self._file.state and seen.unchanged():
                return
        self._reconcile_datastore()

    def _reconcile_datastore(self) -> None:
        self._init_from_datastore_file()
        listing, seen = self._studies.now(), FileStates()
        labels = self._labels.look(seen)
        noted = {composed(key): known for key, known in self._datastore.objects.items()}
        objects = {case.id: table_entry(case, noted.get(case.id), labels) for case in listing.cohort.cases}
        changed = objects != self._datastore.objects or self._file.state is None
        self._datastore.objects = objects
        if changed and self._writes:
            try:
                self._update_datastore_file()
            except OSError as error:  # the lists are right without it
                logger.error("the notes on images cannot be written (%s)", error.strerror)
        self._seen = listing, self._file.state, seen

    def _init_from_datastore_file(self, throw_exception: bool = False) -> None:
        """The notes of the file where they are new; a damaged file is set aside, and what is known goes on."""
        with FileLock(self._lock_file):
            try:
                store = self._file.read_if_new()
            except DamagedError as error:
                self._set_aside(str(error))
                return
        if store is not None:
            store.base_path, store.images_dir, store.labels_dir = self._datastore_path, ".", LABELS
            self._datastore = store

    def _set_aside(self, why: str) -> None:
        if not self._writes:
            logger.warning("%s %s; the lists are made from the files alone", NOTES, why)
            self._must_set_aside = True
            return
        try:
            name = self._file.set_aside()
        except OSError as error:
            said = f"{NOTES} {why}, and cannot be renamed ({error.strerror}). Move it away."
        else:
            said = f"{NOTES} {why}: it is kept as {name}. Images and labels are listed anew; notes on them are in it."
        self.notices.append(said)
        logger.warning(said)

    def _update_datastore_file(self, lock: bool = True) -> None:
        """Raises OSError where it cannot be written; then the old file stays, and is read again."""
        with FileLock(self._lock_file):
            if self._must_set_aside:
                self._file.set_aside()
                self._must_set_aside = False
            try:
                self._file.write(self._datastore)
            except OSError:
                self._seen = None
                raise
        if self._seen is not None:  # what was written is what is known
            self._seen = self._seen[0], self._file.state, self._seen[2]


def _put(source: str, target: Path) -> None:
    """A copy that is whole or not there. Raises InvalidRequestError for an empty file."""
    if not Path(source).stat().st_size:
        raise InvalidRequestError("the file is empty")
    with Path(source).open("rb") as file, atomic_write(target, "wb") as copy:
        shutil.copyfileobj(file, copy, 1 << 20)
