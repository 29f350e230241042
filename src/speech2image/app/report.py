"""`speech2image report`: lay runs side by side in one self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speech2image.errors import DataError


def run(config: dict[str, Any]) -> None:
    """Write the page and its tables; print where."""
    from speech2image.report.page import write_report
    from speech2image.training.runs import open_run

    runs = Path(config["paths"]["runs"])
    asked = config["runs"]
    if asked == "all":
        folders = sorted(path.parent for path in runs.glob("*/run.json"))
        if not folders:
            raise DataError(f"there is no run below {runs}/", "Train one: speech2image train")
    else:
        names = [asked] if isinstance(asked, str) else asked
        folders = [open_run(name, runs).path for name in names]
    out = Path(config["out"]) if config["out"] else runs / "reports" / _name(folders, asked == "all")
    page = write_report(folders, out, config["title"], config["num_utterances"])
    if config["logger"]["wandb"]["mode"] != "disabled":
        from speech2image.app.publish import publish

        print("\n".join(publish(folders, out, config)))
    print(page)


def _name(folders: list[Path], is_all: bool) -> str:
    return "all" if is_all else "+".join(folder.name for folder in folders)[:100]
