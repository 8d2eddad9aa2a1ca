"""The command line, one file for each group of commands; `--help` lists them in the order of this import."""

# Each registers its commands.
from replica_detection.cli import demo, detection, encoders, readers, segmentation, serve, server_files, sets  # noqa: F401
from replica_detection.cli.application import app, main

__all__ = ["app", "main"]
