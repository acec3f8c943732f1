"""The consume actor against fakes of everything around it: each record stored or dead-lettered once, whatever fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from builders import SCHEMA, SCHEMA_ID, claim, framed
from fakes import Downstream, LedgerRows, Log, Producer, Reader, Store

from actors.base import ActorState, Report
from actors.batch import Batch, Outcome, PartitionClaim, WriteAnswer
from actors.consume import actor as module
from actors.consume.actor import Consume
from actors.detect.actor import Detect, OutOfStep
from rayapp.config import Settings
from rayapp.errors import DatabaseUnavailable, DataLoss, DeliveryFailed, DownstreamLost, StaleClaim

DEAD_LETTERS = "iot-sensor-data-dlq"


def now_record(value: float | None = 21.5, **changes: Any) -> bytes:
    """Return a record of today, which the actor's clock accepts."""
    return framed(timestamp=module.time.strftime("%Y-%m-%dT%H:%M:%S.000000+00:00", module.time.gmtime()), value=value, **changes)


BROKEN = b"not avro"


class World:
    """An actor and everything around it; run() drains when the condition holds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **batch: Any) -> None:
        self.settings = Settings(batch={"interval_s": 1e-9, "max_rows": 3, **batch})  # type: ignore[arg-type]
        self.log, self.producer, self.ledger = Log(), Producer(), LedgerRows()
        self.store = Store(self.ledger)
        self.detector = Detect("detect/0#1", self.settings)
        self.downstream = Downstream(self.detector, self.store)
        self.reader = Reader(self.log, self._turn)
        self.until: Callable[[], bool] = self.is_done
        self.each_turn: Callable[[], None] = lambda: None
        monkeypatch.setattr(module, "PartitionReader", lambda *_: self.reader)
        monkeypatch.setattr(module, "RecordProducer", lambda *_: self.producer)
        monkeypatch.setattr(module, "connect", self.ledger.connect)
        monkeypatch.setattr(module, "Ledger", self.ledger.ledger)
        monkeypatch.setattr(module, "RETRY_S", 0.0)
        self.actor = Consume("consume/0#1", self.settings, SCHEMA, SCHEMA_ID)

    def _turn(self) -> None:
        self.each_turn()
        if self.until():
            self.actor.drain()

    def is_done(self) -> bool:
        """True when the ledger stands at every log's end."""
        return all(self.ledger.next.get(partition, 0) == end for partition, end in self.log.ends.items())

    def run(self, *claims: PartitionClaim) -> Report:
        return self.actor.run(list(claims) or [claim()], self.downstream)

    def offsets(self, partition: int = 0) -> list[int]:
        return sorted(offset for each, offset in self.store.rows if each == partition)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A world with small batches."""
    return World(monkeypatch)


def test_records_become_rows_in_batches_that_tile_the_log(world: World) -> None:
    """Every record is stored once; each batch begins where the last one ended, over a marker's gap, too."""
    world.log.append(0, *[now_record(float(n)) for n in range(5)], gap=1)
    world.log.append(0, now_record(6.0), gap=2)
    report = world.run()

    assert [0, 1, 2, 3, 4, 6] == world.offsets()
    assert 9 == world.ledger.next[0]
    assert [batch.before for batch in world.store.batches] == [0, *[batch.after for batch in world.store.batches[:-1]]]
    assert ("drained", {0: 9}, True) == (report.reason, world.reader.mirrored, world.reader.closed)


def test_partitions_go_on_by_themselves(world: World) -> None:
    """Each partition starts at its own position and ends at its own end."""
    world.log.append(0, *[now_record()] * 4)
    world.log.append(1, *[now_record()] * 7)
    world.ledger.next = {0: 1, 1: 5}
    world.run(claim(0), claim(1))

    assert ([1, 2, 3], [5, 6]) == (world.offsets(0), world.offsets(1))


def test_detection_raises_flags(world: World) -> None:
    """A reading outside the limits is stored as an anomaly although its producer did not say so; none is lowered."""
    world.log.append(0, now_record(99.0), now_record(20.0), now_record(20.0, is_anomaly=True))
    world.run()

    assert [True, False, True] == [world.store.rows[0, offset]["is_anomaly"] for offset in range(3)]


def test_batch_goes_on_only_when_its_dead_letters_are_delivered(world: World) -> None:
    """A batch with a bad record reaches neither detect nor write before the dead letter's own delivery report."""
    world.log.append(0, now_record(), BROKEN, now_record())
    world.producer.hold = True
    turns = 0

    def let_go() -> None:
        nonlocal turns
        turns += 1
        if turns == 20:
            assert [BROKEN] == [value for value, _ in world.producer.waiting]
            assert ["restore"] == world.downstream.history
            world.producer.hold = False

    world.each_turn = let_go
    world.run()

    assert [0, 2] == world.offsets()
    assert 1 == world.store.dead
    ((value, headers),) = world.producer.dead
    assert (BROKEN, b"iot-sensor-data/0/1", b"not_framed", b"consume") == (value, headers["id"], headers["reason"], headers["stage"])
    assert [DEAD_LETTERS] == [topic for topic, *_ in world.producer.taken]


def test_batch_of_dead_letters_alone_commits(world: World) -> None:
    """Bad records without a good one between them move the ledger all the same."""
    world.log.append(0, BROKEN, None, BROKEN)
    world.run()

    assert (3, 3, []) == (world.ledger.next[0], world.store.dead, world.offsets())


def test_full_producer_queue_loses_no_dead_letter(world: World) -> None:
    """Dead letters that the producer has no room for wait their turn."""
    world.log.append(0, *[BROKEN + bytes([n]) for n in range(9)])
    world.producer.room = 0
    world.each_turn = lambda: setattr(world.producer, "room", 1)
    world.run()

    assert [BROKEN + bytes([n]) for n in range(9)] == world.producer.delivered


def test_refused_dead_letter_ends_the_actor_without_a_commit(world: World) -> None:
    """When Kafka refuses a dead letter for good, nothing is committed past its record."""
    world.log.append(0, now_record(), BROKEN)
    world.producer.error = "too large"
    with pytest.raises(DeliveryFailed):
        world.run()
    assert ({}, True) == (world.ledger.next, world.reader.closed)


def test_rejected_rows_become_dead_letters_and_the_rest_is_submitted_again(world: World) -> None:
    """Rows that write refuses are dead-lettered as received, delivered, and left out of the same batch's next submission."""
    values = [now_record(float(n)) for n in range(3)]
    world.log.append(0, *values)
    world.producer.hold = True
    world.store.mishaps.append(lambda batch: WriteAnswer(Outcome.REJECTED, batch.before, rejected={1: "conflict"}))
    turns = 0

    def let_go() -> None:
        nonlocal turns
        turns += bool(world.producer.waiting)
        if turns == 20 and world.producer.hold:
            assert 1 == len(world.store.batches)
            world.producer.hold = False

    world.each_turn = let_go
    world.run()

    assert [0, 2] == world.offsets()
    first, second = world.store.batches
    assert ((0, 3, 0, 3), (0, 3, 1, 2)) == tuple((b.before, b.after, b.dead, b.table.num_rows) for b in (first, second))
    ((value, headers),) = world.producer.dead
    assert (values[1], b"iot-sensor-data/0/1", b"conflict", b"write") == (value, headers["id"], headers["reason"], headers["stage"])


def test_every_row_of_a_batch_may_be_rejected(world: World) -> None:
    """A batch whose rows are all refused commits as dead letters, also when they are refused one after the other."""
    world.log.append(0, *[now_record()] * 3)
    for offset in range(3):
        world.store.mishaps.append(lambda batch, offset=offset: WriteAnswer(Outcome.REJECTED, batch.before, rejected={offset: "conflict"}))
    world.run()

    assert (3, 3, []) == (world.ledger.next[0], world.store.dead, world.offsets())
    assert 3 == len(world.producer.dead)


def test_rewind_goes_back_to_the_ledger(world: World) -> None:
    """A writer that stands elsewhere sends the partition back to the ledger's position, detector included."""
    world.log.append(0, *[now_record(float(n)) for n in range(8)])

    def moved(_batch: Batch) -> WriteAnswer:
        world.ledger.next[0] = 2
        return WriteAnswer(Outcome.REWIND, 2)

    world.store.mishaps.append(moved)
    world.run()

    assert [2, 3, 4, 5, 6, 7] == world.offsets()
    assert [(0, 0), (0, 2)] == world.reader.started
    assert 2 == world.downstream.history.count("restore")


@pytest.mark.parametrize("committed", [False, True])
def test_unknown_outcome_is_read_from_the_ledger(world: World, committed: bool) -> None:
    """When the database breaks at COMMIT, the ledger says whether the batch counts; it is stored once either way."""
    world.log.append(0, *[now_record(float(n)) for n in range(8)])

    def breaks(batch: Batch) -> Exception:
        if committed:
            world.store.commit(batch)
        return DatabaseUnavailable("connection lost")

    world.store.mishaps.append(breaks)
    world.ledger.away = 0
    world.run()

    assert list(range(8)) == world.offsets()
    assert [(0, 0), (0, 3 if committed else 0)] == world.reader.started


def test_database_away_is_waited_for(world: World) -> None:
    """While the ledger cannot be read, the actor is BLOCKED, turns on, and starts when it can."""
    world.log.append(0, now_record())
    world.ledger.away = 10
    states = set()
    world.each_turn = lambda: states.add((world.actor.status().state, world.actor.status().blocked_on))
    world.run()

    assert [0] == world.offsets()
    assert (ActorState.BLOCKED, "database or kafka") in states
    assert ActorState.DRAINING is world.actor.status().state


def test_kafka_away_at_the_start_is_waited_for(world: World) -> None:
    """Log bounds that cannot be had are asked for again."""
    world.log.append(0, now_record())
    world.reader.away = True

    def back() -> None:
        world.reader.away = world.reader.turns < 10

    world.each_turn = back
    world.run()

    assert [0] == world.offsets()


def test_detector_out_of_step_is_restored(world: World) -> None:
    """A detector that stands elsewhere is restored at the ledger's position and the batch is detected again."""
    world.log.append(0, *[now_record(float(n)) for n in range(5)])
    world.downstream.errors["detect"].append(OutOfStep("elsewhere"))
    world.run()

    assert list(range(5)) == world.offsets()
    assert 2 == world.downstream.history.count("restore")


@pytest.mark.parametrize("kind", ["restore", "detect", "write"])
@pytest.mark.parametrize("error", [StaleClaim("claimed away"), DownstreamLost("gone")])
def test_lost_claims_and_actors_end_the_run(world: World, kind: str, error: Exception) -> None:
    """Only the driver may claim again: a stale claim or a lost actor ends run() with nothing more written."""
    world.log.append(0, *[now_record()] * 3)
    world.downstream.errors[kind].append(error)
    with pytest.raises(type(error)):
        world.run()
    assert ({}, True) == (world.ledger.next, world.reader.closed)


def test_partition_claimed_away_ends_the_run(world: World) -> None:
    """An epoch that rose meanwhile is seen at the next batch."""
    world.log.append(0, *[now_record()] * 9)
    world.store.mishaps.append(lambda _batch: world.ledger.epochs.update({0: 2}))
    with pytest.raises(StaleClaim):
        world.run()
    assert [0, 1, 2] == world.offsets()


@pytest.mark.parametrize(("low", "position"), [(0, 9), (3, 2)])
def test_ledger_outside_the_log_is_data_loss(world: World, low: int, position: int) -> None:
    """A position beyond the log, or before what it still holds, ends loudly; nothing is skipped."""
    world.log.append(0, *[now_record()] * 5)
    world.ledger.next[0], world.reader.low[0] = position, low
    with pytest.raises(DataLoss):
        world.run()
    assert [] == world.store.batches


def test_credit_stops_fetching_until_write_commits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A partition over its credit is paused and resumed, its bytes held stay within one fetch of the credit, and all is stored."""
    world = World(monkeypatch, credit_bytes=2**20, max_rows=4)
    big = {"unit": "x" * 300_000}
    world.log.append(0, *[now_record(**big) for _ in range(20)])
    world.downstream.hold = {"write"}
    most = 0
    quiet = 0

    def watch() -> None:
        nonlocal most, quiet
        most = max(most, int(world.actor.gauges.get("held_bytes", 0)))
        quiet = quiet + 1 if world.reader.paused else 0
        everything_is_read = world.reader.places.get(0) == 20
        world.downstream.hold = set() if quiet > 10 or everything_is_read else {"write"}

    world.each_turn = watch
    world.run()

    assert list(range(20)) == world.offsets()
    assert most <= 2**20 + 4 * 301_000
    assert world.reader.events[:2] == [("pause", 0), ("resume", 0)]
    assert set() == world.reader.paused


def test_one_batch_before_write_and_one_in_write(world: World) -> None:
    """While write is busy, at most one more batch is detected; nothing overtakes."""
    world.log.append(0, *[now_record()] * 30)
    world.downstream.hold = {"write"}

    def watch() -> None:
        assert world.downstream.waiting("write") <= 1
        assert world.downstream.history.count("detect") <= world.downstream.history.count("write") + 1
        if world.reader.turns % 10 == 0:
            world.downstream.hold ^= {"write"}

    world.each_turn = watch
    world.run()

    assert list(range(30)) == world.offsets()


def test_drain_finishes_what_is_held(world: World) -> None:
    """Records fetched before drain() are stored, those after it are left to the next actor."""
    world.log.append(0, *[now_record()] * 3)
    world.until = lambda: bool(world.reader.started)  # drain with the first records hardly fetched
    world.downstream.hold = {"detect"}
    world.each_turn = lambda: None
    actor_tick = world.actor.tick

    def release() -> None:
        world.downstream.hold = set()
        actor_tick()

    world.actor.tick = release  # type: ignore[method-assign]
    report = world.run()

    assert "drained" == report.reason
    assert world.ledger.next.get(0, 0) == len(world.offsets())
    assert all(flow.idle or flow.recovering for flow in world.actor._flows.values())


def test_drain_takes_the_detectors_snapshot(world: World) -> None:
    """A batch that is detected during a drain stores the detector's state of exactly its end."""
    world.log.append(0, *[now_record()] * 3)
    world.until = lambda: bool(world.reader.started)
    world.run()

    assert world.ledger.next[0] == world.ledger.snapshots[0].position


def test_drain_while_the_database_is_away_ends(world: World) -> None:
    """A partition that waits for its ledger does not hold up the drain: it is read again by the next actor."""
    world.log.append(0, now_record())
    world.ledger.away = 10**6
    world.until = lambda: world.reader.turns > 20

    assert "drained" == world.run().reason
    assert {} == world.ledger.next


def test_foreign_schema_waits_for_the_registry(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the registry is away, the batch is tried again whole; nothing of it becomes a dead letter."""
    world.log.append(0, now_record(), framed(schema_id=99, timestamp="2026-01-01T00:00:00Z"))
    answers: list[str | Exception] = [DatabaseUnavailable("registry away"), SCHEMA]

    def lookup(_schema_id: int) -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(world.actor._decoder, "_schema_text", lookup)
    world.run()

    assert ([], 2) == (answers, world.ledger.next[0])
    assert [0, 1] == sorted([*world.offsets(), *[int(headers["id"].split(b"/")[-1]) for _, headers in world.producer.dead]])
