"""Who may import whom: the layers of the house, read from the syntax trees."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "speech2image"
#: Rooms from left to right; rooms of one step may not import each other.
STEPS: tuple[tuple[str, ...], ...] = (
    ("__init__", "types", "errors"),
    ("safe",),
    ("audio", "images", "config", "weight_files"),
    ("text",),  # left of speech: the cascaded SpeechCLIP speaks through CLIP's text transformer
    ("losses", "speech", "vision", "codecs", "gan", "diffusion"),
    ("data", "metrics"),
    ("hub",),
    ("training",),
    ("report",),
    ("app",),
    ("__main__",),
)
ROOM_STEP = {room: step for step, rooms in enumerate(STEPS) for room in rooms}
#: Package: the only places that may import it.
ONLY_IN = {
    "pytorch_lightning": ("training/",),
    "hydra": ("config/", "app/"),
    "omegaconf": ("config/", "app/"),
    "wandb": ("training/loggers.py", "training/dashboards.py", "app/report.py"),
    "wandb_workspaces": ("training/dashboards.py",),
}
FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> list[tuple[str, bool]]:
    """Every imported module and whether it is imported when the file is."""
    found = []
    tree = ast.parse(path.read_text())
    lazy = {id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)}  # fmt: skip
    typing_only = {id(node) for branch in ast.walk(tree) if isinstance(branch, ast.If)
                   and "TYPE_CHECKING" in ast.unparse(branch.test) for node in ast.walk(branch)}  # fmt: skip
    for node in ast.walk(tree):
        at_import = id(node) not in lazy and id(node) not in typing_only
        if isinstance(node, ast.Import):
            found += [(name.name, at_import) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports are not used here"
            found.append((node.module or "", at_import))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_module_imports_only_what_stands_left_of_it(path: Path) -> None:
    room = room_of(path)
    assert room in ROOM_STEP, f"{room} has no place in the plan of the house"
    for module, _ in imports_of(path):
        if module.split(".")[0] != "speech2image" or module == "speech2image":
            continue
        other = module.split(".")[1]
        left = ROOM_STEP[other] < ROOM_STEP[room] or other == room
        assert left, f"{path.relative_to(SOURCE)} imports {module}, which does not stand left of it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_heavy_packages_are_imported_only_where_they_belong(path: Path) -> None:
    place = str(path.relative_to(SOURCE))
    for module, _ in imports_of(path):
        allowed = ONLY_IN.get(module.split(".")[0])
        assert allowed is None or place.startswith(allowed), f"{place} imports {module}"


@pytest.mark.parametrize("room", ["config", "app/cli.py", "app/help.py", "report", "types.py", "errors.py"])
def test_light_modules_import_no_torch(room: str) -> None:
    place = SOURCE / room
    for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
        for module, at_import in imports_of(path):
            assert not (at_import and module.split(".")[0] in ("torch", "pytorch_lightning", "torchaudio")), (
                path
            )


def test_package_and_command_line_start_without_torch() -> None:
    code = (
        "import sys, speech2image, speech2image.app.cli as cli; cli.main(['--help']);"
        "cli.main(['train', '--cfg', 'job']); assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_no_file_is_longer_than_the_house_allows() -> None:
    long = {
        str(path.relative_to(SOURCE)): count
        for path in FILES
        if (count := len(path.read_text().splitlines())) > 400
    }
    assert not long
