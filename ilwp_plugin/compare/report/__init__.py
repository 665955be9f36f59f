"""The report of a comparison: numbers and sentences first (`sections`, `figures`, tables), then pictures and a page."""

from ilwp_plugin.compare.report.page import build_report

__all__ = ["build_report"]
