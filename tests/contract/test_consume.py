"""The consume actor against fakes of everything around it: each record stored or dead-lettered once, whatever fails."""

from __future__ import annotations

import pyarrow.compute as pc
import pytest
from builders import SCHEMA, claim, framed
from consume_world import BROKEN, World, now_record, now_text

from actors.base import ActorState
from actors.batch import Batch, Outcome, WriteAnswer
from actors.consume import recovery
from actors.detect.actor import OutOfStep
from rayapp.errors import DatabaseUnavailable, DeliveryFailed, DependencyUnavailable, DownstreamLost, KafkaUnavailable, StaleClaim

DEAD_LETTERS = "iot-sensor-data-dlq"


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


def test_rewind_leaves_no_dead_letter_behind_that_is_sent_again(world: World) -> None:
    """Letters that the producer had no room for are dropped with their batch at a rewind; read again, each goes out once."""
    world.log.append(0, now_record(), now_record(), now_record(), BROKEN, BROKEN, BROKEN)
    world.producer.room = 0
    world.store.mishaps.append(lambda _batch: WriteAnswer(Outcome.REWIND, 0))
    world.downstream.hold = {"write"}

    def let_go() -> None:
        world.producer.room = 9 if world.ledger.next else 0
        if world.actor._letters._queue:
            world.downstream.hold = set()

    world.each_turn = let_go
    world.run()

    assert 3 == len(world.producer.dead)


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


def test_known_foreign_schema_goes_on_while_the_registry_is_away(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schema id looked up once is not asked for again; records of ours never need the registry."""
    asked: list[int] = []

    def lookup(schema_id: int) -> str:
        asked.append(schema_id)
        if len(asked) > 1:
            raise DatabaseUnavailable("registry away")
        return SCHEMA

    monkeypatch.setattr(world.actor._decoder, "_schema_text", lookup)
    for _ in range(4):
        world.log.append(0, now_record(), framed(schema_id=99, timestamp=now_text()))
    world.run()

    assert ([99], list(range(8))) == (asked, world.offsets())


@pytest.mark.parametrize("committed", [False, True])
def test_commit_of_unknown_outcome_with_a_batch_behind_it(world: World, committed: bool) -> None:
    """The batch that waits behind a broken COMMIT is thrown away with it and cut anew where the ledger stands, after either outcome."""
    world.log.append(0, *[now_record(float(n)) for n in range(9)])
    broken: list[tuple[int, int]] = []

    def breaks(batch: Batch) -> Exception:
        if committed:
            world.store.commit(batch)
        broken.append((batch.before, batch.after))
        return DatabaseUnavailable("connection lost at COMMIT")

    world.downstream.hold = {"write"}
    world.each_turn = lambda: world.downstream.hold.clear() if world.downstream.history.count("detect") > 1 else None
    world.store.mishaps.append(breaks)
    world.run()

    assert [(0, 3)] == broken
    assert list(range(9)) == world.offsets()
    assert [(0, 0), (0, 3 if committed else 0)] == world.reader.started
    again = [(batch.before, batch.after) for batch in world.store.batches[1:]]
    assert [(3, 6), (6, 9)] == again[-2:]


def test_ledger_in_the_middle_of_a_batch_is_gone_back_to(world: World) -> None:
    """Somebody stored half of what a batch holds: write answers rewind, and the next batch begins at the ledger, in no old boundary."""
    world.log.append(0, *[now_record(float(n)) for n in range(9)])

    def half(batch: Batch) -> None:
        keep = batch.table.filter(pc.less(batch.table["offset"], 2))
        world.store.commit(Batch(batch.claim, keep, 0, 2, 2))

    world.store.mishaps.append(half)
    world.run()

    assert list(range(9)) == world.offsets()
    assert 2 in [batch.before for batch in world.store.batches]
    assert all(after <= 2 or before >= 2 for before, after in [(b.before, b.after) for b in world.store.batches[1:]])


def test_batch_that_was_stored_already_is_done(world: World) -> None:
    """A ledger at or beyond a batch's end means stored: its credit returns, and nothing is stored twice or read again."""
    world.log.append(0, *[now_record(float(n)) for n in range(6)])
    world.store.mishaps.append(lambda batch: world.store.commit(batch))  # and then write finds the ledger there
    world.run()

    assert list(range(6)) == world.offsets()
    assert [(0, 0)] == world.reader.started


def test_partitions_of_one_writer_are_claimed_each_by_itself(world: World) -> None:
    """When one of two partitions of the same writer is claimed away, the run ends; what the other had stored stays, whole batches only."""
    world.log.append(0, *[now_record()] * 9)
    world.log.append(1, *[now_record()] * 9)
    world.each_turn = lambda: world.ledger.epochs.update({1: 2}) if world.ledger.next.get(1, 0) >= 3 else None
    with pytest.raises(StaleClaim):
        world.run(claim(0), claim(1))

    for partition in (0, 1):
        assert world.offsets(partition) == list(range(world.ledger.next[partition]))
    assert 3 <= world.ledger.next[1] < 9
    world.fresh()
    world.each_turn = lambda: None
    world.run(claim(0, epoch=2), claim(1, epoch=2))
    assert (list(range(9)), list(range(9))) == (world.offsets(0), world.offsets(1))


def test_unavailable_actor_may_have_done_its_work(world: World) -> None:
    """A detector and a writer that did what was asked and whose answers were lost: the ledger tells, nothing is stored twice."""
    world.log.append(0, *[now_record(float(n)) for n in range(9)])
    lost = 0

    def answers_are_lost(batch: Batch) -> Exception | None:
        nonlocal lost
        lost += 1
        if lost % 2 == 0:
            return None
        world.store.commit(batch)
        return DependencyUnavailable("actor unavailable")

    world.store.mishaps.extend([answers_are_lost] * 6)
    world.downstream.errors["detect"].append(DependencyUnavailable("actor unavailable"))
    world.downstream.errors["restore"].append(DependencyUnavailable("actor unavailable"))
    world.run()

    assert list(range(9)) == world.offsets()


def test_zombie_stores_nothing_and_its_dead_letters_carry_the_same_ids(world: World) -> None:
    """An actor whose partition was claimed away while its dead letters were under way ends without a row; the new owner's letters are
    the same letters."""
    world.log.append(0, now_record(), BROKEN, now_record())
    world.producer.hold = True

    def claimed_away() -> None:
        if world.producer.waiting:
            world.ledger.epochs[0] = 2
            world.producer.hold = False

    world.each_turn = claimed_away
    with pytest.raises(StaleClaim):
        world.run()
    assert ({}, []) == (world.ledger.next, world.offsets())

    world.fresh()
    world.each_turn = lambda: None
    world.run()
    assert [0, 2] == world.offsets()
    assert [b"iot-sensor-data/0/1"] * 2 == [headers["id"] for _, headers in world.producer.dead]


def test_dead_letter_of_a_replayed_record_keeps_its_first_id(world: World) -> None:
    """A record made from a dead letter that fails again, at consume or at write, is the same dead letter; it says where it lies now."""
    world.log.append(0, BROKEN, now_record(), now_record())
    world.log.letter_ids |= {(0, 0): "ruuvitag/data/abc", (0, 1): "ruuvitag/data/def"}
    world.store.mishaps.append(lambda batch: WriteAnswer(Outcome.REJECTED, batch.before, rejected={1: "refused:22003"}))
    world.run()

    found = {headers["id"]: (headers["topic"], headers["partition"], headers["offset"]) for _, headers in world.producer.dead}
    assert {b"ruuvitag/data/abc": (b"iot-sensor-data", b"0", b"0"), b"ruuvitag/data/def": (b"iot-sensor-data", b"0", b"1")} == found


def test_batches_carry_the_leader_epoch(world: World) -> None:
    """What write stores tells a truncated log from a longer one."""
    world.log.append(0, *[now_record()] * 3)
    world.run()

    assert [0] == [batch.leader_epoch for batch in world.store.batches if batch.records]


def test_all_partitions_are_recovered_over_one_connection(world: World) -> None:
    """Recovery time counts: however many partitions an actor holds, it opens one connection to read where they stand."""
    for partition in range(6):
        world.log.append(partition, now_record())
    world.run(*[claim(partition) for partition in range(6)])

    assert (1, list(range(6))) == (world.ledger.connects, sorted(world.ledger.reads))


def test_partition_whose_leader_does_not_answer_does_not_keep_the_others_waiting(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for one log's bounds takes all the time a recovery has, again and again; the others are reached by turns."""
    for partition in range(3):
        world.log.append(partition, now_record())
    clock = [0.0]
    bounds = world.reader.log_bounds

    def slow(partition: int) -> tuple[int, int]:
        if partition == 0:
            clock[0] += 10.0
            raise KafkaUnavailable("no leader")
        return bounds(partition)

    world.reader.log_bounds = slow  # type: ignore[method-assign]
    monkeypatch.setattr(recovery.time, "monotonic", lambda: clock[0])
    world.until = lambda: world.reader.turns > 30
    world.run(*[claim(partition) for partition in range(3)])

    assert ([], [0], [0]) == tuple(world.offsets(partition) for partition in range(3))
