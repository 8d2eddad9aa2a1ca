"""The comparison with the training cohort as an inference task, for scripts that speak MONAI Label's protocol alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from replica_detection.io.cohort import Case
from replica_detection.results.schema import to_json
from replica_detection_server.collection.series import case_at, study_of_volume
from replica_detection_server.collection.task_files import fresh_file, result_suffix
from replica_detection_server.comparison.engine import Engine
from replica_detection_server.comparison.exports import difference, write_on_grid
from replica_detection_server.errors import InvalidRequestError

K = 10


class ReplicaMatches(InferTask):
    """The nearest training cases of an image under each measure, as JSON.

    The reply also has a file, because MONAI Label's client for Slicer needs one: the difference to the nearest training
    case in mapped intensity.
    """

    def __init__(self, engine: Engine):
        self.engine = engine
        super().__init__(InferType.OTHERS, [], 3, "Compares an image with the training cohort", {"k": K})

    def is_valid(self) -> bool:
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """`params`: k, result_extension.

        Raises InputError for an image that cannot be read, a refusal where none can be compared.
        """
        path, suffix = Path(request["image"]), result_suffix(request)
        try:
            k = min(max(int(request.get("k", K)), 1), 1000)
        except (TypeError, ValueError, OverflowError):
            raise InvalidRequestError("k must be a whole number") from None
        study = self._study(path)
        case = study or case_at(path, "image")
        known = None if study is None else self.engine.known_comparison(study.id, k)
        found = known or self.engine.compare(case, k)
        synthetic = self.engine.prepared(case)
        if found.nearest_training_id:
            array = difference(synthetic, self.engine.required_index().stored(found.nearest_training_id))
            words = f"this image minus training case {found.nearest_training_id}"
        else:
            array, words = np.zeros_like(synthetic.image), "empty: no training case could be compared"
        with fresh_file(suffix) as file:
            write_on_grid(file, array, synthetic.affine)
        return str(file), {**to_json(found), "file": words}

    def _study(self, path: Path) -> Case | None:
        """The study that the datastore keeps at this path, as its own file or as the volume of a series."""
        if id := study_of_volume(path, self.engine.configuration.volumes):
            return self.engine.case(id)
        return next((c for c in self.engine.studies().cases if c.image.resolve() == path.resolve()), None)
