"""The ingest actor against fakes of broker, Kafka and database: a PUBACK is a promise, kept in order and never early."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from builders import MAC, SCHEMA, SCHEMA_ID, codec, message
from fakes import Broker, Producer

from actors.base import ActorState, Report
from actors.ingest import actor as module
from actors.ingest.actor import Ingest
from rayapp.config import Settings
from rayapp.errors import BrokerUnavailable, DatabaseUnavailable, DeliveryFailed, SessionTakenOver, StaleClaim

NAME = "ingest/0#1"


def payload(number: int, **changes: Any) -> bytes:
    """Return a message that can be told from others."""
    return message(timestamp=..., measurement_sequence=number, **changes)


class World:
    """An actor and everything around it; run() drains when the condition holds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **ingest: Any) -> None:
        self.settings = Settings(ingest={"flush_idle_s": 1e-9, "flush_max_s": 1e-9, **ingest})  # type: ignore[arg-type]
        self.producer, self.broker = Producer(), Broker(self._turn)
        self.slot_owner: str | None = NAME
        self.database_away = 0
        self.confirmed = 0
        self.each_turn: Callable[[], None] = lambda: None
        self.until: Callable[[], bool] = lambda: not self.broker.queue and not self.broker.inflight
        monkeypatch.setattr(module, "MqttSession", self.broker.session)
        monkeypatch.setattr(module, "RecordProducer", lambda *_: self.producer)
        monkeypatch.setattr(module, "connect", self._connect)
        monkeypatch.setattr(module, "RECONNECT_S", 0.0)
        self.actor = Ingest(NAME, self.settings, 0, SCHEMA, SCHEMA_ID)

    def _turn(self) -> None:
        self.each_turn()
        if self.until():
            self.actor.drain()

    def _connect(self, *_arguments: Any, **_options: Any) -> World:
        if self.database_away:
            self.database_away -= 1
            raise DatabaseUnavailable("away")
        return self

    def execute(self, *_arguments: Any) -> list[tuple[str]]:
        """Answer the question who owns the slot."""
        self.confirmed += 1
        return [(self.slot_owner,)] if self.slot_owner is not None else []

    def close(self) -> None:
        """Nothing to close."""

    def run(self) -> Report:
        return self.actor.run()

    def sequences(self) -> list[int]:
        """Return the sequence numbers of the temperature readings in Kafka, in order."""
        bodies = [
            value[5:] for topic, _, key, value in self.producer.taken if topic == "iot-sensor-data" and str(key).endswith("_temperature")
        ]
        columns = codec().decode(bodies)
        assert columns is not None
        found: list[int] = columns.column(columns.schema.get_field_index("measurement_sequence")).to_pylist()
        return found


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A world that flushes at once."""
    return World(monkeypatch)


def test_messages_become_records_and_are_acknowledged_in_order(world: World) -> None:
    """Nine records a message on the tag's partition, then PUBACKs in receive order, then the drain."""
    payloads = [payload(n) for n in range(20)]
    world.broker.publish(*payloads)
    report = world.run()

    assert payloads == world.broker.acknowledged
    assert (180, list(range(20))) == (len(world.producer.taken), world.sequences())
    assert 1 == len({partition for _, partition, _, _ in world.producer.taken})
    assert ("drained", True) == (report.reason, world.broker.closed)


def test_no_puback_before_every_delivery(world: World) -> None:
    """With eight of nine records of a message delivered it is not acknowledged; with the ninth it is."""
    payloads = [payload(0), payload(1)]
    world.broker.publish(*payloads)
    world.producer.hold = True
    seen: list[tuple[int, int]] = []

    def one_by_one() -> None:
        seen.append((len(world.producer.delivered), len(world.broker.acknowledged)))
        if world.producer.waiting:
            world.producer.deliver(1)

    world.producer.on_poll = one_by_one
    world.run()

    assert payloads == world.broker.acknowledged
    assert {(delivered, acknowledged) for delivered, acknowledged in seen if delivered < 18} == {(n, 0) for n in range(18)}


def test_later_flush_does_not_overtake(world: World) -> None:
    """A flush whose records are all delivered waits for the one before it."""
    world.producer.hold = True
    held: list[Any] = []

    def deliver_second_first() -> None:
        if world.broker.turns == 2:
            world.broker.publish(payload(0))
        if world.broker.turns == 6:
            held.extend(world.producer.waiting)
            world.producer.waiting.clear()
            world.broker.publish(payload(1))
        if world.broker.turns == 10:
            world.producer.deliver(9)
        if world.broker.turns == 14:
            assert [] == world.broker.acknowledged
            for _, report in held:
                report(None, None)

    world.each_turn = deliver_second_first
    world.until = lambda: len(world.broker.acknowledged) == 2
    world.run()

    assert [payload(0), payload(1)] == world.broker.acknowledged


def test_bad_message_is_acknowledged_after_its_dead_letter(world: World) -> None:
    """A message that is no reading is in the dead-letter topic, as received and under a stable id, before its PUBACK."""
    world.broker.publish(payload(0), b"{broken", payload(1))
    world.producer.hold = True

    def let_go() -> None:
        if world.broker.turns == 20:
            assert [] == world.broker.acknowledged
            world.producer.hold = False

    world.each_turn = let_go
    world.run()

    assert [payload(0), b"{broken", payload(1)] == world.broker.acknowledged
    ((value, headers),) = world.producer.dead
    assert (b"{broken", b"not_json", b"ingest") == (value, headers["reason"], headers["stage"])
    assert headers["id"].startswith(b"ruuvitag/data/")


def test_message_without_readings_is_acknowledged(world: World) -> None:
    """A valid message with no sensor field makes no record and holds nobody up."""
    empty = b'{"device_id": "%s"}' % MAC.encode()
    world.broker.publish(empty, payload(1))
    world.run()

    assert [empty, payload(1)] == world.broker.acknowledged


def test_full_producer_queue_loses_and_doubles_nothing(world: World) -> None:
    """Records and dead letters that find no room are offered again from where the producer stopped."""
    payloads = [payload(n) if n % 4 else b"{broken %d" % n for n in range(20)]
    world.broker.publish(*payloads)
    world.producer.room = 0
    world.producer.on_poll = lambda: setattr(world.producer, "room", 7)
    world.run()

    assert payloads == world.broker.acknowledged
    assert (15 * 9 + 5, [n for n in range(20) if n % 4]) == (len(world.producer.taken), world.sequences())
    assert len(world.producer.taken) == len({(key, value) for _, _, key, value in world.producer.taken})


@pytest.mark.parametrize("bad", [False, True])
def test_failed_delivery_ends_the_actor_without_a_puback(world: World, bad: bool) -> None:
    """A record or dead letter that Kafka refuses for good is never acknowledged; the socket is closed and the broker resends."""
    world.broker.publish(b"{broken" if bad else payload(0))
    world.producer.error = "refused"
    with pytest.raises(DeliveryFailed):
        world.run()
    assert ([], True) == (world.broker.acknowledged, world.broker.closed)


def test_lost_connection_is_made_again_after_the_slot_was_confirmed(world: World) -> None:
    """What was not acknowledged comes again and is acknowledged once; PUBACKs of the old connection are dropped."""
    payloads = [payload(n) for n in range(3)]
    world.broker.publish(*payloads)
    world.producer.hold = True

    def breaks() -> None:
        if world.broker.turns == 8:
            world.broker.break_next = BrokerUnavailable("connection lost")
        if world.broker.turns == 14:
            world.producer.hold = False

    world.each_turn = breaks
    world.run()

    assert payloads == world.broker.acknowledged
    assert (2, 2) == (world.broker.generation, world.confirmed)
    assert 3 == world.actor.counters["stale_acks_dropped_total"]
    assert [0, 1, 2, 0, 1, 2] == world.sequences()


def test_messages_not_yet_produced_are_forgotten_with_their_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that waits for its flush when the connection breaks is produced only from the broker's resend."""
    world = World(monkeypatch, flush_idle_s=3_600.0, flush_max_s=3_600.0)
    world.broker.publish(payload(0))

    def breaks() -> None:
        if world.broker.turns == 5:
            world.broker.break_next = BrokerUnavailable("connection lost")

    world.each_turn = breaks
    world.until = lambda: world.broker.turns > 12
    world.run()

    assert ([0], [payload(0)]) == (world.sequences(), world.broker.acknowledged)


def test_slot_of_another_incarnation_is_left_alone(world: World) -> None:
    """An actor whose slot belongs to somebody else, or to nobody, never connects."""
    for owner in ("ingest/0#2", None):
        world.slot_owner = owner
        with pytest.raises(StaleClaim):
            world.run()
    assert 0 == world.broker.generation


def test_slot_lost_during_an_outage_ends_the_actor(world: World) -> None:
    """After a lost connection the slot is asked for again: who lost it does not take the session back."""
    world.until = lambda: False

    def lose() -> None:
        if world.broker.turns == 5:
            world.slot_owner = "ingest/0#2"
            world.broker.break_next = BrokerUnavailable("connection lost")

    world.each_turn = lose
    with pytest.raises(StaleClaim):
        world.run()
    assert (1, True) == (world.broker.generation, world.broker.closed)


def test_session_taken_over_ends_the_actor(world: World) -> None:
    """A broker that names a second client ends this one; it does not fight for the session."""
    world.until = lambda: False
    world.each_turn = lambda: setattr(world.broker, "break_next", SessionTakenOver("0x8E") if world.broker.turns == 3 else None)
    with pytest.raises(SessionTakenOver):
        world.run()
    assert 1 == world.broker.generation


@pytest.mark.parametrize("dependency", ["database", "mqtt"])
def test_missing_dependency_is_waited_for(world: World, dependency: str) -> None:
    """While database or broker is away at a connect, the actor is BLOCKED on it by name, then serves."""
    world.broker.publish(payload(0))
    world.database_away, world.broker.refuse_connects = (6, 0) if dependency == "database" else (0, 6)
    states = set()
    tick = world.actor.tick
    world.actor.tick = lambda: (states.add((world.actor.status().state, world.actor.status().blocked_on)), tick())[1]  # type: ignore[method-assign]
    world.run()

    assert (ActorState.BLOCKED, dependency) in states
    assert [payload(0)] == world.broker.acknowledged


def test_drain_before_the_connection_was_made_ends(world: World) -> None:
    """An actor that is still waiting for the database drains at once."""
    world.database_away = 10**6
    world.actor.drain()

    assert "drained" == world.run().reason


def test_drain_finishes_what_was_received(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages received before drain() are produced and acknowledged, although their flush was not due."""
    world = World(monkeypatch, flush_idle_s=3_600.0, flush_max_s=3_600.0)
    world.broker.publish(*[payload(n) for n in range(5)])
    world.until = lambda: world.broker.turns > 3

    assert "drained" == world.run().reason
    assert [payload(n) for n in range(5)] == world.broker.acknowledged


def test_flush_is_cut_when_it_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full flush is cut at once, however long it might have waited."""
    world = World(monkeypatch, flush_idle_s=3_600.0, flush_max_s=3_600.0, flush_messages=4)
    world.broker.publish(*[payload(n) for n in range(4)])
    world.run()

    assert [payload(n) for n in range(4)] == world.broker.acknowledged


def test_counters_tell_what_happened(world: World) -> None:
    """Messages, readings, anomalies, arrival times and dead letters are counted."""
    world.broker.publish(payload(0), payload(1, temperature=99), message(timestamp="nonsense"))
    counters = world.run().counters

    assert {"mqtt_adapter_messages_received_total": 3, "readings_total": 18, "iot_anomaly_detected_total": 1, "arrival_time_used_total": 2,
            "mqtt_adapter_send_failures_total": 1, "messages_acknowledged_total": 3}.items() <= counters.items()  # fmt: skip
    assert {"bad_time:timestamp": 1} == dict(world.actor.reasons)
