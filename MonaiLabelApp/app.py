"""ReplicaDetectionApp: what MONAI Label's server runs."""

from __future__ import annotations

import sys

from monailabel.interfaces.app import MONAILabelApp
from replica_detection.version import __version__

from replica_detection_server.configuration import Configuration
from replica_detection_server.routes import register


class ReplicaDetectionApp(MONAILabelApp):
    """Segmentation, comparison with the training cohort, worklist and ratings over MONAI Label's protocol."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]):
        self.configuration = Configuration.of(studies, conf)
        self.configuration.data.mkdir(parents=True, exist_ok=True)
        super().__init__(
            app_dir,
            studies,
            conf,
            name="Replica Detection",
            description="Finds synthetic images that resemble a training scan more than unseen real scans do",
            version=__version__,
        )
        # Absent in the processes that MONAI Label starts for scoring and training.
        server = sys.modules.get("monailabel.app")
        if server is not None:
            register(server.app)
