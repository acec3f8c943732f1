"""The ingest actor against fakes of broker, Kafka and database: a PUBACK is a promise, kept in order and never early."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from typing import Any

import pytest
from builders import MAC, SCHEMA, SCHEMA_ID, codec, message
from fakes import Broker, Producer

from actors.base import ActorState, Report
from actors.ingest import actor as module
from actors.ingest import slot as slot_module
from actors.ingest.actor import Ingest
from actors.ingest.flush import Flusher
from rayapp.config import Settings
from rayapp.errors import BrokerUnavailable, DatabaseUnavailable, DeliveryFailed, SessionTakenOver, StaleClaim

NAME = "ingest/0#1"


def payload(number: int, **changes: Any) -> bytes:
    """Return a message that can be told from others."""
    return message(timestamp=..., measurement_sequence=number, **changes)


class World:
    """An actor and everything around it; run() drains when the condition holds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, retire: bool = False, mqtt: dict[str, Any] | None = None, **ingest: Any) -> None:
        self.settings = Settings(ingest={"flush_idle_s": 1e-9, "flush_max_s": 1e-9, **ingest}, mqtt=mqtt or {})  # type: ignore[arg-type]
        self.producer, self.broker = Producer(), Broker(self._turn)
        self.slot_owner: str | None = NAME
        self.database_away = 0
        self.confirmed = 0
        self.each_connect: Callable[[], None] = lambda: None
        self.each_turn: Callable[[], None] = lambda: None
        self.until: Callable[[], bool] = lambda: not self.broker.queue and not self.broker.inflight
        monkeypatch.setattr(module, "MqttSession", self.broker.session)
        monkeypatch.setattr(module, "RecordProducer", lambda *_: self.producer)
        monkeypatch.setattr(slot_module, "connect", self._connect)
        monkeypatch.setattr(module, "RECONNECT_S", 0.0)
        self.actor = Ingest(NAME, self.settings, 0, SCHEMA, SCHEMA_ID, retire)

    def _turn(self) -> None:
        self.each_turn()
        if self.until():
            self.actor.drain()

    def _connect(self, *_arguments: Any, **_options: Any) -> World:
        self.each_connect()
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


def test_messages_not_yet_produced_outlive_their_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that waits for its flush when the connection breaks is produced: a broker that was killed has forgotten it."""
    world = World(monkeypatch, flush_idle_s=3_600.0, flush_max_s=3_600.0)
    world.broker.publish(payload(0))

    def dies() -> None:
        if world.broker.turns == 5:
            assert [] == world.producer.taken
            world.broker.forget()

    world.each_turn = dies
    world.until = lambda: world.broker.turns > 12
    world.run()

    assert ([0], []) == (world.sequences(), world.broker.acknowledged)
    assert 1 == world.actor.counters["stale_acks_dropped_total"]


def test_session_that_is_gone_gets_no_puback_of_the_old_one(world: World) -> None:
    """After a broker's restart without a memory nothing received before is acknowledged, and new messages are, under the same ids."""
    world.broker.publish(*[payload(n) for n in range(3)])
    world.producer.hold = True

    def dies() -> None:
        if world.broker.turns == 6:
            world.broker.forget()
            world.broker.mids = itertools.count(1)
        if world.broker.turns == 9:
            world.broker.publish(*[payload(n) for n in range(10, 13)])
        if world.broker.turns == 14:
            world.producer.hold = False

    world.each_turn = dies
    world.until = lambda: len(world.broker.acknowledged) == 3 and world.broker.turns > 20
    world.run()

    assert [payload(n) for n in range(10, 13)] == world.broker.acknowledged
    assert [0, 1, 2, 10, 11, 12] == world.sequences()
    assert (3, 1) == (world.actor.counters["stale_acks_dropped_total"], world.actor.counters["mqtt_reconnects_total"])


def test_first_connection_is_no_reconnect(world: World) -> None:
    """The counter of reconnects tells lost connections, not starts and not refused attempts."""
    world.broker.refuse_connects = 3
    world.broker.publish(payload(0))
    world.run()

    assert 0 == world.actor.counters["mqtt_reconnects_total"]


def test_message_of_qos_0_is_produced_and_never_acknowledged(world: World) -> None:
    """A stock Ruuvi Gateway publishes with QoS 0: there is no packet id to acknowledge."""
    world.broker.publish(payload(0), qos=0)
    world.broker.publish(payload(1))
    world.until = lambda: len(world.broker.acknowledged) == 1
    world.run()

    assert ([0, 1], [payload(1)]) == (world.sequences(), world.broker.acknowledged)


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


def test_database_away_does_not_disturb_a_live_connection(world: World) -> None:
    """The database is asked at a connect and never between: messages flow on without it."""

    def goes() -> None:
        if world.broker.turns == 3:
            world.database_away = 10**6
            world.broker.publish(*[payload(n) for n in range(5)])

    world.each_turn = goes
    world.until = lambda: len(world.broker.acknowledged) == 5
    world.run()

    assert (1, 1, 0) == (world.confirmed, world.broker.generation, world.actor.counters["mqtt_reconnects_total"])


def test_lost_connection_waits_for_the_database_while_the_broker_queues(world: World) -> None:
    """No reconnect without the slot's claim: BLOCKED on database, what was received is delivered meanwhile, then all goes on."""
    world.broker.publish(payload(0))
    world.producer.hold = True
    seen: list[tuple[ActorState, str | None, int]] = []

    def breaks() -> None:
        if world.broker.turns == 6:
            world.database_away = 20
            world.broker.break_next = BrokerUnavailable("connection lost")

    def asked() -> None:
        status = world.actor.status()
        seen.append((status.state, status.blocked_on, world.broker.generation))
        if len(seen) == 10:
            world.broker.publish(payload(1), payload(2))
            world.producer.hold = False

    world.each_turn, world.each_connect = breaks, asked
    world.until = lambda: len(world.broker.acknowledged) == 3
    world.run()

    assert [payload(0), payload(1), payload(2)] == world.broker.acknowledged
    assert {(ActorState.BLOCKED, "database", 1)} == set(seen[2:])
    assert (22, [0, 0, 1, 2]) == (len(seen), world.sequences())


def test_slot_stolen_while_the_database_was_away(world: World) -> None:
    """An actor that waited for the database and finds its slot taken ends; it never touches the session again."""
    world.until = lambda: False

    def breaks() -> None:
        if world.broker.turns == 4:
            world.database_away = 5
            world.slot_owner = "ingest/0#2"
            world.broker.break_next = BrokerUnavailable("connection lost")

    world.each_turn = breaks
    with pytest.raises(StaleClaim):
        world.run()
    assert (1, 0) == (world.broker.generation, world.database_away)


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


def test_drain_does_not_wait_for_the_stream_to_end(world: World) -> None:
    """A drain reads nothing more: messages that come all the time stay with the broker."""
    numbers = itertools.count()
    world.each_turn = lambda: world.broker.publish(*[payload(next(numbers)) for _ in range(3)])
    world.producer.hold = True
    world.producer.on_poll = lambda: world.producer.deliver(9)
    world.until = lambda: world.broker.turns > 20

    assert "drained" == world.run().reason
    assert 60 < len(world.broker.acknowledged) < next(numbers)


def test_connection_lost_while_draining_is_not_made_again(world: World) -> None:
    """What is held is produced without it; the broker sends what has no PUBACK to the replacement."""
    world.broker.publish(payload(0))
    world.producer.hold = True
    polls = itertools.count()

    def breaks() -> None:
        if world.broker.turns == 6:
            world.actor.drain()
            world.broker.break_next = BrokerUnavailable("connection lost")

    def let_go() -> None:
        world.producer.hold = next(polls) < 40

    world.each_turn, world.producer.on_poll = breaks, let_go
    world.until = lambda: False

    assert "drained" == world.run().reason
    assert (1, [0], []) == (world.broker.generation, world.sequences(), world.broker.acknowledged)


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


# What a slot holds


def watched(world: World) -> list[tuple[int, int]]:
    """Return the list that gets (messages, bytes) held at each turn."""
    held: list[tuple[int, int]] = []
    tick = world.actor.tick
    world.actor.tick = lambda: (  # type: ignore[method-assign]
        held.append((int(world.actor.gauges.get("iot_queue_size", 0)), int(world.actor.gauges.get("ingest_held_bytes", 0)))), tick()
    )[1]  # fmt: skip
    return held


def test_flood_after_an_outage_is_read_only_as_far_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that lets a window through for every PUBACK does not make the slot hold more than its limit; all arrive, in order."""
    world = World(monkeypatch, mqtt={"receive_maximum": 10, "held_max_messages": 25})
    world.broker.window, world.broker.leaky = 10, True
    world.broker.publish(*[payload(n) for n in range(400)])
    world.producer.hold = True
    held = watched(world)
    left = itertools.count()

    def slowly() -> None:
        if next(left) % 3 == 0 and world.broker.turns > 10:
            world.producer.deliver(9)

    world.producer.on_poll = slowly
    world.run()

    assert [payload(n) for n in range(400)] == world.broker.acknowledged
    assert 25 == max(messages for messages, _ in held)
    assert world.broker.unread_turns > 10


def test_bytes_are_bounded_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few large messages fill a slot before its window does: the broker counts messages only."""
    large = [b"{" + b"x" * 100_000 for _ in range(20)]
    world = World(monkeypatch, mqtt={"receive_maximum": 20, "held_max_bytes": 300_000}, flush_messages=1)
    world.broker.publish(*large)
    world.producer.hold = True
    held = watched(world)

    def let_go() -> None:
        if world.broker.turns == 40:
            world.producer.hold = False

    world.each_turn = let_go
    world.run()

    assert large == world.broker.acknowledged
    # Payload and dead letter count both, a message may pass the limit, and its letter is made after it was read.
    assert 300_000 <= max(size for _, size in held) <= 300_000 + 2 * 2 * 100_000
    assert world.broker.unread_turns > 10


def test_connection_is_kept_while_nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full slot goes on turning its session without room, which keeps the connection, until Kafka is back."""
    world = World(monkeypatch, mqtt={"receive_maximum": 5, "held_max_messages": 5})
    world.broker.window, world.broker.leaky = 5, True
    world.broker.publish(*[payload(n) for n in range(30)])
    world.producer.hold = True

    def once() -> None:
        if world.broker.turns == 20:
            world.producer.deliver(5 * 9)
        if world.broker.turns == 60:
            assert (5, True) == (len(world.broker.acknowledged), world.broker.unread_turns > 30)
            world.producer.hold = False

    world.each_turn = once
    world.run()

    assert 30 == len(world.broker.acknowledged)
    assert (1, 0) == (world.broker.generation, world.actor.counters["mqtt_reconnects_total"])


def test_gauges_tell_what_the_broker_waits_for(world: World) -> None:
    """mqtt_inflight_messages are those without a PUBACK on this connection."""
    world.broker.publish(*[payload(n) for n in range(4)])
    world.producer.hold = True
    seen: list[float] = []

    def look() -> None:
        seen.append(world.actor.gauges.get("mqtt_inflight_messages", -1))
        if world.broker.turns == 10:
            world.producer.hold = False

    world.each_turn = look
    world.run()

    assert 4 == max(seen)
    assert 0 == world.actor.gauges["mqtt_inflight_messages"]


def test_slot_is_running_from_suback_on(world: World) -> None:
    """A window that comes before SUBACK is received and acknowledged; gateways are let in only when the subscription stands."""
    world.broker.suback_later = True
    world.broker.publish(*[payload(n) for n in range(3)])
    states: dict[int, ActorState] = {}

    def later() -> None:
        states[world.broker.turns] = world.actor.status().state
        if world.broker.turns == 20:
            world.broker.subscribed = True

    world.each_turn = later
    world.until = lambda: world.broker.turns > 25
    world.run()

    assert [payload(n) for n in range(3)] == world.broker.acknowledged
    assert {ActorState.STARTING} == {state for turn, state in states.items() if turn <= 20}
    assert ActorState.RUNNING == states[25]


def test_full_slot_connects_without_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a lost connection left is counted when the next one is made: the window that comes at once may find no room."""
    world = World(monkeypatch, mqtt={"receive_maximum": 5, "held_max_messages": 8})
    world.broker.window = 5
    world.broker.publish(*[payload(n) for n in range(5)])
    world.producer.hold = True
    held = watched(world)

    def breaks() -> None:
        if world.broker.turns in (10, 20):
            world.broker.break_next = BrokerUnavailable("connection lost")
        if world.broker.turns == 40:
            world.producer.hold = False

    world.each_turn = breaks
    world.run()

    assert [8, 3, 0] == world.broker.rooms
    assert 8 == max(messages for messages, _ in held)
    assert [payload(n) for n in range(5)] == world.broker.acknowledged


def test_large_backlog_is_flushed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What gathered behind a full producer queue is not one huge flush: the loop turns between its parts, and memory is bounded by one."""
    world = World(monkeypatch, flush_messages=4)
    world.broker.publish(*[payload(n) for n in range(30)])
    sizes: list[int] = []
    flush = Flusher.flush
    monkeypatch.setattr(Flusher, "flush", lambda self, messages, *rest: (sizes.append(len(messages)), flush(self, messages, *rest))[1])
    world.run()

    assert [payload(n) for n in range(30)] == world.broker.acknowledged
    assert [4] * 7 + [2] == sizes


def test_waiting_is_said_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """An outage of an hour is two tries a second and one event, until another dependency is missing."""
    world.database_away, world.broker.refuse_connects = 10, 10
    world.broker.publish(payload(0))
    world.run()

    waits = [record.__dict__["fields"]["on"] for record in caplog.records if record.message == "mqtt_connect_waits"]
    assert ["database", "mqtt"] == waits


def test_dropped_messages_of_the_broker_are_an_alarm(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """One error event for each increase, none while the count stands still, and a broker that starts anew counts from 0."""
    caplog.set_level(logging.ERROR, "actors.ingest.actor")
    counts = {4: 0, 8: 7, 12: 7, 16: 10, 20: 3, 24: 5}

    def count() -> None:
        world.broker.broker_dropped = counts.get(world.broker.turns, world.broker.broker_dropped)

    world.each_turn = count
    world.until = lambda: world.broker.turns > 30
    world.run()

    events = [(record.message, record.__dict__["fields"]["dropped"]) for record in caplog.records]
    assert [("mqtt_broker_dropped_messages", new) for new in (7, 3, 3, 2)] == events
    assert 5 == world.actor.gauges["mqtt_broker_messages_dropped"]


def test_dropped_messages_before_the_start_are_an_alarm(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What a queue lost while nobody listened is said by the first who does."""
    world.broker.broker_dropped = 5
    world.until = lambda: world.broker.turns > 5
    world.run()

    assert ["mqtt_broker_dropped_messages"] == [record.message for record in caplog.records if record.levelno == logging.ERROR]


# Records that Kafka refuses


def test_failure_behind_a_full_queue_ends_the_actor(world: World) -> None:
    """A record of the second half of a flush that fails acknowledges nothing of it, although the first half was delivered."""
    world.broker.publish(payload(0), payload(1))
    world.producer.room = 9
    delivered = []

    def refuse_the_rest() -> None:
        delivered.append(len(world.producer.delivered))
        if len(world.producer.delivered) == 9:
            world.producer.error, world.producer.room = "refused", 9

    world.producer.on_poll = refuse_the_rest
    with pytest.raises(DeliveryFailed):
        world.run()

    assert (9, []) == (max(delivered), world.broker.acknowledged)


def test_flush_before_the_refused_record_may_be_acknowledged_or_not_but_nothing_behind_it(world: World) -> None:
    """Reports of two flushes in one poll, the second refused: the actor ends, and no message of the second has its PUBACK."""
    world.producer.hold = True

    def two() -> None:
        if world.broker.turns in (2, 6):
            world.broker.publish(payload(world.broker.turns))
        if world.broker.turns == 10:
            first = [world.producer.waiting.popleft() for _ in range(9)]
            for _, report in first:
                report(None, None)
            world.producer.error, world.producer.hold = "refused", False

    world.each_turn = two
    world.until = lambda: False
    with pytest.raises(DeliveryFailed):
        world.run()

    assert world.broker.acknowledged in ([], [payload(2)])


@pytest.mark.parametrize("where", ["produce", "produce_one", "poll"])
def test_refusal_at_once_ends_the_actor(world: World, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """A record too large for Kafka, a dead letter likewise, or a producer that is broken for good: no PUBACK, the socket closes."""

    def refuse(*_arguments: Any, **_options: Any) -> Any:
        if world.broker.turns > 1:
            raise DeliveryFailed("refused for good")

    monkeypatch.setattr(world.producer, where, refuse)
    world.broker.publish(b"{broken" if where == "produce_one" else payload(0))
    with pytest.raises(DeliveryFailed):
        world.run()

    assert ([], True) == (world.broker.acknowledged, world.broker.closed)


def test_refused_record_is_tried_again_by_the_replacement(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the actor that ended held comes again to the next one, which produces and acknowledges it."""
    world.broker.publish(payload(0), payload(1))
    world.producer.error = "refused"
    with pytest.raises(DeliveryFailed):
        world.run()
    world.producer.error = None
    world.producer.waiting.clear()
    world.producer.taken.clear()
    world.actor = Ingest(NAME, world.settings, 0, SCHEMA, SCHEMA_ID)
    world.run()

    assert ([0, 1], [payload(0), payload(1)]) == (world.sequences(), world.broker.acknowledged)


# Retirement


@pytest.fixture
def retiring(monkeypatch: pytest.MonkeyPatch) -> World:
    """A slot with a subscription and 30 messages in its queue, whose actor is to end it."""
    world = World(monkeypatch, retire=True)
    world.broker.subscribed, world.broker.window, world.broker.leaky = True, 10, True
    world.broker.publish(*[payload(n) for n in range(30)])
    world.until = lambda: False
    return world


def test_retired_slot_leaves_no_message_and_no_session(retiring: World) -> None:
    """Unsubscribed first, everything queued produced and acknowledged, an empty session proven, then ended."""
    report = retiring.run()

    assert ("retired", True) == (report.reason, retiring.broker.ended)
    assert [payload(n) for n in range(30)] == retiring.broker.acknowledged
    assert "unsubscribe" == retiring.broker.requests[0]
    assert "nothing" == retiring.broker.requests[-1]
    assert 0 == retiring.broker.subscribes


def test_message_before_the_proof_postpones_the_end(retiring: World) -> None:
    """A message that arrives between the request for nothing and its answer is produced, and the proof is asked for again."""
    broker, late = retiring.broker, [payload(100), payload(101)]

    def slip_in() -> None:
        if late and broker.sent and broker.requests[-1] == "nothing":
            answer = broker.sent.pop()
            # As if it had been queued: unsubscribing does not take back what is in the queue.
            broker.queue.append(("ruuvitag/data", late.pop(0), 1))
            broker._send(1)
            broker.sent.append(answer)

    retiring.each_turn = slip_in
    report = retiring.run()

    assert "retired" == report.reason
    assert [payload(100), payload(101)] == retiring.broker.acknowledged[30:]
    assert ["unsubscribe", "nothing", "nothing", "nothing"] == retiring.broker.requests


def test_answer_on_its_way_is_waited_for(retiring: World) -> None:
    """A slow network between request and answer: a message that is under way before the answer is not left in the session."""
    broker, under_way = retiring.broker, list[Any]()
    since: list[int] = []

    def slow() -> None:
        if not since and broker.sent and broker.requests[-1] == "nothing":
            since.append(broker.turns)
            answer = broker.sent.pop()
            broker.queue.append(("ruuvitag/data", payload(100), 1))
            broker._send(1)
            under_way.extend([*broker.sent, answer])
            broker.sent.clear()
        if since and broker.turns == since[0] + 5:
            broker.sent.extend(under_way)

    retiring.each_turn = slow

    assert "retired" == retiring.run().reason
    assert payload(100) == broker.acknowledged[-1]


def test_retirement_waits_for_kafka(retiring: World) -> None:
    """As long as a message is not known to be in Kafka the session stays."""
    retiring.producer.hold = True

    def let_go() -> None:
        if retiring.broker.turns == 100:
            assert (False, []) == (retiring.broker.ended, retiring.broker.acknowledged)
            retiring.producer.hold = False

    retiring.each_turn = let_go
    assert "retired" == retiring.run().reason


@pytest.mark.parametrize("turn", range(2, 8))
def test_retirement_starts_over_after_a_lost_connection(retiring: World, turn: int) -> None:
    """Whatever step the connection is lost in, the slot is confirmed, the session taken again, and all is done once more."""

    def breaks() -> None:
        if retiring.broker.turns == turn:
            retiring.broker.break_next = BrokerUnavailable("connection lost")

    retiring.each_turn = breaks
    report = retiring.run()

    assert ("retired", True, 2) == (report.reason, retiring.broker.ended, retiring.confirmed)
    assert [payload(n) for n in range(30)] == retiring.broker.acknowledged


def test_retirement_waits_for_a_broker_that_is_away(retiring: World, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing held any more and no connection: nothing is asked of the old one, and one event says what is waited for."""
    retiring.producer.hold = True

    def breaks() -> None:
        if retiring.broker.turns == 6:
            retiring.broker.refuse_connects = 10
            retiring.broker.break_next = BrokerUnavailable("connection lost")
        if retiring.broker.turns == 9:
            retiring.producer.hold = False

    retiring.each_turn = breaks
    report = retiring.run()

    assert ("retired", True) == (report.reason, retiring.broker.ended)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert ["mqtt_connection_lost", "mqtt_connect_waits"] == warnings


@pytest.mark.parametrize("turn", range(2, 8))
def test_retirement_killed_anywhere_is_done_again(retiring: World, turn: int) -> None:
    """A second actor finishes what a killed one began: no message lost, no session left."""

    class Killed(BaseException):
        pass

    def kill() -> None:
        if retiring.broker.turns == turn:
            raise Killed

    retiring.each_turn = kill
    retiring.producer.hold = turn % 2 == 0
    with pytest.raises(Killed):
        retiring.run()
    retiring.each_turn = lambda: None
    retiring.producer.hold = False
    retiring.producer.waiting.clear()
    retiring.actor = Ingest(NAME, retiring.settings, 0, SCHEMA, SCHEMA_ID, True)

    assert "retired" == retiring.run().reason
    assert [payload(n) for n in range(30)] == retiring.broker.acknowledged
    assert retiring.broker.ended


def test_drain_ends_a_retirement(retiring: World) -> None:
    """A driver that stops everything gets an actor that drained; the slot's row stays and somebody retires it later."""
    retiring.producer.hold = True

    def drain() -> None:
        if retiring.broker.turns == 20:
            retiring.actor.drain()
            retiring.producer.hold = False

    retiring.each_turn = drain
    assert ("drained", False) == (retiring.run().reason, retiring.broker.ended)


def test_retirement_of_somebody_elses_slot_is_refused(retiring: World) -> None:
    """A slot that is served again is not to be ended by an actor that is late."""
    retiring.slot_owner = "ingest/0#2"
    with pytest.raises(StaleClaim):
        retiring.run()
    assert (0, True) == (retiring.broker.generation, retiring.broker.subscribed)
