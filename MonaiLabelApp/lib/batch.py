"""Inference over many images, also where there is no GPU."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from replica_detection_server.lib.progress import logged, telling_failures


class BatchInfer(BatchInferTask):
    """By default MONAI Label divides the images among its GPUs, which fails with a division by zero without one."""

    def __call__(self, request: dict[str, Any], datastore: Datastore, infer: Callable[..., Any]) -> dict[str, Any]:
        import torch

        if not torch.cuda.is_available():
            request = {**request, "multi_gpu": False, "device": "cpu"}
        total = len(self.get_images(request, datastore))
        total = min(total, request.get("max_batch_size") or total)
        tell, one_at_a_time, done = logged("batch"), threading.Lock(), 0

        def told(asked: dict[str, Any], store: Datastore) -> Any:
            nonlocal done
            try:
                with telling_failures(asked["image"]):
                    return infer(asked, store)
            finally:
                with one_at_a_time:
                    done += 1
                    tell("images", done, total)

        return dict(super().__call__(request, datastore, told))
