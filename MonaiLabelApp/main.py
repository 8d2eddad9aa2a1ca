"""The file from which MONAI Label loads the app: the class in it whose direct base is named MONAILabelApp."""

from replica_detection_server.app import ReplicaDetectionApp

__all__ = ["ReplicaDetectionApp"]
