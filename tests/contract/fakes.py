"""Fakes at the seams of the actors: a log, a producer, a ledger, an MQTT session. They keep the contracts of the real ones
and fail on request; no thread and no clock, so an actor's run() plays through on the test's own thread.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from actors.adapters.kafka import Fetched
from actors.adapters.mqtt import Delivery
from actors.batch import Batch, DetectorSnapshot, Outcome, PartitionClaim, WriteAnswer
from actors.consume.port import Answer
from actors.detect.actor import Detect
from rayapp.errors import BrokerUnavailable, DatabaseUnavailable, KafkaUnavailable, StaleClaim

TURNS = 5_000
"""More turns than any test needs: a loop that never ends fails instead of hanging."""


class Log:
    """Partitions of a topic: offset -> value, with gaps where a test leaves them."""

    def __init__(self) -> None:
        self.records: dict[int, dict[int, bytes | None]] = {}
        self.ends: dict[int, int] = {}

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
        self.closed = self.away = False
        self.turns = 0

    def start_at(self, partition: int, offset: int) -> None:
        self.started.append((partition, offset))
        self.places[partition] = offset

    def log_bounds(self, partition: int) -> tuple[int, int]:
        if self.away:
            raise KafkaUnavailable("away")
        return self.low.get(partition, 0), self.log.ends.get(partition, 0)

    def poll(self, max_records: int, _timeout_s: float) -> list[Fetched]:
        self.turns += 1
        assert self.turns < TURNS, "the actor goes on for ever"
        self.each_turn()
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
                found.append(Fetched(partition, offsets, [records[o] for o in offsets], reached))
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
        self.away = 0

    def connect(self, *_arguments: Any, **_options: Any) -> LedgerRows:
        if self.away:
            self.away -= 1
            raise DatabaseUnavailable("away")
        return self

    def ledger(self, _connection: Any, _pipeline: str) -> LedgerRows:
        return self

    def next_offset(self, claim: PartitionClaim) -> int:
        self.reads.append(claim.partition)
        if self.epochs.get(claim.partition, claim.epoch) != claim.epoch:
            raise StaleClaim("claimed away")
        return self.next.get(claim.partition, 0)

    def load_snapshot(self, claim: PartitionClaim) -> DetectorSnapshot | None:
        return self.snapshots.get(claim.partition)

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
        partition, position = batch.claim.partition, self.ledger.next.get(batch.claim.partition, 0)
        if self.ledger.epochs.get(partition, batch.claim.epoch) != batch.claim.epoch:
            raise StaleClaim("claimed away")
        if self.mishaps:
            answer = self.mishaps.popleft()(batch)
            if isinstance(answer, Exception):
                raise answer
            if answer is not None:
                return answer
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
            except Exception as error:  # noqa: BLE001 - any error of a call is its answer, as over Ray
                answers.append(Answer(token, None, error))
        self.calls = held
        return answers


class Broker:
    """An MQTT broker with one persistent session: unacknowledged messages come again under the next generation."""

    def __init__(self, each_turn: Callable[[], None]) -> None:
        self.each_turn = each_turn
        self.queue: deque[tuple[str, bytes]] = deque()
        self.inflight: dict[int, tuple[str, bytes]] = {}
        self.acknowledged: list[bytes] = []
        self.mids = itertools.count(1)
        self.generation = 0
        self.connected = False
        self.turns = 0
        self.refuse_connects = 0
        self.break_next: Exception | None = None
        self.closed = False
        self.out: list[Delivery] = []

    def session(self, *_arguments: Any) -> Broker:
        """Stand in for the class MqttSession."""
        return self

    def publish(self, *payloads: bytes, topic: str = "ruuvitag/data") -> None:
        self.queue.extend((topic, payload) for payload in payloads)

    def connect(self) -> None:
        self.turn()
        self.generation += 1
        if self.refuse_connects:
            self.refuse_connects -= 1
            raise BrokerUnavailable("refused")
        self.connected = True
        self.out = [Delivery(topic, payload, mid, 1, self.generation) for mid, (topic, payload) in self.inflight.items()]

    def pump(self, _timeout_s: float) -> list[Delivery]:
        self.turn()
        if self.break_next is not None:
            error, self.break_next = self.break_next, None
            self.connected = False
            raise error
        assert self.connected
        while self.queue:
            topic, payload = self.queue.popleft()
            mid = next(self.mids)
            self.inflight[mid] = (topic, payload)
            self.out.append(Delivery(topic, payload, mid, 1, self.generation))
        received, self.out = self.out, []
        return received

    def ack(self, deliveries: Sequence[Delivery]) -> int:
        stale = 0
        for delivery in deliveries:
            if delivery.generation != self.generation:
                stale += 1
                continue
            self.acknowledged.append(self.inflight.pop(delivery.mid)[1])
        return stale

    def close(self) -> None:
        self.connected, self.closed = False, True

    def turn(self) -> None:
        self.turns += 1
        assert self.turns < TURNS, "the actor goes on for ever"
        self.each_turn()
