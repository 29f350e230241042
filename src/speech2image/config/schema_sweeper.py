"""Options of `hydra/sweeper=optuna`: what a search looks for, and how."""

from __future__ import annotations

from dataclasses import dataclass

from speech2image.config.option import option


@dataclass(frozen=True)
class OptunaSearchConfig:
    """Search with Optuna: the same command continues, hopeless trials are stopped."""

    metric: str = option(
        "val_loss", "val_… of the journal, its last value; with evaluate=true also a metric of metrics.json"
    )
    direction: str = option("auto", "auto: by the metric's name", choices=("auto", "minimize", "maximize"))
    n_trials: int = option(20, "trials of the whole search", low=1, high=100_000)
    n_jobs: int | None = option(
        None,
        "trials asked for and trained at a time; null: as many as hydra/launcher runs, in SLURM 8",
        low=1,
    )
    sampler: str = option("tpe", "who chooses the points", choices=("tpe", "random", "grid"))
    seed: int = option(0, "root of the sampler's draws", low=0)
    pruner: str = option(
        "median", "who stops hopeless trials, asked each time the metric is written",
        choices=("median", "asha", "hyperband", "none"),
    )  # fmt: skip
    startup_trials: int = option(5, "trials that always run to their end", low=0)
    warmup_steps: int = option(0, "steps that every trial may take", unit="steps", low=0)
    retry_failed: bool = option(False, "give trials that failed in earlier calls another try")
    params: dict[str, str] = option({}, "what is varied, for a file of conf/experiment")
    export: str | None = option(
        None, "write the search as a wandb sweep into this file instead of running it"
    )
