"""DICOM series: order, rescale, gaps, gantry tilt and multi-frame files, against ITK and against analytic images."""

import random
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage, DigitalXRayImageStorageForPresentation, EnhancedCTImageStorage
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from Core.made_dicom import dicom_dataset, save_dicom, write_series
from replica_detection.errors import InputError
from replica_detection.io.cohort import Cohort
from replica_detection.io.dicom import read_header
from replica_detection.io.volume import Volume, read_volume

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_with_itk(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Array (X, Y, Z) and RAS affine of a series as ITK reads it."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return SimpleITK.GetArrayFromImage(image).T, LPS_TO_RAS @ affine


def read_one(folder: Path) -> Volume:
    (case,) = Cohort.read(folder, strict=True).cases
    return read_volume(case)


def stack_of(count: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-200, 2000, (count, 14, 11)).astype(np.int16)


@pytest.mark.parametrize("seed", range(4))
def test_an_even_oblique_series_in_any_file_order_is_read_as_by_itk(tmp_path: Path, seed: int):
    rotation = Rotation.random(random_state=seed).as_matrix()
    stack, names = stack_of(), [f"{i}.dcm" for i in range(6)]
    random.Random(seed).shuffle(names)
    positions = [np.round([-90.0, 12, 40] + 2.5 * i * rotation[:, 2], 6) for i in range(6)]
    orientation = np.round(rotation[:, :2].T.ravel(), 8).tolist()
    each = [{"RescaleSlope": 1 + i, "RescaleIntercept": -100 * i} for i in range(6)]
    write_series(
        tmp_path,
        stack,
        positions,
        names=names,
        each=each,
        ImageOrientationPatient=orientation,
        PixelSpacing=[0.75, 0.5],
    )
    volume = read_one(tmp_path)
    array, affine = read_with_itk(tmp_path)
    assert np.array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    np.testing.assert_allclose(volume.spacing, [0.5, 0.75, 2.5], atol=1e-6)
    assert volume.trusted and volume.warnings == ()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    tilt=st.floats(-25, 25),
    gaps=st.lists(st.floats(0.8, 6), min_size=3, max_size=7),
)
def test_tilted_uneven_slices_of_a_linear_image_give_that_image(tmp_path_factory, seed: int, tilt: float, gaps: list):
    # Linear interpolation keeps a function that is linear in the patient's space.
    rng = np.random.default_rng(seed)
    axes = Rotation.random(random_state=seed % 2**32).as_matrix()
    table = axes[:, 2] + np.tan(np.radians(tilt)) * axes[:, 1]
    positions = rng.uniform(-50, 50, 3) + np.concatenate([[0], np.cumsum(gaps)])[:, None] * table
    gradient, rows, columns = rng.uniform(-1, 1, 3), 20, 16
    y, x = np.meshgrid(np.arange(rows) * 0.9, np.arange(columns) * 0.7, indexing="ij")
    plane = x[..., None] * axes[:, 0] + y[..., None] * axes[:, 1]
    true = np.stack([(plane + position) @ gradient for position in positions])
    scale = np.abs(true).max() / 30000
    folder = tmp_path_factory.mktemp("tilt")
    write_series(
        folder,
        np.rint(true / scale).astype(np.int16),
        np.round(positions, 8),
        ImageOrientationPatient=np.round(axes[:, :2].T.ravel(), 9).tolist(),
        PixelSpacing=[0.9, 0.7],
        RescaleSlope=float(f"{scale:.10g}"),
        RescaleIntercept=0,
    )
    volume = read_one(folder)
    directions = volume.affine[:3, :3] / volume.spacing
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-6)
    indices = np.argwhere(np.ones(volume.array.shape, bool))
    lps = (LPS_TO_RAS @ volume.affine @ np.c_[indices, np.ones(len(indices))].T).T[:, :3]
    # A voxel counts where the slices on both sides of it cover it.
    height = (lps - positions[0]) @ axes[:, 2]
    known = np.concatenate([[0], np.cumsum(gaps)])
    above = np.clip(np.searchsorted(known, height - 1e-6), 1, len(known) - 1)
    inside = np.ones(len(lps), bool)
    for neighbour in (above - 1, above):
        local = np.einsum("ij,ij->i", lps - positions[neighbour], np.broadcast_to(axes[:, 1], lps.shape))
        inside &= (local > -1e-6) & (local < (rows - 1) * 0.9 + 1e-6)
    found = volume.array[tuple(indices.T)]
    assert inside.sum() > 100
    told = " ".join(volume.warnings)
    # What is taken for rounding is not corrected: 2 % of a gap, a tenth of a pixel.
    rounding = (0 if "uneven" in told else 0.02 * np.mean(gaps) + 0.01) + (0 if "sheared" in told else 0.1)
    np.testing.assert_allclose(found[inside], (lps @ gradient)[inside], atol=2 * scale + 1e-3 + rounding)


def test_uneven_gaps_are_told_and_the_first_and_last_slice_stay(tmp_path: Path):
    stack, heights = stack_of(5), [0, 2, 4, 8, 10]
    write_series(tmp_path, stack, [(0, 0, height) for height in heights], RescaleIntercept=0)
    volume = read_one(tmp_path)
    assert volume.array.shape == (11, 14, 6)
    assert np.array_equal(volume.array[:, :, [0, 1, 2, 4, 5]], stack.T)
    np.testing.assert_allclose(volume.array[:, :, 3], (stack[2].T + stack[3].T) / 2)
    assert "2.00 to 4.00 mm" in volume.warnings[0]


def test_positions_rounded_to_few_digits_are_even(tmp_path: Path):
    stack = stack_of(12)
    write_series(tmp_path, stack, [(0.01 * (i % 2), 0, round(0.625 * i, 2)) for i in range(12)], RescaleIntercept=0)
    volume = read_one(tmp_path)
    assert np.array_equal(volume.array, stack.T) and volume.warnings == ()


def test_tilt_moves_whole_slices_and_fills_with_the_minimum(tmp_path: Path):
    stack = stack_of(3)
    write_series(tmp_path, stack, [(0, 1.0 * i, 4.0 * i) for i in range(3)], RescaleIntercept=0)
    volume = read_one(tmp_path)
    assert volume.array.shape == (11, 18, 3)  # each slice moves by two pixels of 0.5 mm
    for i in range(3):
        assert np.array_equal(volume.array[:, 2 * i : 2 * i + 14, i], stack[i].T)
    assert (volume.array[:, 14:, 0] == stack.min()).all() and (volume.array[:, :4, 2] == stack.min()).all()
    assert "14.0 degrees" in volume.warnings[0]


def test_the_tilted_head_ct_lies_where_its_slices_say(real_data: Path):
    from pydicom import dcmread

    volume = read_one(real_data / "head_ct" / "ge_human_dicom")
    np.testing.assert_allclose(volume.spacing, [0.4882812, 0.4882812, 4.0], atol=0.01)
    assert "1.08 to 7.00 mm" in volume.warnings[0] and "18.5 degrees" in volume.warnings[1]
    inverse, alike = np.linalg.inv(LPS_TO_RAS @ volume.affine), []
    for file in sorted((real_data / "head_ct" / "ge_human_dicom").glob("*.dcm"))[::3]:
        data = dcmread(file)
        rows, columns = np.meshgrid(np.arange(8, 504, 16), np.arange(8, 504, 16), indexing="ij")
        orientation = np.array(data.ImageOrientationPatient, float).reshape(2, 3)
        points = np.array(data.ImagePositionPatient, float) + 0.4882812 * (
            columns[..., None] * orientation[0] + rows[..., None] * orientation[1]
        )
        indices = inverse[:3, :3] @ points.reshape(-1, 3).T + inverse[:3, 3:]
        found = map_coordinates(volume.array, indices, order=1, mode="nearest")
        true = data.pixel_array[rows, columns].ravel().astype(float)
        alike.append(np.corrcoef(np.clip(found, -1000, 1000), np.clip(true, -1000, 1000))[0, 1])
    assert min(alike) > 0.99  # ITK, which leaves the tilt and the gaps out, falls to 0.55


def test_the_classic_head_ct_is_read_as_by_itk(real_data: Path):
    folder = real_data / "head_ct" / "slicer_cthead_dicom"
    volume = read_one(folder)
    array, affine = read_with_itk(folder)
    assert np.array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)


@pytest.mark.parametrize("tag", ["PixelSpacing", "ImagerPixelSpacing", None])
def test_a_radiograph_takes_its_spacing_from_either_tag(tmp_path: Path, tag: str | None):
    elements: dict = {"ImageOrientationPatient": None, "ImagePositionPatient": None, "PixelSpacing": None}
    dataset = dicom_dataset(stack_of(1)[0], SOPClassUID=DigitalXRayImageStorageForPresentation, **elements)
    if tag:
        setattr(dataset, tag, [0.2, 0.1])
    save_dicom(dataset, tmp_path / "x.dcm")
    volume = read_volume(tmp_path / "x.dcm")
    assert volume.array.shape == (11, 14) and volume.trusted is (tag is not None)
    np.testing.assert_allclose(volume.spacing, [0.1, 0.2] if tag else [1, 1])


def test_an_enhanced_multi_frame_file_equals_its_slices(tmp_path: Path):
    stack, heights = stack_of(5), [0.0, 2, 4, 6, 8]
    write_series(tmp_path / "slices", stack, [(1, 2, height) for height in heights], RescaleSlope=2)
    removed = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")
    frames = dicom_dataset(stack, SOPClassUID=EnhancedCTImageStorage, NumberOfFrames=5, **dict.fromkeys(removed))
    frames.PerFrameFunctionalGroupsSequence = []
    for height in heights:
        place, group = Dataset(), Dataset()
        place.ImagePositionPatient = [1, 2, height]
        group.PlanePositionSequence = [place]
        frames.PerFrameFunctionalGroupsSequence.append(group)
    shared, measures, plane, scale = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.5], 2
    plane.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    scale.RescaleSlope, scale.RescaleIntercept = 2, -1024
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    shared.PixelValueTransformationSequence = [scale]
    frames.SharedFunctionalGroupsSequence = [shared]
    save_dicom(frames, tmp_path / "frames.dcm")
    whole, slices = read_volume(tmp_path / "frames.dcm"), read_one(tmp_path / "slices")
    assert np.array_equal(whole.array, slices.array)
    assert np.array_equal(whole.affine, slices.affine)


def test_slices_without_positions_follow_their_numbers(tmp_path: Path):
    stack = stack_of(4)
    each = [{"ImagePositionPatient": None, "InstanceNumber": number} for number in (3, 1, 4, 2)]
    write_series(tmp_path, stack, [(0, 0, 0)] * 4, each=each, RescaleIntercept=0)
    volume = read_one(tmp_path)
    assert np.array_equal(volume.array, stack[[1, 3, 0, 2]].T)
    assert not volume.trusted and "InstanceNumber" in volume.warnings[0]


def test_the_header_tells_reports_and_scouts_and_hides_the_patient(tmp_path: Path):
    for name, elements in {
        "scout": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        "report": {"SOPClassUID": BasicTextSRStorage},
        "slice": {"PatientID": "Müller^Hans 1970"},
        "nobody": {"PatientID": ""},
    }.items():
        dataset = dicom_dataset(stack_of(1)[0], SpecificCharacterSet="ISO_IR 192", **elements)
        save_dicom(dataset, tmp_path / name)
    assert "scout" in read_header(tmp_path / "scout").left_out
    assert "Basic Text SR" in read_header(tmp_path / "report").left_out
    header = read_header(tmp_path / "slice")
    assert header.left_out == "" and len(header.patient) == 12 and set(header.patient) <= set("0123456789abcdef")
    assert read_header(tmp_path / "nobody").patient is None


def test_a_file_from_before_the_preamble_is_read(tmp_path: Path):
    dataset = dicom_dataset(stack_of(1)[0])
    del dataset.file_meta
    dataset.preamble = None
    save_dicom(dataset, tmp_path / "old.dcm", bare=True)
    assert np.array_equal(read_volume(tmp_path / "old.dcm").array, stack_of(1)[0].T - 1024.0)


def test_several_time_points_are_counted_in_the_error(tmp_path: Path):
    write_series(tmp_path, stack_of(6), [(0, 0, i % 3) for i in range(6)])
    with pytest.raises(InputError, match="6 slices at 3 positions"):
        read_one(tmp_path)


def test_slices_so_far_apart_that_an_even_grid_takes_many_times_their_memory_are_refused(tmp_path: Path):
    gap = [(0, 0, z) for z in (0, 1, 2, 3, 4, 5e6)]
    tilt = [(0, 1e6 * z, z) for z in range(6)]
    for name, places in (("gap", gap), ("tilt", tilt)):
        (tmp_path / name).mkdir()
        write_series(tmp_path / name, stack_of(6), places)
        with pytest.raises(InputError, match="so far apart that an even grid has"):
            read_one(tmp_path / name)
