"""One class per measure. A new one is a class with `@register` in one of these files."""

from replica_detection.measures import aligned, segmentation, voxel
from replica_detection.measures.base import (
    LEVELS,
    MEASURES,
    AligningMeasure,
    Block,
    Measure,
    features_of,
    make_measures,
    needed_features,
    register,
)

__all__ = [
    "LEVELS",
    "MEASURES",
    "AligningMeasure",
    "Block",
    "Measure",
    "aligned",
    "features_of",
    "make_measures",
    "needed_features",
    "register",
    "segmentation",
    "voxel",
]
