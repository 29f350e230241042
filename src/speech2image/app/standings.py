"""How far the jobs of a sweep are, in words: what their records say and, of those in SLURM, what the cluster says.

Here are the judgement, the table and the waiting.  Records are in `sweeps.py`, questions to SLURM in `slurm.py`.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from speech2image.app.slurm import Heard, ask, last_words
from speech2image.app.sweeps import ENDED_WELL, Job, Sweep, is_alive

#: States that may still change by themselves.
GOING = ("waiting", "running")
_ORDER = ("finished", "pruned", "running", "waiting", "preempted", "failed")


@dataclass(frozen=True)
class Standing:
    """Where one job is.

    Args:
        job: its record.
        state: finished, pruned (by a search), running, waiting, preempted (saved, nobody continues it) or failed.
        reason: why it failed or waits, in words.
        is_news: whether SLURM has just told that it ended, which no record says yet.
    """

    job: Job
    state: str
    reason: str = ""
    is_news: bool = False


def standings(sweep: Sweep) -> list[Standing]:
    """Return where each job of a sweep is; what SLURM says of ended ones is written down, for SLURM forgets."""
    jobs, said = sweep.jobs(), sweep.cluster()
    open_ids = [
        job.slurm_job
        for job in jobs
        if job.slurm_job
        and job.state not in (*ENDED_WELL, "failed")
        and not said.get(str(job.number), {}).get("ended")
    ]
    heard = ask(open_ids) if open_ids else {}
    judged = [judge(sweep, job, said.get(str(job.number), {}), heard) for job in jobs]
    news = {
        one.job.number: {"slurm_job": one.job.slurm_job or "", "ended": one.reason}
        for one in judged
        if one.is_news
    }
    if news:
        sweep.note_cluster(news)
    return judged


def judge(sweep: Sweep, job: Job, said: Mapping[str, str], heard: Mapping[str, Heard] | None) -> Standing:
    """Return where one job is.

    Args:
        sweep: its sweep, for the place of logs.
        job: its record.
        said: its entry in `cluster.json`.
        heard: what SLURM says now, by number; None: SLURM cannot be asked here.
    """
    if job.state in ENDED_WELL:
        return Standing(job, job.state)
    if job.state == "failed":
        return Standing(job, "failed", job.message.strip().split("\n")[0])
    if said.get("ended"):
        return Standing(job, "failed", said["ended"])
    if job.slurm_job is None:
        return _judge_here(job)
    if heard is None:
        state = {"submitted": "waiting", "running": "running"}.get(job.state, "preempted")
        return Standing(job, state, "as its record says; SLURM does not answer here")
    news = heard.get(job.slurm_job)
    if news is None:
        reason = "ended without a word, and SLURM no longer knows it"
        return Standing(job, "failed", reason + last_words(sweep.folder, job.slurm_job), is_news=True)
    if news.state in GOING:
        was = "preempted, to continue; " if job.state == "preempted" and news.state == "waiting" else ""
        return Standing(job, news.state, (was + news.reason).removesuffix("; "))
    if job.state == "preempted" and news.state == "ended":
        return Standing(job, "preempted", job.message or "stopped on a signal")
    silent = last_words(sweep.folder, job.slurm_job) if news.state == "ended" else ""
    return Standing(job, "failed", news.reason + silent, is_news=True)


def _judge_here(job: Job) -> Standing:
    if job.state == "running":
        if is_alive(job):
            return Standing(job, "running", f"process {job.pid} on {job.host}")
        return Standing(job, "failed", "its process ended without a word (killed, or out of memory)")
    if job.state == "preempted":
        return Standing(job, "preempted", job.message)
    return Standing(job, "waiting", "not begun")


def counts(found: Sequence[Standing]) -> str:
    """Return how many jobs are in each state, in one line."""
    number = Counter(one.state for one in found)
    return ", ".join(f"{number[state]} {state}" for state in _ORDER if number[state])


def own_words(found: Sequence[Standing]) -> list[str]:
    """Return of each job the words that not all jobs of the sweep have; of a single job all its words."""
    shared = set.intersection(*(set(one.job.overrides) for one in found)) if len(found) > 1 else set()
    return [" ".join(word for word in one.job.overrides if word not in shared) or "–" for one in found]


def table(sweep: Sweep, found: Sequence[Standing]) -> str:
    """Return the jobs as aligned lines: number, state, number in SLURM, run, own words, reason."""
    rows = [("job", "state", "slurm", "run", "overrides", "reason")]
    for one, own in zip(found, own_words(found), strict=True):
        run = one.job.run.name if one.job.run else "–"
        rows.append((str(one.job.number), one.state, one.job.slurm_job or "–", run, own, one.reason))
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([f"sweep {sweep.id}: {counts(found)}", *lines])


def watch(sweep: Sweep) -> list[Standing]:
    """Wait until no job of a sweep waits or runs, with a line of progress; return where the jobs are then."""
    last, pause_s, has_terminal = "", 1.0, sys.stderr.isatty()
    while True:
        found = standings(sweep)
        line = f"sweep {sweep.id}: {counts(found)}"
        if line != last:
            print(
                f"\r{line:<100}" if has_terminal else line, end="" if has_terminal else "\n", file=sys.stderr
            )
            sys.stderr.flush()
            last, pause_s = line, 1.0
        if not any(one.state in GOING for one in found):
            if has_terminal:
                print(file=sys.stderr)
            return found
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.3, 15.0)
