"""Segmenter with a trained network: TorchScript, a MONAI bundle, or safetensors weights of a known MONAI class."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from replica_detection.errors import ConfigurationError, InputError
from replica_detection.io.volume import Volume
from replica_detection.networks.device import pick_device
from replica_detection.networks.weights import (
    DESCRIBED,
    checked,
    description_of,
    kind_of,
    last_line,
    load_network,
    read_bytes,
    require_intensity,
    weights_file,
)
from replica_detection.preparation.prepare import SAME_SPACING, intensity_limits
from replica_detection.preparation.profiles import Intensity
from replica_detection.segmentation.base import Segmenter, register, require_3d

if TYPE_CHECKING:
    import torch


@register("network")
@dataclass(frozen=True)
class Network(Segmenter):
    """A trained network from the user's file, applied to the whole volume by sliding window.

    `path` is one of

    - a TorchScript file. **It is a program**, and it runs when a volume is segmented: use files whose origin is known.
    - the folder of a MONAI bundle with `models/model.ts`. Of its configuration only `configs/metadata.json` is read;
      `inference.json`, which may name any Python to run, is not.
    - a `.safetensors` file, or the folder that `train_segmentation` wrote. The file's own header (`network`), else a
      JSON file beside it, names one of `ARCHITECTURES` and its arguments.

    Only TorchScript runs code from a file; pickled checkpoints are refused. A JSON file beside the weights (same name
    with .json, or `network.json`) may hold any of the options below. Options given here take precedence over that file,
    and that file over a bundle's metadata.

    The network takes (1, 1, X, Y, Z) float32 with axes along R, A, S. Its output (1, C, X, Y, Z), larger meaning more
    likely, is interpolated linearly to the volume's own grid and the largest channel taken there.

    Args:
        path: as above.
        sha256: checksum of the weights; where it is given, another file is refused. Always in `settings()`.
        architecture: `{"class": ..., "arguments": {...}}` for safetensors.
        labels: name of each value in the mask. Channel 0 is background, the others follow in the order of the values.
            One foreground label by default.
        spacing_mm: (3,) voxel size along R, A, S that the network expects; None: that of each volume.
        window: (low, high) that become 0 and 1, values outside clipped.
        percentiles: (low, high) of each image that become 0 and 1. Without this and `window`, values stay as they are.
        patch: (3,) voxels of the sliding window; smaller volumes are padded with their edge values.
        overlap: share of a window that overlaps the next.
        threshold: for a network with a single channel, larger values are foreground: 0 for logits, 0.5 for
            probabilities.
        device: `auto`, `cpu` or `cuda`; not part of `settings()`.

    Raises:
        InputError: the file is missing, damaged, of another kind, not the one of `sha256`, or does not fit its
            description.
        ConfigurationError: an option out of range.
    """

    path: str
    sha256: str = ""
    architecture: dict[str, Any] | None = None
    labels: dict[int, str] = None  # type: ignore[assignment]
    spacing_mm: tuple[float, ...] | None = None
    window: tuple[float, float] | None = None  # type: ignore[misc]  # a setting of each network, shown in pictures too
    percentiles: tuple[float, float] | None = None
    patch: tuple[int, ...] | None = None
    overlap: float | None = None
    threshold: float | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        file = weights_file(Path(self.path))
        data = read_bytes(file)
        checksum = hashlib.sha256(data).hexdigest()
        if self.sha256 and self.sha256.lower() != checksum:
            raise InputError(file, f"has SHA-256 {checksum}, expected {self.sha256}", "Give the file that was meant")
        described, kind = description_of(Path(self.path), file, data), kind_of(file, data)
        options = {name: getattr(self, name) for name in DESCRIBED}
        if options["window"] is not None or options["percentiles"] is not None:
            described = {**described, "window": None, "percentiles": None}
        merged = {name: described.get(name) if value is None else value for name, value in options.items()}
        require_intensity(described, merged, file)
        values = {"path": str(Path(self.path).resolve()), "sha256": checksum, **checked(merged, kind, file)}
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._model()

    @property
    def name(self) -> str:
        return "network"

    @property
    def version(self) -> int:
        return 1

    def settings(self) -> dict[str, Any]:
        return {name: value for name, value in super().settings().items() if name != "device"}

    def segment(self, volume: Volume) -> np.ndarray:
        """Mask (X, Y, Z) uint8 on the volume's own grid; all 0 where the network predicts background everywhere.

        Raises:
            ConfigurationError: a single slice, a network that does not take one channel of this size, gives another
                number of channels than there are labels, or gives NaN.
        """
        require_3d(self, volume)
        grid = NetworkGrid.of(volume, self.spacing_mm)
        intensity = None
        if self.window or self.percentiles:
            intensity = Intensity(self.window, self.percentiles)
        image = grid.image(volume.array, intensity)
        device, model = pick_device(self.device), self._model()
        outputs = slide(self._with_checks(model), image, self.patch or (), self.overlap or 0.0, device)
        values = sorted(self.labels)
        if len(outputs) == 1:
            return np.where(grid.to_volume(outputs[0]) > self.threshold, np.uint8(values[0]), np.uint8(0))
        mask, highest = np.zeros(volume.array.shape, np.uint8), grid.to_volume(outputs[0])
        for value, output in zip(values, outputs[1:], strict=True):
            level = grid.to_volume(output)
            mask[level > highest] = value
            np.maximum(highest, level, out=highest)
        return mask

    def _model(self) -> torch.nn.Module:
        architecture = json.dumps(self.architecture) if self.architecture else ""
        file = str(weights_file(Path(self.path)))
        return load_network(file, self.sha256, architecture, len(self.labels) + 1, str(pick_device(self.device)))

    def _with_checks(self, model: torch.nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        """The model with checks of its output's type, shape, channels and values."""
        import torch

        expected = {len(self.labels) + 1} | ({1} if len(self.labels) == 1 else set())

        def predict(window: torch.Tensor) -> torch.Tensor:
            try:
                output = model(window)
            except Exception as error:  # a foreign program may raise anything
                raise ConfigurationError(
                    f"{self.path}: the network does not take an image of shape {tuple(window.shape)} "
                    f"({last_line(error)}); it must take one channel in 3D, perhaps of another 'patch'"
                ) from error
            output = output[0] if isinstance(output, (tuple, list)) and output else output
            if not isinstance(output, torch.Tensor) or output.ndim != 5 or output.shape[2:] != window.shape[2:]:
                got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
                raise ConfigurationError(
                    f"{self.path}: the network gives {got} for an image of shape {tuple(window.shape)}; expected "
                    "(batch, channels, X, Y, Z) of the same size"
                )
            if output.shape[1] not in expected:
                raise ConfigurationError(
                    f"{self.path}: the network gives {output.shape[1]} channels, expected "
                    f"{len(self.labels) + 1}: background and {', '.join(self.labels.values())}; name all of them by "
                    "'labels'"
                )
            if not torch.isfinite(output).all():
                raise ConfigurationError(
                    f"{self.path}: the network gives NaN or infinite values; its weights are damaged, or it expects "
                    "other intensities ('window' or 'percentiles')"
                )
            return output.float()

        return predict


@dataclass(frozen=True)
class NetworkGrid:
    """Mapping from a volume's grid to the network's, with axes along R, A, S, and back; the field of view stays.

    Args:
        orientation: nibabel's (3, 2), from the volume's axes to R, A, S.
        shape: (3,) size along R, A, S before resampling.
        size: (3,) after it.
    """

    orientation: np.ndarray
    shape: tuple[int, ...]
    size: tuple[int, ...]

    @classmethod
    def of(cls, volume: Volume, spacing_mm: Sequence[float] | None) -> NetworkGrid:
        """The mapping for a volume; axes whose spacing differs by less than 2 % from `spacing_mm` are not resampled.

        None resamples none. A volume without a trusted geometry keeps its stored axes, with 1 mm.
        """
        import nibabel as nib

        plain = np.array([[0, 1], [1, 1], [2, 1]], float)
        orientation = nib.orientations.io_orientation(volume.affine) if volume.trusted else plain
        order = np.argsort(orientation[:, 0])
        shape, own = np.array(volume.array.shape)[order], volume.spacing[order]
        target = own if spacing_mm is None else np.array(spacing_mm)
        size = np.where(np.abs(target / own - 1) > SAME_SPACING, np.rint(shape * own / target), shape)
        return cls(orientation, tuple(map(int, shape)), tuple(max(1, int(n)) for n in size))

    def image(self, array: np.ndarray, intensity: Intensity | None) -> np.ndarray:
        """Image (X, Y, Z) float32 on the network's grid, intensities mapped; smoothed first along coarser axes."""
        from scipy import ndimage

        if intensity is not None:
            low, high = intensity_limits(array, intensity)
            array = np.clip((array - np.float32(low)) / np.float32(high - low), 0, 1)
        oriented = np.asarray(self._oriented(array), np.float32)
        steps = [old / new for old, new in zip(self.shape, self.size, strict=True)]
        if max(steps) > 1.5:
            oriented = ndimage.gaussian_filter(oriented, [max(0.0, (s - 1) / 2) for s in steps], truncate=3)
        return resized(oriented, self.size, "trilinear")

    def labels(self, mask: np.ndarray) -> np.ndarray:
        """Labels (X, Y, Z) on the network's grid, of the nearest voxel."""
        oriented = np.ascontiguousarray(self._oriented(mask))
        return resized(oriented.astype(np.float32), self.size, "nearest-exact").astype(mask.dtype)

    def to_volume(self, output: np.ndarray) -> np.ndarray:
        """A channel of the output (X, Y, Z) float32 on the volume's own grid, interpolated linearly."""
        import nibabel as nib

        inverse = nib.orientations.ornt_transform(np.array([[0, 1], [1, 1], [2, 1]], float), self.orientation)
        whole = resized(output, self.shape, "trilinear")
        return np.ascontiguousarray(nib.orientations.apply_orientation(whole, inverse))

    def _oriented(self, array: np.ndarray) -> np.ndarray:
        import nibabel as nib

        return nib.orientations.apply_orientation(array, self.orientation)


def resized(array: np.ndarray, size: Sequence[int], mode: str) -> np.ndarray:
    """Array (X, Y, Z) float32 resampled to `size` over the same field of view; `mode` as in torch's `interpolate`."""
    import torch

    if array.shape == tuple(size):
        return array
    data = torch.from_numpy(np.ascontiguousarray(array, np.float32))[None, None]
    corners = {} if mode.startswith("nearest") else {"align_corners": False}
    return torch.nn.functional.interpolate(data, size=tuple(size), mode=mode, **corners)[0, 0].numpy()


def slide(
    predict: Callable[[torch.Tensor], torch.Tensor],
    image: np.ndarray,
    patch: Sequence[int],
    overlap: float,
    device: torch.device,
) -> np.ndarray:
    """Output (C, X, Y, Z) float32 of a network for an image (X, Y, Z), windows blended by a Gaussian."""
    import torch
    from monai.inferers.utils import sliding_window_inference

    # Edge values continue, because the background is not black in every modality.
    short = [max(0, p - n) for p, n in zip(patch, image.shape, strict=True)]
    padded = np.pad(image, [(s // 2, s - s // 2) for s in short], mode="edge")
    inside = tuple(slice(s // 2, s // 2 + n) for s, n in zip(short, image.shape, strict=True))
    data = torch.from_numpy(np.ascontiguousarray(padded, np.float32))[None, None]
    with torch.no_grad():
        output = sliding_window_inference(
            data, tuple(patch), 1, predict, overlap=overlap, mode="gaussian", sw_device=device, device="cpu"
        )
    assert isinstance(output, torch.Tensor)
    return output[0].numpy()[(slice(None), *inside)]
