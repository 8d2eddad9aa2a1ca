"""API keys of readers: a file with a line `name:key` for each. Imports with the standard library alone."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from replica_detection.errors import InputError

MINIMUM = 20
_NAME = re.compile(r"[^\W_][\w .@'+-]{0,63}")
_MAKE = 'Make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'


@dataclass(frozen=True)
class ApiKeys:
    """Who may use the server. Holds the SHA-256 of each key, never the key."""

    digests: dict[str, bytes] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> ApiKeys:
        """Reads the file; empty lines and lines that begin with # are passed over. Messages name lines, never keys.

        Raises:
            InputError: it cannot be read, holds no key, a line is no `name:key`, a key is shorter than MINIMUM letters
                or not plain ASCII, or a name or key comes twice.
        """
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(path, f"cannot be read ({_why(error)})", "Give a text file with lines name:key") from None
        digests: dict[str, bytes] = {}
        for n, line in enumerate(lines, 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            name, colon, key = (part.strip() for part in line.partition(":"))
            if not colon or not _NAME.fullmatch(name):
                raise InputError(path, f"line {n} is no name:key", "Write a reader's name, a colon and the key")
            if len(key) < MINIMUM or not key.isascii() or not key.isprintable() or " " in key:
                raise InputError(path, f"the key on line {n} is shorter than {MINIMUM} letters or not plain", _MAKE)
            digest = hashlib.sha256(key.encode()).digest()
            if name in digests or digest in digests.values():
                raise InputError(path, f"line {n} repeats a name or a key", "Give each reader a key of their own")
            digests[name] = digest
        if not digests:
            raise InputError(path, "holds no key", f"Write lines name:key. {_MAKE}")
        return cls(digests)

    def reader(self, key: str) -> str | None:
        """Whose key it is; None for a key that is not in the file. Takes the same time for every wrong key."""
        given = hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
        found = None
        for name, digest in self.digests.items():
            if hmac.compare_digest(given, digest):
                found = name
        return found


def readable_by_others(path: Path) -> bool:
    """Whether other users of this machine may read the file; False where the platform has no such rights."""
    return os.name == "posix" and bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))


def _why(error: Exception) -> str:
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", "") or str(error)
