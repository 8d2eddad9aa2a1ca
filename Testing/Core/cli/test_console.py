"""The lines that `detect` prints about a result, on made-up ones."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from Core.made_runs import made_run
from replica_detection.cli import console as cli
from replica_detection.results import wording
from replica_detection.results.result import IDENTICAL, NO_MASK, SMALL_NULL, CaseSummary, DetectionResult
