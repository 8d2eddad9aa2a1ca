"""The size limit of an uploaded image: by default a little larger than the largest training image."""

from __future__ import annotations

import gzip
import logging
import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replica_detection.errors import InputError
from replica_detection.io.cohort_tables import read_decathlon, read_table
from replica_detection.io.formats import quiet_libraries
from replica_detection.io.metaimage import read_metaimage_header
from replica_detection.io.nifti import read_header
from replica_detection.io.nrrd_files import read_nrrd_header
from replica_detection.io.paths import is_dicom_name, is_image_name, walk
from replica_detection_server.records.redaction import where
from replica_detection_server.uploads import pictures
from replica_detection_server.uploads.limits import UploadLimits

if TYPE_CHECKING:
    from replica_detection_server.computing.services import Services

logger = logging.getLogger(__name__)

# A generator may write larger images than it was trained on.
FACTOR = 2
# 256 x 256 x 256: the limit while no training image is known, and for collections of small images.
LEAST_VOXELS = 1 << 24
_making = threading.Lock()


def upload_limits(state: Any) -> UploadLimits:
    """The limits for `state` of an application: those of the launch, else by the training images.

    These are looked through (headers alone) when the first upload comes, and again when the index has changed.
    """
    settings = getattr(state, "settings", None)
    if settings is not None and settings.max_upload_voxels:
        return UploadLimits.of(settings.max_upload_voxels)
    services: Services | None = getattr(state, "replica", None)
    if services is None:
        return UploadLimits.of(LEAST_VOXELS)
    index = services.engine.training()
    with _making:
        known = getattr(state, "upload_limits", None)
        if known is None or known[0] is not index:
            largest = max(map(voxels_of, training_files(services)), default=0)
            if index is not None:  # whose training images may lie elsewhere by now
                largest = max(largest, math.prod(index.preparation.native.shape), math.prod(index.preparation.grid))
            known = state.upload_limits = index, UploadLimits.of(max(LEAST_VOXELS, FACTOR * largest))
    limits: UploadLimits = known[1]
    return limits


def training_files(services: Services) -> Iterator[Sequence[Path]]:
    """The files of each training image: those in the index, else those in the folder or list of the launch."""
    index, source = services.engine.training(), services.configuration.training
    if index is not None:
        for entry in (e for e in index.entries if not e.in_memory):
            yield entry.images
    elif source is not None and source.is_file():
        try:
            rows = (read_decathlon if source.suffix.lower() == ".json" else read_table)(source, lambda error: None)
        except InputError:
            return
        for row in rows:
            yield from _images_below(row.image) if row.image.is_dir() else [[row.image]]
    elif source is not None:
        yield from _images_below(source)


def voxels_of(files: Sequence[Path]) -> int:
    """Voxels that the headers of an image's files state; 0 where they cannot be read. The files are the admin's own.

    Of a series the first file is looked at, for the others are like it.
    """
    try:
        first = files[0]
        name = first.name.lower()
        if name.endswith((".nii", ".nii.gz")):
            with gzip.open(first) if name.endswith(".gz") else first.open("rb") as file:
                header = read_header(file.read(540))
            return 0 if header is None else math.prod(header.shape)
        if name.endswith((".nrrd", ".nhdr")):
            nrrd = read_nrrd_header(first)
            return 0 if nrrd is None else math.prod(nrrd.sizes)
        if name.endswith((".mha", ".mhd")):
            text = read_metaimage_header(first)
            return 0 if text is None else math.prod(map(int, text.fields["dimsize"].split()))
        if name.endswith((".png", ".jpg", ".jpeg")):
            return math.prod(pictures.size_of(first))
        return len(files) * _dicom_voxels(first)
    except Exception as error:  # faults of a training image are reported when the index is built
        logger.debug("no size: %s", where(error))
        return 0


def _dicom_voxels(path: Path) -> int:
    import pydicom

    tags = ["Rows", "Columns", "NumberOfFrames"]
    with quiet_libraries():
        stated = pydicom.dcmread(path, force=True, stop_before_pixels=True, specific_tags=tags)
    return int(stated.Rows) * int(stated.Columns) * int(stated.get("NumberOfFrames") or 1)


def _images_below(folder: Path) -> Iterator[Sequence[Path]]:
    """Images of a folder and below; the DICOM files of one folder count as one series."""
    series: dict[Path, list[Path]] = {}
    for path in walk(folder, lambda error: None):
        if is_image_name(path):
            yield [path]
        elif path.is_file() and is_dicom_name(path):
            series.setdefault(path.parent, []).append(path)
    yield from series.values()
