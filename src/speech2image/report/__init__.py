"""Lay runs side by side: one self-contained HTML page, one Markdown table, one CSV file.

`write_report` is the way in.  `collect.py` and `journal.py` read run folders, `published.py`
holds the published tables, `page.py` writes.  Nothing here needs torch or a network.
"""

from __future__ import annotations

from speech2image.report.page import write_report

__all__ = ["write_report"]
