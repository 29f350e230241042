"""The page and its tables: all that was given is there, escaped, self-contained, whole or absent."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from speech2image.errors import DataError
from speech2image.report import write_report
from speech2image.report.tables import number


class Page(HTMLParser):
    """Collects the text of a page and every address an element would load."""

    LOADS = frozenset({"src", "srcset", "poster", "data", "action", "background", "formaction"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.without_alt = 0
        self._is_code = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._is_code = tag in ("style", "script")
        named = dict(attrs)
        self.without_alt += tag == "img" and not named.get("alt")
        self.loads += [value or "" for name, value in attrs if name in self.LOADS]
        if tag == "link":
            self.loads.append(named.get("href") or "")

    def handle_endtag(self, tag: str) -> None:
        self._is_code = self._is_code and tag not in ("style", "script")

    def handle_data(self, data: str) -> None:
        if not self._is_code:
            self.words.append(data)

    @property
    def text(self) -> str:
        """All words with single blanks; `<wbr>` splits nothing."""
        return " ".join("".join(self.words).split())


def _read(path: Path) -> tuple[str, Page]:
    source = path.read_text(encoding="utf-8")
    return source, Page(source)


def test_every_number_and_utterance_is_on_the_page(runs: list[Path], tmp_path: Path) -> None:
    path = write_report(runs, tmp_path / "report")
    assert path == tmp_path / "report" / "index.html"
    source, page = _read(path)
    for folder in runs:
        for metric in json.loads((folder / "metrics.json").read_text())["metrics"]:
            assert number(metric["value"], metric["unit"]) in page.text
            assert all(repr(metric[end]) in source for end in ("value", "low", "high"))
            assert f"n = {metric['count']}" in page.text
            assert (
                metric["chance"] is None or f"chance {number(metric['chance'], metric['unit'])}" in page.text
            )
    manifest = (runs[1] / "generated" / "test" / "manifest.jsonl").read_text().splitlines()
    for line in map(json.loads, manifest):
        assert f'data-utterance="{line["utterance"]}"' in source and line["caption"] in page.text
    # 8 rows of a spectrogram, a real picture and 2 runs x 2 samples; 2 runs x 6 sample grids.
    assert page.tags.count("img") == 8 * (1 + 1 + 4) + 2 * 6 and page.tags.count("audio") == 8
    assert page.without_alt == 0
    for words in ("loss g", "attribute accuracy", "speech2image train experiment=birds_stackgan seed=1"):
        assert words in page.text
    assert {child.name for child in (tmp_path / "report").iterdir()} == {
        "index.html",
        "table.md",
        "table.csv",
        "table.tex",
    }


def test_page_loads_nothing_from_anywhere(runs: list[Path], tmp_path: Path) -> None:
    source, page = _read(write_report(runs, tmp_path / "report"))
    assert page.loads and all(address.startswith("data:") for address in page.loads)
    assert "default-src 'none'" in source
    styled = re.findall(r"url\(|@import|\bfetch\(|XMLHttpRequest|import\(", source)
    assert styled == []
    assert str(tmp_path) not in re.sub(r"data:[^\"]+", "", source)


def test_captions_and_names_are_shown_as_text(make: ModuleType, corpus: list, tmp_path: Path) -> None:
    evil = "<script>alert('red')</script> & \"bird\""
    lines = [{**line, "caption": evil, "class_name": "<b>x</b>"} for line in corpus]
    folder = make.write_run(
        tmp_path / "gan-1", lines, "</script><img src=x onerror=alert(1)>", steps=100, size_px=16
    )
    source, page = _read(write_report([folder], tmp_path / "report", title="<i>t</i>"))
    assert page.tags.count("script") == 2 and "i" not in page.tags and "b" not in page.tags
    assert evil in page.text and "<i>t</i>" in page.text
    assert all(address.startswith("data:") for address in page.loads)
    assert "<script>alert" not in source


def test_runs_of_different_corpora_are_in_sections_of_their_own(
    make: ModuleType, runs: list[Path], corpus: list, tmp_path: Path
) -> None:
    other = make.write_run(tmp_path / "gan-3", corpus, "cub_stackgan", steps=100, size_px=16, corpus="cub200")
    source, page = _read(write_report([*runs, other], tmp_path / "report"))
    birds, cub = source.split('<section id="corpus-cub200"')
    assert "cub_stackgan" not in birds.split("<main")[1].replace("<wbr>", "")
    assert "Published numbers on CUB-200" in page.text and "9.76" in cub and "9.76" not in birds
    assert "not comparable" in page.text


def test_published_numbers_of_other_corpora_are_folded_away(runs: list[Path], tmp_path: Path) -> None:
    source, page = _read(write_report(runs, tmp_path / "report"))
    folded = source.split("Published numbers on other corpora")[1]
    assert "9.76" in folded and "43.46" in folded and "Published numbers on CUB-200" not in page.text


def test_bare_run_is_reported_and_its_gaps_named(tmp_path: Path) -> None:
    (tmp_path / "gan-0").mkdir()
    (tmp_path / "gan-0" / "run.json").write_text(
        '{"stage": "gan", "corpus": "spoken_birds", "status": "failed"}'
    )
    _, page = _read(write_report([tmp_path / "gan-0"], tmp_path / "report"))
    for words in ("no metrics.json", "no sample grids", "no journal", "no generated pictures", "“failed”"):
        assert words in page.text


def test_damaged_pictures_and_recordings_are_named_in_their_place(runs: list[Path], tmp_path: Path) -> None:
    line = json.loads((runs[1] / "generated" / "test" / "manifest.jsonl").read_text().splitlines()[0])
    (runs[1] / "generated" / "test" / line["file"]).write_bytes(b"no picture")
    Path(line["wave"]).unlink()
    Path(line["image_file"]).unlink()
    next((runs[1] / "samples").glob("*.png")).write_bytes(b"")
    _, page = _read(write_report(runs, tmp_path / "report"))
    assert f"{line['file']} cannot be read" in page.text
    assert "its wav file is not there" in page.text and "no real picture" in page.text
    assert page.tags.count("audio") == 7


def test_a_second_report_replaces_the_first_whole(runs: list[Path], tmp_path: Path) -> None:
    first = write_report(runs, tmp_path / "report", title="First").read_text()
    second = write_report(runs[:1], tmp_path / "report", title="Second").read_text()
    assert (
        "First" in first
        and "First" not in second
        and "Second" in (tmp_path / "report" / "table.md").read_text()
    )


def test_a_place_that_cannot_be_written_is_one_error_and_leaves_nothing(
    runs: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DataError, match="taken"):
        write_report(runs[:1], tmp_path / "taken")
    (tmp_path / "out" / "index.html").mkdir(parents=True)
    with pytest.raises(DataError, match="cannot be written"):
        write_report(runs[:1], tmp_path / "out")
    assert not [child for child in (tmp_path / "out").iterdir() if child.name.startswith(".")]
    assert (tmp_path / "taken").read_text() == "a file"


def test_four_runs_of_sixteen_utterances_stay_below_8_mb(make: ModuleType, tmp_path: Path) -> None:
    lines = make.write_corpus(tmp_path / "corpus", 16, size_px=128)
    folders = [
        make.write_run(
            tmp_path / f"gan-{seed}", lines, f"run{seed}", seed=seed, level=0.5, size_px=128, steps=500
        )
        for seed in range(4)
    ]
    page = write_report(folders, tmp_path / "report")
    assert page.stat().st_size < 8_000_000
    with Image.open(folders[0] / "generated" / "test" / "00000_0.png") as image:
        assert image.size == (128, 128)


def test_report_needs_no_torch(runs: list[Path], tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from speech2image.report import write_report;"
        "write_report([Path(name) for name in sys.argv[2:]], Path(sys.argv[1]));"
        "print(sorted({'torch', 'pytorch_lightning', 'hydra', 'wandb'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "report"), *map(str, runs)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"
