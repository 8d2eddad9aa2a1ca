"""Codes for case ids in the log: a case's lines can be found with the data folder, no patient from the log alone."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from contextlib import suppress
from pathlib import Path

from replica_detection.errors import InputError

SECRET = "case-codes.secret"
LENGTH = 12


class CaseCodes:
    """Keyed hashes with a secret that lies in the data folder, readable by the server's user alone.

    Raises:
        InputError: the secret cannot be read or made.
    """

    def __init__(self, data: Path, *, make: bool = True):
        path = data / SECRET
        try:
            if make:
                with suppress(FileExistsError):
                    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                    with os.fdopen(file, "w", encoding="ascii") as text:
                        text.write(secrets.token_hex(32))
            self._secret = path.read_text(encoding="ascii").strip().encode()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise InputError(path, f"cannot be used ({why})", "Give the data folder of a server") from None
        if len(self._secret) < 32:
            raise InputError(path, "is too short", "Remove it: the next start makes another, and codes change")

    def code(self, case: str) -> str:
        """The code of a synthetic image, or of `train:<id>`."""
        return hmac.new(self._secret, case.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:LENGTH]
