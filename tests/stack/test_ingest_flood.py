"""After an outage the broker sends what it has queued: what a slot holds stays under its limit, on a real Mosquitto."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ingest_world import IngestWorld, ingest_worlds, until

from rayapp.stack import StackState

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]

Make = Callable[..., IngestWorld]


@pytest.fixture
def make(migrated: StackState, tmp_path: Path) -> Iterator[Make]:
    """Makes worlds; everything in them ends with the test."""
    with ingest_worlds(migrated, tmp_path) as worlds:
        yield worlds


def test_backlog_of_30000_messages_does_not_pass_the_limit(make: Make) -> None:
    """30,000 queued messages are all produced, once each, and the slot never holds more than twice its window of 500."""
    world = make({"receive_maximum": 500})
    world.start().drain()
    simulation = world.simulate(15_000, 2, "--gateways", "2")
    assert 30_000 == simulation.finish()["acked"]
    ingest = world.start()
    assert until(lambda: ingest.actor.counters["messages_acknowledged_total"] >= 30_000, 80.0)  # 10 s on a machine of its own
    report = ingest.drain()

    assert ingest.error is None
    assert report is not None
    assert 500 < ingest.peak_messages <= 1_000
    assert ingest.peak_bytes <= world.settings.mqtt.held_bytes
    assert (0, 0) == (report.counters["mqtt_reconnects_total"], report.counters["stale_acks_dropped_total"])
    found = world.in_kafka()
    assert simulation.sent() == set(found)
    assert 1 == max(found.values())
