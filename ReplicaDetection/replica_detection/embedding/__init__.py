"""Embedders: images to vectors. A new embedder is a class with `@register` in one of these files."""

from dataclasses import dataclass

from replica_detection.embedding import dino, invariants, medicalnet, network
from replica_detection.embedding.base import (
    EMBEDDERS,
    Embedder,
    make_embedder,
    register,
    restore_embedder,
)


@dataclass(frozen=True)
class Embedders:
    """The embedders of an index: of whole images, and of single slices of a volume."""

    images: Embedder | None = None
    slices: Embedder | None = None


__all__ = [
    "EMBEDDERS",
    "Embedder",
    "Embedders",
    "dino",
    "invariants",
    "make_embedder",
    "medicalnet",
    "network",
    "register",
    "restore_embedder",
]
