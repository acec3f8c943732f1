"""Partitioner: Kafka's own hash, over the tag's MAC alone."""

from __future__ import annotations

from collections import Counter

import pytest
from builders import SCHEMA_ID, codec, message
from hypothesis import given
from hypothesis import strategies as st

from actors.adapters.mqtt import Delivery
from actors.ingest.flush import Flusher
from actors.partitioner import murmur2, partition_of
from rayapp.config import Settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_is_kafkas(text: bytes, expected: int) -> None:
    """The hash gives the values of Apache Kafka's own unit test (UtilsTest.testMurmur2)."""
    assert expected & 0xFFFFFFFF == murmur2(text)


@given(st.binary(max_size=40), st.integers(1, 100))
def test_partition_is_in_range(text: bytes, partitions: int) -> None:
    """Any MAC falls on an existing partition."""
    assert 0 <= partition_of(text.hex(), partitions) < partitions


@given(st.lists(st.binary(min_size=6, max_size=6), min_size=1, max_size=5, unique=True), st.integers(1, 12))
def test_all_readings_of_a_tag_meet_on_one_partition(tags: list[bytes], partitions: int) -> None:
    """Every record of every message of a MAC goes to murmur2(MAC) mod n, however the MAC is spelt."""
    settings = Settings(kafka={"partitions": partitions})  # type: ignore[arg-type]
    macs = [tag.hex(":") for tag in tags]
    payloads = [message(device_id=spelt, timestamp=...) for mac in macs for spelt in (mac, mac.upper(), mac.replace(":", "-"))]
    deliveries = [Delivery("ruuvitag/data", payload, i, 1, 1) for i, payload in enumerate(payloads)]
    flushed = Flusher(settings, codec(), SCHEMA_ID).flush(deliveries, 1_790_000_000_000_000, Counter())

    found = {(key[:17], group.partition) for group in flushed.outgoing for key in group.keys}
    assert {(mac, (murmur2(mac.encode()) & 0x7FFFFFFF) % partitions) for mac in macs} == found
    assert len(payloads) * 9 == sum(len(group.keys) for group in flushed.outgoing) == flushed.readings


def test_tags_spread_over_partitions() -> None:
    """Six hundred consecutive MACs put between half and double the mean on each of six partitions."""
    counts = Counter(partition_of(f"c6:8d:c6:26:{i // 256:02x}:{i % 256:02x}", 6) for i in range(600))

    assert set(range(6)) == set(counts)
    assert all(50 <= count <= 200 for count in counts.values())
