"""Segmenters, for masks where the user gives none. A new segmenter is a class with `@register` in a file."""

from replica_detection.segmentation import hemorrhage, network, vessels
from replica_detection.segmentation.base import SEGMENTERS, Segmenter, make_segmenter, register

__all__ = ["SEGMENTERS", "Segmenter", "hemorrhage", "make_segmenter", "network", "register", "vessels"]
