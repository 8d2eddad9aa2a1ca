"""Blinding: neutral names and a random side, so that a reader cannot tell the synthetic image from the training one."""

from __future__ import annotations

import hashlib
import hmac
import secrets

#: Names of the images of the first and the second row.
NAMES = ("Image A", "Image B")


class Blinding:
    """One blinded reading.

    Args:
        key: secret that decides sides and codes, made by `newKey` and kept by the person who runs the study. With
            the key a code can be traced back by trying all pairs; without it, it cannot.

    Raises:
        ValueError: the key is too short to be secret.
    """

    def __init__(self, key: str):
        if len(key) < 16:
            raise ValueError("the blinding key is too short; make one with Blinding.newKey()")
        self._key = key.encode("utf-8")

    @staticmethod
    def newKey() -> str:
        return secrets.token_hex(16)

    def swapped(self, syntheticId: str, trainingId: str) -> bool:
        """True if the synthetic image is the second of the two: always the same for a pair, even odds over pairs."""
        return bool(self._digest("side", syntheticId, trainingId)[0] & 1)

    def code(self, syntheticId: str, trainingId: str) -> str:
        """The name of the pair while it is blinded, e.g. "Case 4F2A91B0"."""
        return f"Case {self._digest('code', syntheticId, trainingId)[:4].hex().upper()}"

    def _digest(self, *parts: str) -> bytes:
        return hmac.new(self._key, "\0".join(parts).encode("utf-8"), hashlib.sha256).digest()
