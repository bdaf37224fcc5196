"""What a study came to: a summary for programs, a page for people."""

from automonai.report.summarising import summarise
from automonai.report.summary import Summary
from automonai.report.writing import write_report

__all__ = ["Summary", "summarise", "write_report"]
