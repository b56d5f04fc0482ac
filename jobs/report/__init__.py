"""The demo's report: one HTML file that needs nothing else. `write_report` is all there is to call."""

from jobs.report.page import write_report

__all__ = ["write_report"]
