"""Plain arrays into MRML nodes, and the colours of the module."""

from __future__ import annotations

from typing import Any

import numpy as np

from replica_detection.surfaces.mesh import Mesh

#: Colours of the first and the second row, whatever they hold: orange and blue, told apart with any colour vision.
ROW_COLORS = {"First": (0.95, 0.55, 0.15), "Second": (0.30, 0.65, 0.98)}
# Pale blue-grey at 0 over yellow and orange to dark red: lightness falls all the way, as in the tool's report.
HEAT = ((190, 208, 224), (250, 226, 120), (250, 160, 50), (222, 66, 36), (128, 8, 52))
# Blue below, black at no difference, orange above.
DIVERGING = ((168, 222, 255), (28, 118, 220), (0, 0, 0), (222, 104, 16), (255, 222, 150))
DISTANCE = "SurfaceDistance"


def matrixOf(array: np.ndarray) -> Any:
    """A vtkMatrix4x4 of (4, 4)."""
    import vtk

    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(np.asarray(array, np.float64).ravel().tolist())
    return matrix


def arrayOf(matrix: Any) -> np.ndarray:
    """(4, 4) float64 of a vtkMatrix4x4."""
    return np.array([[matrix.GetElement(i, j) for j in range(4)] for i in range(4)])


def addVolume(scene: Any, name: str, array: np.ndarray, affine: np.ndarray) -> Any:
    """A scalar volume node with its display node; `array` is (X, Y, Z), `affine` takes a voxel to mm RAS+."""
    node = scene.CreateNodeByClass("vtkMRMLScalarVolumeNode")
    node.UnRegister(None)
    node.SetName(name)
    node.SetIJKToRASMatrix(matrixOf(affine))
    display = scene.AddNewNodeByClass("vtkMRMLScalarVolumeDisplayNode", f"{name} display")
    display.SetAutoWindowLevel(False)
    display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
    setVoxels(node, array)
    node.SetAndObserveDisplayNodeID(display.GetID())
    return scene.AddNode(node)


def setVoxels(node: Any, array: np.ndarray) -> None:
    """Puts (X, Y, Z) into a volume node."""
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk

    stored = array.T if array.dtype.itemsize <= 4 and array.dtype.kind in "iuf" else array.T.astype(np.float32)
    stored = stored.astype(np.float32) if stored.dtype == np.float16 else stored
    image = vtk.vtkImageData()
    image.SetDimensions(*array.shape)
    # The copy is made by VTK, so that the voxels outlive the array.
    values = numpy_to_vtk(np.ascontiguousarray(stored).ravel(), deep=True)
    image.GetPointData().SetScalars(values)
    node.SetAndObserveImageData(image)


def polyDataOf(mesh: Mesh, distances: np.ndarray, *, mirrored: bool = False) -> Any:
    """vtkPolyData with normals and, at each vertex, the distance in mm.

    Args:
        mirrored: it will be shown mirrored. The corners then run the other way, or else the mirrored surface would be
            lit from inside.
    """
    import vtk
    from vtk.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray

    points = vtk.vtkPoints()
    points.SetData(numpy_to_vtk(mesh.points.astype(np.float32), deep=True))
    triangles = mesh.triangles[:, ::-1] if mirrored else mesh.triangles
    cells = vtk.vtkCellArray()
    offsets = np.arange(0, 3 * len(triangles) + 1, 3, dtype=np.int64)
    cells.SetData(
        numpy_to_vtkIdTypeArray(offsets, deep=True),
        numpy_to_vtkIdTypeArray(np.ascontiguousarray(triangles, np.int64).ravel(), deep=True),
    )
    data = vtk.vtkPolyData()
    data.SetPoints(points)
    data.SetPolys(cells)
    normals = numpy_to_vtk(mesh.normals.astype(np.float32), deep=True)
    normals.SetName("Normals")
    data.GetPointData().SetNormals(normals)
    values = numpy_to_vtk(np.asarray(distances, np.float32), deep=True)
    values.SetName(DISTANCE)
    data.GetPointData().SetScalars(values)
    return data


def colorTable(scene: Any, name: str, stops: tuple[tuple[int, int, int], ...]) -> Any:
    """The colour table of this name, made of evenly spaced stops (0-255) where the scene has none yet."""
    found = scene.GetFirstNode(name, "vtkMRMLColorTableNode")
    if found is not None:
        return found
    at, positions = np.linspace(0, 1, 256), np.linspace(0, 1, len(stops))
    channels = [np.interp(at, positions, [stop[c] / 255 for stop in stops]) for c in range(3)]
    node = scene.CreateNodeByClass("vtkMRMLColorTableNode")
    node.UnRegister(None)
    node.SetName(name)
    node.SetTypeToUser()
    node.SetNumberOfColors(256)
    for i, (red, green, blue) in enumerate(zip(*channels, strict=True)):
        node.SetColor(i, f"{i}", red, green, blue, 1.0)
    return scene.AddNode(node)


def removeNode(scene: Any, node: Any) -> None:
    """Takes a node out with what belongs to it alone: display and storage nodes."""
    if node is None or node.GetScene() is None:
        return
    owned = []
    if node.IsA("vtkMRMLDisplayableNode"):
        owned += [node.GetNthDisplayNode(i) for i in range(node.GetNumberOfDisplayNodes())]
    if node.IsA("vtkMRMLStorableNode"):
        owned += [node.GetNthStorageNode(i) for i in range(node.GetNumberOfStorageNodes())]
    scene.RemoveNode(node)
    for each in owned:
        if each is not None and each.GetScene() is not None:
            scene.RemoveNode(each)
