"""Random words of a command, through the real composition and validation; received run folders, through the report.

Each ends in a result or one message, in 2 s of processor time, within 1 GB of address space; nothing is written
elsewhere.  Nothing is trained: configurations are composed, checked and, some of them, built without memory.
"""

from __future__ import annotations

import functools
import html.parser
import json
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speech2image.app.cli import VERBS
from speech2image.config.compose import choices, compose, conf_dir, run_hydra
from speech2image.config.root import ROOT_FIELDS
from speech2image.config.validate import check_config
from speech2image.errors import ConfigError, DataError
from speech2image.report.page import write_report

HERE = Path(__file__).parent
MUTATIONS = runpy.run_path(str(HERE / "mutations.py"))
FOLDERS = runpy.run_path(str(HERE.parent / "unit" / "report" / "run_folders.py"))
Rounds = Callable[[int, int], int]

VALUES = (
    "0", "1", "-1", "1e400", "nan", "-inf", "9" * 5000, "true", "null", "''", '"a b"', "é", "\u202e", "🐦", "???", "a=b", "a,b", "1,2,3",
    "[1,2]", "[]", "{}", "{a:1}", "{_target_: os.system}", "[[[[]]]]", "[" * 40, "{a:" * 40, "[" * 3000, "(", ")", "'", '"', "\\", "$", "${seed}",
    "${a}", "${oc.env:HOME}", "${oc.env:NONE}", "${oc.decode:'[1'}", "${oc.create:{a:1}}", "${now:%Y}", "${hydra:runtime.cwd}", "${.}", "${..}",
    "${eval:1}", "${" * 200, "${python_version:}", "range(1,3)", "range(1,1000000000)", "choice(a,b)", "interval(0,1)", "glob(*)", "shuffle(1,2)",
    "sort(3,2)", "int(1.5)", "json_str('{')", "extend_list(1)", "tag(a,1)", "../../x", "/etc/passwd", "os.system", "-1.5e-300", "0x10",
    "1_0", "yes", "off", "~", "!", "!!python/object:os.system", "&a", "*a", "#", "a: b", "A" * 19_000, "a\tb", "a\nb", "\x00", "\x1b[31m",
)  # fmt: skip
MARKS = ("", "", "", "", "+", "++", "~", "--", "-", "=", "@", "+~")
FLAGS = (
    "--cfg",
    "--cfg=job",
    "-c",
    "--info=searchpath",
    "--resolve",
    "--hydra-help",
    "--version",
    "-p",
    "--package=a",
    "-r",
    "--bad",
    "-",
    "--",
)


def flat(node: Any, path: str = "") -> list[str]:
    """Return every dotted key of a configuration."""
    if not isinstance(node, dict):
        return [path]
    return [path, *(key for name, item in node.items() for key in flat(item, f"{path}.{name}".lstrip(".")))]


@functools.cache
def known_keys(verb: str) -> list[str]:
    """Return keys of a verb, groups, and keys that nothing has."""
    groups = [path.relative_to(conf_dir()).as_posix() for path in conf_dir().rglob("*") if path.is_dir()]
    strange = [
        "hydra",
        "hydra.run.dir",
        "hydra.launcher.x",
        "hydra/launcher",
        "hydra.callbacks.x",
        "a.b.c.d",
        "seed.x",
        "",
        ".",
        "a..b",
        "é",
    ]
    return [key for key in flat(compose(verb, [])) if key] + groups * 2 + strange


def a_word(rng: np.random.Generator, verb: str) -> str:
    """Return one word of a command, often nearly right."""
    if rng.random() < 0.05:
        return str(rng.choice(FLAGS))
    keys = known_keys(verb)
    key = keys[int(rng.integers(len(keys)))]
    value = VALUES[int(rng.integers(len(VALUES)))]
    if (conf_dir() / key).is_dir() and rng.random() < 0.7 and (found := choices(key)):
        value = found[int(rng.integers(len(found)))]
    elif rng.random() < 0.1:
        key += "." + str(rng.choice(["_target_", "_args_", "_partial_", "__class__", "x", "0"]))
    word = f"{MARKS[int(rng.integers(len(MARKS)))]}{key}={value}"
    if rng.random() < 0.25:
        raw: bytes = MUTATIONS["mutate"](
            word.encode("utf-8", "surrogatepass"), [b"seed=1", b"encoder=sen"], rng
        )
        word = raw.decode("utf-8", "surrogateescape")
    return word


def _compose(folder: Path, number: int) -> object:
    rng = np.random.default_rng([7, number])
    verb = str(rng.choice(sorted(VERBS))) if rng.random() < 0.5 else "train"
    words = [a_word(rng, verb) for _ in range(int(rng.integers(1, 4)))]
    words = [word for word in words if "hydra/" not in word]  # launchers start processes

    def task(config: dict[str, Any]) -> None:
        check_config(config, ROOT_FIELDS[verb])
        if verb == "train" and number % 4 == 0:
            from speech2image.app.train import describe_models

            describe_models(config)

    places = [f"paths.{name}={folder / 'place' / name}" for name in ("data", "cache", "runs", "weights")]
    return run_hydra(verb, [*words, *places], task)


def _tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_overrides(tmp_path: Path, rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> None:
    work, notes = tmp_path / "work", tmp_path / "notes"
    for folder in (work, notes):
        folder.mkdir()
    monkeypatch.chdir(work)
    for verb in VERBS:
        known_keys(verb)
    run_hydra("train", ["seed=2"], lambda config: check_config(config, ROOT_FIELDS["train"]))
    from speech2image.app import train

    train.describe_models(compose("train", []))  # what is imported here is not imported under the watchdog
    before = _tree(tmp_path)
    count = rounds(150, 2600)
    wrong, refused, peak = MUTATIONS["run_watched"](count, functools.partial(_compose, tmp_path), notes)
    print(f"{count} commands: {refused} refused, {peak / 1e6:.0f} MB at most, {len(wrong)} wrong")
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong[:3])
    assert 0.5 * count < refused < count, "some commands are right, most are not"
    assert [name for name in _tree(tmp_path) if name != "notes/notes.txt"] == before


# ---- received runs ----------------------------------------------------------------------------
MARKUP = (
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "' onload='alert(1)", "<!--",
    "</title><svg onload=alert(1)>", "javascript:alert(1)", "{{ 7*7 }}", "{% raw %}", "\u202e", "]]>", "&lt;script&gt;", "</pre><b id=evil>",
)  # fmt: skip


class _Page(html.parser.HTMLParser):
    """Notes what a browser would run or load."""

    def __init__(self) -> None:
        super().__init__()
        self.evil: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        for name, value in attrs:
            loads = name in ("src", "href", "xlink:href") and not str(value).startswith(
                ("data:", "#", "https://")
            )
            if name.startswith("on") or loads or value == "evil":
                self.evil.append(f"<{tag} {name}={str(value)[:60]}>")


def _records(rng: np.random.Generator, node: Any) -> Any:
    """Return a record with some of its values replaced by values of another kind, by markup or by bombs."""
    if isinstance(node, dict):
        return {
            (str(rng.choice(MARKUP)) if rng.random() < 0.02 else key): _records(rng, item)
            for key, item in node.items() if rng.random() > 0.03
        }  # fmt: skip
    if isinstance(node, list):
        return [_records(rng, item) for item in node]
    if rng.random() > 0.12:
        return node
    strange: list[Any] = [
        None, [], {}, -1, 0, 1e308, 10**300, "", "x" * 5000, True, [[1]], {"name": []}, "2" * 400, *MARKUP,
        "/etc/passwd", "../../../etc/hosts", float("nan"), float("inf"), "\ud800", "\x00", [None], 2**63,
    ]  # fmt: skip
    return strange[int(rng.integers(len(strange)))]


def _spoil(folder: Path, rng: np.random.Generator) -> None:
    """Change some files of a run folder: their records, or their bytes."""
    files = [
        path for path in sorted(folder.rglob("*")) if path.suffix in (".json", ".jsonl", ".yaml", ".png")
    ]
    for path in files:
        chance = rng.random()
        if chance < 0.35:
            continue
        raw = path.read_bytes()
        if chance < 0.55 or path.suffix in (".yaml", ".png"):
            path.write_bytes(MUTATIONS["mutate"](raw, [raw], rng))
            continue
        lines = raw.decode().splitlines() if path.suffix == ".jsonl" else [raw.decode()]
        kept = [_records(rng, json.loads(line)) for line in lines[:200]]
        path.write_text("\n".join(json.dumps(line) for line in kept) + "\n")


def _report(source: Path, folder: Path, number: int) -> object:
    rng = np.random.default_rng([11, number])
    work = folder / "received"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(source, work / "runs")
    runs = sorted((work / "runs").iterdir())
    _spoil(runs[number % len(runs)], rng)
    from speech2image.app.report import find_folders

    try:
        named = find_folders(["all"], work / "runs")
        page = write_report(named, work / "out", num_utterances=2)
    finally:
        outside = [path for path in work.iterdir() if path.name not in ("runs", "out")]
        assert not outside, outside
    found = _Page()
    text = page.read_text(encoding="utf-8")
    found.feed(text)
    assert not found.evil, found.evil
    assert found.scripts == 2, f"{found.scripts} scripts"
    return page


def _received(folder: Path) -> Path:
    corpus = folder / "corpus"
    lines = FOLDERS["write_corpus"](corpus, 4, 16)
    for name, stage, level in (("sen_birds-00000001", "encoder", 0.2), ("gan_birds-00000002", "gan", 0.4)):
        FOLDERS["write_run"](
            folder / "source" / name, lines, name, stage, level=level, steps=200, num_samples=1, size_px=16
        )
    return folder / "source"


def test_received_runs_in_the_report(tmp_path: Path, rounds: Rounds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = _received(tmp_path)
    (tmp_path / "work").mkdir()
    write_report(sorted(source.iterdir()), tmp_path / "whole", num_utterances=2)
    count = rounds(40, 1000)
    attempt = functools.partial(_report, source, tmp_path / "work")
    wrong, refused, peak = MUTATIONS["run_watched"](count, attempt, tmp_path)
    print(f"{count} received runs: {refused} refused, {peak / 1e6:.0f} MB at most, {len(wrong)} wrong")
    assert not wrong, f"{len(wrong)} of {count}:\n" + "\n".join(wrong[:3])
    assert refused < count, "most damage is told on the page"


def test_the_page_reader_sees_what_it_looks_for() -> None:
    for text in (
        "<img src=x onerror=alert(1)>",
        "<svg onload=alert(1)>",
        "<b id=evil>",
        "<a href='javascript:alert(1)'>",
    ):
        page = _Page()
        page.feed(text)
        assert page.evil, text
    assert issubclass(ConfigError, Exception) and issubclass(DataError, Exception)
