"""Surfaces and their distances, against shapes with a known answer and against VTK."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from replica_detection.errors import ConfigurationError
from replica_detection.surfaces.distances import (
    Mesh,
    SurfaceComparison,
    compare_surfaces,
    mesh_of_mask,
    surface_distance,
    write_mesh,
)
from replica_detection.surfaces.mesh_files import DISTANCE

HALF = 15


def grid_mm(spacing=(1.0, 1.0, 1.0), half=HALF):
    """Coordinates (3, X, Y, Z) in mm of a grid around the origin, and its affine."""
    axes = [np.arange(-round(half / s), round(half / s) + 1) * s for s in spacing]
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [a[0] for a in axes]
    return np.stack(np.meshgrid(*axes, indexing="ij")), affine


def ball(radius, centre=(0, 0, 0), spacing=(1.0, 1.0, 1.0)):
    at, affine = grid_mm(spacing)
    return np.linalg.norm(at - np.reshape(centre, (3, 1, 1, 1)), axis=0) < radius, affine


def blobs(seed, size=36, share=0.88):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(size,) * 3), 2.5)
    return noise > np.quantile(noise, share)


def mean_over(mesh, values):
    return values @ mesh.weights / mesh.weights.sum()


def polydata(mesh):
    vtk = pytest.importorskip("vtk")
    from vtk.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray

    points, cells, data = vtk.vtkPoints(), vtk.vtkCellArray(), vtk.vtkPolyData()
    points.SetData(numpy_to_vtk(mesh.points, deep=1))
    cells.SetData(3, numpy_to_vtkIdTypeArray(mesh.triangles.ravel().copy(), deep=1))
    data.SetPoints(points)
    data.SetPolys(cells)
    return data


def vtk_distance(points, mesh):
    vtk = pytest.importorskip("vtk")
    distance = vtk.vtkImplicitPolyDataDistance()
    distance.SetInput(polydata(mesh))
    return np.abs([distance.EvaluateFunction(p) for p in points])


@pytest.mark.parametrize("centre", [(0, 0, 0), (0.3, -0.2, 0.45), (0.5, 0.5, 0.5)])
def test_a_sphere_is_round(centre):
    mesh = mesh_of_mask(*ball(10, centre))
    off = np.linalg.norm(mesh.points - centre, axis=1) - 10
    assert mean_over(mesh, np.abs(off)) < 0.15
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 10**3, rel=0.02)
    assert mesh.area == pytest.approx(4 * np.pi * 10**2, rel=0.06)
    rough = mesh_of_mask(*ball(10, centre), smoothing=0)
    assert mean_over(rough, np.abs(np.linalg.norm(rough.points - centre, axis=1) - 10)) > 0.3


@pytest.mark.parametrize("radius", [3.0, 1.5])
@pytest.mark.parametrize("direction", [(0, 0, 1), (1, 1, 0), (3, 2, 1), (1, -1, 1)])
def test_tubes_keep_their_radius(radius, direction):
    """Within 20 % of the truth, and within 8 % of the tube that has the volume of the mask."""
    at, affine = grid_mm()
    axis, centre = np.array(direction) / np.linalg.norm(direction), np.array([0.3, 0.2, -0.1])
    from_centre = at - centre[:, None, None, None]
    along = np.tensordot(axis, from_centre, 1)
    mask = np.linalg.norm(from_centre - along * axis[:, None, None, None], axis=0) < radius
    mask &= np.abs(along) < 13
    mesh = mesh_of_mask(mask, affine)
    height = (mesh.points - centre) @ axis
    side = np.abs(height) < 10
    distances = np.linalg.norm(mesh.points - centre - height[:, None] * axis, axis=1)[side]
    found = np.average(distances, weights=mesh.weights[side])
    assert found == pytest.approx(radius, rel=0.2)
    assert found == pytest.approx(np.sqrt(mask[np.abs(along) < 10].sum() / (20 * np.pi)), rel=0.08)
    assert mesh.volume == pytest.approx(mask.sum(), rel=0.1)


def test_thin_and_single_voxels_stay():
    mask = np.zeros((9, 9, 9), bool)
    mask[4, 4, 4] = True
    mesh = mesh_of_mask(mask, np.eye(4))
    assert mesh.volume == pytest.approx(1, rel=0.1) and np.allclose(mesh.points.mean(axis=0), 4)
    mask[4, 4, :] = True
    assert mesh_of_mask(mask, np.eye(4)).volume == pytest.approx(9, rel=0.1)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.5, 0.5, 4.0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (-1, 1, 1), (-1, -1, -1)])
@pytest.mark.parametrize("turn", [(0, 0, 0), (25, -40, 70)])
def test_any_affine(spacing, flips, turn):
    """The position is right, and normals point outwards, whichever way the voxels are stored."""
    mask = np.zeros((16, 18, 14), bool)
    mask[3:12, 5:15, 2:10] = True
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ np.diag(np.multiply(spacing, flips))
    affine[:3, 3] = (12, -30, 55)
    mesh = mesh_of_mask(mask, affine)
    centre = affine[:3, :3] @ [7, 9.5, 5.5] + affine[:3, 3]
    volumes = mask.sum() * np.prod(spacing)
    assert mesh.volume == pytest.approx(volumes, rel=0.04), "a surface that is inside out has a negative volume"
    assert np.allclose((mesh.corners.mean(axis=1) * mesh.area_vectors).sum(axis=0).sum() / 3, mesh.volume)
    assert np.allclose(np.average(mesh.points, axis=0, weights=mesh.weights), centre, atol=0.05)
    assert (np.einsum("ij,ij->i", mesh.points - centre, mesh.normals) > 0).all()
    # No vertex leaves the half voxel around the boundary of the mask.
    index = (mesh.points - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    assert (index >= np.array([2, 4, 1]) - 1e-9).all() and (index <= np.array([12, 15, 10]) + 1e-9).all()


@pytest.mark.parametrize("smoothing", [0, 20])
def test_closed_everywhere(smoothing):
    """Every edge is walked as often in one direction as in the other, at the border of the volume too."""
    for mask in (blobs(1), np.ones((3, 4, 5), bool), np.ones((1, 1, 1), bool)):
        mesh = mesh_of_mask(mask, np.eye(4), smoothing=smoothing)
        edges = np.concatenate([mesh.triangles[:, [i, (i + 1) % 3]] for i in range(3)])
        there, counts = np.unique(edges, axis=0, return_counts=True)
        back, counts_back = np.unique(edges[:, ::-1], axis=0, return_counts=True)
        assert (there == back).all() and (counts == counts_back).all()
        assert len(np.unique(mesh.triangles)) == len(mesh.points)
        assert mesh.volume == pytest.approx(mask.sum(), rel=1e-9 if smoothing == 0 else 0.12)


def test_labels_and_empty_masks():
    mask = np.zeros((12, 8, 8), np.int16)
    mask[1:4, 2:6, 2:6], mask[7:11, 2:6, 2:6] = 2, 5
    both, one = (mesh_of_mask(mask, np.eye(4), label=label, smoothing=0) for label in (None, 5))
    assert both.volume == pytest.approx(7 * 16) and one.volume == pytest.approx(4 * 16)
    assert one.points[:, 0].min() == 6.5
    assert mesh_of_mask(mask, np.eye(4), label=2, smoothing=0).volume == pytest.approx(3 * 16)
    for empty in (mesh_of_mask(mask, np.eye(4), label=9), mesh_of_mask(np.zeros((0, 4, 4)), np.eye(4))):
        assert empty.empty and empty.points.shape == (0, 3) and empty.triangles.shape == (0, 3)
        assert empty.volume == empty.area == 0
    with pytest.raises(ValueError, match="three axes"):
        mesh_of_mask(mask[0], np.eye(4))
    for affine in (np.zeros((4, 4)), np.eye(3), np.full((4, 4), np.nan)):
        with pytest.raises(ValueError, match="affine"):
            mesh_of_mask(mask, affine)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.45, 0.45, 5)])
@pytest.mark.parametrize("shift", [0, 30])
def test_distances_equal_vtk(spacing, shift):
    affine = np.diag([*spacing, 1.0])
    first, second = mesh_of_mask(blobs(0), affine), mesh_of_mask(blobs(7), affine)
    first = Mesh(first.points + shift, first.triangles)
    found = surface_distance(first, second)
    some = np.random.default_rng(0).choice(len(found), 1500, replace=False)
    assert np.abs(found[some] - vtk_distance(first.points[some], second)).max() < 1e-9
    to_vertices = np.linalg.norm(first.points[some, None] - second.points[None], axis=2).min(axis=1)
    assert (to_vertices - found[some]).mean() > (1e-4 if shift else 0.01), "vertices alone would be further away"


def test_distances_to_any_triangles_equal_vtk():
    """Slivers, huge and tiny triangles in one soup; a triangle without area counts as the line that it is."""
    rng = np.random.default_rng(3)
    corners = rng.normal(size=(150, 1, 3)) * 8 + rng.normal(size=(150, 3, 3)) * rng.lognormal(0, 1, size=(150, 1, 1))
    corners[:40, 2] = corners[:40, 1] + 1e-3 * rng.normal(size=(40, 3))
    soup = Mesh(corners.reshape(-1, 3), np.arange(450).reshape(-1, 3))
    points = rng.normal(size=(500, 3)) * 12
    found = surface_distance(Mesh(points, np.zeros((1, 3), np.int64)), soup)
    assert np.abs(found - vtk_distance(points, soup)).max() < 1e-6
    line = Mesh(np.array([[0.0, 0, 0], [4, 0, 0], [2, 0, 0]]), np.array([[0, 1, 2]]))
    assert surface_distance(Mesh(np.array([[1.0, 3, 4]]), np.zeros((1, 3), np.int64)), line) == pytest.approx(5)


def test_many_small_triangles_do_not_hide_a_large_one():
    """Crumbs float 1.2 mm over each point, a wide floor lies 1 mm below: crumbs have the nearer centres."""
    rng = np.random.default_rng(1)
    points = np.column_stack([rng.uniform(20, 60, size=(30, 2)), np.full(30, 1.0)])
    crumbs = points[:, None, None] + (0, 0, 1.2) + rng.normal(size=(30, 40, 3, 3)) * 0.01
    floor = np.array([[(0.0, 0, 0), (200, 0, 0), (0, 200, 0)]])
    corners = np.concatenate([crumbs.reshape(-1, 3, 3), floor])
    target = Mesh(corners.reshape(-1, 3), np.arange(3 * len(corners)).reshape(-1, 3))
    assert surface_distance(Mesh(points, np.zeros((1, 3), np.int64)), target) == pytest.approx(np.ones(30))


def test_the_centre_of_a_sphere_has_no_nearest_triangle():
    """All triangles tie, so that no small set of candidates is sure to hold the nearest; the stated bound holds."""
    sphere = mesh_of_mask(*ball(12))
    point = Mesh(np.zeros((1, 3)), np.zeros((1, 3), np.int64))
    truth = vtk_distance(point.points, sphere)[0]
    found = surface_distance(point, sphere)[0]
    assert truth - 1e-9 <= found <= truth + 2 / (2 * truth)


def test_concentric_spheres():
    (inner, affine), (outer, _) = ball(9, (0.2, 0, 0.1)), ball(13, (0.2, 0, 0.1))
    found = compare_surfaces(inner, outer, affine)
    assert found.first_to_second.shape == (len(found.first.points),)
    assert found.second_to_first.shape == (len(found.second.points),)
    for statistics in (found.forth, found.back, found.symmetric):
        assert statistics.mean == pytest.approx(4, abs=0.1) and statistics.median == pytest.approx(4, abs=0.15)
        assert 4 < statistics.percentile_95 < statistics.maximum < 5


def test_shifted_boxes():
    """Along x by 3 mm: nothing is further than 3 mm away, and the ends are exactly so far away."""
    mask = np.zeros((24, 30, 30), bool)
    mask[4:10, 5:25, 5:25] = True
    moved = np.roll(mask, 3, axis=0)
    affine = np.diag([-1.0, 1, 2, 1])
    first, second = (mesh_of_mask(m, affine, smoothing=0) for m in (mask, moved))
    distances = surface_distance(first, second)
    assert distances.max() == pytest.approx(3) and distances.min() == 0
    ends = np.isclose(first.points[:, 0], -3.5)
    assert np.allclose(distances[ends], 3)
    found = compare_surfaces(mask, moved, affine)
    assert found.symmetric.maximum == pytest.approx(3, abs=0.1)
    assert found.forth.position[0] == pytest.approx(-3.5, abs=0.1)
    assert found.back.position[0] == pytest.approx(-12.5, abs=0.1)


def test_a_bulge_is_found_where_it_is():
    mask, affine = ball(9)
    bulge, _ = ball(3.5, (0, 9, 4))
    found = compare_surfaces(mask, mask | bulge, affine)
    assert found.symmetric.maximum == max(found.forth.maximum, found.back.maximum) > 2.5
    turned = compare_surfaces(mask | bulge, mask, affine)
    assert turned.forth == replace(found.back, position=turned.forth.position)
    assert turned.symmetric.maximum == found.symmetric.maximum
    assert (turned.symmetric.position == found.symmetric.position).all()
    for statistics in (found.forth, found.back):
        assert np.linalg.norm(statistics.position - (0, 10, 4.5)) < 3 and statistics.maximum > 2.5
    assert found.back.median < 0.1 < found.back.mean
    assert found.symmetric.percentile_95 == max(found.forth.percentile_95, found.back.percentile_95)


def test_statistics_count_areas():
    """A square whose left half has 16 times as many vertices; the distance rises evenly from left to right."""
    x = np.concatenate([np.arange(-10, 0, 0.25), np.arange(0, 11)])
    y = np.linspace(0, 20, 21)
    points = np.stack([*np.meshgrid(x, y, indexing="ij"), np.zeros((len(x), len(y)))], axis=-1).reshape(-1, 3)
    corner = (np.arange(len(x) - 1)[:, None] * len(y) + np.arange(len(y) - 1)).ravel()
    across, up = corner + len(y), corner + 1
    triangles = np.concatenate([np.stack([corner, across, up], 1), np.stack([across, across + 1, up], 1)])
    square = Mesh(points, triangles)
    found = SurfaceComparison(square, square, points[:, 0] + 10, points[:, 0] + 10).forth
    assert square.area == pytest.approx(400)
    assert found.mean == pytest.approx(10) and found.median == pytest.approx(10, abs=0.5)
    assert found.percentile_95 == pytest.approx(19, abs=1) and found.maximum == 20
    assert (points[:, 0] + 10).mean() < 8


def test_mean_equals_points_strewn_evenly():
    mask, affine = ball(10, spacing=(0.5, 0.5, 2))
    other, _ = ball(8, (0, 0, 5), spacing=(0.5, 0.5, 2))
    found = compare_surfaces(mask, other, affine)
    rng = np.random.default_rng(0)
    areas = np.linalg.norm(found.first.area_vectors, axis=1)
    some = found.first.corners[rng.choice(len(areas), 10_000, p=areas / areas.sum())]
    strewn = np.einsum("nij,ni->nj", some, rng.dirichlet((1, 1, 1), len(some)))
    distances = vtk_distance(strewn, found.second)
    assert found.forth.mean == pytest.approx(distances.mean(), rel=0.02)


def test_symmetric_statistics_are_over_both_surfaces():
    found = compare_surfaces(*(m for m, _ in (ball(4), ball(12))), ball(4)[1])
    areas = found.first.area, found.second.area
    assert found.symmetric.mean == pytest.approx(np.average([found.forth.mean, found.back.mean], weights=areas))


def test_other_grid():
    """The same anatomy stored on another grid is the same surface, and the affines alone may tell the difference."""
    mask, affine = blobs(4), np.diag([1.0, 1.2, 0.9, 1])
    flipped_affine = affine @ np.array([[-1, 0, 0, len(mask) - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    same = compare_surfaces(mask, mask[::-1], affine, flipped_affine)
    assert same.symmetric.maximum < 0.25 and same.symmetric.mean < 0.01
    moved = affine.copy()
    moved[:3, 3] = 2, 0, 0
    assert 0.5 < compare_surfaces(mask, mask, affine, moved).symmetric.maximum <= 2 + 1e-9


def test_equal_masks_are_at_zero():
    found = compare_surfaces(blobs(2), blobs(2), np.eye(4))
    assert found.symmetric.maximum < 1e-12


def test_with_an_empty_mask_there_is_no_distance():
    mask, affine = ball(5)
    for a, b in ((mask, mask & False), (mask & False, mask), (mask & False, mask & False)):
        found = compare_surfaces(a, b, affine)
        assert np.isnan(found.first_to_second).all() and len(found.first_to_second) == len(found.first.points)
        assert np.isnan(found.second_to_first).all() and len(found.second_to_first) == len(found.second.points)
        for statistics in (found.forth, found.back, found.symmetric):
            values = (statistics.mean, statistics.median, statistics.percentile_95, statistics.maximum)
            assert np.isnan(values).all() and np.isnan(statistics.position).all()


@pytest.mark.parametrize("with_distances", [True, False])
def test_vtp_is_read_by_vtk(tmp_path, with_distances):
    vtk = pytest.importorskip("vtk")
    from vtk.util.numpy_support import vtk_to_numpy

    mesh = mesh_of_mask(*ball(6, (2, 1, 0)))
    distances = np.linspace(0, 7, len(mesh.points)) if with_distances else None
    write_mesh(tmp_path / "a.vtp", mesh, distances)
    reader = vtk.vtkXMLPolyDataReader()
    reader.SetFileName(str(tmp_path / "a.vtp"))
    reader.Update()
    read = reader.GetOutput()
    assert np.allclose(vtk_to_numpy(read.GetPoints().GetData()), mesh.points, atol=1e-5)
    assert (vtk_to_numpy(read.GetPolys().GetConnectivityArray()).reshape(-1, 3) == mesh.triangles).all()
    assert read.GetFieldData().GetAbstractArray("SPACE").GetValue(0) == "RAS", "else Slicer mirrors it"
    if with_distances:
        assert np.allclose(vtk_to_numpy(read.GetPointData().GetArray(DISTANCE)), distances, atol=1e-5)
        assert read.GetPointData().GetScalars().GetName() == DISTANCE == "SurfaceDistance"
    properties = vtk.vtkMassProperties()
    properties.SetInputData(read)
    assert properties.GetVolume() == pytest.approx(mesh.volume, rel=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == ["a.vtp"]


def test_ply_is_read_by_vtk(tmp_path):
    vtk = pytest.importorskip("vtk")
    from vtk.util.numpy_support import vtk_to_numpy

    mesh = mesh_of_mask(*ball(6, (2, 1, 0)))
    distances = np.linspace(0, 7, len(mesh.points))
    write_mesh(tmp_path / "a.PLY", mesh, distances)
    reader = vtk.vtkPLYReader()
    reader.SetFileName(str(tmp_path / "a.PLY"))
    reader.Update()
    read = reader.GetOutput()
    assert np.allclose(vtk_to_numpy(read.GetPoints().GetData()), mesh.points, atol=1e-5)
    assert (vtk_to_numpy(read.GetPolys().GetConnectivityArray()).reshape(-1, 3) == mesh.triangles).all()
    comments = [reader.GetComments().GetValue(i) for i in range(reader.GetComments().GetNumberOfValues())]
    assert "SPACE=RAS" in comments
    content = (tmp_path / "a.PLY").read_bytes()
    header, body = content.split(b"end_header\n", 1)
    assert b"property float SurfaceDistance" in header
    vertices = np.frombuffer(body, "<f4", 4 * len(mesh.points)).reshape(-1, 4)
    assert np.allclose(vertices[:, 3], distances, atol=1e-5)


def test_empty_meshes_and_undefined_distances_are_written(tmp_path):
    vtk = pytest.importorskip("vtk")
    mask, affine = ball(4)
    found = compare_surfaces(mask, mask & False, affine)
    for suffix, reader in ((".vtp", vtk.vtkXMLPolyDataReader()), (".ply", vtk.vtkPLYReader())):
        write_mesh(tmp_path / f"a{suffix}", found.first, found.first_to_second)
        write_mesh(tmp_path / f"b{suffix}", found.second, found.second_to_first)
        reader.SetFileName(str(tmp_path / f"a{suffix}"))
        reader.Update()
        assert reader.GetOutput().GetNumberOfPoints() == len(found.first.points)
        reader.SetFileName(str(tmp_path / f"b{suffix}"))
        reader.Update()
        assert reader.GetOutput().GetNumberOfPoints() == 0


def test_what_cannot_be_written_leaves_the_old_file(tmp_path):
    mesh = mesh_of_mask(*ball(4))
    write_mesh(tmp_path / "a.vtp", mesh)
    old = (tmp_path / "a.vtp").read_bytes()
    with pytest.raises(ValueError, match="as many distances"):
        write_mesh(tmp_path / "a.vtp", mesh, np.zeros(3))
    with pytest.raises(ConfigurationError, match=r"\.vtp or \.ply, not '\.stl'"):
        write_mesh(tmp_path / "a.stl", mesh)
    assert [p.name for p in tmp_path.iterdir()] == ["a.vtp"] and (tmp_path / "a.vtp").read_bytes() == old


def test_imports_with_numpy_alone():
    heavy = ("scipy", "vtk", "skimage", "numba", "torch", "monai", "matplotlib", "SimpleITK", "nibabel")
    code = f"import sys, replica_detection.surfaces.distances; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "[]"
