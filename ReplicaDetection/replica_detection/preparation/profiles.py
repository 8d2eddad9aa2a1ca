"""Profiles: one grid and one intensity scale for the images of a modality.

A `Profile` states the choices for a modality; `prepare.plan` measures the training cohort and fixes the rest
(`Preparation`). A new modality is one entry in `PROFILES`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from replica_detection.errors import ConfigurationError


@dataclass(frozen=True)
class Intensity:
    """Mapping of an image's intensities to [0, 1], values outside clipped.

    Either `window` (low, high), the same two values for every image (HU), or `percentiles` (low, high) of all voxels
    of each image, for modalities with arbitrary units. Exactly one of the two is set.
    """

    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None

    def describe(self) -> str:
        """The mapping in words."""
        if self.window:
            return f"fixed window {self.window[0]:g} to {self.window[1]:g} mapped to 0 to 1"
        low, high = self.percentiles or (0, 100)
        return f"each image's percentiles {low:g} and {high:g} mapped to 0 and 1"


@dataclass(frozen=True)
class Profile:
    """Choices for a modality; where one is None, it is measured on the training cohort.

    `spacing` is in mm; `max_voxels` limits the grid: where the cohort's extent needs more, the spacing grows.
    """

    name: str
    description: str
    dimensions: int | None = 3
    spacing: tuple[float, ...] | None = None
    intensity: Intensity | None = None
    max_voxels: int = 1_000_000


PROFILES = {
    p.name: p
    for p in (
        Profile(
            "generic",
            "any modality; looks at the training cohort and fixes spacing, grid and intensity mapping",
            dimensions=None,
        ),
        Profile(
            "head-ct",
            "non-contrast head CT in HU, brain window 0 to 100",
            spacing=(2.0, 2.0, 4.0),
            intensity=Intensity(window=(0, 100)),
        ),
        Profile(
            "tof-mra",
            "time-of-flight MR angiography",
            spacing=(1.0, 1.0, 1.0),
            intensity=Intensity(percentiles=(1, 99.8)),
            max_voxels=1_500_000,
        ),
        Profile(
            "brain-mr",
            "brain MR (T1, T2, FLAIR), with or without skull",
            spacing=(2.0, 2.0, 2.0),
            intensity=Intensity(percentiles=(0.5, 99.5)),
        ),
        Profile(
            "knee-mr",
            "knee MR, thick sagittal slices or isotropic",
            spacing=(1.2, 1.2, 3.0),
            intensity=Intensity(percentiles=(1, 99)),
        ),
        Profile(
            "chest-xray",
            "chest X-ray, 2D",
            dimensions=2,
            intensity=Intensity(percentiles=(1, 99)),
            max_voxels=256 * 256,
        ),
    )
}


def profile_named(name: str) -> Profile:
    """The profile of a name. Raises ConfigurationError with the known names for another one."""
    if name not in PROFILES:
        raise ConfigurationError(f"unknown profile '{name}'; known: {', '.join(PROFILES)}")
    return PROFILES[name]


@dataclass(frozen=True)
class Native:
    """Typical geometry of the training files, for images whose own geometry cannot be trusted.

    `shape` and `spacing` (mm) are medians along the RAS axes; `axcodes` is the most common storage order of the arrays;
    `extent` (mm) is the median field of view.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    extent: tuple[float, ...]
    axcodes: str


@dataclass(frozen=True)
class Preparation:
    """Everything that is the same for every image of a run; stored in the index and applied unchanged later.

    `grid` (voxels) and `spacing` (mm) run along R, A, S (2D: the first two axes of the image).
    """

    profile: str
    dimensions: int
    spacing: tuple[float, ...]
    grid: tuple[int, ...]
    intensity: Intensity
    native: Native
    data_range: float = 1.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Preparation:
        data = dict(data)
        intensity = {k: tuple(v) if v else None for k, v in data["intensity"].items()}
        native: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data["native"].items()}
        data["spacing"], data["grid"] = tuple(data["spacing"]), tuple(data["grid"])
        return cls(**{**data, "intensity": Intensity(**intensity), "native": Native(**native)})

    def describe(self) -> str:
        """Grid and intensity mapping in words."""
        size = " x ".join(map(str, self.grid))
        mm = " x ".join(f"{s:.3g}" for s in self.spacing)
        return f"{self.profile}: grid {size} of {mm} mm, {self.intensity.describe()}"
