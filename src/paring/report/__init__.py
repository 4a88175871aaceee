"""One self-contained HTML page per run, and one for several runs side by side: no script, no network, light and dark.

>>> from pathlib import Path
>>> from paring.core.records import RunRecord
>>> from paring.report import write_report
>>> record = RunRecord.from_json(Path("run/run.json").read_text("utf-8"))   # doctest: +SKIP
>>> write_report(record, "run/report.html", overwrite=True)                 # doctest: +SKIP

Importing this package loads matplotlib and Jinja2; a command that may end before it needs a page should import it late.
"""

from paring.report.page import render, render_many
from paring.report.write import write_comparison, write_report

__all__ = ["render", "render_many", "write_comparison", "write_report"]
