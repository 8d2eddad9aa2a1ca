"""Blinding: neutral names and a random side, so that a reader cannot tell the synthetic image from the training one."""

from __future__ import annotations


class Blinding:
    """One blinded reading.

    Args:
        key: secret that decides sides and codes, made by `newKey` and kept by whoever runs the study: with it a code
            can be traced back, without it not.
    """

    def __init__(self, key: str):
        raise NotImplementedError

    @staticmethod
    def newKey() -> str: ...

    def swapped(self, syntheticId: str, trainingId: str) -> bool:
        """Whether the synthetic image is the second of the two; the same for the same pair, even odds over pairs."""

    def code(self, syntheticId: str, trainingId: str) -> str:
        """What the pair is called while it is blinded, e.g. "Case 4F2A91"."""
