"""The computations of a worker process. Arguments are JSON; the result is JSON, or a file made for the request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from replica_detection.readers.ratings import Rating
from replica_detection.results.schema import SurfaceReply, SurfaceStatistics, from_json, to_json
from replica_detection.surfaces.distances import Statistics
from replica_detection_server.collection.series import case_at, write_volume_of
from replica_detection_server.collection.task_files import fresh_file
from replica_detection_server.comparison.exports import (
    difference,
    in_file_space,
    positions_in_file,
    write_on_grid,
    write_surface,
)
from replica_detection_server.computing.services import Services
from replica_detection_server.computing.workers import Result
from replica_detection_server.errors import ConflictError
from replica_detection_server.settings.case_ids import TRAINING
from replica_detection_server.uploads.checks import examine_here
from replica_detection_server.uploads.limits import UploadLimits

UPLOADED = "uploaded"
NO_MASKS = "the index holds no masks: build it with masks, or with a segmenter"


def comparison(services: Services, synthetic_id: str, k: int) -> Result:
    """A study against the training cohort, as `Engine.compare`."""
    return Result(to_json(services.engine.compare(services.engine.case(synthetic_id), k)))


def compare(services: Services, image: str, mask: str | None, k: int) -> Result:
    """An image or series that a request brought, with its mask."""
    case = replace(case_at(Path(image), UPLOADED), mask=None if mask is None else Path(mask))
    return Result(to_json(services.engine.compare(case, k)))


def mask(services: Services, case_id: str) -> Result:
    """The mask that comparisons use. Raises ConflictError where there is none."""
    opened = services.engine.required_index()
    if not opened.has_masks:
        raise ConflictError(NO_MASKS)
    if case_id.startswith(TRAINING):
        prepared = opened.stored(case_id.removeprefix(TRAINING))
    else:
        prepared = services.engine.prepared(services.engine.case(case_id))
    if prepared.mask is None:
        raise ConflictError(f"'{case_id}' has no mask")
    return _volume(prepared.mask, prepared.affine)


def surface(services: Services, synthetic_id: str, training_id: str, of: str) -> Result:
    """In mm RAS+ of that image's own file. The distances are those on the grid on which the pair was compared."""
    found, synthetic, training = services.engine.surfaces(synthetic_id, training_id)
    spacing = services.engine.required_index().index.preparation.spacing
    with fresh_file(".vtp") as path:
        if of == "synthetic":
            write_surface(path, in_file_space(found.first, spacing, synthetic.affine), found.first_to_second)
        else:
            write_surface(path, in_file_space(found.second, spacing, training.affine), found.second_to_first)
    return Result(file=path)


def surface_statistics(services: Services, synthetic_id: str, training_id: str) -> Result:
    """Each place is in mm RAS+ of the file of the image whose surface it lies on; `symmetric`: the farther one's."""
    found, synthetic, training = services.engine.surfaces(synthetic_id, training_id)
    spacing = services.engine.required_index().index.preparation.spacing
    forth = _statistics(found.forth, spacing, synthetic.affine)
    back = _statistics(found.back, spacing, training.affine)
    worse = training.affine if found.back.maximum > found.forth.maximum else synthetic.affine
    return Result(to_json(SurfaceReply(forth, back, _statistics(found.symmetric, spacing, worse))))


def difference_image(services: Services, synthetic_id: str, training_id: str) -> Result:
    """Synthetic minus training image in mapped intensity."""
    case = services.engine.case(synthetic_id)
    training = services.engine.required_index().stored(training_id)
    synthetic = services.engine.prepared(case)
    return _volume(difference(synthetic, training), synthetic.affine)


def aligned(services: Services, synthetic_id: str, training_id: str) -> Result:
    """The training image aligned to the synthetic one; 0 outside its field of view."""
    synthetic, training = services.engine.aligned(synthetic_id, training_id)
    return _volume(training.image, synthetic.affine)


def volume(services: Services, files: list[str]) -> Result:
    """The image of a series in one file."""
    with fresh_file(".nii.gz") as path:
        write_volume_of(path, [Path(file) for file in files])
    return Result(file=path)


def agreement(services: Services, ratings: list[dict[str, Any]]) -> Result:
    """Agreement of the readers, with thresholds where the collection is scored."""
    from replica_detection.readers.agreement import agreement_report

    scored = services.engine.scored()
    known = tuple(from_json(Rating, rating) for rating in ratings)
    return Result(to_json(agreement_report(known, None if scored is None else scored.result)))


def examine(services: Services, path: str, max_voxels: int, max_bytes: int, series: bool) -> Result:
    """Checks that an upload, or a folder of them, may be opened. Raises as `check_upload` and `check_series`."""
    examine_here(Path(path), UploadLimits(max_voxels, max_bytes), series=series)
    return Result()


def label(services: Services, label: str, files: list[str]) -> Result:
    """Checks that a label of a request is a mask on the grid of its image. Raises InputError where it is not."""
    from replica_detection.io.volume import read_mask, read_volume

    read_mask(label, read_volume(files), layers=True)
    return Result()


def infer(services: Services, request: dict[str, Any]) -> Result:
    """A task of MONAI Label's app on the file `request["image"]`; reply and file as the task gives them."""
    file, reply = app().run(request)
    return Result(_plain(reply), Path(file) if file else None)


def train(services: Services, request: dict[str, Any]) -> Result:
    return Result(_plain(app().train(request)))


def scoring(services: Services, request: dict[str, Any]) -> Result:
    return Result(_plain(app().scoring(request)))


COMPUTATIONS: Mapping[str, Callable[..., Result]] = {
    "comparison": comparison,
    "compare": compare,
    "mask": mask,
    "surface": surface,
    "surface_statistics": surface_statistics,
    "difference": difference_image,
    "aligned": aligned,
    "volume": volume,
    "agreement": agreement,
    "examine": examine,
    "label": label,
    "infer": infer,
    "train": train,
    "scoring": scoring,
}


def prepare(services: Services, task: str) -> None:
    """Prepares a process once for all computations of a kind. Raises UnavailableError while the null is made."""
    if task in ("infer", "train", "scoring"):
        app()
    if task in ("comparison", "compare"):
        services.engine.detector()


def app() -> Any:
    """MONAI Label's app, made when it is first asked for: that takes seconds, and half a GiB for its packages."""
    from monailabel.interfaces.utils.app import app_instance

    return app_instance()


def _plain(value: Any) -> Any:
    from replica_detection_server.util.json_values import plain

    return plain(to_json(value))


def _volume(array: np.ndarray, affine: np.ndarray) -> Result:
    with fresh_file(".nii.gz") as path:
        write_on_grid(path, array, affine)
    return Result(file=path)


def _statistics(found: Statistics, spacing: tuple[float, ...], affine: np.ndarray) -> SurfaceStatistics:
    at = positions_in_file(found.position[None], spacing, affine)[0]
    return SurfaceStatistics(
        float(found.mean), float(found.percentile_95), float(found.maximum), (float(at[0]), float(at[1]), float(at[2]))
    )
