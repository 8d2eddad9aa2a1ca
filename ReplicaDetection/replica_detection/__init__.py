"""Replica Detection: which synthetic medical images are replicas of a real patient's scan.

The package imports with numpy alone; torch, MONAI, numba and the readers load when a function needs them.
"""

from replica_detection.version import __version__

__all__ = ["__version__"]
