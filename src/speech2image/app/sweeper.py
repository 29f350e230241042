"""`hydra/sweeper=optuna`: the search as Hydra calls it, with whichever launcher runs the jobs.

Here words become a space and settings, trials become jobs, records of jobs become outcomes.  The search itself is in
`search.py`.  Hydra's own Optuna sweeper was tried first: it knows no pruning, forgets trials that a kill left open,
adds n_trials anew at each call, and its storage needs SQLAlchemy below 2.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from speech2image.app.search import Outcome, Search, Trial, direction_of, outcome_of
from speech2image.app.search_space import Space, read_space
from speech2image.app.standings import Standing, standings
from speech2image.app.sweeps import ENDED_WELL, find_sweep, sweep_id
from speech2image.config.compose import compose, prepare_overrides, to_plain
from speech2image.config.root import ROOT_FIELDS
from speech2image.config.schema_sweeper import OptunaSearchConfig
from speech2image.config.validate import check_config, check_fields
from speech2image.data.whole import write_whole
from speech2image.errors import ConfigError, Preempted
from speech2image.report.search import TrialRow, comma_separated, draw_history, markdown, search_table
from speech2image.training.study import SearchSettings

AT_ONCE_IN_SLURM = 8


class GridSearch(Sweeper):
    """Hydra's own sweep over all combinations, which leaves composing the jobs to our launchers.

    They check each job; Hydra's sweeper composes all of them before, which doubles the cost of a short one.

    Args:
        max_batch_size: jobs given to the launcher at once; None: all.
        params: what is swept, beside the words of the command.
    """

    def __init__(self, max_batch_size: int | None = None, params: dict[str, str] | None = None) -> None:
        self.max_batch_size, self.params = max_batch_size, params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra has composed."""
        self.context = hydra_context
        self.launcher: Any = _launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> list[Any]:
        """Launch every combination; return what the launcher says of each."""
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
        from hydra.core.override_parser.overrides_parser import OverridesParser

        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        parser = OverridesParser.create(config_loader=self.context.config_loader)
        returned: list[Any] = []
        for batch in BasicSweeper.split_arguments(parser.parse_overrides(words), self.max_batch_size):
            returned += self.launcher.launch(batch, initial_job_idx=len(returned))
        return returned


def _launcher(context: HydraContext, task_function: TaskFunction, config: DictConfig) -> Any:
    from hydra.core.plugins import Plugins

    return Plugins.instance().instantiate_launcher(
        config=config, hydra_context=context, task_function=task_function
    )


class OptunaSearch(Sweeper):
    """Ask Optuna for trials, give them to the launcher, tell Optuna what their runs say."""

    def __init__(self, **options: Any) -> None:
        self.options: dict[str, Any] = {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra has composed; check the options before anything is written.

        Raises: ConfigError: options that do not exist or are out of range, all of them.
        """
        self.context, self.master = hydra_context, config
        options = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
        assert isinstance(options, dict)
        self.options = {str(key): value for key, value in options.items() if key != "_target_"}
        if problems := check_fields(self.options, OptunaSearchConfig, "hydra.sweeper"):
            lines = "\n".join(f"  - {problem}" for problem in problems)
            raise ConfigError(
                f"hydra/sweeper=optuna:\n{lines}", "See every option with: speech2image train --help"
            )
        self.launcher: Any = _launcher(hydra_context, task_function, config)
        launcher = self.launcher.options
        if launcher.get("detach"):
            raise ConfigError(
                "hydra/sweeper=optuna with hydra.launcher.detach=true: a search must hear how its trials went",
                "Leave detach out; the search itself may run in the background: what it has done is kept.",
            )
        if self.options["n_jobs"] is None:
            many = {"joblib": launcher.get("n_jobs", 1), "slurm": AT_ONCE_IN_SLURM}
            self.options["n_jobs"] = many.get(self.launcher.kind, 1)

    def sweep(self, arguments: list[str]) -> list[TrialRow]:
        """Search, or export the search; print the best trial and where the table and the picture are.

        Args:     arguments: the words of the command but Hydra's own.
        Returns:  what is known of every trial.
        Raises:   ConfigError: a search that cannot be; Preempted: stopped on the way, the same command continues.
        """
        params = [f"{key}={value}" for key, value in self.options["params"].items()]
        space = read_space([*prepare_overrides(params), *arguments], self.context.config_loader)
        settings = self._settings()
        if self.options["export"]:
            self._export(space, settings)
            return []
        verb, overrides = str(self.master.hydra.job.config_name), self.master.hydra.overrides
        if verb != "train":
            raise ConfigError(f"hydra/sweeper=optuna: found the verb {verb}", "Only train can be searched.")
        runs = Path(str(to_plain(self.master.paths)["runs"]))
        folder = runs / "sweeps" / sweep_id(verb, [*overrides.task, *overrides.hydra])
        if all(wrong := [_what_is_wrong(space.words(corner)) for corner in space.corners()]):
            raise ConfigError(f"hydra/sweeper=optuna: no point of the space can be trained\n{wrong[0]}")
        search = Search(
            folder,
            space,
            settings,
            self.options["n_trials"],
            self.options["n_jobs"],
            self.options["retry_failed"],
        )
        try:
            is_whole = search.run(lambda trials: self._launch(folder, settings, trials))
            self.launcher.launch(
                [], initial_job_idx=0
            )  # a search that was whole before gets its report again
        finally:  # also of a search that was stopped
            rows = search.rows() if search.study is not None else []
            if any(row.state != "open" for row in rows):
                print(write_results(folder, rows, settings))
        if not is_whole:
            raise Preempted(f"{folder}: the search was stopped on the way", "The same command continues it.")
        if rows and not any(row.is_best for row in rows):
            raise ConfigError(
                f"{folder}: none of {len(rows)} trials has a value; first: {rows[0].message or rows[0].state}",
                "Mend what the messages say and add: hydra.sweeper.retry_failed=true",
            )
        return rows

    def _settings(self) -> SearchSettings:
        options = self.options
        metric = options["metric"]
        settings = SearchSettings(
            metric, direction_of(metric, options["direction"]), options["sampler"], options["pruner"],
            options["startup_trials"], options["warmup_steps"], options["seed"],
        )  # fmt: skip
        if not settings.is_reported and not self.master.get("evaluate"):
            raise ConfigError(
                f"hydra.sweeper.metric={metric}: found a metric of metrics.json, which training does not write",
                "Add evaluate=true, or search for one that the journal has, such as val_loss.",
            )
        return settings

    def _export(self, space: Space, settings: SearchSettings) -> None:
        from speech2image.app.wandb_sweep import write_sweep

        plain = to_plain(OmegaConf.masked_copy(self.master, ["logger", "trainer"]))
        print(write_sweep(Path(self.options["export"]), space, settings, self.options["n_trials"], plain))

    def _launch(self, folder: Path, settings: SearchSettings, trials: Sequence[Trial]) -> list[Outcome]:
        """Run trials as jobs of the sweep, numbered as they are; the launcher takes a row of numbers at a time."""
        outcomes: list[Outcome] = []
        for _, row in itertools.groupby(enumerate(trials), lambda placed: placed[1].number - placed[0]):
            outcomes += self._launch_row(folder, settings, [trial for _, trial in row])
        return outcomes

    def _launch_row(self, folder: Path, settings: SearchSettings, row: Sequence[Trial]) -> list[Outcome]:
        words = [
            (*trial.words, f"++callbacks.search.folder={folder}", f"++callbacks.search.trial={trial.number}")
            for trial in row
        ]
        try:
            self.launcher.launch(words, initial_job_idx=row[0].number)
        except ConfigError:
            wrong = [_what_is_wrong(trial.words) for trial in row]
            if not any(wrong):  # not the fault of a trial
                raise
            if len(row) > 1:
                return [outcome for trial in row for outcome in self._launch_row(folder, settings, [trial])]
            return [Outcome("failed", message=wrong[0])]
        found = {one.job.number: one for one in standings(find_sweep(folder.name, folder.parent.parent))}
        return [_outcome(found[trial.number], settings) for trial in row]


def _what_is_wrong(words: Sequence[str]) -> str:
    """Return why the configuration of a job cannot be; empty: it can."""
    try:
        check_config(compose("train", words), ROOT_FIELDS["train"])
    except ConfigError as error:
        return error.message
    return ""


def _outcome(found: Standing, settings: SearchSettings) -> Outcome:
    if found.state == "preempted":
        return Outcome("left")
    if found.state in ENDED_WELL and found.job.run is not None:
        return outcome_of(found.job.run, settings)
    return Outcome("failed", message=found.reason or f"the job ended as {found.state}")


def write_results(folder: Path, rows: Sequence[TrialRow], settings: SearchSettings) -> str:
    """Write table and picture of a search into its folder; return what is printed."""
    table = search_table(rows, settings.metric)
    write_whole(folder / "trials.md", markdown(table).encode())
    write_whole(folder / "trials.csv", comma_separated(table).encode())
    write_whole(folder / "history.png", draw_history(rows, settings.metric, settings.direction))
    states = [row.state for row in rows]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    lines = [f"search of {len(rows)} trials ({counts}): {folder / 'trials.md'}, {folder / 'history.png'}"]
    for row in rows:
        if row.state == "failed":
            said = " ".join(line.strip() for line in row.message.splitlines()[:2])
            lines.append(f"trial {row.number} failed: {said or 'without a word'}")
    for row in (row for row in rows if row.is_best):
        point = " ".join(f"{key}={value}" for key, value in row.point.items())
        lines.append(f"best: trial {row.number}, {settings.metric} {row.value:.6g}: {point} ({row.run})")
    return "\n".join(lines)
