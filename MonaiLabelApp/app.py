"""ReplicaDetectionApp: the app that MONAI Label's server runs."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.sessions import Sessions

from replica_detection.errors import ReplicaDetectionError
from replica_detection.results.schema import to_json
from replica_detection.version import __version__
from replica_detection_server.collection.datastore import StudiesAndTraining
from replica_detection_server.collection.series import write_volume_of
from replica_detection_server.computing.services import Services, services_of
from replica_detection_server.data_folder.private_folder import make_private
from replica_detection_server.errors import RefusedError, UnknownNameError
from replica_detection_server.incoming.error_responses import refusal, register_refusals
from replica_detection_server.lib.activelearning.most_replica_like import MostReplicaLike
from replica_detection_server.lib.batch import BatchInfer
from replica_detection_server.lib.infers.replica_matches import ReplicaMatches
from replica_detection_server.lib.infers.segmentation import segmentation_tasks
from replica_detection_server.lib.progress import telling_failures
from replica_detection_server.lib.scoring.score_all import ScoreAll
from replica_detection_server.lib.trainers.build_index import BuildIndex
from replica_detection_server.lib.trainers.encoder import TrainEncoder
from replica_detection_server.lib.trainers.segmentation import TrainSegmentation
from replica_detection_server.routes import register
from replica_detection_server.routes.received_files import INBOX, examine
from replica_detection_server.routes.upload_limits import upload_limits
from replica_detection_server.serving.stock_launch import unprotected_launch_warning
from replica_detection_server.settings.case_ids import TRAINING
from replica_detection_server.settings.configuration import Configuration
from replica_detection_server.settings.launch_settings import current
from replica_detection_server.util import process_guard

logger = logging.getLogger(__name__)


class ReplicaDetectionApp(MONAILabelApp):
    """Segmentation, comparison with the training cohort, worklist and ratings over MONAI Label's protocol.

    Args:
        app_dir: a folder that MONAI Label may write logs to.
        studies: folder of the synthetic images.
        conf: see `Configuration`.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]):
        self.services = services_of(Configuration.of(studies, conf))
        self.services.configuration.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        super().__init__(
            app_dir,
            studies,
            conf,
            name="Replica Detection",
            description="Finds synthetic images that resemble a training scan more than unseen real scans do",
            version=__version__,
        )
        # Scoring all after each training and each sample, as MONAI Label would, takes hours on a large collection.
        self._auto_update_scoring = False
        if (server := _server()) is not None:
            register(server, self.services)
            if process_guard.MARK not in os.environ:  # MONAI Label's own launch
                process_guard.guard_this_process()
                _close(self.services.configuration.data)
                register_refusals(server)

    # -------------------------------------------------------------------------------------------------- what there is

    def init_datastore(self) -> Datastore:
        configuration, training = self.services.configuration, self.services.engine.training
        self.store = StudiesAndTraining(
            configuration.studies,
            configuration.volumes,
            training,
            watch=_server() is not None,
            found=self.services.engine.found,
            convert=self._convert,
        )
        return self.store

    def notices(self) -> list[str]:
        """Notices about the files for the administrator: the number of studies, and the files that were left out."""
        return [*self.store.notices, *self.services.engine.found.now().words()]

    def init_infers(self) -> dict[str, InferTask]:
        tasks = segmentation_tasks(self.services.configuration)
        return {**tasks, "replica_matches": ReplicaMatches(self.services.engine)}

    def init_trainers(self) -> dict[str, TrainTask]:
        # The first is the one whose `best_metric` MONAI Label's client for Slicer shows.
        return {
            "segmentation": TrainSegmentation(self.services.configuration),
            "encoder": TrainEncoder(self.services.configuration),
            "build_index": BuildIndex(self.services.engine),
        }

    def init_strategies(self) -> dict[str, Strategy]:
        return {"most_replica_like": MostReplicaLike(self.services)}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        return {"score_all": ScoreAll(self.services.configuration)}

    def init_batch_infer(self) -> BatchInfer:
        return BatchInfer()

    def info(self) -> dict[str, Any]:
        return dict(to_json(super().info()))

    # ----------------------------------------------------------------------------------------------- what it is asked

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """As MONAI Label's, but opens nothing except studies, training cases and what was uploaded, and says why not.

        Raises UnknownNameError for an unknown task or image, other refusals for an image that cannot be used.
        """
        task = self._infers.get(request.get("model"))
        if task is None or not task.is_valid():
            known = ", ".join(name for name, t in self._infers.items() if t.is_valid())
            raise UnknownNameError(f"there is no model '{request.get('model')}'; known: {known}")
        if isinstance(task, ReplicaMatches):
            self.services.engine.required_index()
        store = datastore or self.datastore()
        image = request.get("image")
        path = self._image_path(image, store)
        wanted = {**copy.deepcopy(request), "image": path, "description": task.description}
        file, reply = self._apart(wanted, uploaded=path == image) if _server() is not None else self.run(wanted)
        label = file
        if file and request.get("save_label") and task.type == InferType.SEGMENTATION and store.get_image_uri(image):
            tag = request.get("label_tag", DefaultLabelTag.ORIGINAL.value)
            try:
                label = store.save_label(image, file, tag, {"model": request["model"], "params": reply})
            except BaseException:
                Path(file).unlink(missing_ok=True)
                raise
        return {"label": label, "tag": DefaultLabelTag.ORIGINAL, "file": file, "params": reply}

    def run(self, request: dict[str, Any]) -> tuple[str | None, Any]:
        """The file and the reply of a task on the file `request["image"]`, computed in this process."""
        try:
            file, found = self._infers[request["model"]](request)
        except RefusedError:
            raise
        except ReplicaDetectionError as error:
            raise refusal(error) from error
        return file, to_json(found)

    def _apart(self, request: dict[str, Any], *, uploaded: bool) -> tuple[str | None, Any]:
        """As `run`, in a process that can be ended."""
        found = self.services.workers.call("infer", {"request": request}, uploaded=uploaded)
        return None if found.file is None else str(found.file), found.value

    def _convert(self, target: Path, files: Sequence[Path]) -> None:
        """Writes the volume of a series; in a server by a process that can be ended."""
        if _server() is None:
            write_volume_of(target, files)
            return
        found = self.services.workers.call("volume", {"files": [str(file) for file in files]})
        assert found.file is not None
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.tmp")  # tmp may lie on another disk
        shutil.move(found.file, partial)
        partial.replace(target)

    def train(self, request: dict[str, Any]) -> Any:
        if _server() is None:
            with telling_failures():
                return super().train(request)
        return self.services.workers.call("train", {"request": request}).value

    def scoring(self, request: dict[str, Any], datastore: Datastore | None = None) -> Any:
        if _server() is None:
            with telling_failures():
                return super().scoring(request, datastore)
        return self.services.workers.call("scoring", {"request": request}).value

    def batch_infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> Any:
        with telling_failures() if _server() is None else nullcontext():
            return super().batch_infer(request, datastore)

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        strategy = request.get("strategy")
        if strategy not in self._strategies:
            raise UnknownNameError(f"there is no strategy '{strategy}'; known: {', '.join(self._strategies)}")
        found = self._strategies[strategy](request, self.datastore())
        return {} if not found else {**found, "path": self._path_of(found["id"])}

    def on_init_complete(self) -> None:
        super().on_init_complete()
        self.services.start()
        if doors := unprotected_launch_warning():
            logger.warning(doors)
            for said in self.notices():
                logger.warning(said)

    def _path_of(self, image_id: str) -> str:
        """For clients on this machine; "" for a series that cannot be converted, which they are told when they ask."""
        try:
            return str(self.datastore().get_image_uri(image_id))
        except RefusedError:
            return ""

    def _image_path(self, image: Any, store: Datastore) -> str:
        """The file behind an id or an upload. Raises UnknownNameError for any other path of this machine, and what
        `required_index` does for a training case."""
        if isinstance(image, str) and image:
            if image.startswith(TRAINING):
                self.services.engine.required_index()
            known = store.get_image_uri(image)
            if known:
                return str(known)
            if _was_received(Path(image), self.sessions()):
                if current() is None:  # else the routes that received it have looked already
                    _require_fit(self.services, Path(image))
                return image
        raise UnknownNameError(f"there is no image '{Path(str(image)).name}'")


def _close(data: Path) -> None:
    try:
        said = make_private(data)
    except ReplicaDetectionError as error:
        said = [str(error)]
    for text in said:
        logger.warning(text)


def _was_received(path: Path, sessions: Sessions | None) -> bool:
    """True if the server put a file there that it received: it hands on nothing but the path."""
    if not path.is_absolute() or not path.exists():
        return False
    path, temporary = path.resolve(), Path(tempfile.gettempdir()).resolve()
    if path.parent == temporary:
        return path.name.startswith(tempfile.gettempprefix())
    if path.parent.parent == temporary:
        return path.parent.name.startswith(INBOX)
    return sessions is not None and path.is_relative_to(Path(sessions.store_path).resolve())


def _require_fit(services: Services, path: Path) -> None:
    """Refuses an upload that MONAI Label's own routes let in, and that is not one image in its own file."""
    try:
        server = _server()
        examine(None if server is None else services, path, upload_limits(getattr(server, "state", None)))
    except RefusedError:
        raise
    except ReplicaDetectionError as error:
        raise refusal(error) from error


def _server() -> FastAPI | None:
    """The web server of this process; None in the processes that MONAI Label starts for scoring and training."""
    for name, attribute in (("replica_detection_server.serving.asgi", "application"), ("monailabel.app", "app")):
        found: FastAPI | None = getattr(sys.modules.get(name), attribute, None)
        if found is not None:
            return found
    return None
