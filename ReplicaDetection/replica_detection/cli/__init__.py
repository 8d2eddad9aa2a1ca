"""The command line, one file for each group of commands; `--help` lists them in the order of this import."""

from replica_detection.cli import demo, detection, encoders, segmentation  # noqa: F401  each registers its commands
from replica_detection.cli.application import app, main

__all__ = ["app", "main"]
