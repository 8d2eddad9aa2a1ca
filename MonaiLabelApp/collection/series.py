"""DICOM series: as one NIfTI file for clients that know one file for an image, as a ZIP file, and in an upload."""

from __future__ import annotations

import hashlib
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from replica_detection.errors import InputError
from replica_detection.io.cohort import Case, Cohort
from replica_detection.io.paths import is_dicom_name
from replica_detection_server.collection.cohorts import state_of
from replica_detection_server.collection.studies import is_file_with_content, is_series
from replica_detection_server.incoming.error_responses import refusal
from replica_detection_server.settings.case_ids import suffix_of

STUDIES = "studies"
Convert = Callable[[Path, Sequence[Path]], None]


class Volumes:
    """Series as one NIfTI file each, made on the first request and kept in the server's own folder.

    Args:
        convert: writes the volume of some files; see `write_volume_of`.
    """

    def __init__(self, folder: Path, convert: Convert | None = None):
        self._folder, self._convert = folder, convert or write_volume_of
        self._making = threading.Lock()

    def of_study(self, case: Case) -> Path:
        """The path of the volume of a study, written or not: another one when a file of the series changes."""
        known = repr([(path.name, state) for path, state in zip(case.files, state_of(case.files), strict=True)])
        return self._folder_of(case.id) / _digest(known) / f"{case.id}.nii.gz"

    def make_study(self, case: Case) -> Path:
        """The volume of a study, written where it is not there yet.

        Raises InvalidRequestError for a damaged series, OSError where the volume cannot be written.
        """
        path = self.of_study(case)
        if not path.is_file():
            with self._making:
                if not path.is_file():
                    self.forget(case.id)
                    self._convert(path, case.files)
        return path

    def make_training(self, sha256: str, files: Sequence[Path]) -> Path:
        """The same for a training case, by the checksum of its files."""
        path = self._folder / f"{sha256}.nii.gz"
        with self._making:
            if not path.is_file():
                self._convert(path, files)
        return path

    def forget(self, study_id: str) -> None:
        """Removes the volumes of a study."""
        shutil.rmtree(self._folder_of(study_id), ignore_errors=True)

    def keep_only(self, study_ids: Iterable[str]) -> None:
        """Removes the volumes of studies that are gone."""
        kept = {self._folder_of(id).name for id in study_ids}
        folder = self._folder / STUDIES
        for path in list(folder.iterdir()) if folder.is_dir() else ():
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def _folder_of(self, study_id: str) -> Path:
        return self._folder / STUDIES / _digest(study_id)


def study_of_volume(path: Path, volumes: Path) -> str:
    """The id of the study whose volume lies at `path`; "" for any other file."""
    inside = path.parent.parent.parent == volumes.resolve() / STUDIES
    return path.name.removesuffix(".nii.gz") if inside else ""


def write_zip(case: Case, target: Path) -> None:
    """The files of a study byte for byte, in their order and under neutral names."""
    with zipfile.ZipFile(target, "w", strict_timestamps=False) as archive:
        for n, path in enumerate(case.files):
            archive.write(path, f"{n:05d}{suffix_of(path.name) or '.dcm'}")


def one_case(folder: Path, case_id: str) -> Case:
    """The one image or series in a folder that was uploaded. Lists of files that may lie there are not followed.

    Raises InputError where there is none, or more than one.
    """
    files = [path for path in sorted(folder.rglob("*")) if not path.is_symlink() and is_file_with_content(path)]
    images = [path for path in files if suffix_of(path.name) or is_dicom_name(path)]
    cases = Cohort.of_files(folder, images, strict=True).cases if images else ()
    if len(cases) != 1:
        found = f"holds {len(cases)} images or DICOM series instead of one" if cases else "holds no image"
        raise InputError("the upload", found, "Send one image, or all files of one DICOM series")
    return Case(case_id, cases[0].files)


def case_at(path: Path, case_id: str) -> Case:
    """An image by its file, or by the folder of an uploaded series. Raises as `one_case`."""
    return one_case(path, case_id) if path.is_dir() else Case(case_id, (path,))


def single_file(case: Case, volumes: Volumes) -> Path:
    """A study as one file: its own, or the volume of a series. Raises InvalidRequestError for a damaged series."""
    return volumes.make_study(case) if is_series(case) else case.files[0].resolve()


def file_name_of(case: Case) -> str:
    """The name of the file that clients receive for a study: its own, or that of the volume of a series."""
    return f"{case.id}.nii.gz" if is_series(case) else case.files[0].name


def write_volume_of(path: Path, files: Sequence[Path]) -> None:
    """The image of some files as a file of its own. Raises InvalidRequestError where they cannot be read."""
    from replica_detection.io.volume import read_volume, write_volume

    try:
        volume = read_volume(files)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_volume(path, volume.array, volume.affine)
    except InputError as error:
        if error.path == str(path) and isinstance(error.__cause__, OSError):
            raise error.__cause__ from None  # such as a full disk: no fault of the series
        raise refusal(error) from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20]
