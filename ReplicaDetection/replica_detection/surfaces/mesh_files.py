"""Mesh files for 3D Slicer, ParaView and VTK: .vtp and .ply, with a distance at every vertex."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import numpy as np

from replica_detection.errors import ConfigurationError
from replica_detection.surfaces.mesh import Mesh
from replica_detection.util.files import atomic_write

DISTANCE = "SurfaceDistance"


def write_mesh(path: str | os.PathLike[str], mesh: Mesh, distances: np.ndarray | None = None) -> None:
    """Write a mesh in mm RAS+, atomically.

    Args:
        path: ends in `.vtp` (VTK XML) or `.ply` (binary); its folder must exist.
        mesh: an empty one gives a file without points.
        distances: (P,) mm, the array `SurfaceDistance`; NaN is kept. Stored as float32, as are the points.

    Raises:
        ConfigurationError: the name has another extension.
        ValueError: the number of distances is not that of the vertices.
    """
    path = Path(path)
    if distances is not None and np.shape(distances) != (len(mesh.points),):
        raise ValueError(f"{len(mesh.points)} vertices need as many distances, got the shape {np.shape(distances)}")
    formats = {".vtp": _vtp, ".ply": _ply}
    encode = formats.get(path.suffix.lower())
    if encode is None:
        raise ConfigurationError(f"{path}: a mesh is written as {' or '.join(formats)}, not '{path.suffix}'")
    content = encode(mesh, distances)
    with atomic_write(path, "wb") as f:
        f.write(content)


def _vtp(mesh: Mesh, distances: np.ndarray | None) -> bytes:
    """The file as VTK XML in "binary" encoding: base64 of a length in bytes (UInt64) and the values."""
    triangles = mesh.triangles.astype("<i8")
    ends = 3 * np.arange(1, len(triangles) + 1, dtype="<i8")
    data = ""
    if distances is not None:
        array = _array(DISTANCE, "Float32", np.asarray(distances, "<f4"))
        data = f'<PointData Scalars="{DISTANCE}">{array}</PointData>'
    return (
        '<?xml version="1.0"?>\n'
        '<VTKFile type="PolyData" version="1.0" byte_order="LittleEndian" header_type="UInt64"><PolyData>'
        # Without this remark, 3D Slicer reads the points as LPS.
        '<FieldData><Array type="String" Name="SPACE" NumberOfTuples="1" format="ascii">82 65 83 0</Array></FieldData>'
        f'<Piece NumberOfPoints="{len(mesh.points)}" NumberOfVerts="0" NumberOfLines="0" NumberOfStrips="0" '
        f'NumberOfPolys="{len(triangles)}">{data}'
        f"<Points>{_array('Points', 'Float32', mesh.points.astype('<f4'), 3)}</Points>"
        f"<Polys>{_array('connectivity', 'Int64', triangles)}{_array('offsets', 'Int64', ends)}</Polys>"
        "</Piece></PolyData></VTKFile>\n"
    ).encode("ascii")


def _array(name: str, kind: str, values: np.ndarray, components: int = 1) -> str:
    raw = np.ascontiguousarray(values).tobytes()
    text = base64.b64encode(np.array([len(raw)], "<u8").tobytes() + raw).decode("ascii")
    return (
        f'<DataArray type="{kind}" Name="{name}" NumberOfComponents="{components}" format="binary">{text}</DataArray>'
    )


def _ply(mesh: Mesh, distances: np.ndarray | None) -> bytes:
    """The file as little-endian binary PLY."""
    fields = [("x", "<f4"), ("y", "<f4"), ("z", "<f4")]
    if distances is not None:
        fields.append((DISTANCE, "<f4"))
    vertices = np.empty(len(mesh.points), fields)
    for axis, name in enumerate("xyz"):
        vertices[name] = mesh.points[:, axis]
    if distances is not None:
        vertices[DISTANCE] = distances
    faces = np.empty(len(mesh.triangles), [("count", "u1"), ("index", "<i4", 3)])
    faces["count"], faces["index"] = 3, mesh.triangles
    header = [
        "ply",
        "format binary_little_endian 1.0",
        "comment SPACE=RAS",
        f"element vertex {len(vertices)}",
        *(f"property float {name}" for name, _ in fields),
        f"element face {len(faces)}",
        "property list uchar int vertex_indices",
        "end_header",
        "",
    ]
    return "\n".join(header).encode("ascii") + vertices.tobytes() + faces.tobytes()
