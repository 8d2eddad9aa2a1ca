"""The HTML report of a result: one self-contained page. Imports with numpy alone; drawing loads when needed."""

from replica_detection.report.page import write_report
from replica_detection.results.pair import Pair

__all__ = ["Pair", "write_report"]
