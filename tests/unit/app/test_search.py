"""The search with a cheap objective instead of training: order, continuation, failures, pruning."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("optuna", reason="the extra 'search' is not installed")

from speech2image.app.search import Outcome, Search, Trial, direction_of
from speech2image.app.search_space import Space, read_space
from speech2image.errors import ConfigError
from speech2image.training.study import STUDY, SearchSettings, TrialReporter, mend_study

WORDS = ("++optim.lr=tag(log,interval(1e-5,1e-1))", "++generator.depth=range(1,5)", "++seed=3")


def values(trial: Trial) -> tuple[float, int]:
    found = dict(word.lstrip("+").split("=") for word in trial.words)
    return float(found["optim.lr"]), int(found["generator.depth"])


def bowl(trials: Sequence[Trial]) -> list[Outcome]:
    """A minimum at lr = 1e-3, depth = 2."""
    import math

    found = [values(trial) for trial in trials]
    return [Outcome("finished", (math.log10(lr) + 3) ** 2 + (depth - 2) ** 2) for lr, depth in found]


@pytest.fixture
def space() -> Space:
    return read_space(WORDS)


def points(search: Search) -> list[tuple[str, ...]]:
    return [tuple(row.point.values()) for row in search.rows()]


def test_search_finds_the_bottom_of_a_bowl(tmp_path: Path, space: Space) -> None:
    search = Search(tmp_path, space, SearchSettings(), 60)
    assert search.run(bowl)
    best = next(row for row in search.rows() if row.is_best)
    assert best.value is not None and best.value < 0.1
    assert best.point["generator.depth"] == "2" and 3e-4 < float(best.point["optim.lr"]) < 3e-3


def test_same_seed_asks_the_same_points_and_another_seed_others(tmp_path: Path, space: Space) -> None:
    found = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        search = Search(tmp_path / name, space, SearchSettings(sampler="random", seed=seed), 4)
        search.run(bowl)
        found.append(points(search))
    assert found[0] == found[1] != found[2]
    assert len(set(found[0])) == 4


def test_finished_search_given_again_launches_nothing(tmp_path: Path, space: Space) -> None:
    launched: list[int] = []

    def launch(trials: Sequence[Trial]) -> list[Outcome]:
        launched.extend(trial.number for trial in trials)
        return bowl(trials)

    for wanted in (3, 3, 5):
        assert Search(tmp_path, space, SearchSettings(), wanted).run(launch)
    assert launched == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
@pytest.mark.parametrize("num_parallel", [1, 2])
def test_search_stopped_anywhere_asks_what_an_undisturbed_one_asks(
    tmp_path: Path, sampler: str, num_parallel: int
) -> None:
    space = read_space(["++optim.lr=choice(1e-4,1e-3,1e-2)", "++generator.depth=range(1,5)"])
    settings = SearchSettings(sampler=sampler, startup_trials=3)
    whole = Search(tmp_path / "whole", space, settings, 8, num_parallel)
    assert whole.run(bowl)
    calls = 0

    def unlucky(trials: Sequence[Trial]) -> list[Outcome]:
        nonlocal calls
        calls += 1
        return [Outcome("left")] * len(trials) if calls % 2 else bowl(trials)

    broken = Search(tmp_path / "broken", space, settings, 8, num_parallel)
    rounds = 0
    while not broken.run(unlucky):
        rounds += 1
        broken = Search(tmp_path / "broken", space, settings, 8, num_parallel)
    assert rounds > 3
    assert points(broken) == points(whole)
    assert [row.value for row in broken.rows()] == [row.value for row in whole.rows()]


KILLED = """
    import sys, time
    from pathlib import Path
    from speech2image.app.search import Outcome, Search
    from speech2image.app.search_space import read_space
    from speech2image.training.study import SearchSettings

    def launch(trials):
        with open(sys.argv[2], "a") as log:
            log.write(f"{trials[0].number} {' '.join(trials[0].words)}\\n")
        time.sleep(0.15)
        return [Outcome("finished", float(trials[0].number))]

    space = read_space(["++optim.lr=interval(1e-5,1e-2)"])
    Search(Path(sys.argv[1]), space, SearchSettings(sampler="random"), 8).run(launch)
"""


def test_search_killed_by_the_system_repeats_no_told_trial(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "study"), str(log)]
    for at_least in (2, 4, 6):
        process = subprocess.Popen(command)
        while len(log.read_text().splitlines()) < at_least:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True)
    lines = log.read_text().splitlines()
    search = Search(tmp_path / "study", read_space(["++optim.lr=interval(1e-5,1e-2)"]),
                    SearchSettings(sampler="random"), 8)  # fmt: skip
    assert search.run(lambda trials: pytest.fail("a finished search launches nothing"))
    assert [row.state for row in search.rows()] == ["finished"] * 8
    assert [line.split()[0] for line in dict.fromkeys(lines)] == list(
        "01234567"
    )  # again: same number, same words
    assert len(lines) <= 8 + 3  # only what was open at each of three kills ran twice


def test_failed_trials_are_told_and_the_search_goes_on(tmp_path: Path, space: Space) -> None:
    def launch(trials: Sequence[Trial]) -> list[Outcome]:
        return [
            Outcome("failed", message="no memory") if trial.number == 1 else bowl([trial])[0]
            for trial in trials
        ]

    search = Search(tmp_path, space, SearchSettings(), 4, 2)
    assert search.run(launch)
    rows = search.rows()
    assert [row.state for row in rows] == ["finished", "failed", "finished", "finished"]
    assert rows[1].message == "no memory" and rows[1].value is None and not rows[1].is_best
    again = Search(tmp_path, space, SearchSettings(), 4, 2, retry_failed=True)
    assert again.run(bowl)
    rows = again.rows()
    assert len(rows) == 5 and rows[4].state == "finished" and rows[4].point == rows[1].point
    assert Search(tmp_path, space, SearchSettings(), 4, 2, retry_failed=True).run(bowl)
    assert len(again.rows()) == 5


def test_value_that_is_no_number_is_told_as_failed(tmp_path: Path, space: Space) -> None:
    search = Search(tmp_path, space, SearchSettings(), 2)
    assert search.run(lambda trials: [Outcome("finished", float("nan")) for _ in trials])
    assert [row.state for row in search.rows()] == ["failed", "failed"]


def test_grid_visits_every_point_once(tmp_path: Path) -> None:
    space = read_space(["++a.b=choice(x,y)", "++c=range(1,4)"])
    search = Search(tmp_path, space, SearchSettings(sampler="grid"), 100, 4)
    assert search.run(lambda trials: [Outcome("finished", 1.0) for _ in trials])
    assert sorted(points(search)) == [(b, c) for b in "xy" for c in "123"]


def test_equal_points_of_a_batch_are_trained_once(tmp_path: Path) -> None:
    launched: list[tuple[str, ...]] = []

    def launch(trials: Sequence[Trial]) -> list[Outcome]:
        launched.extend(trial.words for trial in trials)
        return [Outcome("finished", 1.0) for _ in trials]

    search = Search(tmp_path, read_space(["++a=choice(x,y)"]), SearchSettings(sampler="random"), 8, 8)
    assert search.run(launch)
    assert sorted(launched) == [("++a=x",), ("++a=y",)]
    assert [row.state for row in search.rows()] == ["finished"] * 8


def test_bad_trial_is_pruned_and_a_good_one_is_not(tmp_path: Path, space: Space) -> None:
    """Reports come from other processes' eyes: through the files of the study alone."""
    settings, asked = SearchSettings(startup_trials=3, sampler="random"), dict[int, list[bool]]()

    def launch(trials: Sequence[Trial]) -> list[Outcome]:
        number = trials[0].number
        level = 10.0 if number == 5 else 1.0 + 0.01 * number if number < 5 else 0.5
        reporter = TrialReporter(tmp_path, number)
        for step in (10, 20):
            asked.setdefault(number, []).append(reporter.report(level, step))
            if asked[number][-1]:
                return [Outcome("pruned")]
        return [Outcome("finished", level)]

    search = Search(tmp_path, space, settings, 7)
    assert search.run(launch)
    rows = search.rows()
    assert asked[5] == [True] and rows[5].state == "pruned" and rows[5].steps == ((10, 10.0),)
    assert asked[6] == [False, False] and rows[6].state == "finished"
    assert asked[0] == asked[1] == asked[2] == [False, False]


def test_reported_step_keeps_its_first_value_when_a_run_continues(tmp_path: Path, space: Space) -> None:
    def launch(trials: Sequence[Trial]) -> list[Outcome]:
        TrialReporter(tmp_path, 0).report(1.0, 10)
        TrialReporter(tmp_path, 0).report(2.0, 10)
        return [Outcome("finished", 1.0)]

    search = Search(tmp_path, space, SearchSettings(), 1)
    assert search.run(launch)
    assert search.rows()[0].steps == ((10, 1.0),)


def test_second_process_on_the_same_search_is_turned_away(tmp_path: Path, space: Space) -> None:
    def launch(trials: Sequence[Trial]) -> list[Outcome]:
        with pytest.raises(ConfigError, match="running already"):
            Search(tmp_path, space, SearchSettings(), 1).run(bowl)
        return bowl(trials)

    assert Search(tmp_path, space, SearchSettings(), 1).run(launch)


def test_half_written_line_of_a_full_disk_is_dropped(tmp_path: Path, space: Space) -> None:
    assert Search(tmp_path, space, SearchSettings(), 3).run(bowl)
    whole = (tmp_path / STUDY).read_bytes()
    (tmp_path / STUDY).write_bytes(whole + b'{"op_code": 6, "wor')
    mend_study(tmp_path)
    assert (tmp_path / STUDY).read_bytes() == whole
    assert Search(tmp_path, space, SearchSettings(), 4).run(bowl)


def test_lock_of_a_killed_process_is_broken(
    tmp_path: Path, space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speech2image.training.study.LOCK_GRACE_S", 1)
    monkeypatch.chdir(tmp_path)
    assert Search(Path("s"), space, SearchSettings(), 1).run(bowl)
    os.symlink((tmp_path / "s" / STUDY).resolve(), f"{tmp_path / 's' / STUDY}.lock")
    assert Search(Path("s"), space, SearchSettings(), 2).run(bowl)


@pytest.mark.parametrize(("metric", "asked", "expected"), [
    ("val_loss", "auto", "minimize"), ("val_recall_at_1", "auto", "maximize"), ("val_fid", "auto", "minimize"),
    ("val_attribute_accuracy", "auto", "maximize"), ("anything", "maximize", "maximize"),
])  # fmt: skip
def test_direction_follows_the_metric(metric: str, asked: str, expected: str) -> None:
    assert direction_of(metric, asked) == expected


@pytest.mark.parametrize(("metric", "asked"), [("val_loss", "down"), ("val_wonder", "auto")])
def test_direction_that_cannot_be_told_is_an_error(metric: str, asked: str) -> None:
    with pytest.raises(ConfigError, match="direction" if asked == "down" else "more is better"):
        direction_of(metric, asked)
