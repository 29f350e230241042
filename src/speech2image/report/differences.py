"""Which differences between the methods of a table are more than chance, said in words.

Seeds of two methods are compared by Welch's t test; single runs are paired on the utterances they
share, through `items.jsonl`.  All pairs of one metric share Holm's correction.  The statistics
themselves are in `significance.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from speech2image.report.groups import Group
from speech2image.report.items import Item
from speech2image.report.measures import Metric
from speech2image.report.significance import Difference, holm, paired, welch
from speech2image.report.tables import columns, headlines, number

MAX_ALL_PAIRS = 7
"""Up to so many methods every pair is tested; beyond, the best one against each other one."""
MIN_CLASSES = 20
"""Items of a class go together where there are at least so many classes; fewer are no sample of classes."""
LEVEL = 0.05
_NUM_METRICS = 4


@dataclass(frozen=True)
class Pair:
    """One tested pair, the better one first; `p` is corrected."""

    first: str
    second: str
    difference: Difference
    p: float
    sentence: str


@dataclass(frozen=True)
class Comparison:
    """All tested pairs of one metric; `about` says how they were tested."""

    metric: str
    protocol: str
    about: str
    pairs: tuple[Pair, ...]

    @property
    def sentences(self) -> list[str]:
        """Every pair in words."""
        return [pair.sentence for pair in self.pairs]


@dataclass(frozen=True)
class _Test:
    """One test before its correction; `basis` says in words on what it was made."""

    better: Group
    other: Group
    difference: Difference
    basis: str
    is_paired: bool


def compared(groups: Sequence[Group]) -> list[Comparison]:
    """Test the headline metrics of a table pair by pair, where seeds or items allow it.

    Args:    groups: rows of one table: one corpus, one kind of model.
    """
    made = []
    for column in headlines(columns(groups), _NUM_METRICS):
        key = (column.name, column.protocol, column.split)
        rows = [(group, metric) for group in groups for metric in group.metrics
                if (metric.name, metric.protocol, metric.split) == key and metric.value is not None]  # fmt: skip
        rows.sort(key=lambda row: -_signed(row[1]))
        tests = [test for pair in _pairs(rows) if (test := _tested(*pair)) is not None]
        if tests:
            made.append(_comparison(column.title + " " + column.arrow, rows[0][1], tests, len(rows)))
    return made


def _signed(metric: Metric) -> float:
    return (metric.value or 0.0) * (1.0 if metric.higher_is_better else -1.0)


def _pairs(rows: Sequence[tuple[Group, Metric]]) -> list[tuple[tuple[Group, Metric], tuple[Group, Metric]]]:
    if len(rows) > MAX_ALL_PAIRS:
        return [(rows[0], other) for other in rows[1:]]
    return list(combinations(rows, 2))


def _tested(first: tuple[Group, Metric], second: tuple[Group, Metric]) -> _Test | None:
    (better, one), (other, two) = first, second
    if one.num_seeds > 1 and two.num_seeds > 1:
        a, b = better.values(one.identity), other.values(two.identity)
        difference = welch(a, b)
        return _Test(better, other, difference, f"{len(a)} and {len(b)} seeds", is_paired=False)
    scores = _scores_of(one.name)
    tables = [_item_table(*row, scores) for row in (first, second)] if scores else []
    if not tables or any(table is None for table in tables):
        return None
    left, right = (table for table in tables if table is not None)
    shared = sorted(set(left) & set(right))
    if len(shared) < 2:
        return None
    names = sorted({name for key in shared for name in (*left[key].scores, *right[key].scores)})
    gains, weights = np.zeros((len(shared), len(names))), np.zeros((len(shared), len(names)))
    for row, key in enumerate(shared):
        for place, name in enumerate(names):
            if name in left[key].scores and name in right[key].scores:
                gains[row, place] = left[key].scores[name] - right[key].scores[name]
                weights[row, place] = 1.0
    used = weights.sum(axis=0) > 0
    if not used.any():
        return None
    classes = [left[key].class_id for key in shared]
    groups = classes if len(set(classes)) >= MIN_CLASSES else None
    difference = paired(gains[:, used], weights[:, used], groups)
    of = f" of {difference.units:,} classes" if groups else ""
    return _Test(better, other, difference, f"{len(shared):,} utterances{of}", is_paired=True)


# ---- items ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Scored:
    """What one utterance scored, each attribute a mean over its images."""

    scores: Mapping[str, float]
    class_id: str


Scores = Callable[[Item], Mapping[str, float]]


def _scores_of(name: str) -> Scores | None:
    """Return how the items say what a metric counts; None for metrics of whole sets of images."""
    if name == "attribute_accuracy/mean":
        return lambda item: {key: float(hit) for key, hit in item.hits.items()}
    retrieval = re.fullmatch(r"recall@(\d+)", name)
    if retrieval is None:
        return None
    most = int(retrieval.group(1))
    return lambda item: {} if item.rank is None else {"found": float(item.rank <= most)}


def _item_table(group: Group, metric: Metric, scores: Scores | None) -> dict[str, _Scored] | None:
    """Return the scores of each utterance, means over samples and seeds; None where items do not tell."""
    if scores is None:
        return None
    found: dict[str, dict[str, list[float]]] = {}
    classes: dict[str, str] = {}
    for run in group.runs:
        own = next((one for one in run.metrics if one.identity == metric.identity), None)
        items = run.items.get(own.file, ()) if own is not None else ()
        if own is not None and not _reproduces(items, scores, own):
            return None
        for item in items:
            classes[item.utterance] = item.class_id
            for name, score in scores(item).items():
                found.setdefault(item.utterance, {}).setdefault(name, []).append(score)
    return {
        key: _Scored({name: float(np.mean(some)) for name, some in own.items()}, classes[key])
        for key, own in found.items()
    }


def _reproduces(items: Sequence[Item], scores: Scores, metric: Metric) -> bool:
    """Return whether the items are those of the metric: their mean must be its value."""
    found: dict[str, list[float]] = {}
    for item in items:
        for name, score in scores(item).items():
            found.setdefault(name, []).append(score)
    if not found or metric.value is None:
        return False
    return abs(float(np.mean([np.mean(some) for some in found.values()])) - metric.value) < 2e-3


# ---- words ------------------------------------------------------------------------------------
def _comparison(title: str, metric: Metric, tests: Sequence[_Test], num_rows: int) -> Comparison:
    corrected = holm([test.difference.p for test in tests])
    pairs = [_pair(test, p, metric, len(tests)) for test, p in zip(tests, corrected, strict=True)]
    ways = []
    if any(test.is_paired for test in tests):
        ways.append(
            "Runs are paired on the utterances they share (sign-flip permutation test, bootstrap interval): "
            "this speaks of these trained models on other utterances, not of other seeds."
        )
    if any(not test.is_paired for test in tests):
        ways.append("Methods with several seeds are compared by Welch's t test on the seeds.")
    if num_rows > MAX_ALL_PAIRS:
        ways.append("Only the best one is tested against each other one.")
    untested = (num_rows - 1 if num_rows > MAX_ALL_PAIRS else num_rows * (num_rows - 1) // 2) - len(tests)
    if untested:
        pairs_word = "pair" if untested == 1 else "pairs"
        ways.append(f"{untested} {pairs_word} without common items or seeds: not tested.")
    return Comparison(title.strip(), f"{metric.protocol}, {metric.split}", " ".join(ways), tuple(pairs))


def _pair(test: _Test, p: float, metric: Metric, num_pairs: int) -> Pair:
    difference, first, second = test.difference, test.better.label, test.other.label
    sign = 1.0 if metric.higher_is_better else -1.0
    value = sign * difference.value
    low, high = sorted((sign * difference.low, sign * difference.high))
    size = f"{_size(value, metric)} [{_bare(low, metric)}, {_bare(high, metric)}]"
    many = f" (Holm, {num_pairs} pairs)" if num_pairs > 1 else ""
    chance = f"p {'< 0.001' if p < 0.001 else f'= {p:.2g}' if p < 0.995 else '= 1'}{many}, {test.basis}"
    where = "above" if metric.higher_is_better else "below"
    if p < LEVEL:
        sentence = f"{first} {where} {second} by {size}, {chance}."
    else:
        sentence = f"No difference shown between {first} and {second}: {size}, {chance}."
    return Pair(first, second, difference, p, sentence)


def _size(value: float, metric: Metric) -> str:
    return f"{_bare(value, metric)} points" if metric.unit == "fraction" else _bare(value, metric)


def _bare(value: float, metric: Metric) -> str:
    return f"{100.0 * value:.1f}" if metric.unit == "fraction" else number(value)
