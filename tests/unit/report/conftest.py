"""Run folders to report on, written once a test."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def load_run_folders() -> ModuleType:
    """Import `run_folders.py` beside this file, whatever the import mode of pytest."""
    name = "report_run_folders"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("run_folders.py"))
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def make() -> ModuleType:
    """The module that writes run folders."""
    return load_run_folders()


@pytest.fixture
def corpus(make: ModuleType, tmp_path: Path) -> list[dict[str, object]]:
    """Eight spoken and drawn test utterances; the shared part of manifest lines."""
    return make.write_corpus(tmp_path / "corpus", 8, size_px=32)


@pytest.fixture
def runs(make: ModuleType, corpus: list[dict[str, object]], tmp_path: Path) -> list[Path]:
    """One encoder and two generators of the same corpus."""
    return [
        make.write_run(tmp_path / "enc-0a1b2c3d", corpus, "birds_encoder", stage="encoder", steps=200),
        make.write_run(tmp_path / "gan-11111111", corpus, "birds_stackgan", seed=1, steps=200, size_px=32),
        make.write_run(
            tmp_path / "gan-22222222", corpus, "birds_stackgan", seed=2, steps=200, level=0.7, size_px=32
        ),
    ]
