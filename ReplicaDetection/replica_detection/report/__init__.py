"""The HTML report of a result: one self-contained page. Imports with numpy alone; drawing loads when needed."""

from replica_detection.report.page import write_report
from replica_detection.results.pair import Pair
from replica_detection.results.result import register_report_writer

# Results lie below this room; so their method `write_report` finds the function.
register_report_writer(write_report)

__all__ = ["Pair", "write_report"]
