"""A number has a protocol, or there is no number."""

from __future__ import annotations

import json

import pytest

from speech2image.errors import ProtocolError
from speech2image.metrics.protocol import HIGHER_IS_BETTER, PROTOCOLS, get_protocol, measured


def test_every_protocol_is_complete_and_plain_data() -> None:
    released = {"s2igan_cub", "s2igan_flickr8k", "sta_cub", "sta_flickr8k"}
    assert set(PROTOCOLS) == {"spoken_birds", "spoken_digits", "offline", "clean", "vqd_30k"} | released
    for name, protocol in PROTOCOLS.items():
        assert protocol.name == name
        for text in (protocol.title, protocol.real_set, protocol.crop, protocol.resize, protocol.note):
            assert text
        assert protocol.split == "test"
        assert set(protocol.metrics) <= set(HIGHER_IS_BETTER)
        assert json.loads(json.dumps(protocol.to_dict()))["ks"] == list(protocol.ks)
        assert protocol.legacy is (name in released)
    assert "never with published" in get_protocol("offline").note


@pytest.mark.parametrize("name", ["s2igan_cub", "s2igan_flickr8k", "sta_cub", "sta_flickr8k"])
def test_released_protocols_can_be_corrected(name: str) -> None:
    released, corrected = get_protocol(name), get_protocol(name, legacy=False)
    assert get_protocol(name, legacy=True) is released and "Defects kept" in released.note
    assert get_protocol(f"{name}-corrected") is corrected and corrected.name == f"{name}-corrected"
    assert get_protocol(f"{name}-corrected", legacy=True) is released
    assert (released.drop_last, corrected.drop_last) == (7 if name.startswith("s2igan") else 0, 0)
    assert (released.retrieval_drop_last, corrected.retrieval_drop_last) == (7, 0)
    assert (released.retrieval_input, corrected.retrieval_input) == ("unit", "normalised")
    assert corrected.isc_shuffle and not corrected.isc_drop_rest and not corrected.isc_batch
    assert corrected.real_images == "split" and corrected.num_seeds == 3
    assert not corrected.legacy and not corrected.comparable


def test_released_choices_of_each_table() -> None:
    birds, flickr = get_protocol("s2igan_cub"), get_protocol("s2igan_flickr8k")
    art = get_protocol("sta_cub")
    assert (birds.isc_network, birds.isc_shuffle, birds.isc_batch) == ("stackgan-birds", True, 64)
    assert (flickr.isc_network, flickr.isc_shuffle, flickr.isc_drop_rest) == (
        "torchvision-inception", False, True,
    )  # fmt: skip
    assert (birds.box_crop, flickr.box_crop, art.box_crop) == (True, False, False)
    assert (art.prepare, art.real_images, flickr.prepare) == ("squash256", "all", "short256_crop")
    assert {p.network for p in (birds, flickr, art)} == {"pytorch-fid"}
    assert get_protocol("vqd_30k").num_generated == 30_000
    assert get_protocol("clean").num_seeds == 3 and get_protocol("clean").equal_counts


@pytest.mark.parametrize("name", ["clean", "offline", "spoken_birds", "vqd_30k"])
def test_protocol_without_legacy_form_says_so(name: str) -> None:
    assert get_protocol(name, legacy=False) is get_protocol(name)
    with pytest.raises(ProtocolError, match=f"'{name}' has no legacy form"):
        get_protocol(name, legacy=True)
    with pytest.raises(ProtocolError, match="there is no evaluation protocol"):
        get_protocol(f"{name}-corrected")


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
