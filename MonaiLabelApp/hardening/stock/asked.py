"""What a request asks for, looked up among what the server knows."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from fastapi import Depends, HTTPException
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.utils.app import app_instance

from replica_detection_server.hardening.identity import having
from replica_detection_server.hardening.names import LABELS, TAG
from replica_detection_server.hardening.stock.usual import translated

USER, ANNOTATOR, TRAINER, ADMIN = (Depends(having(role)) for role in ("user", "annotator", "trainer", "admin"))

# What clients send with every task beside what the task itself offers.
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
    "max_workers": lambda v: isinstance(v, int) and 0 <= v <= 8,
    "max_batch_size": lambda v: isinstance(v, int) and 0 <= v <= 10**6,
}


def app() -> MONAILabelApp:
    instance: MONAILabelApp = app_instance()
    return instance


def known_image(image: str) -> Path:
    """File (or folder) of a known image.

    Raises:
        HTTPException: 404 for any other name, whatever lies under it on the disk.
    """
    path = app().datastore().get_image_uri(image)
    # MONAI Label opens what exists under the name itself before it asks its table.
    if not path or Path(image).exists() or not Path(path).exists():
        raise HTTPException(404, "There is no such image.")
    return Path(path)


def known_label(image: str, tag: str) -> Path:
    path = app().datastore().get_label_uri(image, tag)
    if not path or not Path(path).is_file():
        raise HTTPException(404, "There is no such label.")
    return Path(path)


def known_task(kind: str, name: str) -> Mapping[str, Any]:
    """Description of a task as /info/ gives it. `kind`: models, trainers, strategies or scoring."""
    found: Mapping[str, Any] | None = app().info()[kind].get(name)
    if found is None:
        raise HTTPException(404, f"There is no {name!r} among the {kind}.")
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
            raise HTTPException(422, f"Unknown option {key[:60]!r}; there are {', '.join(sorted(offered))}.")
        check = _CHECKS.get(key)
        if check is not None and value is not None and not check(value):
            raise HTTPException(422, f"Option {key!r} cannot have this value.")
    # The words of the log are not a caller's to choose.
    return {k: v for k, v in given.items() if k != "logging"}


def plain(value: Any) -> Any:
    """What JSON takes: arrays and numbers of NumPy as Python's, NaN and infinity as null, paths as their last part."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, deque)):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return value.name
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)
