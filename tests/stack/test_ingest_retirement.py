"""A slot that is not configured any more ends without losing a message and without a session that swallows its share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ingest_world import IngestWorld, ingest_worlds, until

from rayapp.stack import StackState

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]


@pytest.fixture
def world(migrated: StackState, tmp_path: Path) -> Iterator[IngestWorld]:
    """Two slots' world with a small window."""
    with ingest_worlds(migrated, tmp_path) as worlds:
        yield worlds({"receive_maximum": 200})


def received(*running: object) -> int:
    return sum(each.actor.counters["mqtt_adapter_messages_received_total"] for each in running)  # type: ignore[attr-defined]


def test_retired_slot_loses_nothing_and_leaves_nothing(world: IngestWorld) -> None:
    """Two slots share; one dies with messages in its queue, is retired while traffic flows, and the other gets everything."""
    other, dying = world.start(0), world.start(1)
    simulation = world.simulate(500, 6)
    assert until(lambda: received(dying) > 200)
    dying.kill()
    assert until(lambda: received(other) > 700)  # the dead slot's queue grows meanwhile
    retiring = world.start(1, retire=True)
    report = retiring.wait()
    before = received(other)

    assert retiring.error is None
    assert report is not None
    assert ("retired", True) == (report.reason, report.counters["mqtt_adapter_messages_received_total"] > 200)
    assert not world.session_is_left(1)
    assert 3_000 == simulation.finish()["acked"]
    assert until(
        lambda: other.actor.counters["messages_acknowledged_total"] == received(other) and world.in_kafka().keys() == simulation.sent()
    )
    assert received(other) - before > 200
    other.drain()


def test_retirement_killed_in_the_middle_is_done_again(world: IngestWorld) -> None:
    """Killed after it unsubscribed, with the queue half drained: the next one finishes, nothing is lost, no session is left."""
    world.start(0)
    world.start(1).kill()
    simulation = world.simulate(5_000, 1)
    assert 5_000 == simulation.finish()["acked"]
    killed = world.start(1, retire=True)
    killed.kill_when = lambda: killed.actor.counters["messages_acknowledged_total"] > 300
    killed.wait()
    assert killed.error is not None
    assert killed.actor.counters["messages_acknowledged_total"] < 2_500
    again = world.start(1, retire=True)
    report = again.wait()

    assert again.error is None
    assert report is not None
    assert "retired" == report.reason
    assert not world.session_is_left(1)
    assert until(lambda: world.in_kafka().keys() == simulation.sent())


def test_drained_retirement_leaves_the_session_to_the_next(world: IngestWorld) -> None:
    """A driver that stops in between has lost nothing: the session and its queue are there for the next retirement."""
    world.start(0)
    world.start(1).kill()
    simulation = world.simulate(5_000, 1)
    assert 5_000 == simulation.finish()["acked"]
    stopped = world.start(1, retire=True)
    stopped.kill_when = lambda: bool(stopped.actor.counters["messages_acknowledged_total"] > 300 and stopped.actor.drain())
    report = stopped.wait()
    assert report is not None
    assert "drained" == report.reason
    report = world.start(1, retire=True).wait()

    assert report is not None
    assert "retired" == report.reason
    assert not world.session_is_left(1)
    assert until(lambda: world.in_kafka().keys() == simulation.sent())
