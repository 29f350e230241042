"""A number has a protocol, or there is no number."""

from __future__ import annotations

import json

import pytest

from speech2image.errors import ProtocolError
from speech2image.metrics.protocol import HIGHER_IS_BETTER, PROTOCOLS, get_protocol, measured


def test_every_protocol_is_complete_and_plain_data() -> None:
    assert set(PROTOCOLS) == {"spoken_birds", "spoken_digits", "offline", "clean"}
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        for text in (protocol.title, protocol.real_set, protocol.crop, protocol.resize, protocol.note):
            assert text
        assert protocol.split == "test"
        assert set(protocol.metrics) <= set(HIGHER_IS_BETTER)
        assert json.loads(json.dumps(protocol.to_dict()))["seeds"] == list(protocol.seeds)
    assert "never with published" in get_protocol("offline").note


def test_unknown_protocol_suggests_the_nearest() -> None:
    with pytest.raises(ProtocolError, match="protocol=spoken_birds"):
        get_protocol("spoken_bird")


def test_metric_without_protocol_is_refused() -> None:
    with pytest.raises(ProtocolError, match="'fid' was asked for without a protocol"):
        measured(None, "fid", 3.0, count=10)


def test_metric_outside_its_protocol_is_refused() -> None:
    with pytest.raises(ProtocolError, match="does not define the metric 'attribute_accuracy/body'"):
        measured(get_protocol("clean"), "attribute_accuracy/body", 0.5, count=10)


@pytest.mark.parametrize(("value", "count"), [(float("nan"), 3), (1.0, 0)])
def test_metric_without_data_is_refused(value: float, count: int) -> None:
    with pytest.raises(ProtocolError, match="came out as"):
        measured(get_protocol("offline"), "recall@5", value, count=count)


def test_record_is_plain_data_with_its_direction() -> None:
    record = measured(get_protocol("offline"), "kid", 0.01, low=0.0, high=0.02, count=5, subset_size=2)
    data = json.loads(json.dumps(record.to_dict()))
    assert data["higher_is_better"] is False
    assert data["details"] == {"subset_size": 2}
    assert data["protocol"] == "offline"
