"""Mosquitto is restarted under traffic: what is lost, by whose fault, and that gateways which send again lose nothing.

The broker acknowledges before it writes to disk. Ended by SIGTERM it writes first; killed it forgets what it had
queued, or remembers an old snapshot of it. Gateways that send the last seconds again close that gap; without them
the loss is real, and it is the difference between two figures that are both known: acknowledged to the gateways,
and in Kafka.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ingest_world import SIM, IngestWorld, Running, Simulation, ingest_worlds, until

from rayapp.stack import StackState

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]

RATE, SECONDS = 1_000, 5
WINDOW = 200
REPLAY, NO_REPLAY = "10", "0"
Make = Callable[..., IngestWorld]


@pytest.fixture
def make(migrated: StackState, tmp_path: Path) -> Iterator[Make]:
    """Makes worlds; everything in them ends with the test."""
    with ingest_worlds(migrated, tmp_path) as worlds:
        yield lambda **mqtt: worlds({"receive_maximum": WINDOW, **mqtt})


def restart(world: IngestWorld, how: str, replay: str) -> tuple[Running, Simulation]:
    """Run gateways, end the broker while its queue for the slot is not empty, start it again and let all come to rest."""
    ingest = world.start()
    simulation = world.simulate(RATE, SECONDS, "--replay-seconds", replay)
    assert until(lambda: ingest.actor.counters["messages_acknowledged_total"] > 500)
    ingest.kill()  # from here on the broker queues
    before = ingest.actor.counters["mqtt_adapter_messages_received_total"]
    if how == "snapshot":
        world.broker.save()
    assert until(lambda: simulation.acknowledged_now() > before + 500)
    world.broker.end(signal.SIGTERM if how == "sigterm" else signal.SIGKILL)
    ingest = world.start(wait=False)  # it comes while the broker is away, and waits
    world.broker.start()
    assert until(lambda: ingest.session.subscribed)
    simulation.finish()
    assert until(lambda: not ingest.session.unacknowledged and not ingest.actor._outbox)
    assert ingest.error is None
    return ingest, simulation


@pytest.mark.parametrize("how", ["sigterm", "sigkill", "snapshot"])
def test_gateways_that_send_again_lose_nothing(make: Make, how: str) -> None:
    """Whatever way the broker ended: each message it ever acknowledged is in Kafka."""
    world = make()
    ingest, simulation = restart(world, how, REPLAY)
    assert until(lambda: not simulation.acknowledged() - world.in_kafka().keys())
    assert simulation.sent() == world.in_kafka().keys()
    ingest.drain()


@pytest.mark.parametrize("how", ["sigterm", "sigkill", "snapshot"])
def test_without_replay_the_loss_is_the_brokers_and_can_be_counted(
    make: Make, how: str, record_property: Callable[[str, object], None]
) -> None:
    """Acknowledged to gateways less in Kafka: nothing after SIGTERM but what met no subscription, the queue after a kill."""
    world = make()
    ingest, simulation = restart(world, how, NO_REPLAY)
    ingest.drain()
    acknowledged, found = simulation.acknowledged(), world.in_kafka()
    lost = acknowledged - found.keys()
    record_property("lost", len(lost))
    print(f"{how}: acknowledged {len(acknowledged)}, in Kafka {len(found)}, lost {len(lost)}")

    assert found.keys() <= simulation.sent()
    assert len(acknowledged) - len(lost) + len(found.keys() - acknowledged) == len(found)
    if how == "sigterm":
        assert not lost
    else:
        assert 300 <= len(lost) < len(acknowledged)


def test_snapshot_older_than_the_acknowledgements_brings_messages_again(make: Make) -> None:
    """Killed after a snapshot, the broker has forgotten PUBACKs: those messages come twice under old packet ids, none is missing."""
    world = make()
    world.start().drain()
    queued = world.simulate(RATE, 1, "--replay-seconds", NO_REPLAY)
    assert 1_000 == queued.finish()["acked"]
    world.broker.save()
    ingest = world.start()
    assert until(lambda: ingest.actor.counters["messages_acknowledged_total"] == 1_000)
    after = world.simulate(RATE, 1, "--replay-seconds", REPLAY)
    assert until(lambda: ingest.actor.counters["messages_acknowledged_total"] > 1_200)
    world.broker.end(signal.SIGKILL)
    world.broker.start()
    after.finish()
    assert until(lambda: not (queued.sent() | after.sent()) - world.in_kafka().keys())
    assert until(lambda: ingest.actor.counters["messages_acknowledged_total"] >= 2_200 and not ingest.session.unacknowledged)

    assert (True, 1) == (ingest.session.session_present, ingest.actor.counters["mqtt_reconnects_total"])
    found = world.in_kafka()
    assert {2} == {found[message] for message in queued.sent()}
    report = ingest.drain()
    assert report is not None
    again = world.start()  # what is acknowledged after the restart stays acknowledged: nothing is left in the session
    again.drain()
    assert 0 == again.actor.counters["mqtt_adapter_messages_received_total"]


def test_what_was_received_before_a_kill_is_in_kafka(make: Make) -> None:
    """A message that ingest holds when the broker is killed is produced although nobody will send it again."""
    world = make()
    ingest = world.start()
    simulation = world.simulate(RATE, 2, "--replay-seconds", NO_REPLAY)
    received: list[int] = []

    def kill_with_full_hands() -> bool:
        if not received and ingest.actor._outbox.messages and ingest.actor.counters["messages_acknowledged_total"] > 300:
            world.broker.end(signal.SIGKILL)
            received.append(ingest.actor.counters["mqtt_adapter_messages_received_total"])
        return False

    ingest.kill_when = kill_with_full_hands
    assert until(lambda: bool(received) and not ingest.session.subscribed and not ingest.actor._outbox)
    assert len(world.in_kafka()) >= received[0]
    world.broker.start()
    assert until(lambda: ingest.session.subscribed)
    simulation.finish()
    assert until(lambda: not ingest.session.unacknowledged and not ingest.actor._outbox)

    assert not ingest.session.session_present
    assert 1 == ingest.actor.counters["mqtt_reconnects_total"]
    ingest.drain()


def test_dropped_messages_raise_the_alarm(migrated: StackState, tmp_path: Path) -> None:
    """A queue of 100 for a slot that is away: the broker drops and says success, and the slot says how many when it is back."""
    subprocess.run(["make", "-s", "-C", str(SIM)], check=True, timeout=120)
    world = IngestWorld(migrated, tmp_path, {"receive_maximum": WINDOW}, {"max_queued_messages": 100, "sys_interval": 1})
    try:
        first = world.start()
        assert until(lambda: first.actor.gauges.get("mqtt_broker_messages_dropped") == 0)
        first.drain()
        simulation = world.simulate(RATE, 1, "--replay-seconds", NO_REPLAY)
        assert 1_000 == simulation.finish()["acked"]
        ingest = world.start()
        assert until(lambda: ingest.actor.gauges.get("mqtt_broker_messages_dropped") == 900)
        ingest.drain()
        found = world.in_kafka()

        assert ingest.error is None
        assert (100, True) == (len(found), found.keys() <= simulation.acknowledged())
    finally:
        world.close()
