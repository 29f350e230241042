"""Retrieval measures of encoders and of generated images, with intervals and chance levels.

Ranking scores come from torchmetrics; chance levels are closed forms.  Li et al.'s class-centre
accuracy and S2IGAN's one-query-per-class mAP are here too.  Features are made by the caller.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics.retrieval import RetrievalHitRate, RetrievalMAP

from speech2image.errors import ProtocolError
from speech2image.metrics.bootstrap import interval
from speech2image.metrics.protocol import Metric, Protocol, measured
from speech2image.metrics.ranking import Matrix, precisions_at, ranked, ranked_hits

_BLOCK_SCORES = 4_000_000


def chance_recall(num_relevant: npt.ArrayLike, gallery: int, k: int) -> float:
    """Return the mean probability that k random gallery items hold a relevant one.

    Args:
        num_relevant: `(Q,)` relevant gallery items of each query.
        gallery: size of the gallery.
        k: how many are looked at.

    Source:  hypergeometric, 1 - C(G-r, k) / C(G, k).

    >>> round(100 * chance_recall([5], 4970, 50), 2)
    4.93
    """
    relevant = np.asarray(num_relevant, dtype=np.float64)
    k = min(k, gallery)
    draws = np.arange(k)
    misses = (gallery - relevant[:, None] - draws).clip(min=0) / (gallery - draws)
    return float((1 - misses.prod(axis=1)).mean())


def chance_average_precision(num_relevant: npt.ArrayLike, gallery: int) -> float:
    """Return the mean average precision of a random order of the gallery.

    Source:  Bestgen 2015, "Exact expected average precision of the random baseline", eq. 4.
    """
    relevant = np.asarray(num_relevant, dtype=np.float64)
    harmonic = float((1 / np.arange(1, gallery + 1)).sum())
    if gallery == 1:
        return float((relevant > 0).mean())
    expected = ((relevant - 1) / (gallery - 1) * (gallery - harmonic) + harmonic) / gallery
    return float(np.where(relevant > 0, expected, 0.0).mean())


def recall_at_k(
    queries: Matrix,
    gallery: Matrix,
    query_ids: npt.ArrayLike,
    gallery_ids: npt.ArrayLike,
    *,
    protocol: Protocol | None,
    ks: Sequence[int] = (1, 5, 10, 50),
    groups: npt.ArrayLike | None = None,
    seed: int = 0,
) -> dict[str, Metric]:
    """Measure how often one of the k nearest gallery items has the id of the query.

    Args:
        queries: `(Q, D)` features, e.g. of utterances.
        gallery: `(G, D)` features, e.g. of images; compared by cosine.
        query_ids: `(Q,)` class or item of each query.
        gallery_ids: `(G,)` class or item of each gallery row; equal means relevant.
        protocol: protocol of the numbers.
        ks: list lengths; those longer than the gallery are left out.
        groups: `(Q,)` what to resample together; None: `query_ids`.
        seed: seed of the bootstrap.

    Returns: `recall@k` to its metric.  A query without a relevant item in the gallery is a miss.

    Raises:  ProtocolError: empty or mismatched sides, or no query with a relevant item.
    Source:  hit rate of torchmetrics; S2IGAN `Recall_evaluate.py`.
    Cost:    Q times G similarities, in blocks.
    """
    query_labels, gallery_labels = _check(queries, gallery, query_ids, gallery_ids)
    usable = [k for k in ks if k <= len(gallery_labels)]
    depth = max(usable)
    hits_in_order = torch.from_numpy(ranked_hits(queries, gallery, query_labels, gallery_labels, depth))
    relevant = (query_labels[:, None] == np.unique(gallery_labels)[None]).astype(np.int64)
    relevant = relevant @ np.unique(gallery_labels, return_counts=True)[1]
    result = {}
    for k in usable:
        measure = RetrievalHitRate(top_k=k, empty_target_action="neg", aggregation=_each_query)
        hits = _each_value(measure, hits_in_order)
        spread = interval(hits, seed=seed, groups=query_labels if groups is None else groups)
        result[f"recall@{k}"] = measured(
            protocol,
            f"recall@{k}",
            spread,
            count=len(hits),
            unit="fraction",
            chance=chance_recall(relevant, len(gallery_labels), k),
            gallery=len(gallery_labels),
            queries_without_answer=int((relevant == 0).sum()),
        )
    return result


def mean_average_precision(
    queries: Matrix,
    gallery: Matrix,
    query_ids: npt.ArrayLike,
    gallery_ids: npt.ArrayLike,
    *,
    protocol: Protocol | None,
    groups: npt.ArrayLike | None = None,
    seed: int = 0,
) -> dict[str, Metric]:
    """Measure the mean average precision over queries; arguments as in `recall_at_k`.

    Source:  torchmetrics; S2IGAN `mAP_evaluate.py` (every gallery item of the class is relevant).
    """
    query_labels, gallery_labels = _check(queries, gallery, query_ids, gallery_ids)
    hits_in_order = torch.from_numpy(ranked_hits(queries, gallery, query_labels, gallery_labels))
    values = _each_value(RetrievalMAP(empty_target_action="neg", aggregation=_each_query), hits_in_order)
    relevant = (query_labels[:, None] == gallery_labels[None]).sum(axis=1)
    spread = interval(values, seed=seed, groups=query_labels if groups is None else groups)
    record = measured(
        protocol,
        "map",
        spread,
        count=len(values),
        unit="fraction",
        chance=chance_average_precision(relevant, len(gallery_labels)),
        gallery=len(gallery_labels),
        queries_without_answer=int((relevant == 0).sum()),
    )
    return {"map": record}


def shuffled_recall(
    queries: Matrix,
    gallery: Matrix,
    query_ids: npt.ArrayLike,
    gallery_ids: npt.ArrayLike,
    *,
    protocol: Protocol | None,
    ks: Sequence[int] = (1, 5, 10, 50),
    seed: int = 0,
) -> dict[str, Metric]:
    """Measure recall at the largest useful k with the ids of the queries shuffled: the control, at chance.

    Returns: `recall/shuffled@k`; arguments as in `recall_at_k`.  A list that one id can fill (a digit with 35
        images among the first 10) says the same as its first entry: k is 1 then.  Chance is that of shuffled
        ids in this very gallery: below the one of random galleries where neighbours share an id.
    """
    labels = np.random.default_rng(seed).permutation(np.asarray(query_ids))
    items_of_an_id = len(gallery) / len(np.unique(np.asarray(gallery_ids)))
    depth = max((k for k in ks if items_of_an_id < k <= len(gallery)), default=1)
    found = recall_at_k(queries, gallery, labels, gallery_ids, protocol=protocol, ks=(depth,), seed=seed)
    note = "control: queries of other items; should be at chance"
    near = np.sort(np.asarray(gallery_ids)[ranked(queries, gallery, depth)], axis=1)
    is_first = np.column_stack([np.ones(len(near), dtype=bool), near[:, 1:] != near[:, :-1]])
    names, counts = np.unique(labels, return_counts=True)
    share = np.where(np.isin(near, names), counts[np.searchsorted(names, near).clip(max=len(names) - 1)], 0)
    chance = float((share * is_first).sum(axis=1).mean() / len(labels))
    return {
        name: dataclasses.replace(metric, chance=chance)
        for name, metric in renamed(found, "shuffled", note).items()
    }


def renamed(metrics: dict[str, Metric], what: str, note: str = "") -> dict[str, Metric]:
    """Return metrics under names with `/<what>` behind the family: `recall@5` is `recall/<what>@5` then."""
    result = {}
    for metric in metrics.values():
        family, mark, depth = metric.name.partition("@")
        name = f"{family.split('/')[0]}/{what}{mark}{depth}"
        result[name] = dataclasses.replace(metric, name=name, note=note or metric.note)
    return result


def precision_at_k(
    queries: Matrix,
    gallery: Matrix,
    query_ids: npt.ArrayLike,
    gallery_ids: npt.ArrayLike,
    *,
    protocol: Protocol | None,
    ks: Sequence[int] = (1, 5, 10),
    seed: int = 0,
) -> dict[str, Metric]:
    """Measure the share of relevant items among the k nearest; arguments as in `recall_at_k`.

    Returns: `ap@k` to its metric.
    Source:  S2IGAN `mAP_evaluate.py`, which prints it as R@k.
    """
    query_labels, gallery_labels = _check(queries, gallery, query_ids, gallery_ids)
    usable = [k for k in ks if k <= len(gallery_labels)]
    hits = ranked_hits(queries, gallery, query_labels, gallery_labels, max(usable))
    share = (query_labels[:, None] == gallery_labels[None]).mean()
    result = {}
    for k in usable:
        spread = interval(precisions_at(hits, k), seed=seed, groups=query_labels)
        result[f"ap@{k}"] = measured(
            protocol,
            f"ap@{k}",
            spread,
            count=len(hits),
            unit="fraction",
            chance=float(share),
            gallery=len(gallery_labels),
        )
    return result


def sen_mean_average_precision(
    images: Matrix, speech: Matrix, class_ids: npt.ArrayLike, *, protocol: Protocol | None, seed: int = 0
) -> dict[str, Metric]:
    """Measure S2IGAN's speech-to-image mAP: one utterance a class against all images.

    Args:
        images: `(N, D)` image embeddings.
        speech: `(N, D)` speech embeddings; the first row of each class is its query.
        class_ids: `(N,)` classes of both.
        protocol: protocol of the number.
        seed: seed of the bootstrap.

    Source:  S2IGAN `steps/pre_util.py: calc_mAP`.  Differs: the query is the first in the given
        order, the reference takes the first after an unstable sort by class.
    """
    labels = np.asarray(class_ids)
    first = np.unique(labels, return_index=True)[1]
    rows = torch.as_tensor(speech)[torch.from_numpy(first)]
    return mean_average_precision(rows, images, labels[first], labels, protocol=protocol, seed=seed)


def class_accuracy(
    speech: Matrix,
    images: Matrix,
    class_ids: npt.ArrayLike,
    *,
    protocol: Protocol | None,
    top_k: int = 50,
    seed: int = 0,
) -> dict[str, Metric]:
    """Measure Li et al.'s class-centre accuracy and the precision of the top images of a class.

    Args:
        speech: `(N, D)` speech features; their mean per class is the class centre.
        images: `(N, D)` image features, compared with the centres by raw dot products.
        class_ids: `(N,)` classes of both.
        protocol: protocol of the numbers.
        top_k: images looked at for each class (50 in the paper; less where there are fewer).
        seed: seed of the bootstrap.

    Returns: `class_accuracy` (share of images nearest to the centre of their class) and `ap@k`
        (share of right images among the top k of each class).
    Source:  Li et al. 2020; reference `train_audio_encoder.py: EvalClass.eval_class`.
    """
    labels, _ = _check(speech, images, class_ids, class_ids)
    spoken, seen = (torch.as_tensor(x).detach().cpu().double() for x in (speech, images))
    names, dense = np.unique(labels, return_inverse=True)
    centres = torch.stack([spoken[torch.from_numpy(dense == i)].mean(dim=0) for i in range(len(names))])
    scores = centres @ seen.T
    right = scores.argmax(dim=0).numpy() == dense
    depth = min(top_k, len(labels))
    top = torch.topk(scores, depth, dim=1).indices.numpy()
    precision = (dense[top] == np.arange(len(names))[:, None]).mean(axis=1)
    accuracy_spread = interval(right, seed=seed, groups=dense)
    precision_spread = interval(precision, seed=seed)
    shares = np.bincount(dense) / len(dense)
    result = {}
    for name, spread, chance in (
        ("class_accuracy", accuracy_spread, 1 / len(names)),
        (f"ap@{top_k}", precision_spread, float(shares.mean())),
    ):
        result[name] = measured(
            protocol,
            name,
            spread,
            count=spread.count,
            unit="fraction",
            chance=chance,
            num_classes=len(names),
            images=len(labels),
        )
    return result


def _each_query(values: Tensor, dim: int | None = None) -> Tensor:
    return values


def _check(
    queries: Matrix, gallery: Matrix, query_ids: npt.ArrayLike, gallery_ids: npt.ArrayLike
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    query_labels, gallery_labels = np.asarray(query_ids), np.asarray(gallery_ids)
    sizes = (len(queries), len(query_labels), len(gallery), len(gallery_labels))
    if sizes[0] != sizes[1] or sizes[2] != sizes[3] or min(sizes) < 1:
        raise ProtocolError(
            f"retrieval got {sizes[0]} queries with {sizes[1]} ids and {sizes[2]} gallery items with"
            f" {sizes[3]} ids; each row needs one id and no side may be empty",
            "Check that embeddings and manifest come from the same split.",
        )
    if queries.shape[1] != gallery.shape[1]:
        raise ProtocolError(
            f"queries have {queries.shape[1]} dimensions, the gallery {gallery.shape[1]}",
            "Compare embeddings of one run.",
        )
    if not np.isin(query_labels, gallery_labels).any():
        raise ProtocolError(
            "no query has a relevant item in the gallery",
            "Check that queries and gallery use the same ids (class numbers or image keys).",
        )
    return query_labels, gallery_labels


def _each_value(measure: RetrievalHitRate | RetrievalMAP, hits: Tensor) -> npt.NDArray[np.float64]:
    """Return a torchmetrics measure of each query, `(Q,)`.

    It is given ranks as scores, because torchmetrics takes any item whose score is not positive
    for irrelevant, which is wrong for cosines (mAP 0.5045 instead of 0.4923 on the test oracle).
    """
    num_queries, depth = hits.shape
    step = max(1, _BLOCK_SCORES // depth)
    ranks = torch.arange(depth, 0, -1, dtype=torch.float64)
    values = []
    for start in range(0, num_queries, step):
        block = hits[start : start + step]
        index = torch.arange(len(block)).repeat_interleave(depth)
        measure.update(ranks.repeat(len(block)), block.reshape(-1), indexes=index)
        values.append(measure.compute().double().numpy())
        measure.reset()
    return np.concatenate(values)
