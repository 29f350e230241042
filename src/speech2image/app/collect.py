"""`speech2image collect`: how far the jobs of a sweep are, and their report once they have ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from speech2image.app.standings import GOING, Standing, counts, own_words, standings, table, watch
from speech2image.app.sweeps import ENDED_WELL, Sweep, all_sweeps, find_sweep
from speech2image.errors import SweepError
from speech2image.training.study import SETTINGS


def run(config: dict[str, Any]) -> None:
    """Print the jobs of a sweep, or all sweeps; with `wait`, wait; make the report when all jobs have ended.

    Raises: SweepError: all jobs have ended, some without finishing.
    """
    runs = Path(config["paths"]["runs"])
    if config["sweep"] is None:
        print(_listing(all_sweeps(runs), runs))
        return
    sweep = find_sweep(config["sweep"], runs)
    found = watch(sweep) if config["wait"] else standings(sweep)
    print(table(sweep, found))
    if any(one.state in GOING for one in found):
        print(f"to wait for the rest: speech2image collect sweep={sweep.id} wait=true")
        return
    finish(sweep, found, config["paths"])


def finish(
    sweep: Sweep, found: Sequence[Standing] | None = None, paths: dict[str, Any] | None = None
) -> None:
    """Make the one report of a sweep that has ended; of a single job elsewhere, say what it made.

    Args:
        sweep: its records.
        found: where its jobs are; None: ask.
        paths: the group `paths`; None: that of the command that launched it.
    Raises: SweepError: jobs that did not finish, each with its words and the reason.
    """
    found = standings(sweep) if found is None else found
    folders = [one.job.run for one in found if one.state == "finished" and one.job.run is not None]
    named = [
        (f"job {one.job.number} ({own})", f"{one.state}: {one.reason}".removesuffix(": "))
        for one, own in zip(found, own_words(found), strict=True)
        if one.state not in ENDED_WELL
    ]
    if sweep.verb == "train" and folders and len(found) > 1:
        from speech2image.app.train import after_sweep

        after_sweep(folders, sweep.id, paths or sweep.paths, named)
    elif len(found) == 1 and folders and sweep.launcher != "basic":
        print(folders[0])
    is_search = (sweep.folder / SETTINGS).is_file()  # which goes on past failed trials, and has named them
    if named and not (is_search and folders):
        lines = "\n".join(f"  - {name}: {reason}" for name, reason in named)
        raise SweepError(
            f"{len(named)} of {len(found)} jobs of sweep {sweep.id} did not finish:\n{lines}",
            "The same command tries them again and leaves the finished ones alone.",
        )


def _listing(known: Sequence[Sweep], runs: Path) -> str:
    if not known:
        return f"no sweep below {runs / 'sweeps'}; start one: speech2image train -m seed=0,1"
    lines = [
        f"{sweep.id}  {sweep.created}  {sweep.launcher:<6}  {counts(standings(sweep))}\n    speech2image {sweep.verb} "
        + " ".join(sweep.words)
        for sweep in known
    ]
    return "\n".join([*lines, "their jobs: speech2image collect sweep=<id>"])
