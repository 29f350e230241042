"""Writes the report: `index.html`, `table.md`, `table.csv` and `table.tex`, whole or not at all.

Here the values of all sections meet the template and become files.  What the page says is decided
in `sections.py`; what it looks like in `template.py` and `style.py`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speech2image import __version__
from speech2image.errors import DataError
from speech2image.report.attention import Attend
from speech2image.report.collect import read_runs
from speech2image.report.curves import BOTTOM_PX, HEIGHT_PX, LEFT_PX, RIGHT_PX, TOP_PX, WIDTH_PX, Chart
from speech2image.report.exports import comma_separated, markdown
from speech2image.report.latex import latex
from speech2image.report.published import SOURCES, TABLES, published_for
from speech2image.report.sections import build_section
from speech2image.report.showcase import Showcase
from speech2image.report.stages import Stage, by_corpus, stages_of
from speech2image.report.steps import draw_png, steps_figure, steps_markdown
from speech2image.report.style import SCRIPT, STYLE
from speech2image.report.template import TEMPLATE


def write_report(
    run_dirs: Sequence[Path],
    out: Path,
    title: str | None = None,
    num_utterances: int = 16,
    attend: Attend | None = None,
    unfinished: Sequence[tuple[str, str]] = (),
) -> Path:
    """Lay runs side by side in `out`: a self-contained page and its tables as Markdown, CSV and LaTeX.

    Runs that were evaluated with several samplers also get `quality_against_steps_<run>.png`, for cards.

    Args:
        run_dirs: run folders of `train`, `import`, `generate` and `evaluate`; parts they lack are
            named on the page.  Runs of different corpora get sections of their own.
        out: folder to write into; made if it is not there, older reports in it are replaced.
        title: headline of the page; None: made from the corpora.
        num_utterances: how many test utterances are shown across runs, at least 0.
        attend: computes where encoders listen, for those that left no `attention.jsonl`; None: left out.
        unfinished: jobs of the same sweep that made no finished run: their words, and why.
    Returns: the path of `index.html`.
    Raises:  DataError: no run given, a folder that is no run, or `out` cannot be written.
    """
    runs = read_runs(run_dirs)
    sections = {corpus: stages_of(corpus, members) for corpus, members in by_corpus(runs).items()}
    headline = title or _title(sections)
    tables = {corpus: published_for(corpus) for corpus in sections}
    figures = [figure for run in runs if (figure := steps_figure(run))]
    values = _values(headline, sections, Showcase(max(num_utterances, 0), attend))
    values["unfinished"] = unfinished
    contents = {
        "table.md": (markdown(headline, sections, tables, unfinished) + steps_markdown(figures)).encode(),
        "table.csv": comma_separated([stage for stages in sections.values() for stage in stages]).encode(),
        "table.tex": latex(sections, tables).encode(),
        "index.html": _render(values).encode(),
    }
    contents |= {figure.file: draw_png(figure) for figure in figures}
    return _write_all(Path(out), contents)["index.html"]


def _title(sections: Mapping[str, Sequence[Stage]]) -> str:
    corpora = list(sections)
    names = corpora[0] if len(corpora) == 1 else f"{', '.join(corpora[:-1])} and {corpora[-1]}"
    return f"Pictures from speech: {names}"


def _values(title: str, sections: Mapping[str, Sequence[Stage]], shown: Showcase) -> dict[str, Any]:
    num_runs = sum(len(stage.runs) for stages in sections.values() for stage in stages)
    made = [build_section(corpus, stages, shown, num_runs) for corpus, stages in sections.items()]
    seen: set[str] = set()
    for section in made:
        while section["id"] in seen:
            section["id"] += "-more"
        seen.add(section["id"])
    return {
        "title": title,
        "summary": _summary(made, num_runs),
        "sections": made,
        "elsewhere": [table for table in TABLES if table.corpus not in sections],
        "sources": SOURCES,
        "num_runs": num_runs,
        "version": __version__,
        "plot": _number_charts(made),
    }


def _summary(sections: Sequence[Mapping[str, Any]], num_runs: int) -> str:
    runs = f"{num_runs} run" + ("" if num_runs == 1 else "s")
    if len(sections) > 1:
        return (
            f"{runs} on {len(sections)} corpora, each corpus in a section of its own: numbers of different "
            "corpora are not comparable."
        )
    num_rows = len(sections[0]["rows"])
    shown = (
        f"{num_rows} test utterances are shown with what each run painted from their sound."
        if num_rows
        else "No pictures were generated from test utterances, so none are shown."
    )
    return f"{runs} on {sections[0]['corpus']}, side by side. {shown}"


def _number_charts(sections: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Give every chart a number and return what the script needs to answer the pointer."""
    from markupsafe import Markup

    charts: list[Chart] = []
    for section in sections:
        # Every SVG is made by `steps`, `compute` or `curves`, which escape the names it carries.
        for steps in section["steps"]:
            steps["svg"] = Markup(steps["svg"])
        for stage in section["stages"]:
            stage["figures"] = [{"figure": one, "svg": Markup(one.svg)} for one in stage["figures"]]
            for group in ("charts", "rates", "time_charts"):
                numbered = []
                for chart in stage[group]:
                    numbered.append({"index": len(charts), "title": chart.title, "kind": chart.kind, "unit": chart.unit,
                                     "svg": Markup(chart.svg)})  # fmt: skip
                    charts.append(chart)
                stage[group] = numbered
    frame = {"width": WIDTH_PX, "height": HEIGHT_PX, "left": LEFT_PX, "right": RIGHT_PX}
    plots = [{"points": chart.points, "view": chart.view, "unit": chart.unit} for chart in charts]
    return {**frame, "top": TOP_PX, "bottom": BOTTOM_PX, "charts": plots}


def _render(values: Mapping[str, Any]) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(TEMPLATE).render(**values, style=Markup(STYLE), script=Markup(SCRIPT))


def _write_all(out: Path, contents: Mapping[str, bytes]) -> dict[str, Path]:
    """Write every file beside its place, then move all of them there."""
    written: dict[str, str] = {}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            handle, written[name] = tempfile.mkstemp(prefix=f".{name}.", dir=out)
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(written[name], 0o644)
        for name in contents:
            os.replace(written[name], out / name)
            del written[name]
    except OSError as error:
        raise DataError(
            f"the report cannot be written into {out}: {error.strerror or error}",
            "Give a folder you may write to: out=DIR.",
        ) from error
    finally:
        for leftover in written.values():
            Path(leftover).unlink(missing_ok=True)
    return {name: out / name for name in contents}
