"""What a client asks of a training."""

from __future__ import annotations

from typing import Any

from fastapi import HTTPException

DEVICES = ("auto", "cpu", "cuda")
LARGEST_EPOCHS = 10_000


def choice(request: dict[str, Any], name: str, default: str) -> str:
    """One of several words; a client that shows no choice sends the whole list back, whose first is the default.

    Raises HTTPException 422 for what is no word.
    """
    value = request.get(name, default)
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, str):
        raise HTTPException(422, f"{name} must be a word")
    return value


def whole(request: dict[str, Any], name: str, default: int, largest: int) -> int:
    """A number from 1 to `largest`. Raises HTTPException 422 for anything else."""
    try:
        value = int(request.get(name, default))
    except (TypeError, ValueError, OverflowError):
        raise HTTPException(422, f"{name} must be a whole number") from None
    if not 1 <= value <= largest:
        raise HTTPException(422, f"{name} is {value}: it must lie between 1 and {largest}")
    return value


def patience(request: dict[str, Any], default: int) -> int:
    """Validations without a better result after which a training ends; -1 or 0, as at MONAI Label: never."""
    value = request.get("early_stop_patience", default)
    if value in (-1, 0) and not isinstance(value, bool):
        return LARGEST_EPOCHS
    return whole(request, "early_stop_patience", default, LARGEST_EPOCHS)
