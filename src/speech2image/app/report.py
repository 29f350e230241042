"""`speech2image report`: lay runs side by side in one self-contained page."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from speech2image.errors import DataError, nearest_names


def run(config: dict[str, Any], unfinished: Sequence[tuple[str, str]] = ()) -> None:
    """Write the page and its tables; print where.

    Args:
        config: the configuration of `report`.
        unfinished: jobs of a sweep that did not finish, each with the reason: named on the page.
    """
    from speech2image.app.attention import attend
    from speech2image.report.page import write_report

    runs = Path(config["paths"]["runs"])
    asked = config["runs"]
    names = [asked] if isinstance(asked, str | Path) else list(asked or ())
    folders = find_folders([str(name) for name in names], runs)
    out = Path(config["out"]) if config["out"] else runs / "reports" / _name(folders, names == ["all"])
    listener = attend if config["attention"] else None
    page = write_report(folders, out, config["title"], config["num_utterances"], listener, unfinished)
    if config["logger"]["wandb"]["mode"] != "disabled":
        from speech2image.app.publish import publish

        print("\n".join(publish(folders, out, config)))
    print(page)


def find_folders(names: Sequence[str], runs: Path) -> list[Path]:
    """Return the run folders that names mean, each once.

    Args:
        names: `all`; a folder; a run id; the name of an experiment (its newest run); or a pattern with
            `*`, `?` or `[…]`, of folders, run ids or experiments: every run that matches, all seeds.
        runs: folder of all runs.
    Raises:  DataError: names that mean no run, all of them in one message.
    """
    from speech2image.training.runs import all_runs, open_run

    known = all_runs(runs)
    found: list[Path] = []
    wrong: list[str] = []
    for name in names:
        if name == "all":
            matching = sorted(path.parent for path in runs.glob("*/run.json"))
        elif any(letter in name for letter in "*?["):
            matching = [run.path for run in known if _matches(name, run)] + _folders(name)
        else:
            try:
                matching = [open_run(name, runs).path]
            except DataError:
                matching = []
        found += matching
        wrong += [] if matching else [name]
    if not wrong and found:
        return list(dict.fromkeys(path.resolve() for path in found))
    if not known:
        raise DataError(f"there is no run below {runs}/", "Train one: speech2image train")
    if not names:
        raise DataError("runs: which runs? found an empty list", "Type: runs=all, or runs=[RUN,...]")
    everything = sorted({name for run in known for name in (run.path.name, str(run.info.get("experiment")))})
    near = [hint for name in wrong for hint in nearest_names(name.strip("*"), everything, 1)]
    meant = f"Did you mean {', '.join(dict.fromkeys(near))}? " if near else ""
    listing = ", ".join(run.path.name for run in known[:8]) + (", …" if len(known) > 8 else "")
    raise DataError(f"runs: {', '.join(wrong)}: no such run below {runs}/", f"{meant}Known: {listing}")


def _matches(pattern: str, run: Any) -> bool:
    return any(
        fnmatchcase(str(name), pattern)
        for name in (run.path.name, run.info.get("run_id"), run.info.get("experiment"), run.path)
    )


def _folders(pattern: str) -> list[Path]:
    """Return the run folders a pattern of paths matches, wherever they are."""
    path = Path(pattern)
    if len(path.parts) < 2:
        return []
    root = Path(path.anchor) if path.is_absolute() else Path()
    rest = path.relative_to(path.anchor) if path.is_absolute() else path
    return sorted(match for match in root.glob(str(rest)) if (match / "run.json").is_file())


def _name(folders: Sequence[Path], is_all: bool) -> str:
    """Return a folder name that says which runs: their names, or the first, how many more, and a hash of all."""
    names = [folder.name for folder in folders]
    if is_all or len(names) <= 3:
        return "all" if is_all else "+".join(names)
    digest = hashlib.sha256("+".join(names).encode()).hexdigest()[:8]
    return f"{names[0]}+{len(names) - 1}-{digest}"
