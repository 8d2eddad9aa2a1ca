"""The device on which networks run: CPU or GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from replica_detection.errors import ConfigurationError

if TYPE_CHECKING:
    import torch


DEVICES = ("auto", "cpu", "cuda")


def pick_device(name: str) -> torch.device:
    """The torch device of a name; `auto` is the GPU where there is one, else the CPU.

    Raises ConfigurationError for an unknown name, or for `cuda` without a GPU.
    """
    import torch

    if name not in DEVICES:
        raise ConfigurationError(f"unknown device '{name}'; known: {', '.join(DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device 'cuda' was asked for, but torch sees no GPU; use 'auto' or 'cpu'")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
