"""The part of `report` that carries runs to Weights & Biases and defines their dashboard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def publish(folders: list[Path], out: Path, config: dict[str, Any]) -> list[str]:
    """Replay runs into wandb, write `dashboard.json` below `out`, and push the dashboard when online.

    Args:
        folders: run folders.
        out: folder of the report.
        config: of the verb: `logger`, `title`, `num_utterances`.
    Returns: lines for the reader: what was published where, and what to type for the rest.
    """
    from speech2image.data.whole import write_whole
    from speech2image.report.collect import read_runs
    from speech2image.report.publication import gather
    from speech2image.training.dashboards import dashboard, publish_run, push_dashboard, read_known
    from speech2image.training.runs import check_links

    options = config["logger"]["wandb"]
    mode, where = options["mode"], {"project": options["project"], "entity": options["entity"]}
    runs = read_runs(folders)
    publications = [gather(run, config["num_utterances"]) for run in runs]
    for run in runs:
        check_links(run.path)
    lines, places = [], []
    for run, publication in zip(runs, publications, strict=True):
        place = publish_run(publication, run.path / "published", mode, **where)
        places.append(place)
        lines.append(f"wandb {mode}: {run.run_id}: {place or 'not published, see the warning above'}")
    spec = dashboard(publications, title=config["title"] or out.name, **where)
    path = out / "dashboard.json"
    spec["urls"] = read_known(path)
    if mode == "online" and all(places):
        try:
            spec["urls"] = push_dashboard(spec, spec["urls"])
            lines += [f"{name}: {url}" for name, url in spec["urls"].items()]
        except Exception as error:  # noqa: BLE001  no network, no login, no package: the page stands
            lines.append(f"the dashboard was not pushed: {error}; give the same command again")
    write_whole(path, (json.dumps(spec, indent=1) + "\n").encode())
    if mode == "offline":
        lines += [f"upload later: wandb sync {place}" for place in places if place]
        lines.append("upload all and push the dashboard: speech2image report (the same words) logger=online")
    return [*lines, str(path)]
