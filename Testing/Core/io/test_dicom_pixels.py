"""Stored values of DICOM: every encoding and layout of bits gives the values that were written, with any pydicom."""

from __future__ import annotations

import base64
import io
import json
import locale
from itertools import product
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK
from PIL import Image
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from Core.made_dicom import dicom_dataset, save_dicom, set_frames, write_series
from replica_detection.errors import InputError
from replica_detection.io.cohort import Cohort
from replica_detection.io.volume import read_volume

PYDICOM_3 = int(pydicom.__version__.split(".")[0]) >= 3
PLAIN = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
# Of `ramp`, 8 columns and 9 rows, by imagecodecs 2026.3.6 (liblj92, OpenJPEG, OpenJPH) and pyjpegls 1.5.1 (CharLS).
CODESTREAMS = json.loads((Path(__file__).parent / "codestreams.json").read_text(encoding="utf-8"))
SYNTAXES = {
    "jpeg": ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"),
    "jpeg-ls": ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"),
    "jpeg-2000": ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"),
    "htj2k": ("1.2.840.10008.1.2.4.201", "1.2.840.10008.1.2.4.203"),
}


def codestream(codec: str, bits: int, signed: bool) -> bytes:
    return base64.b64decode(CODESTREAMS[f"{codec} {bits} {'signed' if signed else 'unsigned'}"])


def ramp(bits: int, signed: bool) -> np.ndarray:
    """All of the range, from the lowest to the highest value."""
    low = -(1 << bits - 1) if signed else 0
    return (low + np.rint(((1 << bits) - 1) * np.arange(72) / 71).astype(np.int64)).reshape(9, 8)


def in_range(values: np.ndarray, bits: int, signed: bool, photometric: str) -> np.ndarray:
    """What a file shows as MONOCHROME2."""
    ends = -1 if signed else (1 << bits) - 1
    return ends - values if photometric == "MONOCHROME1" else values


def layout(bits: int, signed: bool, allocated: int | None = None, **elements) -> dict:
    allocated = allocated or (8 if bits <= 8 else 16 if bits <= 16 else 32)
    stated = {"BitsAllocated": allocated, "BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": int(signed)}
    return stated | {"Modality": "MR"} | elements


def read(dataset: FileDataset, file: Path) -> np.ndarray:
    """Values (rows, columns) by the project's reader."""
    save_dicom(dataset, file)
    return read_volume(file).array.T


def by_itk(file: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file), imageIO="GDCMImageIO"))[0]


@pytest.mark.parametrize("codec", SYNTAXES)
@pytest.mark.parametrize("signed", [False, True])
def test_compressed_values_are_those_that_were_encoded(tmp_path: Path, codec: str, signed: bool):
    file = tmp_path / "x.dcm"
    for bits, photometric, syntax in product((8, 10, 12, 16), ("MONOCHROME1", "MONOCHROME2"), SYNTAXES[codec]):
        for allocated in {8 if bits == 8 else 16, 16}:
            elements = layout(bits, signed, allocated, PhotometricInterpretation=photometric, RescaleSlope=0.5)
            dataset = dicom_dataset(ramp(bits, signed).astype(np.uint16), **elements)
            set_frames(dataset, [codestream(codec, bits, signed)], syntax)
            true = in_range(ramp(bits, signed), bits, signed, photometric) * 0.5 - 1024
            found = read(dataset, file)
            assert np.array_equal(found, true), (bits, photometric, syntax, allocated)
            # ITK inverts by itself. It knows no HTJ2K, and not how to invert signed values.
            if codec != "htj2k" and allocated == (8 if bits == 8 else 16) and not signed:
                assert np.array_equal(by_itk(file), true), (bits, photometric, syntax)


@pytest.mark.parametrize("codec", SYNTAXES)
def test_a_compressed_image_equals_the_same_image_uncompressed_and_keeps_the_locale(tmp_path: Path, codec: str):
    before = locale.setlocale(locale.LC_CTYPE), locale.setlocale(locale.LC_NUMERIC)
    for photometric, bits in product(("MONOCHROME1", "MONOCHROME2"), (8, 12)):
        dtype = np.uint8 if bits == 8 else np.uint16
        elements = layout(bits, False, PhotometricInterpretation=photometric, Modality="DX")
        plain, packed = (dicom_dataset(ramp(bits, False).astype(dtype), **elements) for _ in range(2))
        set_frames(packed, [codestream(codec, bits, False)], SYNTAXES[codec][0])
        assert np.array_equal(read(packed, tmp_path / "p.dcm"), read(plain, tmp_path / "u.dcm"))
    assert (locale.setlocale(locale.LC_CTYPE), locale.setlocale(locale.LC_NUMERIC)) == before


LAYOUTS = [
    (8, 8, 7), (8, 6, 5), (8, 5, 7), (16, 16, 15), (16, 15, 14), (16, 12, 11), (16, 12, 15), (16, 10, 12), (16, 8, 7),
    (16, 1, 0), (32, 32, 31), (32, 20, 19), (32, 24, 31),
]  # fmt: skip


# pydicom packs no more than 16 bits by RLE.
GRID = [(syntax, *bits) for syntax, bits in product((*PLAIN, RLELossless), LAYOUTS) if syntax in PLAIN or bits[0] <= 16]


@pytest.mark.parametrize(("syntax", "allocated", "stored", "high"), GRID)
def test_bits_beside_the_stored_ones_do_not_count(tmp_path: Path, syntax, allocated: int, stored: int, high: int):
    rng, file = np.random.default_rng(stored), tmp_path / "x.dcm"
    shift = high + 1 - stored
    for signed, photometric, unused in product((False, True), ("MONOCHROME1", "MONOCHROME2"), (False, True)):
        values = ramp(stored, signed)
        cells = (values & ((1 << stored) - 1)) << shift
        if unused:
            cells |= rng.integers(0, 1 << allocated, cells.shape) & ~(((1 << stored) - 1) << shift)
        cells = cells.astype(f"u{allocated // 8}")
        elements = layout(stored, signed, allocated, HighBit=high, PhotometricInterpretation=photometric)
        dataset = dicom_dataset(cells, RescaleIntercept=-7)
        if syntax == RLELossless:  # of whole cells: pydicom 3 packs 8 stored bits in another way
            dataset.compress(RLELossless, generate_instance_uid=False)
        else:
            dataset.file_meta.TransferSyntaxUID = syntax
            dataset.PixelData = cells.astype(cells.dtype.newbyteorder(">" if syntax == PLAIN[3] else "<")).tobytes()
            dataset["PixelData"].VR = "OB" if allocated == 8 else "OW"
        for name, value in elements.items():
            setattr(dataset, name, value)
        true = in_range(values, stored, signed, photometric) - 7.0
        assert np.array_equal(read(dataset, file), true.astype(np.float32)), (signed, photometric, unused)
        if PYDICOM_3 and shift == 0 and photometric == "MONOCHROME2" and stored > 1:
            assert np.array_equal(pydicom.dcmread(file).pixel_array, values), (signed, unused)


def test_eight_bit_values_in_big_endian_words_keep_their_order(tmp_path: Path):
    values = ramp(8, False).astype(np.uint8)
    dataset = dicom_dataset(values, **layout(8, False))
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dataset.PixelData = values.ravel().view("<u2").astype(">u2").tobytes()
    dataset["PixelData"].VR = "OW"
    assert np.array_equal(read(dataset, tmp_path / "x.dcm"), values - 1024.0)


@pytest.mark.parametrize("codec", ["jpeg-2000", "htj2k", "jpeg-ls"])
def test_a_sign_that_the_codestream_does_not_state_lies_in_its_own_highest_bit(tmp_path: Path, codec: str):
    """As pydicom 3 has it: 12 bits in the codestream, 16 in the header, and signed values of 12 bits."""
    stored = codestream(codec, 12, True) if codec == "jpeg-ls" else codestream(codec, 12, False)
    bits = 16 if codec == "htj2k" else 12  # this encoder states 16 bits always
    pattern = ramp(12, True) & 0xFFF if codec == "jpeg-ls" else ramp(12, False)
    dataset = dicom_dataset(pattern.astype(np.uint16), **layout(16, True))
    set_frames(dataset, [stored], SYNTAXES[codec][0])
    true = np.where(pattern >> (bits - 1) & 1, pattern - (1 << bits), pattern)
    assert np.array_equal(read(dataset, tmp_path / "x.dcm"), true - 1024.0)


def test_an_impossible_high_bit_is_told_and_not_used(tmp_path: Path):
    for high in (0, 16):
        dataset = dicom_dataset(ramp(12, False).astype(np.uint16), **layout(12, False, HighBit=high))
        assert np.array_equal(read(dataset, tmp_path / "x.dcm"), ramp(12, False) - 1024.0)
        assert f"impossible high bit ({high} with 12 of 16 bits)" in read_volume(tmp_path / "x.dcm").warnings[0]


@pytest.mark.parametrize("codec", [None, *SYNTAXES])
def test_each_frame_has_its_own_rescale(tmp_path: Path, codec: str | None):
    scales = [(1.0, 0.0), (2.0, -1000.0), (0.25, 30.0)]
    stack = np.stack([ramp(12, False)] * 3).astype(np.uint16)
    elements = dict.fromkeys(("ImagePositionPatient", "RescaleSlope", "RescaleIntercept"))
    dataset = dicom_dataset(
        stack, SOPClassUID=EnhancedCTImageStorage, NumberOfFrames=3, **layout(12, False, Modality="CT"), **elements
    )
    dataset.PerFrameFunctionalGroupsSequence = []
    for i, (slope, intercept) in enumerate(scales):
        place, scale, frame = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, 2 * i]
        scale.RescaleSlope, scale.RescaleIntercept = slope, intercept
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [place], [scale]
        dataset.PerFrameFunctionalGroupsSequence.append(frame)
    if codec:
        set_frames(dataset, [codestream(codec, 12, False)] * 3, SYNTAXES[codec][0])
    save_dicom(dataset, tmp_path / "x.dcm")
    array = read_volume(tmp_path / "x.dcm").array
    for i, (slope, intercept) in enumerate(scales):
        assert np.array_equal(array[..., i].T, (ramp(12, False) * slope + intercept).astype(np.float32))


def test_jpeg_with_loss_is_read_as_by_pillow(tmp_path: Path):
    smooth = ramp(8, False).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    packed = io.BytesIO()
    Image.fromarray(smooth).save(packed, "JPEG", quality=90)
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        dataset = dicom_dataset(smooth, **layout(8, False, PhotometricInterpretation=photometric, RescaleIntercept=0))
        set_frames(dataset, [packed.getvalue()], "1.2.840.10008.1.2.4.50")
        by_pillow = in_range(np.asarray(Image.open(packed)).astype(int), 8, False, photometric)
        assert np.abs(read(dataset, tmp_path / "x.dcm") - by_pillow).max() <= 1


@pytest.mark.parametrize(
    ("syntax", "name"),
    [
        ("1.2.840.10008.1.2.4.102", "MPEG-4"),
        ("1.2.840.10008.1.2.4.94", "JPIP"),
        ("1.2.840.113619.5.2.7654", "1.2.840.113619.5.2.7654"),
    ],
)
def test_an_encoding_without_decoder_is_named_with_the_remedy_and_not_called_damage(tmp_path: Path, syntax, name):
    dataset = dicom_dataset(ramp(8, False).astype(np.uint8), **layout(8, False))
    set_frames(dataset, [codestream("jpeg", 8, False)], syntax)
    save_dicom(dataset, tmp_path / "x.dcm")
    with pytest.raises(InputError, match=name) as raised:
        read_volume(tmp_path / "x.dcm")
    assert "gdcmconv --raw" in raised.value.advice and "damaged" not in str(raised.value)


def test_a_codestream_of_another_size_or_kind_is_refused(tmp_path: Path):
    for codec, other in product(SYNTAXES, ("size", "kind")):
        shape = (8, 9) if other == "size" else (9, 8)
        dataset = dicom_dataset(ramp(12, False).reshape(shape).astype(np.uint16), **layout(12, False))
        frame = codestream(codec, 12, False) if other == "size" else b"no codestream"
        set_frames(dataset, [frame], SYNTAXES[codec][0])
        with pytest.raises(InputError, match=r"another size|holds no"):
            read(dataset, tmp_path / "x.dcm")


@pytest.mark.parametrize(("form", "number"), [("JPEG", 50), ("JPEG2000", 90)])
def test_a_colour_codestream_under_a_grey_header_is_refused(tmp_path: Path, form: str, number: int):
    packed, grey = io.BytesIO(), ramp(8, False).astype(np.uint8).repeat(4, 0).repeat(4, 1)
    Image.fromarray(np.stack([grey, grey, 255 - grey], axis=2)).save(packed, form)
    dataset = dicom_dataset(grey, **layout(8, False))
    set_frames(dataset, [packed.getvalue()], f"1.2.840.10008.1.2.4.{number}")
    with pytest.raises(InputError, match="3 values in each voxel"):
        read(dataset, tmp_path / "x.dcm")


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_modality_table_stands_for_the_rescale(tmp_path: Path, photometric: str, packed: bool):
    table = np.arange(4000)[::-1].astype(np.uint16) * 3
    dataset = dicom_dataset(ramp(12, False).astype(np.uint16), **layout(12, False, RescaleIntercept=None))
    del dataset.RescaleSlope
    dataset.PhotometricInterpretation = photometric
    item = Dataset()
    item.LUTDescriptor, item.LUTData, item.ModalityLUTType = [4000, 50, 16], table.tobytes(), "US"
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    dataset.ModalityLUTSequence = [item]
    if packed:
        set_frames(dataset, [codestream("jpeg", 12, False)], SYNTAXES["jpeg"][1])
    found = read(dataset, tmp_path / "x.dcm")
    if PYDICOM_3:
        from pydicom.pixels import apply_modality_lut
    else:
        from pydicom.pixel_data_handlers.util import apply_modality_lut
    true = apply_modality_lut(ramp(12, False), pydicom.dcmread(tmp_path / "x.dcm")).astype(int)
    assert np.array_equal(found, 65535 - true if photometric == "MONOCHROME1" else true)


# Stored bits, sign, PixelPaddingValue and its limit, what the voxel holds, and whether it is padding.
PADDING = [
    (16, True, -2000, None, [-2000, -1999, 0], [1, 0, 0]),
    (16, True, -32768, None, [-32768, -1000, 3], [1, 0, 0]),
    (16, True, -2000, -1500, [-2000, -1700, -1500, -1499], [1, 1, 1, 0]),
    (16, True, -1500, -2000, [-2000, -1700, -1500, -1499], [1, 1, 1, 0]),
    (12, False, 4095, None, [4095, 4094, 0], [1, 0, 0]),
    (16, False, 63536, None, [63536, 2096, 0], [1, 0, 0]),
    # Outside of the stored bits: the cell itself tells it from the value 2096, which has the same low bits.
    (12, False, 63536, None, [63536, 2096, 0], [1, 0, 0]),
]


@pytest.mark.parametrize(("bits", "signed", "value", "limit", "cells", "padding"), PADDING)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_of_ct_is_air(tmp_path: Path, bits, signed, value, limit, cells, padding, photometric):
    pixels = np.tile(np.array(cells), (4, 3)).astype(np.int16 if signed else np.uint16)
    is_padding = np.tile(np.array(padding, bool), (4, 3))
    elements = {"PixelPaddingValue": value, "PhotometricInterpretation": photometric}
    if limit is not None:
        elements["PixelPaddingRangeLimit"] = limit
    values = pixels.astype(int) if signed else pixels.astype(int) & ((1 << bits) - 1)
    plain = in_range(values, bits, signed, photometric) - 1000.0
    for modality, true in (("CT", np.where(is_padding, -1024, plain)), ("MR", plain)):
        stated = layout(bits, signed, 16, Modality=modality, RescaleIntercept=-1000)
        dataset = dicom_dataset(pixels, **stated)
        for name, element in elements.items():
            tag = pydicom.datadict.tag_for_keyword(name)
            is_number = name.startswith("PixelPadding")
            dataset.add_new(tag, ("SS" if signed else "US") if is_number else "CS", element)
        assert np.array_equal(read(dataset, tmp_path / "x.dcm"), true), modality
        told = [note for note in read_volume(tmp_path / "x.dcm").warnings if "padding" in note]
        assert bool(told) is (modality == "CT")


def test_padding_that_is_air_already_is_not_told(tmp_path: Path):
    dataset = dicom_dataset(ramp(12, False).astype(np.uint16), **layout(12, False, Modality="CT"))
    dataset.add_new(0x00280120, "US", 0)
    assert np.array_equal(read(dataset, tmp_path / "x.dcm"), ramp(12, False) - 1024.0)
    assert read_volume(tmp_path / "x.dcm").warnings == ()


def test_a_slice_that_cannot_be_decoded_is_named_with_its_scan(tmp_path: Path):
    files = write_series(
        tmp_path / "s1", np.stack([ramp(12, False)] * 4).astype(np.int16), [(0, 0, i) for i in range(4)]
    )
    broken = pydicom.dcmread(files[2])
    broken.PixelData = broken.PixelData[:-40]
    save_dicom(broken, files[2])
    (case,) = Cohort.read(tmp_path, strict=True).cases
    with pytest.raises(InputError, match=r"002\.dcm: is truncated, .* \(one of the 4 files of scan 's1'"):
        read_volume(case)
