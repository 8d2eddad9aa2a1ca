"""The options of the server: the cohorts, the index, and its own folder."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from replica_detection.errors import ConfigurationError, InputError
from replica_detection.io.patients import compiled_pattern
from replica_detection_server.settings import embeddings

_PATHS = ("data", "index", "training", "training_masks", "validation", "validation_masks", "masks", "patients")
# A name, or `name:path`.
_NAMED = ("segment", "embedding", "slice_embedding")
# MONAI Label hands its own settings over in the same dictionary.
_OF_MONAI_LABEL = ("server_mode",)


@dataclass(frozen=True)
class Configuration:
    """The `--conf` pairs of the launch, checked.

    `data` is the only folder that the server writes to beside MONAI Label's own files among the studies. `index` is
    made from `training` where it is missing, or was made for other `measures` or embeddings than are named. Options
    have the meaning and defaults of `replica-detection detect`; `embedding` may also be `trained`, the encoder that was
    trained on this server. `allow_links_to`: folders that links among the studies may lead into, in the way of PATH.
    """

    studies: Path
    data: Path
    index: Path
    training: Path | None = None
    training_masks: Path | None = None
    validation: Path | None = None
    validation_masks: Path | None = None
    masks: Path | None = None
    patients: Path | None = None
    patient_pattern: str | None = None
    profile: str = "generic"
    segment: str | None = None
    embedding: str | None = None
    slice_embedding: str | None = None
    measures: str | None = None
    k: int = 50
    alpha: float = 0.05
    device: str = "auto"
    null_size: int = 500
    allow_links_to: str | None = None

    @classmethod
    def of(cls, studies: str | os.PathLike[str], conf: Mapping[str, str]) -> Configuration:
        """From the folder of the synthetic images and the `--conf` pairs; an empty value counts as not given.

        Raises:
            ConfigurationError: an unknown key, a number that is none, or folders that would be written to and must not.
            InputError: a folder or file that is not there.
        """
        if os.fspath(studies).startswith(("http://", "https://")):
            raise ConfigurationError(f"--studies {studies}: the synthetic images must be a folder of this machine")
        given = {key: value for key, value in conf.items() if value not in ("", None)}
        known = {f.name for f in fields(cls)} - {"studies"}
        if unknown := [key for key in given if key not in known and key not in _OF_MONAI_LABEL]:
            raise ConfigurationError(f"unknown --conf {unknown[0]}; known: {', '.join(sorted(known))}")
        if not {"index", "training"} & set(given):
            raise ConfigurationError("nothing to compare with: give --conf training DIR or --conf index X.rdindex")
        chosen: dict[str, Any] = {"studies": Path(studies).resolve()}
        for key in known & set(given):
            chosen[key] = Path(given[key]).expanduser().resolve() if key in _PATHS else given[key]
        for key in set(_NAMED) & set(chosen):
            chosen[key] = _absolute(chosen[key])
        if "allow_links_to" in chosen:
            folders = [f for f in chosen["allow_links_to"].split(os.pathsep) if f]
            chosen["allow_links_to"] = os.pathsep.join(str(Path(f).expanduser().resolve()) for f in folders)
        for key, kind in (("k", int), ("alpha", float), ("null_size", int)):
            if key in chosen:
                chosen[key] = _number(key, chosen[key], kind)
        chosen.setdefault("data", default_data_folder(chosen["studies"]))
        chosen.setdefault("index", chosen["data"] / "training.rdindex")
        made: Configuration = cls(**chosen)
        made._check()
        return made

    @classmethod
    def from_json(cls, text: str) -> Configuration:
        """Inverse of `to_json`, for a process that works on behalf of the server."""
        data: dict[str, Any] = json.loads(text)
        for key in ("studies", *_PATHS):
            data[key] = None if data[key] is None else Path(data[key])
        return cls(**data)

    def to_json(self) -> str:
        return json.dumps({k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()})

    @property
    def measure_names(self) -> tuple[str, ...] | None:
        """The measures to compute; None: all that the index serves."""
        return None if self.measures is None else tuple(n.strip() for n in self.measures.split(",") if n.strip())

    @property
    def scored(self) -> Path:
        """The result folder of the synthetic collection, as `replica-detection detect` writes one."""
        return self.data / "scored"

    @property
    def volumes(self) -> Path:
        """DICOM series in one file each."""
        return self.data / "volumes"

    @property
    def models(self) -> Path:
        return self.data / "models"

    @property
    def link_folders(self) -> tuple[Path, ...]:
        """The folders of `allow_links_to`."""
        return tuple(Path(f) for f in (self.allow_links_to or "").split(os.pathsep) if f)

    @property
    def named_files(self) -> dict[str, Path]:
        """The files of segmenter and embeddings that need one, by option."""
        paths = {key: (getattr(self, key) or "").partition(":")[2] for key in _NAMED}
        return {key: Path(path) for key, path in paths.items() if path}

    def _check(self) -> None:
        for key in ("studies", *_PATHS):
            path = getattr(self, key)
            if key in ("data", "index") or path is None:
                continue
            if not path.exists():
                raise InputError(
                    path, f"does not exist (--{key})", "Check the spelling and that the drive is connected"
                )
        for path in self.link_folders:
            if not path.is_dir():
                raise InputError(path, "is no folder (--allow_links_to)", "Give the folder that links lead into")
        if self.training is None and not (self.index / "index.json").is_file():
            raise InputError(
                self.index,
                "is no finished index",
                "Build it with `replica-detection index`, or give --conf training DIR",
            )
        if self.embedding is not None or self.slice_embedding is not None:
            if self.training is None:
                raise ConfigurationError("embedding and slice_embedding need training; an index alone has its own")
            embeddings.make(self)  # an unknown name or a missing file is reported now
        if self.patient_pattern is not None:
            compiled_pattern(self.patient_pattern)
            if self.patients is not None:
                raise ConfigurationError("give either patients or patient_pattern")
        # Real scans are only ever read.
        for real in (self.training, self.validation):
            for key in ("data", "index", "studies"):
                path = getattr(self, key)
                if real is not None and real.is_dir() and path.is_relative_to(real):
                    raise ConfigurationError(f"{key} ({path}) lies inside {real}, where nothing may be written")


def _absolute(name: str) -> str:
    """The name, with the path after the colon made absolute."""
    kind, _, path = name.partition(":")
    return f"{kind}:{Path(path).expanduser().resolve()}" if path else name


def default_data_folder(studies: Path) -> Path:
    """The folder for a user's data on this platform, one for each collection of studies."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    digest = hashlib.sha256(str(studies).encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return base.expanduser().resolve() / "replica-detection" / f"{studies.name}-{digest}"


def _number(key: str, text: Any, kind: type) -> Any:
    try:
        return kind(text)
    except (TypeError, ValueError):
        raise ConfigurationError(f"--conf {key} is {text!r}: it must be a number") from None
