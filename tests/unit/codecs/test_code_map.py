"""Reduced code books: a table like the published one, damage, and usage numbers."""

from __future__ import annotations

import pytest
import torch

from speech2image.codecs.code_map import CodeMap, code_usage, count_codes
from speech2image.errors import CheckpointError


def published_like(num_codes: int, used: list[int]) -> torch.Tensor:
    """Used codes get rising numbers, all others 0, as in `taming_vqvae_974.pt`."""
    table = torch.zeros(num_codes, dtype=torch.int64)
    table[torch.tensor(used)] = torch.arange(len(used))
    return table


def test_reduced_numbers_stand_for_the_first_code_that_has_them() -> None:
    code_map = CodeMap.from_lookup(published_like(16, [3, 7, 9, 12]))
    assert (code_map.num_codes, code_map.num_reduced) == (16, 4)
    assert code_map.reduced_to_full.tolist() == [0, 7, 9, 12], "number 0 is shared by all codes not listed"
    tokens = torch.tensor([[3, 7, 5], [12, 9, 0]])
    assert code_map.reduce(tokens).tolist() == [[0, 1, 0], [3, 2, 0]]
    assert torch.equal(code_map.reduce(code_map.expand(torch.arange(4))), torch.arange(4))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_state_is_enough_to_build_the_map_again(dtype: torch.dtype) -> None:
    code_map = CodeMap.from_lookup(published_like(16, [3, 7, 9, 12]).to(dtype))
    copy = CodeMap(16, 4)
    copy.check()
    copy.load_state_dict(code_map.state_dict())
    assert torch.equal(copy.expand(torch.arange(4)), code_map.expand(torch.arange(4)))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (torch.tensor([0, 1, 3]), r"1 of 4 reduced codes do not come back, first 2"),
        (torch.tensor([0.0, 1.0]), "whole numbers"),
        (torch.tensor([[0, 1]]), r"found \(1, 2\)"),
        (torch.tensor([0, -1]), "from 0"),
    ],
)
def test_tables_that_are_no_map_are_refused(table: torch.Tensor, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        CodeMap.from_lookup(table)


def test_a_map_changed_after_the_fact_is_noticed() -> None:
    code_map = CodeMap.from_lookup(published_like(8, [0, 2, 5]))
    code_map.reduced_to_full[2] = 4
    with pytest.raises(CheckpointError, match="first 2"):
        code_map.check()


def test_usage_counts_codes_and_their_perplexity() -> None:
    counts = count_codes(torch.tensor([[0, 0, 3], [3, 3, 0]]), 5)
    assert counts.tolist() == [3, 0, 0, 3, 0]
    usage = code_usage(counts + count_codes(torch.tensor([1, 1, 1, 2, 2, 2]), 5))
    assert (usage.used, usage.size, usage.perplexity) == (4, 5, pytest.approx(4.0))
    assert code_usage(torch.zeros(4)).used == 0
