"""Inference over many images, also where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask


class BatchInfer(BatchInferTask):
    """MONAI Label deals the images out to its GPUs by default, which divides by zero where there is none."""

    def __call__(self, request: dict[str, Any], datastore: Datastore, infer: Callable[..., Any]) -> dict[str, Any]:
        import torch

        if not torch.cuda.is_available():
            request = {**request, "multi_gpu": False, "device": "cpu"}
        return dict(super().__call__(request, datastore, infer))
