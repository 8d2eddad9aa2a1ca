"""The ids of cases, and the extensions of images that MONAI Label takes."""

from __future__ import annotations

from pathlib import Path

from replica_detection.io.paths import IMAGE_SUFFIXES, file_stem

# The two collections share one list of ids at MONAI Label; this marks the training cases.
TRAINING = "train:"
# MONAI Label knows one file for an image; these formats keep header and voxels in two.
SUFFIXES = tuple(s for s in IMAGE_SUFFIXES if s not in (".nhdr", ".mhd"))


def study_id(name: str) -> str:
    return file_stem(Path(name))


def suffix_of(name: str) -> str:
    """The extension of an image's file name, `.nii.gz` counting as one; "" for anything else."""
    return next((s for s in SUFFIXES if name.lower().endswith(s)), "")
