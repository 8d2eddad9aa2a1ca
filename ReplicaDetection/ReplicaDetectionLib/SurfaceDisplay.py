"""SurfaceDisplay: both surfaces, their outlines on the slices, and the distance between them as a heat map."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SurfaceRow:
    """A line of the table of distances in mm; `name`: "synthetic to training", "training to synthetic" or "both"
    (blinded: "A to B" and so on)."""

    name: str
    mean: float
    median: float
    p95: float
    maximum: float


@dataclass(frozen=True)
class Peak:
    """The point of a patch of large distances where it is largest: `ras` mm RAS+ of the scene, on the surface of a row."""

    ras: tuple[float, float, float]
    distance: float
    row: str


class SurfaceDisplay:
    """Surfaces of a pair. Where it has none, `available` is False, `problem` says why, and every call does nothing."""

    available: bool
    problem: str

    def setVisible(self, visible: bool) -> None:
        """Surfaces in 3D."""

    def setOutlines(self, visible: bool, both: bool = True) -> None:
        """Outlines on the slices; `both`: each row shows both, else its own."""

    def setHeat(self, visible: bool) -> None:
        """Distances as colours, else one plain colour for each image."""

    def setOverlaySurface(self, row: str) -> None:
        """Whose surface the 3D view of the overlay shows: they hide each other, so it is one of them."""

    def setRange(self, low: float, high: float) -> None:
        """Where the colours begin and end, mm."""

    def range(self) -> tuple[float, float]: ...

    def fitRange(self) -> tuple[float, float]:
        """0 to the 95th percentile of both surfaces; returns it."""

    def setThreshold(self, mm: float) -> None:
        """Hides what is nearer than this to the other surface; 0 shows everything. Peaks are counted above it."""

    def threshold(self) -> float: ...

    def setLegend(self, visible: bool) -> None: ...

    def statistics(self) -> list[SurfaceRow]:
        """Area-weighted distances as they are shown; empty where there are no surfaces."""

    def peaks(self) -> list[Peak]:
        """Patches of distances above the threshold (without one: above the mean), the largest first."""

    def jumpToLargest(self) -> Peak | None:
        """All views to the largest distance, with a marker; None where there is none."""

    def jumpToNext(self, step: int = 1) -> Peak | None:
        """To the next smaller peak; after the last comes the first."""
