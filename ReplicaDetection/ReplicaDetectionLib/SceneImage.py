"""SceneImage: an image of the scene as a file, to be sent for comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import slicer

from replica_detection.errors import InputError
from ReplicaDetectionLib.Translation import _


def writeImage(node: Any, path: Path) -> Path:
    """Writes a volume node's voxels and geometry, nothing else of it: no name, no header fields, no patient.

    Raises:
        InputError: the node holds no voxels, lies under a transform, or cannot be written.
    """
    if node.GetImageData() is None:
        raise InputError(node.GetName(), _("holds no voxels"), _("Choose another image"))
    if node.GetParentTransformNode() is not None:
        raise InputError(
            node.GetName(),
            _("lies under a transform"),
            _("Harden or remove the transform in the Transforms module first"),
        )
    storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
    storage.SetFileName(str(path))
    storage.SetUseCompression(True)
    if not storage.WriteData(node):
        raise InputError(path, _("cannot be written"), _("Check the space on the disk"))
    return path
