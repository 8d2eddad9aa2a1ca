"""Look-up of the images, labels and tasks that a request names among those that the server knows."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from fastapi import Depends, HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.utils.app import app_instance

from replica_detection_server.access.identity import having
from replica_detection_server.collection.datastore import StudiesAndTraining
from replica_detection_server.computing.services import Services
from replica_detection_server.incoming.names import LABELS, TAG
from replica_detection_server.settings.case_ids import TRAINING
from replica_detection_server.stock.task_options import translated

USER, ANNOTATOR, TRAINER, ADMIN = (Depends(having(role)) for role in ("user", "annotator", "trainer", "admin"))

# Options that clients send with every task, beside those of the task itself.
COMMON = {"client_id", "device", "logging", "gpus", "multi_gpu"}
_CHECKS: dict[str, Callable[[Any], bool]] = {
    "device": lambda v: isinstance(v, str) and bool(re.fullmatch(r"[\w .:()/+-]{1,80}", v)),
    "gpus": lambda v: isinstance(v, str) and bool(re.fullmatch(r"all|\d{1,2}(,\d{1,2})*", v)),
    "multi_gpu": lambda v: isinstance(v, bool),
    "logging": lambda v: v in ("DEBUG", "INFO", "WARNING", "ERROR"),
    "save_label": lambda v: isinstance(v, bool),
    "label_tag": lambda v: isinstance(v, str) and bool(re.fullmatch(TAG, v)),
    "result_extension": lambda v: v in LABELS,
    "result_dtype": lambda v: v in ("uint8", "uint16", "int16", "int32", "float32"),
    "largest_cc": lambda v: isinstance(v, bool),
    "result_compress": lambda v: isinstance(v, bool),
    "max_workers": lambda v: _is_whole(v, 8),
    "max_batch_size": lambda v: _is_whole(v, 10**6),
    "k": lambda v: str(v).removeprefix("-").isdecimal(),
}
# Possible values of options, for messages.
_WORDS = {
    "max_workers": "a whole number from 0 to 8",
    "max_batch_size": "a whole number from 0 to 1000000",
    "k": "a whole number",
    **dict.fromkeys(("multi_gpu", "save_label", "largest_cc", "result_compress"), "true or false"),
}


def app() -> MONAILabelApp:
    instance: MONAILabelApp = app_instance()
    return instance


def known_image(image: str) -> None:
    """Raises HTTPException 404 for any name but that of a known image, even if a file of that name exists; 503 or 409
    for a training case while there is no index."""
    require_index_for(image)
    store = app().datastore()
    known = store.has_image(image) if isinstance(store, StudiesAndTraining) else store.get_image_uri(image)
    # MONAI Label opens what exists under the name itself before it asks its table.
    if not known or Path(image).exists():
        raise HTTPException(404, "There is no such image.")


def image_file(image: str) -> Path:
    """The file of a known image; that of a DICOM series is made where it is not there yet.

    Raises:
        HTTPException: as `known_image`; 422 for a series that cannot be read.
    """
    known_image(image)
    path = app().datastore().get_image_uri(image)
    if not path or not Path(path).is_file():
        raise HTTPException(404, "There is no such image.")
    return Path(path)


def require_index_for(case: str) -> None:
    """Refuses (503, 409) a training case while there is no index: without one the training cases are unknown."""
    services: Services | None = getattr(app(), "services", None)
    if services is not None and case.startswith(TRAINING):
        services.engine.required_index()


def known_label(image: str, tag: str) -> Path:
    require_index_for(image)
    path = app().datastore().get_label_uri(image, tag)
    if not path or not Path(path).is_file():
        raise HTTPException(404, "There is no such label.")
    return Path(path)


def known_task(kind: str, name: str) -> Mapping[str, Any]:
    """Description of a task as /info/ gives it. `kind`: models, trainers, strategies or scoring."""
    found: Mapping[str, Any] | None = app().info()[kind].get(name)
    if found is None:
        raise HTTPException(404, f"There is no '{name}' among the {kind}.")
    return found


def options(given: Mapping[str, Any], task: Mapping[str, Any], further: Collection[str] = ()) -> dict[str, Any]:
    """The options of a request that the task offers, those that every task takes, and `further` ones; those of MONAI
    Label's own tasks in the task's words.

    Everything else is refused: options are merged into MONAI Label's own request, where they could name another image,
    another model, a file of weights or a folder of code (`bundle_path`).
    """
    offered = {*(task.get("config") or {}), *COMMON, *further}
    given = translated(given, offered)
    for key, value in given.items():
        if key not in offered:
            raise HTTPException(422, f"Unknown option '{key[:60]}'; there are {', '.join(sorted(offered))}.")
        check = _CHECKS.get(key)
        if check is not None and value is not None and not check(value):
            words = f": {key} must be {_WORDS[key]}" if key in _WORDS else ""
            raise HTTPException(422, f"Option '{key}' cannot have this value{words}.")
    # A caller may not choose the words of the log, and null asks for nothing.
    return {k: v for k, v in given.items() if k != "logging" and v is not None}


def _is_whole(value: Any, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= largest
