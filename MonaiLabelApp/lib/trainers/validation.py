"""Checks of the options that a client sends for a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from replica_detection.errors import ConfigurationError
from replica_detection_server.errors import InvalidRequestError

DEVICES = ("auto", "cpu", "cuda")
LARGEST_EPOCHS = 10_000


def choice(request: dict[str, Any], name: str, known: Sequence[str]) -> str:
    """The chosen word: the first where none is given, or where a client that shows no choice sends the whole list back.
    Raises InvalidRequestError for anything else.
    """
    value = request.get(name, known[0])
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, str) or value not in known:
        found = f" is '{value[:60]}': it" if isinstance(value, str) else ""
        raise InvalidRequestError(f"{name}{found} must be one of {', '.join(known)}")
    return value


def flag(request: dict[str, Any], name: str) -> bool:
    """The value of a flag, False by default. Raises InvalidRequestError for anything but true or false."""
    value = request.get(name, False)
    if not isinstance(value, bool):
        raise InvalidRequestError(f"{name} must be true or false")
    return value


def device(request: dict[str, Any]) -> str:
    """Raises InvalidRequestError for one that this machine does not have."""
    from replica_detection.networks.device import pick_device

    name = choice(request, "device", DEVICES)
    try:
        pick_device(name)
    except ConfigurationError as error:
        raise InvalidRequestError(str(error)) from None
    return name


def whole(request: dict[str, Any], name: str, default: int, largest: int) -> int:
    """A number from 1 to `largest`. Raises InvalidRequestError for anything else."""
    given = request.get(name, default)
    try:
        value = int(given)
    except (TypeError, ValueError, OverflowError):
        raise InvalidRequestError(f"{name} must be a whole number") from None
    if isinstance(given, bool) or (isinstance(given, float) and value != given):
        raise InvalidRequestError(f"{name} must be a whole number")
    if not 1 <= value <= largest:
        raise InvalidRequestError(f"{name} is {value}: it must lie between 1 and {largest}")
    return value


def patience(request: dict[str, Any], default: int) -> int:
    """Validations without a better result after which a training ends; -1 or 0, as at MONAI Label: never."""
    value = request.get("early_stop_patience", default)
    if value in (-1, 0) and not isinstance(value, bool):
        return LARGEST_EPOCHS
    return whole(request, "early_stop_patience", default, LARGEST_EPOCHS)
