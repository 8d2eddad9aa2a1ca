"""Copies that moved: how each training case of a short list has to be turned and shifted to lie on a query."""

from replica_detection.registration.alignment import alignment_of, moved, to_training
from replica_detection.registration.retrieval import Placement, TrainingPyramids

__all__ = ["Placement", "TrainingPyramids", "alignment_of", "moved", "to_training"]
