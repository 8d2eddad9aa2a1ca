"""/train, /scoring and /batch/infer: long work in a process of its own, or awaited with `run_sync`."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Annotated, Any

import psutil
from fastapi import APIRouter, HTTPException
from monailabel.interfaces.tasks.batch_infer import BatchInferImageType
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import background_executors, processes, tasks

from replica_detection_server.access.identity import Identity
from replica_detection_server.collection.task_files import result_suffix
from replica_detection_server.computing.queue import heavy_if_sync
from replica_detection_server.incoming.names import TaskName
from replica_detection_server.lib.trainers.build_index import BuildIndex
from replica_detection_server.lib.trainers.encoder import TrainEncoder
from replica_detection_server.lib.trainers.segmentation import TrainSegmentation
from replica_detection_server.stock.job_output import for_people
from replica_detection_server.stock.lookup import ANNOTATOR, TRAINER, USER, app, known_image, known_task, options
from replica_detection_server.util.json_values import plain

logger = logging.getLogger(__name__)
router = APIRouter(tags=["MONAI Label"])

MAX_QUEUED = 8
# A job that was accepted gets its process at once; on a busy machine that has taken a second.
LONGEST_START = 10.0
BATCH = ("save_label", "label_tag", "max_workers", "max_batch_size", "images")
Params = dict[str, Any] | None


@router.post("/train/{model}", summary="Train a model, or build the index", dependencies=[heavy_if_sync])
def train(
    model: TaskName,
    who: Annotated[Identity, TRAINER],
    params: Params = None,
    run_sync: bool = False,
    enqueue: bool = False,
) -> Any:
    asked = options(params or {}, known_task("trainers", model))
    trainer = app()._trainers[model]
    # Checked now: a job would be accepted and fail.
    if isinstance(trainer, TrainSegmentation | TrainEncoder | BuildIndex):
        trainer.wanted(asked)
    if isinstance(trainer, TrainSegmentation | TrainEncoder):
        trainer.require_material()
    return _run("train", {"model": model}, asked, who, run_sync, enqueue)


@router.post("/scoring/{method}", summary="Score the whole collection", dependencies=[heavy_if_sync])
def scoring(
    method: TaskName, who: Annotated[Identity, ANNOTATOR], params: Params = None, run_sync: bool = False
) -> Any:
    asked = options(params or {}, known_task("scoring", method))
    return _run("scoring", {"method": method}, asked, who, run_sync)


@router.post("/batch/infer/{model}", summary="Run a model on many images", dependencies=[heavy_if_sync])
def batch_infer(
    model: TaskName,
    who: Annotated[Identity, TRAINER],
    images: BatchInferImageType = BatchInferImageType.IMAGES_ALL,
    params: Params = None,
    run_sync: bool = False,
) -> Any:
    """`params.images` may list ids. Masks are saved among the studies under `label_tag`."""
    import torch

    asked = options(params or {}, known_task("models", model), BATCH)
    result_suffix(asked)
    listed = asked.get("images")
    if listed is not None:
        if not isinstance(listed, list) or not all(isinstance(i, str) for i in listed):
            raise HTTPException(422, "params.images must be a list of ids.")
        for image in listed:
            known_image(image)
    if not torch.cuda.is_available():
        # MONAI Label divides by the number of GPUs unless told otherwise.
        asked.update(multi_gpu=False, device="cpu")
    return _run("batch_infer", {"model": model, "images": images.value}, asked, who, run_sync)


@router.get("/train/", summary="The last training, or all")
def train_status(who: Annotated[Identity, USER], all: bool = False, check_if_running: bool = False) -> Any:
    return _status("train", all, check_if_running)


@router.get("/scoring/", summary="The last scoring, or all")
def scoring_status(who: Annotated[Identity, USER], all: bool = False, check_if_running: bool = False) -> Any:
    return _status("scoring", all, check_if_running)


@router.get("/batch/infer", summary="The last batch, or all")
def batch_status(who: Annotated[Identity, USER], all: bool = False, check_if_running: bool = False) -> Any:
    return _status("batch_infer", all, check_if_running)


@router.delete("/train/", summary="Stop the training")
def train_stop(who: Annotated[Identity, TRAINER]) -> Any:
    return _stopped("train", who)


@router.delete("/scoring/", summary="Stop the scoring")
def scoring_stop(who: Annotated[Identity, ANNOTATOR]) -> Any:
    return _stopped("scoring", who)


@router.delete("/batch/infer", summary="Stop the batch")
def batch_stop(who: Annotated[Identity, TRAINER]) -> Any:
    return _stopped("batch_infer", who)


def stop(kind: str) -> Any:
    """Ends the running process of a kind; the job, or None where none runs.

    A job whose process is still being started is waited for: MONAI Label would let it run on.
    """
    end = time.monotonic() + LONGEST_START
    while _is_starting(kind) and time.monotonic() < end:
        time.sleep(0.02)
    try:
        stopped = AsyncTask.stop(kind)
    except (psutil.NoSuchProcess, StopIteration):
        return None
    return None if stopped is None else plain(for_people(stopped))


def _is_starting(kind: str) -> bool:
    return not processes(kind) and any(task["status"] == "SUBMITTED" for task in tasks(kind))


def _stopped(kind: str, who: Identity) -> Any:
    stopped = stop(kind)
    if stopped is not None:
        logger.info("job %s stopped by %r", kind, who.reader)
    return stopped


def _run(
    kind: str,
    request: dict[str, Any],
    asked: Mapping[str, Any],
    who: Identity,
    run_sync: bool,
    enqueue: bool = False,
) -> Any:
    if enqueue and sum(task["status"] == "SUBMITTED" for task in tasks(kind)) >= MAX_QUEUED:
        raise HTTPException(429, f"{MAX_QUEUED} jobs wait already.")
    result, detail = AsyncTask.run(kind, request=request, params=dict(asked), force_sync=run_sync, enqueue=enqueue)
    if result is None and detail:
        raise HTTPException(429, "A job of this kind is running; wait for it or stop it.")
    logger.info("job %s of MONAI Label begun by %r", kind, who.reader)
    if not run_sync:
        # MONAI Label runs the jobs of a kind one after the other, so this runs when this one has ended.
        background_executors[kind].submit(_say_end, kind, result)
        return plain(for_people(result))
    return plain(result)


def _say_end(kind: str, task: Mapping[str, Any]) -> None:
    logger.info("job %s of MONAI Label ended: %s", kind, str(task["status"]).lower())


def _status(kind: str, all: bool, check_if_running: bool) -> Any:
    try:
        found, _ = AsyncTask.status(kind, all, check_if_running)
    except (StopIteration, IndexError):  # it ended in this moment
        found = None
    if found is None:
        raise HTTPException(404, "No such job is running." if check_if_running else "There was no such job yet.")
    return plain([for_people(job) for job in found] if isinstance(found, list) else for_people(found))
