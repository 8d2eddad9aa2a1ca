"""NIfTI-1 and -2 headers, read with numpy alone: a viewer that bundles no NIfTI library reads the same geometry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Offsets in bytes of the fields that matter, of either version: https://nifti.nimh.nih.gov (nifti1.h, nifti2.h).
_FIELDS = {
    348: {
        "dim": ("i2", 40, 8), "datatype": ("i2", 70, 1), "pixdim": ("f4", 76, 8), "vox_offset": ("f4", 108, 1),
        "scl_slope": ("f4", 112, 1), "scl_inter": ("f4", 116, 1), "xyzt_units": ("u1", 123, 1),
        "qform_code": ("i2", 252, 1), "sform_code": ("i2", 254, 1), "quatern": ("f4", 256, 3),
        "qoffset": ("f4", 268, 3), "srow": ("f4", 280, 12),
    },
    540: {
        "dim": ("i8", 16, 8), "datatype": ("i2", 12, 1), "pixdim": ("f8", 104, 8), "vox_offset": ("i8", 168, 1),
        "scl_slope": ("f8", 176, 1), "scl_inter": ("f8", 184, 1), "xyzt_units": ("i4", 500, 1),
        "qform_code": ("i4", 344, 1), "sform_code": ("i4", 348, 1), "quatern": ("f8", 352, 3),
        "qoffset": ("f8", 376, 3), "srow": ("f8", 400, 12),
    },
}  # fmt: skip
_MAGIC = {348: (344, b"n+1\0"), 540: (4, b"n+2\0")}
_DTYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 32: "c8", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
    1792: "c16",
}  # fmt: skip
COLOUR = (128, 2304)
# Millimetres per unit of length; an unknown code counts as mm.
_UNITS = {1: 1000.0, 3: 0.001}


@dataclass(frozen=True)
class NiftiHeader:
    """Fields of a header as stated, without checks.

    `shape` is empty where the number of axes is not 1 to 7; `dtype` is None for a datatype that holds no numbers;
    `spacing` (3,) is in the file's unit of length, which is `unit` mm.
    """

    shape: tuple[int, ...]
    datatype: int
    dtype: np.dtype | None
    offset: int
    slope: float
    intercept: float
    unit: float
    spacing: np.ndarray
    qform_code: int
    sform_code: int
    qform: np.ndarray
    sform: np.ndarray

    @property
    def scaling(self) -> tuple[float, float]:
        """Slope and intercept of the stored values; (1, 0) where the header has none (slope 0 or NaN)."""
        none = self.slope == 0 or np.isnan(self.slope)
        return (1.0, 0.0) if none else (self.slope, self.intercept)


def read_header(start: bytes) -> NiftiHeader | None:
    """The header at the beginning of a file (540 bytes suffice); None where there is none of either version."""
    for order in ("<", ">"):
        size = int(np.frombuffer(start[:4], order + "i4")[0]) if len(start) >= 4 else 0
        if size in _FIELDS and len(start) >= size:
            at, magic = _MAGIC[size]
            if start[at : at + 4] == magic:
                return _parsed(start, order, size)
    return None


def _parsed(start: bytes, order: str, size: int) -> NiftiHeader:
    values = {
        name: np.frombuffer(start, order + kind, count, offset) for name, (kind, offset, count) in _FIELDS[size].items()
    }
    dim, pixdim = values["dim"], values["pixdim"].astype(np.float64)
    axes = int(dim[0]) if 0 < dim[0] <= 7 else 0
    # Below the end of the header it means the end (nifti1.h).
    offset = int(values["vox_offset"][0])
    datatype = int(values["datatype"][0])
    dtype = np.dtype(order + _DTYPES[datatype]) if datatype in _DTYPES else None
    sform = np.eye(4)
    sform[:3] = values["srow"].reshape(3, 4)
    return NiftiHeader(
        tuple(int(n) for n in dim[1 : 1 + axes]),
        datatype,
        dtype,
        offset if offset < 0 else max(offset, size + 4),
        float(values["scl_slope"][0]),
        float(values["scl_inter"][0]),
        _UNITS.get(int(values["xyzt_units"][0]) & 7, 1.0),
        pixdim[1:4],
        int(values["qform_code"][0]),
        int(values["sform_code"][0]),
        _qform(values["quatern"].astype(np.float64), values["qoffset"], pixdim),
        sform,
    )


def _qform(quaternion: np.ndarray, offset: np.ndarray, pixdim: np.ndarray) -> np.ndarray:
    """Affine of the quaternion (nifti1.h, "method 2"); NaN where its three parts are longer than 1."""
    rest = 1.0 - float(quaternion @ quaternion)
    # Three float32 that should make a unit quaternion miss it by their rounding.
    if abs(rest) < 3 * np.finfo(np.float32).eps:
        quaternion, rest = quaternion / np.linalg.norm(quaternion), 0.0
    a = np.sqrt(rest) if rest >= 0 else np.nan
    b, c, d = quaternion
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    affine = np.eye(4)
    # A stored sign of 0 means 1.
    affine[:3, :3] = rotation * pixdim[1:4] * [1, 1, -1 if pixdim[0] < 0 else 1]
    affine[:3, 3] = offset
    return affine
