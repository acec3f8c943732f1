"""Fakes at the seams of the actors: a log, a producer, a ledger, an MQTT session. They keep the contracts of the real ones
and fail on request; no thread and no clock, so an actor's run() plays through on the test's own thread.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any

from actors.adapters.kafka import Fetched
from actors.adapters.mqtt import Delivery
from actors.batch import Batch, DetectorSnapshot, Outcome, PartitionClaim, WriteAnswer
from actors.consume.port import Answer
from actors.detect.actor import Detect
from actors.write.ledger import Position
from rayapp.errors import BrokerUnavailable, DatabaseUnavailable, KafkaUnavailable, StaleClaim

TURNS = 5_000
"""More turns than any test needs: a loop that never ends fails instead of hanging."""


class Log:
    """Partitions of a topic: offset -> value, with gaps where a test leaves them."""

    def __init__(self) -> None:
        self.records: dict[int, dict[int, bytes | None]] = {}
        self.ends: dict[int, int] = {}
        self.letter_ids: dict[tuple[int, int], str] = {}

    def append(self, partition: int, *values: bytes | None, gap: int = 0) -> None:
        """Append records, and a marker that takes `gap` offsets."""
        records = self.records.setdefault(partition, {})
        for value in values:
            end = self.ends.get(partition, 0)
            records[end] = value
            self.ends[partition] = end + 1
        self.ends[partition] = self.ends.get(partition, 0) + gap


class Reader:
    """PartitionReader over a Log."""

    def __init__(self, log: Log, each_turn: Callable[[], None]) -> None:
        self.log, self.each_turn = log, each_turn
        self.places: dict[int, int] = {}
        self.paused: set[int] = set()
        self.started: list[tuple[int, int]] = []
        self.events: list[tuple[str, int]] = []
        self.mirrored: dict[int, int] = {}
        self.low: dict[int, int] = {}
        self.losses: deque[Exception] = deque()
        self.leader_epochs: list[int | None] = []
        self.stopped: list[int] = []
        self.closed = self.away = False
        self.turns = 0

    def start_at(self, partition: int, offset: int, leader_epoch: int | None = None) -> None:
        self.started.append((partition, offset))
        self.leader_epochs.append(leader_epoch)
        self.places[partition] = offset

    def stop(self, partition: int) -> None:
        self.stopped.append(partition)
        self.places.pop(partition, None)

    def log_bounds(self, partition: int) -> tuple[int, int]:
        if self.away:
            raise KafkaUnavailable("away")
        return self.low.get(partition, 0), self.log.ends.get(partition, 0)

    def poll(self, max_records: int, _timeout_s: float) -> list[Fetched]:
        self.turns += 1
        assert self.turns < TURNS, "the actor goes on for ever"
        self.each_turn()
        if self.losses:
            raise self.losses.popleft()
        found = []
        for partition, place in self.places.items():
            if partition in self.paused:
                continue
            records = self.log.records.get(partition, {})
            offsets = [offset for offset in sorted(records) if offset >= place][:max_records]
            end = self.log.ends.get(partition, 0)
            reached = end if not offsets or offsets[-1] == max(records) else None
            self.places[partition] = reached if reached is not None else offsets[-1] + 1
            if offsets or (reached is not None and reached != place):
                ids = {o: self.log.letter_ids[partition, o] for o in offsets if (partition, o) in self.log.letter_ids}
                found.append(Fetched(partition, offsets, [records[o] for o in offsets], reached, ids, 0))
        return found

    def pause(self, partition: int) -> None:
        self.paused.add(partition)
        self.events.append(("pause", partition))

    def resume(self, partition: int) -> None:
        self.paused.discard(partition)
        self.events.append(("resume", partition))

    def mirror(self, offsets: dict[int, int]) -> None:
        self.mirrored |= offsets

    def close(self) -> None:
        self.closed = True


class Producer:
    """RecordProducer whose deliveries wait until poll(), or until a test lets them go."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, int | None, Any, bytes]] = []
        self.delivered: list[bytes] = []
        self.dead: list[tuple[bytes, dict[str, bytes]]] = []
        self.waiting: deque[tuple[bytes, Callable[[Any, Any], None]]] = deque()
        self.room = 1_000_000
        self.hold = False
        self.error: object | None = None
        self.on_poll: Callable[[], None] = lambda: None

    def produce(self, topic: str, partition: int, keys: Sequence[str], values: Sequence[bytes], report: Callable[[Any, Any], None]) -> int:
        count = min(len(values), self.room)
        self.room -= count
        for key, value in list(zip(keys, values, strict=True))[:count]:
            self.taken.append((topic, partition, key, value))
            self.waiting.append((value, report))
        return count

    def produce_one(self, topic: str, value: bytes, headers: dict[str, bytes], report: Callable[[Any, Any], None], **_key: Any) -> bool:
        if self.room <= 0:
            return False
        self.room -= 1
        self.taken.append((topic, None, None, value))
        self.dead.append((value, headers))
        self.waiting.append((value, report))
        return True

    def poll(self, _timeout_s: float = 0.0) -> None:
        self.on_poll()
        if not self.hold:
            self.deliver(len(self.waiting))

    def deliver(self, count: int) -> None:
        """Report the deliveries of the oldest records."""
        for _ in range(min(count, len(self.waiting))):
            value, report = self.waiting.popleft()
            if self.error is None:
                self.delivered.append(value)
            report(self.error, None)

    def __len__(self) -> int:
        return len(self.waiting)


class LedgerRows:
    """The ledger's rows, with what connect() and Ledger() of the adapters offer."""

    def __init__(self) -> None:
        self.next: dict[int, int] = {}
        self.epochs: dict[int, int] = {}
        self.snapshots: dict[int, DetectorSnapshot] = {}
        self.reads: list[int] = []
        self.leader_epochs: dict[int, int] = {}
        self.halted: dict[int, str] = {}
        self.connects = 0
        self.away = 0

    def connect(self, *_arguments: Any, **_options: Any) -> LedgerRows:
        self.connects += 1
        if self.away:
            self.away -= 1
            raise DatabaseUnavailable("away")
        return self

    def ledger(self, _connection: Any, _pipeline: str) -> LedgerRows:
        return self

    def positions(self, claims: Collection[PartitionClaim]) -> dict[PartitionClaim, Position]:
        found = {}
        for claim in claims:
            self.reads.append(claim.partition)
            if self.epochs.get(claim.partition, claim.epoch) != claim.epoch:
                raise StaleClaim("claimed away")
            found[claim] = Position(self.next.get(claim.partition, 0), self.leader_epochs.get(claim.partition))
        return found

    def load_snapshot(self, claim: PartitionClaim) -> DetectorSnapshot | None:
        return self.snapshots.get(claim.partition)

    def halt(self, claim: PartitionClaim, reason: str) -> None:
        if self.epochs.get(claim.partition, claim.epoch) != claim.epoch:
            raise StaleClaim("claimed away")
        self.halted[claim.partition] = reason

    def close(self) -> None:
        """Nothing to close."""


Mishap = Callable[[Batch], WriteAnswer | Exception | None]


class Store:
    """What a writer does with a batch, without a database: rows by offset, the ledger's rules, mishaps in order."""

    def __init__(self, ledger: LedgerRows) -> None:
        self.ledger = ledger
        self.rows: dict[tuple[int, int], dict[str, Any]] = {}
        self.batches: list[Batch] = []
        self.dead = 0
        self.mishaps: deque[Mishap] = deque()

    def write(self, batch: Batch) -> WriteAnswer:
        self.batches.append(batch)
        partition = batch.claim.partition
        if self.ledger.epochs.get(partition, batch.claim.epoch) != batch.claim.epoch:
            raise StaleClaim("claimed away")
        if self.mishaps:
            answer = self.mishaps.popleft()(batch)
            if isinstance(answer, Exception):
                raise answer
            if answer is not None:
                return answer
        position = self.ledger.next.get(partition, 0)
        if position >= batch.after:
            return WriteAnswer(Outcome.ALREADY_DONE, position)
        if position != batch.before:
            return WriteAnswer(Outcome.REWIND, position)
        self.commit(batch)
        return WriteAnswer(Outcome.STORED, batch.after, batch.table.num_rows)

    def commit(self, batch: Batch) -> None:
        """Store the rows and move the ledger, as one transaction would."""
        for row in batch.table.to_pylist():
            key = batch.claim.partition, row["offset"]
            assert key not in self.rows, f"stored twice: {key}"
            self.rows[key] = row
        self.dead += batch.dead
        self.ledger.next[batch.claim.partition] = batch.after
        if batch.leader_epoch is not None:
            self.ledger.leader_epochs[batch.claim.partition] = batch.leader_epoch
        if batch.snapshot is not None:
            self.ledger.snapshots[batch.claim.partition] = batch.snapshot


class Downstream:
    """Calls a real Detect and a Store; answers come one poll later, or when a test lets them."""

    def __init__(self, detect: Detect, store: Store) -> None:
        self.detector, self.store = detect, store
        self.tokens = itertools.count()
        self.calls: deque[tuple[int, str, Callable[[], Any]]] = deque()
        self.history: list[str] = []
        self.hold: set[str] = set()
        self.errors: dict[str, deque[Exception]] = {"restore": deque(), "detect": deque(), "write": deque()}

    def _later(self, kind: str, call: Callable[[], Any]) -> int:
        token = next(self.tokens)
        self.calls.append((token, kind, call))
        self.history.append(kind)
        return token

    def restore(self, claim: PartitionClaim, position: int, snapshot: DetectorSnapshot | None) -> int:
        return self._later("restore", lambda: self.detector.restore(claim, position, snapshot))

    def detect(self, batch: Batch, *, drain: bool) -> int:
        assert sum(kind == "detect" for _, kind, _ in self.calls) < 16
        return self._later("detect", lambda: self.detector.detect(batch, drain))

    def write(self, batch: Batch) -> int:
        return self._later("write", lambda: self.store.write(batch))

    def waiting(self, kind: str) -> int:
        """Return how many calls of a kind have no answer yet."""
        return sum(each == kind for _, each, _ in self.calls)

    def poll(self, _timeout_s: float) -> list[Answer]:
        answers, held = [], deque[tuple[int, str, Callable[[], Any]]]()
        while self.calls:
            token, kind, call = self.calls.popleft()
            if kind in self.hold:
                held.append((token, kind, call))
                continue
            try:
                if self.errors[kind]:
                    raise self.errors[kind].popleft()
                answers.append(Answer(token, call(), None))
            except AssertionError:
                raise  # a test's own, not a call's
            except Exception as error:  # noqa: BLE001 - any error of a call is its answer, as over Ray
                answers.append(Answer(token, None, error))
        self.calls = held
        return answers


class Broker:
    """An MQTT broker with one persistent session: unacknowledged messages come again under the next generation.

    It sends in order what its window lets through. A `leaky` one lets a whole window through for every PUBACK while
    it has a queue, as Mosquitto 2.0.11 does. Requests are answered behind everything that was sent before them.
    """

    def __init__(self, each_turn: Callable[[], None]) -> None:
        self.each_turn = each_turn
        self.queue: deque[tuple[str, bytes, int]] = deque()
        self.inflight: dict[int, tuple[str, bytes]] = {}
        self.sent: deque[Delivery | int] = deque()
        self.acknowledged: list[bytes] = []
        self.elsewhere: list[bytes] = []
        self.mids = itertools.count(1)
        self.window, self.leaky = 1_000_000, False
        self.generation = 0
        self.connected = self.subscribed = self.session_present = False
        self.turns = self.refuse_connects = self.subscribes = 0
        self.break_next: Exception | None = None
        self.closed = self.ended = self.suback_later = False
        self.rooms: list[int] = []
        self.answers: set[int] = set()
        self.requests: list[str] = []
        self.unread_turns = 0
        self.broker_dropped: int | None = None

    def session(self, *_arguments: Any) -> Broker:
        """Stand in for the class MqttSession."""
        return self

    def publish(self, *payloads: bytes, topic: str = "ruuvitag/data", qos: int = 1) -> None:
        if self.generation and not self.subscribed:
            self.elsewhere.extend(payloads)
        else:
            self.queue.extend((topic, payload, qos) for payload in payloads)

    @property
    def unacknowledged(self) -> int:
        return len(self.inflight)

    def connect(self, *, subscribe: bool = True, max_messages: int = 0, **_room: int) -> None:
        self.rooms.append(max_messages)
        self.subscribes += subscribe
        self.turn()
        self.generation += 1
        if self.refuse_connects:
            self.refuse_connects -= 1
            raise BrokerUnavailable("refused")
        self.connected, self.subscribed = True, (subscribe and not self.suback_later) or self.subscribed
        self.answers.clear()
        self.sent = deque(Delivery(topic, payload, mid, 1, self.generation) for mid, (topic, payload) in self.inflight.items())

    def forget(self) -> None:
        """Be killed and start without a memory."""
        self.queue.clear()
        self.inflight.clear()
        self.session_present = self.subscribed = False
        self.break_next = BrokerUnavailable("killed")

    def pump(self, _timeout_s: float, max_messages: int, max_bytes: int) -> list[Delivery]:
        self.turn()
        if self.break_next is not None:
            error, self.break_next = self.break_next, None
            self.connected = False
            raise error
        assert self.connected
        self._send(self.window - len(self.inflight))
        self.unread_turns += max_messages <= 0 and bool(self.sent)
        received: list[Delivery] = []
        while self.sent and len(received) < max_messages and sum(len(delivery.payload) for delivery in received) < max_bytes:
            packet = self.sent.popleft()
            if isinstance(packet, int):
                self.answers.add(packet)
            else:
                received.append(packet)
        return received

    def _send(self, count: int) -> None:
        for _ in range(min(count, len(self.queue))):
            topic, payload, qos = self.queue.popleft()
            mid = next(self.mids) if qos else 0
            if qos:
                self.inflight[mid] = (topic, payload)
            self.sent.append(Delivery(topic, payload, mid, qos, self.generation))

    def ack(self, deliveries: Sequence[Delivery]) -> int:
        stale = 0
        for delivery in deliveries:
            if delivery.generation != self.generation or not self.connected:
                stale += 1
            elif delivery.qos:
                assert delivery.mid == next(iter(self.inflight)), "not in receive order, or twice"
                self.acknowledged.append(self.inflight.pop(delivery.mid)[1])
                self._send(self.window if self.leaky else self.window - len(self.inflight))
        return stale

    def unsubscribe(self) -> int:
        self.subscribed = False
        return self._request("unsubscribe")

    def ask_nothing(self) -> int:
        return self._request("nothing")

    def _request(self, what: str) -> int:
        assert self.connected
        self.requests.append(what)
        self.sent.append(len(self.requests))
        return len(self.requests)

    def answered(self, request: int) -> bool:
        return request in self.answers

    def end(self) -> None:
        self.turn()
        if self.break_next is not None:
            error, self.break_next = self.break_next, None
            self.connected = False
            raise error
        assert not self.subscribed, "a session that swallows its share"
        assert not self.queue, "ended with messages in its queue"
        assert not self.inflight, "ended with messages that nobody has acknowledged"
        self.ended, self.connected = True, False

    def close(self) -> None:
        self.connected, self.closed = False, True

    def turn(self) -> None:
        self.turns += 1
        assert self.turns < TURNS, "the actor goes on for ever"
        self.each_turn()
