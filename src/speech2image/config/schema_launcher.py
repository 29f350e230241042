"""Options of `hydra/launcher`: who runs the jobs of a sweep, and with which resources."""

from __future__ import annotations

from dataclasses import dataclass

from speech2image.config.option import option


@dataclass(frozen=True)
class BasicSweepConfig:
    """One job after the other, in this process."""


@dataclass(frozen=True)
class JoblibSweepConfig:
    """Several jobs at a time on this machine."""

    n_jobs: int = option(2, "jobs at a time, each in a process of its own", low=1, high=1024)
    threads: int | None = option(None, "threads of each for arithmetic; null: cores / n_jobs", low=1)


@dataclass(frozen=True)
class SlurmSweepConfig:
    """Jobs on a SLURM cluster: one array, or a single job."""

    partition: str | None = option(None, "partition; null: the cluster's default")
    account: str | None = option(None, "account that pays; null: the user's default")
    qos: str | None = option(None, "quality of service; null: the cluster's default")
    constraint: str | None = option(None, "features the nodes must have")
    time_min: int = option(
        60, "time limit of a job; near it the job is saved and requeued", unit="min", low=1
    )
    nodes: int = option(1, "nodes of a job", low=1)
    tasks_per_node: int = option(1, "ranks that srun starts on each node", low=1)
    gpus_per_node: int | None = option(None, "GPUs on each node; null: none asked for", low=0)
    cpus_per_task: int = option(2, "cores of each rank", low=1)
    mem_gb: float | None = option(
        None, "memory on each node; null: the cluster's default", unit="GB", low=0.01
    )
    array_parallelism: int = option(256, "jobs of a sweep that may run at a time", low=1)
    detach: bool = option(False, "submit and exit; later: speech2image collect sweep=<id>")
    signal_delay_s: int = option(120, "told so long before the time limit, to save", unit="s", low=5)
    max_requeues: int = option(100, "times a job may reach its time limit and go on", low=0)
    setup: list[str] = option([], "shell lines before each job, such as [module load cuda]")
    extra: dict[str, str] = option({}, "further options of sbatch, such as {mail-type: END}")


#: Name of a launcher: its options.
LAUNCHERS: dict[str, type] = {
    "basic": BasicSweepConfig,
    "joblib": JoblibSweepConfig,
    "slurm": SlurmSweepConfig,
}
