"""Checks that the options of every training share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from replica_detection.errors import ConfigurationError

# Options that may differ when a training is resumed: they change its length, or where it runs, not its numbers.
FREE_OPTIONS = ("epochs", "patience", "device", "resume", "cache_mb")


def require_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raises ConfigurationError for a value that is not one of the known ones."""
    if value not in known:
        raise ConfigurationError(f"unknown {name} '{value}'; known: {', '.join(known)}")


def require_whole_numbers(options: object, *names: str) -> None:
    """Raises ConfigurationError where one of the named options is not a whole number of at least 1."""
    for name in names:
        value = getattr(options, name)
        if not isinstance(value, int) or value < 1:
            raise ConfigurationError(f"{name} must be a whole number from 1, found {value!r}")


def fixed_options(options: object) -> dict[str, Any]:
    """Options that a training must keep when it is resumed, ready for JSON."""
    return {name: _plain(value) for name, value in vars(options).items() if name not in FREE_OPTIONS}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return sorted(value.items())
    return list(value) if isinstance(value, tuple) else value
