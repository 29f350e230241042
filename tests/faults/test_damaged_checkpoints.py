"""Damaged, renamed and exchanged checkpoints are found, the previous one is used, and one message says all of it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from speech2image.training.checkpoint import load_newest, save_checkpoint

RUN = "toy-12345678"


def state(step: int) -> dict[str, Any]:
    chance = torch.Generator().manual_seed(step)
    weights = {f"layer_{n}.weight": torch.randn(8, 16, generator=chance) for n in range(6)}
    return {"train_step": step, "images_seen": 4 * step, "module": weights, "optimizers": [{"state": {0: weights}}],
            "journal_bytes": 100 * step}  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `own`, with the checkpoints of steps 3 and 6, and `foreign`, the same steps of another run."""
    root = tmp_path_factory.mktemp("saved")
    for step in (3, 6):
        save_checkpoint(root / "own", step, state(step), 2, RUN)
        save_checkpoint(root / "foreign", step, state(step), 2, "toy-87654321")
    return root


def truncated(path: Path, chance: random.Random, saved: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(1, len(content))])


def empty(path: Path, chance: random.Random, saved: Path) -> None:
    path.write_bytes(b"")


def one_bit_flipped(path: Path, chance: random.Random, saved: Path) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def one_bit_flipped_at_the_end(path: Path, chance: random.Random, saved: Path) -> None:
    """Within description and foot: run, step, layout, lengths and the hash itself."""
    content = bytearray(path.read_bytes())
    content[len(content) - chance.randrange(1, 100)] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def block_of_zeros(path: Path, chance: random.Random, saved: Path) -> None:
    content = bytearray(path.read_bytes())
    start = chance.randrange(len(content) - 512)
    content[start : start + 512] = bytes(512)
    path.write_bytes(content)


def bytes_appended(path: Path, chance: random.Random, saved: Path) -> None:
    path.write_bytes(path.read_bytes() + chance.randbytes(chance.randrange(1, 200)))


def older_one_renamed(path: Path, chance: random.Random, saved: Path) -> None:
    shutil.copy(saved / "own" / "step_00000003.ckpt", path)


def renamed_to_a_later_step(path: Path, chance: random.Random, saved: Path) -> None:
    path.rename(path.with_name(f"step_{chance.randrange(7, 10**8):08d}.ckpt"))


def of_another_run(path: Path, chance: random.Random, saved: Path) -> None:
    shutil.copy(saved / "foreign" / path.name, path)


DAMAGES = (
    truncated, empty, one_bit_flipped, one_bit_flipped_at_the_end, block_of_zeros, bytes_appended, older_one_renamed,
    renamed_to_a_later_step, of_another_run,
)  # fmt: skip


def test_every_damage_is_found_and_the_previous_checkpoint_used(
    saved: Path, rounds: Callable[[int, int], int], tmp_path: Path
) -> None:
    chance, wanted, previous = random.Random(5), rounds(108, 1000), state(3)
    for number in range(wanted):
        folder, damage = tmp_path / str(number), DAMAGES[number % len(DAMAGES)]
        shutil.copytree(saved / "own", folder)
        damage(folder / "step_00000006.ckpt", chance, saved)
        found, message = load_newest(folder, RUN)
        what = f"round {number}, {damage.__name__}: {message}"
        assert found is not None and found["train_step"] == 3, what
        assert all(torch.equal(found["module"][name], value) for name, value in previous["module"].items()), (
            what
        )
        newest = max(folder.glob("*.ckpt")).name
        assert message is not None and "\n" not in message, what
        assert newest in message and message.endswith("step_00000003.ckpt is used instead"), what
        shutil.rmtree(folder)
    print(f"{wanted} of {wanted} damaged checkpoints found, the previous one used")


def test_undamaged_ones_are_used_without_a_word(saved: Path) -> None:
    found, message = load_newest(saved / "own", RUN)
    assert found is not None and found["train_step"] == 6 and message is None


def test_all_damaged_is_one_message_and_a_new_start(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    shutil.copytree(saved / "own", folder)
    for path in folder.glob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:-1])
    found, message = load_newest(folder, RUN)
    assert found is None and message is not None
    assert "2 checkpoints cannot be used" in message and "starts anew" in message
    assert "step_00000003.ckpt" in message and "step_00000006.ckpt" in message


def test_a_run_with_a_damaged_checkpoint_ends_bitwise_the_same(toys: Any) -> None:
    """The whole way: killed, the newest checkpoint broken, continued from the one before."""
    toys.whole("gan")
    assert toys.train("gan", "broken", signals=[9], after_saves=3)["code"] == -9
    newest = max((toys.run("gan", "broken") / "checkpoints").glob("*.ckpt"))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes(content)
    assert toys.train("gan", "broken")["code"] == 0, toys.log()
    assert f"{newest.name} is damaged" in toys.log() and "step_00000003.ckpt is used instead" in toys.log()
    assert toys.differences("gan", "whole", "broken") == []
