"""Where MONAI Label finds the app: it loads the class in this file whose direct base is named MONAILabelApp."""

from replica_detection_server.app import ReplicaDetectionApp

__all__ = ["ReplicaDetectionApp"]
