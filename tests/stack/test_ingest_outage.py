"""Kafka stands still for longer than one and a half keepalives: the MQTT connection stays, the broker queues, nothing is lost."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ingest_world import IngestWorld, ingest_worlds, until

from rayapp.stack import StackState, kill_component

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]

KEEPALIVE_S, OUTAGE_S = 5, 12.0
Make = Callable[..., IngestWorld]


@pytest.fixture
def make(migrated: StackState, tmp_path: Path) -> Iterator[Make]:
    """Makes worlds; everything in them ends with the test."""
    with ingest_worlds(migrated, tmp_path) as worlds:
        yield lambda **mqtt: worlds({"keepalive_s": KEEPALIVE_S, **mqtt})


@contextmanager
def kafka_stopped(stack: StackState) -> Iterator[float]:
    """Stop the brokers, and let them go on after the outage; gives the time of its beginning."""
    kill_component(stack, "kafka", signal.SIGSTOP)
    begin = time.monotonic()
    try:
        yield begin
        assert until(lambda: time.monotonic() - begin > OUTAGE_S)
    finally:
        kill_component(stack, "kafka", signal.SIGCONT)


def test_connection_outlives_a_kafka_outage(make: Make, stack: StackState) -> None:
    """Messages flow, Kafka stands still: the window fills, the connection stays, and all is produced and acknowledged in the end."""
    world = make(receive_maximum=1_000)
    ingest = world.start()
    simulation = world.simulate(400, 14)
    assert until(lambda: ingest.actor.counters["messages_acknowledged_total"] > 100)
    with kafka_stopped(stack) as begin:
        assert until(lambda: ingest.session.unacknowledged >= 1_000)
        full_s = time.monotonic() - begin
        assert until(lambda: time.monotonic() - begin > OUTAGE_S - 1)
        assert 1_000 == ingest.session.unacknowledged
    assert full_s < OUTAGE_S - 1.5 * KEEPALIVE_S, "the window was not full for long enough to prove anything"
    assert 5_600 == simulation.finish()["acked"]
    assert until(lambda: ingest.actor.counters["messages_acknowledged_total"] >= 5_600)

    assert ingest.error is None
    assert 0 == ingest.actor.counters["mqtt_reconnects_total"]
    assert 1 == ingest.session.generation
    found = world.in_kafka()
    assert simulation.sent() == set(found)
    assert 1 == max(found.values())
    ingest.drain()


def test_unread_messages_do_not_cost_the_connection_in_an_outage(make: Make, stack: StackState) -> None:
    """Kafka stands still while a backlog floods in: the slot is full, reads nothing for longer than the broker's patience, and goes on."""
    world = make(receive_maximum=200)
    world.start().drain()
    simulation = world.simulate(6_000, 1)
    assert 6_000 == simulation.finish()["acked"]
    ingest = world.start(wait=False)
    assert until(lambda: ingest.actor.counters["messages_acknowledged_total"] > 1_000)
    with kafka_stopped(stack) as begin:
        assert until(lambda: ingest.actor._outbox.full)
        full_s = time.monotonic() - begin
        assert until(lambda: time.monotonic() - begin > OUTAGE_S - 0.5)
        assert ingest.actor._outbox.full
    assert full_s < OUTAGE_S - 1.5 * KEEPALIVE_S - 1
    assert until(lambda: ingest.actor.counters["messages_acknowledged_total"] >= 6_000)

    assert ingest.error is None
    assert 0 == ingest.actor.counters["mqtt_reconnects_total"]
    assert ingest.peak_messages <= 400
    found = world.in_kafka()
    assert simulation.sent() == set(found)
    assert 1 == max(found.values())
    ingest.drain()
