"""The settings of the launch. They travel in one environment variable, which job processes inherit."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

VARIABLE = "REPLICA_DETECTION_SERVE"
MEBIBYTE = 1 << 20
MAX_UPLOAD_MB = 1024
# Requests that may wait for a computation.
WAITING = 16


@dataclass(frozen=True)
class Settings:
    """`hosts`: names beside the loopback's under which the server is reached; `folders`: path -> the name that stands
    for it in replies and logs; `max_upload_voxels` 0 goes by the training images, `compute_memory_mb` 0 is a share of
    the machine's; at most one of `api_key_file` and `realm_uri` is given. `realm_uri` is the issuer of tokens; of the
    `oidc_` ones an empty one leaves what MONAI Label's own settings say. `ratings_visible`: all, own, or "" for own
    where callers are known."""

    data: Path
    loopback: bool = True
    hosts: tuple[str, ...] = ()
    api_key_file: Path | None = None
    realm_uri: str = ""
    oidc_audience: str = ""
    oidc_roles_claim: str = ""
    oidc_name_claim: str = ""
    oidc_roles: tuple[tuple[str, str], ...] = ()
    access_record: Path | None = None
    max_upload_bytes: int = MAX_UPLOAD_MB * MEBIBYTE
    max_upload_voxels: int = 0
    waiting: int = WAITING
    compute_seconds: float = 600
    compute_memory_mb: int = 0
    folders: tuple[tuple[str, str], ...] = ()
    ratings_visible: str = ""

    @property
    def authentication(self) -> str:
        """none, key or token, as in schema.Status."""
        return "key" if self.api_key_file else "token" if self.realm_uri else "none"

    @property
    def ratings_apart(self) -> bool:
        """True if readers see their own ratings alone."""
        return self.authentication != "none" and self.ratings_visible != "all"

    @property
    def sessions(self) -> Path:
        return self.data / "sessions"

    @property
    def temporary(self) -> Path:
        return self.data / "tmp"

    @property
    def logs(self) -> Path:
        return self.data / "logs"

    def to_json(self) -> str:
        return json.dumps({k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()})


def current() -> Settings | None:
    """The settings of this process; None outside of a hardened launch."""
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    given = json.loads(text)
    known = {f.name for f in fields(Settings)}
    values = {k: v for k, v in given.items() if k in known}
    values["data"] = Path(values["data"])
    values["hosts"] = tuple(values.get("hosts", ()))
    values["folders"] = tuple((path, name) for path, name in values.get("folders", ()))
    values["oidc_roles"] = tuple((role, name) for role, name in values.get("oidc_roles", ()))
    for name in ("api_key_file", "access_record"):
        if values.get(name):
            values[name] = Path(values[name])
    return Settings(**values)
