"""The tables of a report, laid out once: runs of one corpus and one kind, as groups, columns and tests.

Every output (page, Markdown, CSV, LaTeX) is written from these, so that they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from speech2image.report.collect import Run
from speech2image.report.differences import Comparison, compared
from speech2image.report.groups import Group, group_runs
from speech2image.report.tables import Column, columns, headlines, is_control

NUM_HEADLINES = 4
_KINDS = ("generator", "encoder", "codec")


@dataclass(frozen=True)
class Stage:
    """One table: rows are `groups`, columns `contenders` (best marked) and `controls` (never)."""

    corpus: str
    kind: str
    runs: tuple[Run, ...]
    groups: tuple[Group, ...]
    contenders: tuple[Column, ...]
    controls: tuple[Column, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def headlines(self) -> list[Column]:
        """The columns of the main table."""
        return headlines(self.contenders, NUM_HEADLINES)


def by_corpus(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Split `runs` by corpus, in order of first appearance; no table ever mixes two."""
    return {
        name: [run for run in runs if run.corpus == name] for name in dict.fromkeys(r.corpus for r in runs)
    }


def stages_of(corpus: str, runs: Sequence[Run]) -> list[Stage]:
    """Lay the runs of one corpus out, a table for each kind of model, generators first."""
    made = []
    kinds = dict.fromkeys(run.kind for run in runs)
    for kind in sorted(kinds, key=lambda one: _KINDS.index(one) if one in _KINDS else len(_KINDS)):
        members = tuple(run for run in runs if run.kind == kind)
        groups = tuple(group_runs(members))
        found = columns(groups)
        made.append(
            Stage(
                corpus,
                kind,
                members,
                groups,
                tuple(column for column in found if not is_control(column.name)),
                tuple(column for column in found if is_control(column.name)),
                tuple(compared(groups)),
            )
        )
    return made


def built_of(run: Run) -> str:
    """Return what a run is built of, or its stage."""
    return " → ".join(part for part in (run.encoder, run.generator) if part) or run.stage
