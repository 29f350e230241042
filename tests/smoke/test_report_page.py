"""The report page in a real headless browser: no errors, no loads, every picture and sound decodes."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from speech2image.report import write_report

_FOLDERS = Path(__file__).parents[1] / "unit" / "report" / "run_folders.py"
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip


_SAYS = "no Chromium or Chrome on this machine: apt-get install chromium"


class Browser:
    """A headless Chromium driven through its DevTools protocol over two pipes: no port, no network."""

    def __init__(self, program: str, profile: Path, size: str = "1280,900") -> None:
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()

        def wire() -> None:
            os.dup2(to_read, 203), os.dup2(to_write, 204)
            os.dup2(203, 3), os.dup2(204, 4)

        flags = (
            *_FLAGS,
            "--remote-debugging-pipe",
            "--autoplay-policy=no-user-gesture-required",
            "--mute-audio",
        )
        self.process = subprocess.Popen(
            [program, *flags, f"--window-size={size}", f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=wire,  # noqa: PLW1509  DevTools wants descriptors 3 and 4, and the child only calls dup2
            close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_read), os.close(to_write)
        os.set_blocking(self._read, False)
        self.events: list[dict[str, Any]] = []
        self._rest, self._count = b"", 0
        targets = self.call("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Performance"):
            self.call(f"{domain}.enable")

    _session: str | None = None

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask for something and wait for the answer; events on the way are kept."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session is not None and not method.startswith("Target."):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        return self._until(lambda one: one.get("id") == message["id"], f"an answer to {method}")["result"]

    def wait(self, event: str) -> dict[str, Any]:
        """Wait for an event, from the past or to come."""
        known = next((one for one in self.events if one["method"] == event), None)
        return known or self._until(lambda one: one.get("method") == event, event)

    def run(self, script: str) -> Any:
        """Run a script in the page; return its value, of a promise what it resolves to."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def _until(self, fits: Any, what: str, timeout_s: float = 120.0) -> dict[str, Any]:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            while b"\0" in self._rest:
                line, self._rest = self._rest.split(b"\0", 1)
                message = json.loads(line)
                if "method" in message:
                    self.events.append(message)
                if fits(message):
                    assert "error" not in message, message
                    return message
            try:
                self._rest += os.read(self._read, 1 << 20)
            except BlockingIOError:
                time.sleep(0.002)
        raise AssertionError(f"the browser did not give {what} within {timeout_s:g} s")

    def close(self) -> None:
        """End the browser."""
        with contextlib.suppress(OSError):
            os.write(self._write, b'{"id": 0, "method": "Browser.close"}\0')
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        os.close(self._read), os.close(self._write)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A browser with an empty page."""
    program = next((path for path in map(shutil.which, _BROWSERS) if path), None)
    if program is None:
        pytest.skip(_SAYS)
    one = Browser(program, tmp_path / "profile")
    yield one
    one.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of an encoder and two seeds of a generator over eight utterances."""
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
        make.write_run(root / "gan-2", lines, "stackgan", seed=2, level=0.6, steps=500),
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
        pytest.skip(_SAYS)
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


def test_sound_plays_without_errors_or_requests(page: Path, browser: Browser) -> None:
    browser.call("Page.navigate", url=page.as_uri())
    browser.wait("Page.loadEventFired")
    told = browser.run("""(async () => {
      const player = document.querySelector('audio');
      player.scrollIntoView();
      await player.play();
      const begin = performance.now();
      while (player.currentTime < 0.2 && performance.now() - begin < 30000) await new Promise(r => setTimeout(r, 50));
      return {time: player.currentTime, seconds: player.duration, paused: player.paused};
    })()""")
    assert told["time"] >= 0.2 and told["seconds"] > 2.0
    asked = [
        one["params"]["request"]["url"]
        for one in browser.events
        if one["method"] == "Network.requestWillBeSent"
    ]
    assert page.as_uri() in asked and all(url.startswith("data:") or url == page.as_uri() for url in asked)
    wrong = [one for one in browser.events if one["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")
             or (one["method"] == "Runtime.consoleAPICalled" and one["params"]["type"] == "error")]  # fmt: skip
    assert wrong == []


def test_seeds_unfold_and_nothing_is_wider_than_a_phone(page: Path, browser: Browser) -> None:
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True
    )
    browser.call("Page.navigate", url=page.as_uri())
    browser.wait("Page.loadEventFired")
    assert browser.run("document.documentElement.scrollWidth") == 390
    hidden = "Array.from(document.querySelectorAll('tr.member')).filter((row) => row.hidden).length"
    assert browser.run(hidden) == 2, "the two seeds of one method are folded away"
    browser.run("document.querySelector('button.fold').click()")
    assert browser.run(hidden) == 0
