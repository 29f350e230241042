"""The report page in a real headless browser: no errors, no loads, every picture and sound decodes."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speech2image.report import write_report

_FOLDERS = Path(__file__).parents[1] / "unit" / "report" / "run_folders.py"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of an encoder and two generators over eight utterances."""
    name = "report_run_folders"
    spec = importlib.util.spec_from_file_location(name, _FOLDERS)
    assert spec is not None and spec.loader is not None
    make = sys.modules.setdefault(name, importlib.util.module_from_spec(spec))
    spec.loader.exec_module(make)
    root = tmp_path_factory.mktemp("report")
    lines = make.write_corpus(root / "corpus", 8)
    runs = [
        make.write_run(root / "enc-1", lines, "encoder", stage="encoder", steps=500),
        make.write_run(root / "gan-1", lines, "stackgan", seed=1, steps=500),
        make.write_run(root / "gan-2", lines, "s2igan", seed=2, level=0.6, steps=500),
    ]
    return write_report(runs, root / "out")


def test_sections_are_in_reading_order(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    wanted = ["-numbers", "-utterances", "-training", "-curves", "-runs"]
    places = [text.index(f'<h3 id="corpus-spoken-birds{end}"') for end in wanted]
    assert places == sorted(places)
    targets = re.findall(r'href="#([^"]+)"', text)
    assert targets and all(f'id="{target}"' in text for target in targets)


def test_browser_shows_the_page_without_errors_or_loads(page: Path, tmp_path: Path) -> None:
    browser = next((path for path in map(shutil.which, _BROWSERS) if path), None)
    if browser is None:
        pytest.skip("no Chromium or Chrome on this machine: apt-get install chromium")
    start = time.monotonic()
    done = subprocess.run(
        [browser, *_FLAGS, f"--user-data-dir={tmp_path}", "--virtual-time-budget=8000", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    opening = re.search(r"<html[^>]*>", done.stdout)
    assert opening, (
        f"the browser printed no page after {time.monotonic() - start:.0f} s: {done.stderr[-2000:]}"
    )
    told = dict(re.findall(r'data-(\w+)="([^"]*)"', opening.group(0)))
    # 8 rows of a spectrogram, a real picture, 2 runs x 2 samples; 2 runs x 6 sample grids; 8 recordings.
    assert told == {
        "ready": "yes", "errors": "0", "loads": "0", "pictures": "60", "broken": "0", "sounds": "8", "mute": "0",
    }  # fmt: skip
    shown = re.search(r'<div class="controls"( hidden)?', done.stdout)
    assert shown and not shown.group(1), "the script did not run to where it shows the controls"
