"""MatchTransform: where the training image is put beside the synthetic one. A transform node; no voxel is changed."""

from __future__ import annotations

MODES = ("compared", "aligned")


class MatchTransform:
    """`compared`: as the measures saw the pair (the identity where both files share their geometry); `aligned`: moved by
    the alignment that was found."""

    @property
    def mode(self) -> str: ...

    def setMode(self, mode: str) -> None:
        """Raises ValueError for "aligned" where no alignment was found."""

    @property
    def canAlign(self) -> bool: ...

    @property
    def words(self) -> str:
        """What `aligned` does to the training image: "mirrored left-right, rotated 11.4 degrees"."""
