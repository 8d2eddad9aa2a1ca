"""API keys of readers: a file with a line `name:key` for each. Imports with the standard library alone.

A line may end with `role=reviewer` or another of KEY_ROLES, and with `expires=YEAR-MONTH-DAY`. The key may be replaced
by its hash, `scrypt$N$r$p$SALT$HASH`, as `replica-detection make-key --hashed` prints it. Such a key begins with
its salt and a full stop. The salt finds the line, so a request never costs more than one hash.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re
import secrets
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

from replica_detection.errors import InputError
from replica_detection.io.paths import composed
from replica_detection_server.util.named_files import read_named_file

MINIMUM = 20
# Role in the key file -> role of identity.ROLES. A line without `role=` belongs to a reader.
KEY_ROLES = {"reader": "annotator", "reviewer": "reviewer", "trainer": "trainer", "admin": "admin"}
READER = "reader"
SCRYPT = "scrypt"
# 32 MiB and some 0.1 s for each check; the limits keep a line from asking for more than a server can give.
COST, BLOCK, PARALLEL = 1 << 15, 8, 1
MAX_MEMORY = 128 << 20
CACHED = 1024
_NAME = re.compile(r"[^\W_][\w .@'+-]{0,63}")
_MAKE = "Make one with: replica-detection make-key NAME"


@dataclass(frozen=True)
class Scrypt:
    """A key as its hash."""

    cost: int
    block: int
    parallel: int
    salt: str
    digest: bytes = field(repr=False)

    @classmethod
    def of(cls, key: str) -> Scrypt:
        """The hash of a key, which begins with its salt and a full stop."""
        made = cls(COST, BLOCK, PARALLEL, key_id(key), b"")
        return cls(COST, BLOCK, PARALLEL, made.salt, made.hashed(key))

    @classmethod
    def parsed(cls, text: str) -> Scrypt | None:
        """The hash written in a text; None for other text, or for a hash that would take more than MAX_MEMORY."""
        found = re.fullmatch(
            rf"{SCRYPT}\$(\d{{1,7}})\$(\d{{1,2}})\$(\d{{1,2}})\$([\w-]{{8,64}})\$([\w-]{{40,90}}=*)", text
        )
        if found is None:
            return None
        cost, block, parallel = int(found[1]), int(found[2]), int(found[3])
        if cost < 1024 or cost & (cost - 1) or not block or not 1 <= parallel <= 4 or 128 * cost * block > MAX_MEMORY:
            return None
        try:
            digest = base64.urlsafe_b64decode(found[5].rstrip("=") + "=" * (-len(found[5].rstrip("=")) % 4))
        except (binascii.Error, ValueError):
            return None
        return cls(cost, block, parallel, found[4], digest) if len(digest) >= 32 else None

    def hashed(self, key: str) -> bytes:
        return hashlib.scrypt(
            key.encode("utf-8", "surrogateescape"),
            salt=self.salt.encode(),
            n=self.cost,
            r=self.block,
            p=self.parallel,
            maxmem=2 * MAX_MEMORY,
            dklen=len(self.digest) or 32,
        )

    def matches(self, key: str) -> bool:
        return hmac.compare_digest(self.hashed(key), self.digest)

    def __str__(self) -> str:
        digest = base64.urlsafe_b64encode(self.digest).decode().rstrip("=")
        return f"{SCRYPT}${self.cost}${self.block}${self.parallel}${self.salt}${digest}"


@dataclass(frozen=True)
class KeyOwner:
    """The owner of a key: `role` is one of KEY_ROLES, `expires` the last day on which it opens (UTC)."""

    name: str
    role: str = READER
    expires: date | None = None

    @property
    def has_expired(self) -> bool:
        return self.expires is not None and datetime.now(UTC).date() > self.expires


@dataclass(frozen=True)
class ApiKeys:
    """The readers that may use the server. Holds the SHA-256 of each key, or its hash by scrypt, never the key."""

    plain: tuple[tuple[bytes, KeyOwner], ...] = field(repr=False)
    hashed: Mapping[str, tuple[Scrypt, KeyOwner]] = field(default_factory=dict, repr=False)
    # Lines of keys that scrypt has confirmed, by the key's SHA-256, so that only a reader's first request is slow.
    _known: OrderedDict[bytes, Scrypt] = field(default_factory=OrderedDict, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def read(cls, path: Path) -> ApiKeys:
        """Reads the file; empty lines and lines that begin with # are passed over. Messages name lines, never keys.

        Raises:
            InputError: it is a pipe or device, cannot be read or is too long, holds no key, a line is none (see above),
                a key is shorter than MINIMUM letters or not plain ASCII, or a name or key comes twice.
        """
        advice = "Give a text file with lines name:key"
        try:
            lines = read_named_file(path, advice).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise InputError(path, "cannot be read (it is not UTF-8)", advice) from None
        plain: dict[bytes, KeyOwner] = {}
        hashed: dict[str, tuple[Scrypt, KeyOwner]] = {}
        names: set[str] = set()
        for n, line in enumerate(lines, 1):
            if not line.strip() or line.strip().startswith("#"):
                continue
            key, owner = _parsed(path, n, line)
            id = key.salt if isinstance(key, Scrypt) else key
            if owner.name in names or id in plain or id in hashed:
                raise InputError(path, f"line {n} repeats a name or a key", "Give each reader a key of their own")
            names.add(owner.name)
            if isinstance(key, Scrypt):
                hashed[key.salt] = (key, owner)
            else:
                plain[key] = owner
        if not names:
            raise InputError(path, "holds no key", f"Write lines name:key. {_MAKE}")
        return cls(tuple(plain.items()), hashed)

    @property
    def owners(self) -> list[KeyOwner]:
        return [owner for _, owner in (*self.plain, *self.hashed.values())]

    def warnings(self) -> list[str]:
        """Warnings about the lines, for an administrator."""
        said = [f"The key of {owner.name} has expired." for owner in self.owners if owner.has_expired]
        if not any(owner.role == "admin" and not owner.has_expired for owner in self.owners):
            said.append("No key has role=admin: nobody can remove images or labels through the server.")
        return said

    def knowing(self, before: ApiKeys) -> ApiKeys:
        """These keys. A key that scrypt has confirmed is not hashed again while its line stays the same."""
        with before._lock:
            known = list(before._known.items())
        self._known.update((given, line) for given, line in known if self._owner_of(line) is not None)
        return self

    def quick(self, key: str) -> KeyOwner | Callable[[], KeyOwner | None] | None:
        """The owner of a key where no slow hash is needed; None for an unknown key; else the call that hashes it.

        The time is the same for every key that is in no plain line.
        """
        given = _sha256(key)
        found = None
        for digest, owner in self.plain:
            if hmac.compare_digest(given, digest):
                found = owner
        if found is not None:
            return found
        with self._lock:
            line = self._known.get(given)
        if line is not None:
            return self._owner_of(line)
        candidate = self.hashed.get(key_id(key))
        return None if candidate is None else lambda: self._checked(key, given, *candidate)

    def owner(self, key: str) -> KeyOwner | None:
        """The owner of a key, expired or not; None for a key that is not in the file. Slow for a hashed one."""
        found = self.quick(key)
        return found if found is None or isinstance(found, KeyOwner) else found()

    def reader(self, key: str) -> str | None:
        """The name on a valid key; None for one that is not in the file or has expired."""
        owner = self.owner(key)
        return None if owner is None or owner.has_expired else owner.name

    def _owner_of(self, line: Scrypt) -> KeyOwner | None:
        found, owner = self.hashed.get(line.salt, (None, None))
        return owner if found == line else None

    def _checked(self, key: str, given: bytes, line: Scrypt, owner: KeyOwner) -> KeyOwner | None:
        if not line.matches(key):
            return None
        with self._lock:
            self._known[given] = line
            while len(self._known) > CACHED:
                self._known.popitem(last=False)
        return owner


def key_id(key: str) -> str:
    """The first part of a hashed key: the salt of its line."""
    return key.partition(".")[0]


def made_key(name: str, role: str = READER, expires: date | None = None, *, hashed: bool = False) -> tuple[str, str]:
    """A new key, and its line for the file.

    Raises:
        ValueError: a name that no line can hold, an unknown role, or a last day that has passed.
    """
    if not _NAME.fullmatch(name):
        raise ValueError("a name has 1 to 64 letters, digits, blanks or . @ ' + -, and begins with a letter or digit")
    if role not in KEY_ROLES:
        raise ValueError(f"a role is one of {', '.join(KEY_ROLES)}")
    if KeyOwner(name, role, expires).has_expired:
        raise ValueError("the last day of this key has passed; give a later one")
    key = f"{secrets.token_hex(8)}.{secrets.token_urlsafe(32)}" if hashed else secrets.token_urlsafe(32)
    words = [f"{name}:{Scrypt.of(key) if hashed else key}"]
    words += [f"role={role}"] if role != READER else []
    words += [f"expires={expires.isoformat()}"] if expires is not None else []
    return key, " ".join(words)


def readable_by_others(path: Path) -> bool:
    """True if other users of this machine may read the file; False where the platform has no such rights."""
    return os.name == "posix" and bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))


def _parsed(path: Path, n: int, line: str) -> tuple[bytes | Scrypt, KeyOwner]:
    """The SHA-256 or scrypt hash of a line's key, and its owner."""
    name, colon, rest = (part.strip() for part in composed(line).partition(":"))
    if not colon or not _NAME.fullmatch(name):
        raise InputError(path, f"line {n} is no name:key", "Write a reader's name, a colon and the key")
    key, *words = rest.split() or [""]
    owner = _owner(path, n, name, words)
    if key.startswith(f"{SCRYPT}$"):
        found = Scrypt.parsed(key)
        if found is None:
            raise InputError(path, f"the hash on line {n} cannot be used", f"{_MAKE} --hashed")
        return found, owner
    if len(key) < MINIMUM or not key.isascii() or not key.isprintable():
        raise InputError(path, f"the key on line {n} is shorter than {MINIMUM} letters or not plain", _MAKE)
    return _sha256(key), owner


def _owner(path: Path, n: int, name: str, words: list[str]) -> KeyOwner:
    given: dict[str, str] = {}
    for word in words:
        option, _, value = word.partition("=")
        # The word is not shown: it may be the rest of a key.
        if option not in ("role", "expires") or option in given:
            raise InputError(path, f"what follows the key on line {n} is no role= or expires=", "Write each once")
        given[option] = value
    role = given.get("role", READER)
    if role not in KEY_ROLES:
        raise InputError(path, f"the role on line {n} is unknown", f"It is one of {', '.join(KEY_ROLES)}")
    expires = None
    if "expires" in given:
        try:
            expires = date.fromisoformat(given["expires"])
        except ValueError:
            raise InputError(path, f"expires= on line {n} is no date", "Write it as 2027-01-31") from None
    return KeyOwner(name, role, expires)


def _sha256(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
