"""DerivedVolumes: volumes from both images for the overlay. Only here is an image resampled, into a copy."""

from __future__ import annotations

import numpy as np

from ReplicaDetectionLib.CasePair import CaseImage


def onGridOf(first: CaseImage, second: CaseImage, placement: np.ndarray) -> np.ndarray:
    """The second image at the voxels of the first, linearly interpolated, in the comparison's scale.

    Args:
        placement: (4, 4), a point of the second file to the first file's coordinates, mm RAS+.

    Returns:
        (X, Y, Z) float32 of the first image's shape: 0 to 1 between the second image's limits, NaN outside of it.
    """
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

    from ReplicaDetectionLib.Nodes import matrixOf

    image = vtk.vtkImageData()
    image.SetDimensions(*second.array.shape)
    stored = np.ascontiguousarray(second.array.T, np.float32)
    image.GetPointData().SetScalars(numpy_to_vtk(stored.ravel(), deep=True))
    toSecond = np.linalg.inv(placement @ second.affine) @ first.affine
    transform = vtk.vtkTransform()
    transform.SetMatrix(matrixOf(toSecond))
    reslice = vtk.vtkImageReslice()
    reslice.SetInputData(image)
    reslice.SetResliceTransform(transform)
    reslice.SetInterpolationModeToLinear()
    reslice.SetOutputSpacing(1, 1, 1)
    reslice.SetOutputOrigin(0, 0, 0)
    reslice.SetOutputExtent(*(end for n in first.array.shape for end in (0, n - 1)))
    reslice.SetBackgroundLevel(float("nan"))
    # A voxel whose centre lies within half a voxel outside still belongs to the image.
    reslice.BorderOn()
    reslice.Update()
    values = vtk_to_numpy(reslice.GetOutput().GetPointData().GetScalars())
    return mapped(values.reshape(first.array.shape[::-1]).T, second.limits)


def mapped(array: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Intensities as the comparison sees them: 0 and 1 at the limits, clipped; NaN stays."""
    low, high = limits
    return np.clip((np.asarray(array, np.float32) - np.float32(low)) / np.float32(max(high - low, 1e-12)), 0, 1)


def difference(first: CaseImage, moved: np.ndarray) -> np.ndarray:
    """First minus second in the comparison's scale, -1 to 1; 0 outside the second image."""
    return np.nan_to_num(mapped(first.array, first.limits) - moved)


def checkerboard(first: CaseImage, moved: np.ndarray, mm: float) -> np.ndarray:
    """Alternating squares of both images, in the first image's intensities; the first image outside the second.

    Args:
        mm: edge of a field.
    """
    sizes = np.maximum(1, np.round(mm / np.linalg.norm(first.affine[:3, :3], axis=0))).astype(int)
    x, y, z = (np.arange(n) // s for n, s in zip(first.array.shape, sizes, strict=True))
    turn = (x[:, None, None] + y[None, :, None] + z[None, None, :]) % 2 == 1
    low, high = first.limits
    return np.where(turn & ~np.isnan(moved), low + moved * np.float32(high - low), first.array).astype(np.float32)
