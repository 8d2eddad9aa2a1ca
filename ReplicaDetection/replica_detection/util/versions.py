"""Versions of the packages that a result depends on."""

from __future__ import annotations

import platform
from importlib import metadata

PACKAGES = ("numpy", "scipy", "torch", "monai", "numba", "zarr", "nibabel", "SimpleITK", "pydicom")


def package_versions() -> dict[str, str]:
    """Installed versions by package name, with Python's and this package's own; "not installed" where absent."""
    from replica_detection.version import __version__

    versions = {"replica-detection": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
