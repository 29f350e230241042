"""Keeps numbers apart that carry one protocol's name but not one protocol.

A protocol may be changed on the command line (`evaluate protocol.legacy=false`) and its feature
network may be trained again.  Such numbers get names that differ, so that no table lays them in one column.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from speech2image.report.measures import Metric, Sampling

#: Fields that only describe a protocol.
_WORDS = ("name", "title", "note", "metrics", "comparable")
Measured = tuple[tuple[Metric, ...], tuple[Sampling, ...], Mapping[str, Mapping[str, Any]]]


def told_apart(measured: Sequence[Measured]) -> list[tuple[tuple[Metric, ...], tuple[Sampling, ...]]]:
    """Return the metrics and samplings of each run, protocols renamed where their contents differ.

    Args:    measured: for each run its metrics, samplings and metrics files.
    """
    contents = [{name: _protocol(content) for name, content in files.items()} for _, _, files in measured]
    differing = _differing([one for files in contents for one in files.values()])
    networks: dict[tuple[str, ...], set[str]] = {}
    for metrics, _, _ in measured:
        for metric in metrics:
            networks.setdefault(metric.identity, set()).add(metric.network)

    def renamed(metric: Metric, files: Mapping[str, Mapping[str, Any]]) -> Metric:
        content = files.get(metric.file, {})
        said = [
            f"{key} {_text(content[key])}"
            for key in differing.get(metric.protocol, ())
            if key in content and content.get("name") == metric.protocol
        ]
        if len(networks.get(metric.identity, set()) - {""}) > 1 and metric.network:
            said.append(f"network {metric.network[:6]}")
        return replace(metric, protocol=f"{metric.protocol} ({', '.join(said)})") if said else metric

    result = []
    for (metrics, samplings, _), files in zip(measured, contents, strict=True):
        own = tuple(renamed(metric, files) for metric in metrics)
        tried = tuple(
            replace(one, metrics=tuple(renamed(m, files) for m in one.metrics)) for one in samplings
        )
        result.append((own, tried))
    return result


def _protocol(content: Mapping[str, Any]) -> Mapping[str, Any]:
    details = content.get("details")
    protocol = details.get("protocol") if isinstance(details, Mapping) else None
    return protocol if isinstance(protocol, Mapping) else {}


def _differing(protocols: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return for each protocol name the fields that have several values."""
    values: dict[str, dict[str, set[str]]] = {}
    for protocol in protocols:
        fields = values.setdefault(str(protocol.get("name")), {})
        for key, value in protocol.items():
            if key not in _WORDS:
                fields.setdefault(key, set()).add(json.dumps(value, sort_keys=True, default=str))
    return {name: [key for key, found in fields.items() if len(found) > 1] for name, fields in values.items()}


def _text(value: Any) -> str:
    return (
        json.dumps(value, ensure_ascii=False).strip('"')
        if not isinstance(value, list)
        else ", ".join(map(str, value))
    )
