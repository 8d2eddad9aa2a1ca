"""Single image files of more than two hundred kinds of faults, for the collection of bad inputs."""

from __future__ import annotations

import gzip
import io
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK
from PIL import Image

from Core.made_dicom import dicom_dataset, save_dicom

Content = bytes | Callable[[Path], None]
# Name, extension, a part of the message, what the file holds (or what writes it).
Fault = tuple[str, str, str, Content]


def image_faults(rng: np.random.Generator) -> Iterator[Fault]:
    """Files that no reader may accept, in NIfTI, NRRD, MetaImage, PNG, JPEG and DICOM."""
    yield from _nifti_faults(rng)
    yield from _itk_faults(rng)
    yield from _picture_faults(rng)
    yield from _dicom_faults(rng)


def good_array(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 1000, (9, 8, 7)).astype(np.int16)


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.astype(np.float32)
    changed[1, 2, :3] = value
    return changed


def _foreign(rng: np.random.Generator) -> list[tuple[str, bytes]]:
    """Content that no image format has."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("a.txt", "a" * 600)
    return [
        ("zero_bytes", b""),
        ("one_byte", b"\x1f"),
        ("text", b"This is a text that somebody gave the wrong extension.\n" * 20),
        ("random", rng.bytes(4000)),
        ("zip", archive.getvalue()),
        ("pickle", pickle.dumps({"image": list(range(500))})),
        ("zeros", bytes(5000)),
        ("html", b"<!DOCTYPE html><html><body>404 not found</body></html>" * 12),
    ]


def nifti_bytes(array: np.ndarray, *, codes: tuple[int, int] = (1, 1), **fields: object) -> bytes:
    """A NIfTI-1 file whose header fields are overwritten without any check."""
    image = nib.Nifti1Image(array, np.diag([2.0, 2, 3, 1]))
    image.set_sform(image.affine, codes[0])
    image.set_qform(image.affine, codes[1])
    header = nib.Nifti1Header(image.to_bytes()[:348])
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + bytes(4) + image.to_bytes()[352:]


def _nifti_faults(rng: np.random.Generator) -> Iterator[Fault]:
    good = good_array(rng)
    dim = [3, 9, 8, 7, 1, 1, 1, 1]
    rgb = np.zeros((5, 5, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    whole = nifti_bytes(good)
    packed = gzip.compress(whole, mtime=0)
    contents = [
        *((name, "", data) for name, data in _foreign(rng)),
        ("header_only", "truncated", whole[:352]),
        ("half_header", "NIfTI header", whole[:200]),
        ("half_data", "truncated", whole[: len(whole) // 2]),
        ("last_byte_gone", "truncated", whole[:-1]),
        ("nan", "3 of 504 voxels", nifti_bytes(with_value(good, np.nan))),
        ("inf", "3 of 504 voxels", nifti_bytes(with_value(good, -np.inf))),
        ("beyond_float32", "504 voxels", nifti_bytes(good * 1e300)),
        ("all_nan", "504 of 504", nifti_bytes(np.full((9, 8, 7), np.nan))),
        ("constant", "the value 5 in all", nifti_bytes(np.full((9, 8, 7), 5, np.int16))),
        ("all_zero", "the value 0 in all", nifti_bytes(np.zeros((9, 8, 7)))),
        ("4d", "4D, 3 time points", nifti_bytes(np.stack([good] * 3, -1))),
        ("5d", "5D", nifti_bytes(np.zeros((4, 4, 4, 1, 3), np.float32))),
        ("rgb", "colour", nifti_bytes(rgb)),
        ("complex", "complex", nifti_bytes(good.astype(np.complex64))),
        ("line", "line of values", nifti_bytes(np.arange(20, dtype=np.int16))),
        ("sform_zero", "voxel size of 0", nifti_bytes(good, srow_x=[0] * 4, srow_y=[0] * 4, srow_z=[0] * 4)),
        (
            "sform_singular",
            "inverted",
            nifti_bytes(good, srow_x=[1, 0, 0, 0], srow_y=[1, 0, 0, 0], srow_z=[0, 1, 1, 0]),
        ),
        ("sform_nan", "affine with NaN", nifti_bytes(good, srow_x=[np.nan, 0, 0, 0])),
        ("qform_nan", "", nifti_bytes(good, codes=(0, 1), quatern_b=np.nan)),
        ("axis_empty", "is empty", nifti_bytes(good, dim=[3, 9, 0, 7, 1, 1, 1, 1])),
        ("axis_negative", "is empty", nifti_bytes(good, dim=[3, 9, -8, 7, 1, 1, 1, 1])),
        ("dimensions_99", "", nifti_bytes(good, dim=[99, *dim[1:]])),
        ("dimensions_0", "", nifti_bytes(good, dim=[0, *dim[1:]])),
        ("absurd_size", "absurd size", nifti_bytes(good, dim=[3, 32000, 32000, 32000, 1, 1, 1, 1])),
        ("large_size", "truncated", nifti_bytes(good, dim=[3, 1000, 1000, 1000, 1, 1, 1, 1])),
        ("datatype_unknown", "", nifti_bytes(good, datatype=777)),
        ("pixdim_zero", "voxel size of 0", nifti_bytes(good, codes=(0, 0), pixdim=[1, 0, 1, 1, 1, 1, 1, 1])),
        ("pixdim_negative", "voxel size of -1", nifti_bytes(good, codes=(0, 1), pixdim=[1, -1, 1, 1, 1, 1, 1, 1])),
        ("pixdim_nan", "voxel size of nan", nifti_bytes(good, codes=(0, 0), pixdim=[1, np.nan, 1, 1, 1, 1, 1, 1])),
        ("pixdim_huge", "voxel size of 1000", nifti_bytes(good, codes=(0, 0), pixdim=[1, 1000, 1, 1, 1, 1, 1, 1])),
        ("pixdim_tiny", "voxel size of 1e-06", nifti_bytes(good, codes=(0, 0), pixdim=[1, 1e-6, 1, 1, 1, 1, 1, 1])),
        ("magic_wrong", "NIfTI header", nifti_bytes(good, magic=b"abc")),
        ("magic_pair", "NIfTI header", nifti_bytes(good, magic=b"ni1")),
        ("offset_nan", "", nifti_bytes(good, vox_offset=np.nan)),
        ("offset_huge", "truncated", nifti_bytes(good, vox_offset=1e9)),
        ("offset_negative", "", nifti_bytes(good, vox_offset=-500)),
        ("slope_inf", "", nifti_bytes(good, scl_slope=np.inf)),
        ("nrrd_inside", "looks like an NRRD", b"NRRD0004\n" + bytes(600)),
    ]
    for name, expect, data in contents:
        yield f"nii_{name}", ".nii", expect, data
        yield f"niigz_{name}", ".nii.gz", expect, gzip.compress(data, mtime=0)
    for name, data in _foreign(rng):
        yield f"niigz_bare_{name}", ".nii.gz", "", data
    damaged = bytearray(packed)
    damaged[len(packed) // 2 : len(packed) // 2 + 40] = bytes(40)
    yield "niigz_not_packed", ".nii.gz", "looks like a NIfTI", whole
    yield "nii_packed", ".nii", "looks like a gzip", packed
    yield "niigz_half_stream", ".nii.gz", "", packed[: len(packed) // 2]
    yield "niigz_no_checksum", ".nii.gz", "", packed[:-8]
    yield "niigz_checksum_wrong", ".nii.gz", "CRC", packed[:-8] + bytes(4) + packed[-4:]
    yield "niigz_damaged_inside", ".nii.gz", "", bytes(damaged)
    yield "niigz_junk_after", ".nii.gz", "", packed + b"junk" * 10
    yield "niigz_gzip_of_gzip", ".nii.gz", "looks like a gzip", gzip.compress(packed)


def _itk_faults(rng: np.random.Generator) -> Iterator[Fault]:
    good = good_array(rng)
    for name, data in _foreign(rng):
        for suffix in (".nrrd", ".nhdr", ".mha", ".mhd"):
            yield f"{suffix[1:]}_{name}", suffix, "header" if data else "0 bytes", data
    arrays = {
        "nan": ("3 of 504 voxels", with_value(good, np.nan)),
        "inf": ("3 of 504 voxels", with_value(good, np.inf)),
        "constant": ("the value 5", np.full((9, 8, 7), 5, np.int16)),
        "4d": ("4D", np.stack([good] * 3)),
        "complex": ("complex", good.astype(np.complex64)),
        "vectors": ("3 values in each voxel", np.stack([good] * 3, -1)),
    }
    for suffix in (".nrrd", ".mha"):
        for name, (expect, array) in arrays.items():
            yield f"{suffix[1:]}_{name}", suffix, expect, _itk_writer(array, vectors=name == "vectors")
        for name, expect, pack, change in (
            ("half_raw", "truncated", False, lambda data: data[: len(data) // 2]),
            ("half_packed", "", True, lambda data: data[: len(data) * 3 // 4]),
            ("damaged_packed", "", True, lambda data: data[:-400] + bytes(100) + data[-300:]),
            ("header_alone", "", False, lambda data: data[:150]),
        ):
            yield f"{suffix[1:]}_{name}", suffix, expect, _itk_writer(good, pack=pack, change=change)
    nrrd = {"type": "short", "dimension": "3", "space": "left-posterior-superior", "sizes": "9 8 7"}
    nrrd |= {"space directions": "(1,0,0) (0,1,0) (0,0,1)", "endian": "little", "encoding": "raw"}
    for name, expect, change in (
        ("size_zero", "", {"sizes": "9 0 7"}),
        ("size_negative", "", {"sizes": "9 -8 7"}),
        ("size_missing", "", {"sizes": "9 8"}),
        ("absurd_size", "absurd size", {"sizes": "100000 100000 100000"}),
        ("type_unknown", "", {"type": "quaternion"}),
        ("encoding_unknown", "", {"encoding": "morse"}),
        ("directions_singular", "", {"space directions": "(1,0,0) (1,0,0) (0,0,1)"}),
        ("directions_zero", "", {"space directions": "(0,0,0) (0,0,0) (0,0,0)"}),
        ("directions_nan", "", {"space directions": "(nan,0,0) (0,1,0) (0,0,1)"}),
        ("voxel_huge", "voxel size of 1000", {"space directions": "(1000,0,0) (0,1,0) (0,0,1)"}),
        ("data_missing", "is missing", {"data file": "nowhere.raw"}),
        ("dimension_99", "", {"dimension": "99"}),
    ):
        text = "NRRD0004\n" + "".join(f"{key}: {value}\n" for key, value in (nrrd | change).items()) + "\n"
        for suffix in (".nrrd", ".nhdr"):
            yield f"{suffix[1:]}_{name}", suffix, expect, text.encode() + good.tobytes()
    meta = {"ObjectType": "Image", "NDims": "3", "DimSize": "9 8 7", "ElementSpacing": "1 1 1"}
    meta |= {"ElementType": "MET_SHORT"}
    for name, expect, change in (
        ("size_zero", "is empty", {"DimSize": "9 0 7"}),
        ("size_negative", "is empty", {"DimSize": "9 -8 7"}),
        ("size_word", "", {"DimSize": "9 eight 7"}),
        ("size_missing", "", {"DimSize": ""}),
        ("absurd_size", "absurd size", {"DimSize": "100000 100000 100000"}),
        ("large_size", "truncated", {"DimSize": "1000 1000 1000"}),
        ("type_unknown", "", {"ElementType": "MET_FOO"}),
        ("spacing_zero", "voxel size", {"ElementSpacing": "0 1 1"}),
        ("spacing_negative", "", {"ElementSpacing": "-1 1 1"}),
        ("spacing_nan", "", {"ElementSpacing": "nan 1 1"}),
        ("singular", "", {"TransformMatrix": "1 0 0 1 0 0 0 0 1"}),
        ("dimensions_99", "99 dimensions", {"NDims": "99"}),
    ):
        fields = "".join(f"{key} = {value}\n" for key, value in (meta | change).items())
        yield f"mha_{name}", ".mha", expect, f"{fields}ElementDataFile = LOCAL\n".encode() + good.tobytes()
        yield f"mhd_{name}", ".mhd", expect, _with_data(fields, good.tobytes())
    fields = "".join(f"{key} = {value}\n" for key, value in meta.items())
    yield "mhd_data_missing", ".mhd", "is missing", f"{fields}ElementDataFile = nowhere.raw\n".encode()
    yield "mhd_data_short", ".mhd", "truncated", _with_data(fields, good.tobytes()[:500])
    yield "mhd_data_is_folder", ".mhd", "is missing", f"{fields}ElementDataFile = ..\n".encode()


def _itk_writer(
    array: np.ndarray, *, vectors: bool = False, pack: bool = False, change: Callable[[bytes], bytes] = bytes
) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        image = SimpleITK.GetImageFromArray(array, isVector=vectors)
        SimpleITK.WriteImage(image, str(path), pack)
        path.write_bytes(change(path.read_bytes()))

    return write


def _with_data(fields: str, data: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.with_suffix(".raw").write_bytes(data)
        path.write_text(f"{fields}ElementDataFile = {path.stem}.raw\n", encoding="utf-8")

    return write


def _picture(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def _picture_faults(rng: np.random.Generator) -> Iterator[Fault]:
    grey = rng.integers(0, 255, (40, 30)).astype(np.uint8)
    colour = rng.integers(0, 255, (40, 30, 3)).astype(np.uint8)
    clear = np.concatenate([np.stack([grey] * 3, -1), np.zeros((40, 30, 1), np.uint8)], -1)
    for suffix, kind in ((".png", "PNG"), (".jpg", "JPEG")):
        data = _picture(grey, kind)
        faults = [
            *((name, "", content) for name, content in _foreign(rng)),
            ("colour", "colour", _picture(colour, kind)),
            ("constant", "the value 9", _picture(np.full((40, 30), 9, np.uint8), kind)),
            ("half", "", data[: len(data) // 2]),
            ("header", "", data[:40]),
            ("gif", "", _picture(grey, "GIF")),
            ("line", "line of values", _picture(grey[:1], kind)),
        ]
        for name, expect, content in faults:
            yield f"{suffix[1:]}_{name}", suffix, expect, content
    damaged = bytearray(_picture(grey))
    damaged[len(damaged) // 2] ^= 0xFF
    yield "png_damaged", ".png", "", bytes(damaged)
    yield "png_transparent", ".png", "transparent", _picture(clear)
    absurd = bytearray(_picture(grey))
    absurd[16:24] = b"\x7f\xff\xff\xff" * 2
    yield "png_absurd_size", ".png", "", bytes(absurd)


def _dicom_faults(rng: np.random.Generator) -> Iterator[Fault]:
    pixels = rng.integers(0, 2000, (12, 10)).astype(np.int16)
    colour = rng.integers(0, 255, (12, 10, 3)).astype(np.uint8)
    short = dicom_dataset(pixels)
    short.PixelData = short.PixelData[:100]
    jpeg = dicom_dataset(pixels)
    jpeg.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.70"
    jpeg["PixelData"].is_undefined_length = True
    jpeg.PixelData = bytes.fromhex("feff00e000000000feff00e008000000") + b"not jpeg" + bytes.fromhex("feffdde000000000")
    for name, content in _foreign(rng):
        yield f"dcm_{name}", ".dcm", "", content
    for name, expect, dataset in (
        ("no_pixels", "no pixel data", dicom_dataset(pixels, PixelData=None)),
        ("no_size", "no image size", dicom_dataset(pixels, Rows=None)),
        ("short", "", short),
        ("bad_jpeg", "", jpeg),
        ("colour", "colour", dicom_dataset(colour)),
        ("palette", "colour", dicom_dataset(pixels, PhotometricInterpretation="PALETTE COLOR")),
        ("constant", "the value -1019", dicom_dataset(np.full((12, 10), 5, np.int16))),
        ("film", "2 frames without", dicom_dataset(np.stack([pixels] * 2), NumberOfFrames=2)),
        ("spacing_zero", "voxel size", dicom_dataset(pixels, PixelSpacing=[0, 0])),
        ("spacing_huge", "voxel size", dicom_dataset(pixels, PixelSpacing=[500, 500])),
        ("directions_zero", "right angles", dicom_dataset(pixels, ImageOrientationPatient=[0] * 6)),
        ("bits", "", dicom_dataset(pixels, BitsAllocated=13)),
    ):
        file = io.BytesIO()
        save_dicom(dataset, file)
        yield f"dcm_{name}", ".dcm", expect, file.getvalue()
    yield "dcm_preamble_alone", ".dcm", "", bytes(128) + b"DICM"
    yield "dcm_cut", ".dcm", "", file.getvalue()[:300]
    yield "dcm_random_after_magic", "", "", bytes(128) + b"DICM" + rng.bytes(500)
