"""The measures, one class each. A new measure is a class with `@register` in one of these files."""

from replica_detection.measures import (
    aligned,
    feature,
    memorization_index,
    segmentation,
    slice_votes,
    voxel,
)
from replica_detection.measures.base import (
    DEFAULT,
    LEVELS,
    MEASURES,
    AligningMeasure,
    Block,
    FittedMeasure,
    Measure,
    MeasureOutput,
    SearchingMeasure,
    features_of,
    make_measures,
    needed_features,
    register,
)

__all__ = [
    "DEFAULT",
    "LEVELS",
    "MEASURES",
    "AligningMeasure",
    "Block",
    "FittedMeasure",
    "Measure",
    "MeasureOutput",
    "SearchingMeasure",
    "aligned",
    "feature",
    "features_of",
    "make_measures",
    "memorization_index",
    "needed_features",
    "register",
    "segmentation",
    "slice_votes",
    "voxel",
]
