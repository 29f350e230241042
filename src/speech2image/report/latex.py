r"""Writes the tables of a report as LaTeX: `\input{table.tex}` with `\usepackage{booktabs}`.

One floating table for each kind of model of a corpus, one for its bounds and controls, and one for
published numbers; best values bold, intervals in small type.  Only ASCII and LaTeX's own commands
come out, whatever stands in names.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

from speech2image.report.costs import mean_costs
from speech2image.report.exports import cost_words
from speech2image.report.published import SOURCES, PublishedTable
from speech2image.report.stages import Stage
from speech2image.report.tables import Cell, Column

_SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "→": r"$\rightarrow$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "–": "--",
    "—": "---", "−": "$-$", "×": r"$\times$", "≈": r"$\approx$", "≤": r"$\leq$", "≥": r"$\geq$", "“": "``", "”": "''",
    "’": "'", "‘": "`", "…": r"\ldots{}", "·": r"$\cdot$", "\u00a0": "~", "\u202f": r"\,",
}  # fmt: skip


def latex(sections: Mapping[str, Sequence[Stage]], tables: Mapping[str, PublishedTable | None]) -> str:
    """Return all tables as LaTeX to be read by a document that loads `booktabs`."""
    lines = [
        r"% Made by speech2image; needs \usepackage{booktabs}. Corpora stand apart: do not compare them."
    ]
    for corpus, stages in sections.items():
        for stage in stages:
            lines += ["", *_own(corpus, stage)]
            if stage.controls:
                lines += ["", *_controls(corpus, stage)]
        table = tables.get(corpus)
        if table is not None:
            lines += ["", *_published(table)]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    r"""Return `text` as LaTeX prints it; letters that LaTeX lacks lose their marks or become `?`.

    >>> escaped("50 % of a_b ± 1")
    '50 \\% of a\\_b $\\pm$ 1'
    """
    parts = []
    for letter in str(text):
        if letter in _SPECIAL:
            parts.append(_SPECIAL[letter])
        elif " " <= letter <= "~":
            parts.append(letter)
        elif letter.isspace():
            parts.append(" ")
        else:
            plain = unicodedata.normalize("NFKD", letter).encode("ascii", "ignore").decode()
            parts.append("".join(_SPECIAL.get(one, one) for one in plain) or "?")
    return "".join(parts)


def _own(corpus: str, stage: Stage) -> list[str]:
    made = stage.headlines
    heads = ["method", "input", *(_title(column) for column in made)]
    heads += ["training", "processor", "memory", "images/s"]
    rows = []
    for position, group in enumerate(stage.groups):
        costs = [escaped(word) for word in cost_words(mean_costs(group.runs))]
        seeds = f" ({len(group.runs)} seeds)" if group.is_seeds else ""
        words = [escaped(group.label + seeds), escaped(group.runs[0].input or "–")]
        rows.append([*words, *(_cell(column.cells[position]) for column in made), *costs])
    protocols = dict.fromkeys(f"{column.title}: {column.protocol}, {column.split}" for column in made)
    caption = (
        f"Own numbers on {corpus}, {stage.kind} runs. Value [interval]; of several seeds mean ± standard deviation "
        f"[t interval]. Best in bold. Protocols: {'; '.join(protocols) or 'none'}."
    )
    return _table(caption, f"own-{corpus}-{stage.kind}", heads, rows, 2)


def _controls(corpus: str, stage: Stage) -> list[str]:
    heads = ["bound or control", *(escaped(group.label) for group in stage.groups)]
    rows = [[_title(column), *map(_cell, column.cells)] for column in stage.controls]
    caption = (
        f"Bounds and controls on {corpus}, {stage.kind} runs: what the measure itself says, no contenders."
    )
    return _table(caption, f"bounds-{corpus}-{stage.kind}", heads, rows, 1)


def _published(table: PublishedTable) -> list[str]:
    heads = ["method", "input", *map(escaped, table.metrics), "source"]
    rows = [
        [escaped(row.method), escaped(row.input)]
        + [escaped(row.values.get(metric, "–")) for metric in table.metrics]
        + [escaped(SOURCES[row.source][0] + (f"; {row.note}" if row.note else ""))]
        for row in table.rows
    ]
    caption = f"Published numbers on {table.title}, not measured here. {table.caution}"
    return _table(caption, f"published-{table.corpus}", heads, rows, 2)


def _table(
    caption: str, name: str, heads: Sequence[str], rows: Sequence[Sequence[str]], num_words: int
) -> list[str]:
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    layout = "l" * num_words + "r" * (len(heads) - num_words)
    return [
        r"\begin{table*}[t]", r"\centering\small", rf"\caption{{{escaped(caption)}}}", rf"\label{{tab:{label}}}",
        rf"\begin{{tabular}}{{{layout}}}", r"\toprule", " & ".join(heads) + r" \\", r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows), r"\bottomrule", r"\end{tabular}", r"\end{table*}",
    ]  # fmt: skip


def _title(column: Column) -> str:
    return escaped(f"{column.title} {column.arrow}".strip())


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "--"
    value = escaped(cell.value)
    value = rf"\textbf{{{value}}}" if cell.best else value
    small = " ".join(part for part in (cell.spread, cell.interval, cell.count) if part)
    # A bracket after a line end would be read as its option: the braces keep it inside.
    return f"{value} {{\\scriptsize {escaped(small)}}}" if small else value
