"""A partition that can go no further halts alone, with a reason a person can act on; what is merely away halts nothing."""

from __future__ import annotations

import pytest
from builders import claim
from consume_world import BROKEN, World, now_record

from actors.base import ActorState
from actors.batch import Batch, Outcome, WriteAnswer
from rayapp.errors import BadRows, DatabaseUnavailable, DataLoss, KafkaUnavailable, RayappError, StaleClaim


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A world with small batches, in which ten records are enough for a judgement on dead letters."""
    return World(monkeypatch, dead_min_records=10, dead_window_records=20)


def both(world: World) -> None:
    """Run partitions 0 and 1 until each is at its end or halted."""
    world.run(claim(0), claim(1))


@pytest.mark.parametrize(
    ("low", "position", "missing"), [(0, 9, "4 offsets that were stored are not in the log"), (3, 2, "offsets 2..2 (1) are gone")]
)
def test_partition_whose_records_are_gone_halts_and_the_others_go_on(world: World, low: int, position: int, missing: str) -> None:
    """A ledger beyond the log, or before what it still holds, halts that partition; the reason names range, count and command."""
    world.log.append(0, *[now_record()] * 5)
    world.log.append(1, *[now_record()] * 7)
    world.ledger.next[0], world.reader.low[0] = position, low
    both(world)

    assert ([], list(range(7)), position) == (world.offsets(0), world.offsets(1), world.ledger.next[0])
    assert [0] == list(world.ledger.halted) == list(world.actor.status().halted)
    reason = world.ledger.halted[0]
    assert missing in reason
    assert "rayapp partition resume iot-sensor-data 0 --at" in reason
    assert [0] == world.reader.stopped


def test_bounds_that_look_wrong_once_halt_nothing(world: World) -> None:
    """A log that seems to end before the ledger for a moment, as behind a new leader, is asked again."""
    world.log.append(0, *[now_record()] * 5)
    world.ledger.next[0] = 3
    true_end, world.log.ends[0] = 5, 2

    def elected() -> None:
        if world.reader.turns == 3:
            world.log.ends[0] = true_end

    world.each_turn = elected
    world.run()

    assert ({}, [3, 4]) == (world.ledger.halted, world.offsets())


def test_loss_seen_by_the_reader_halts_its_partition_and_costs_the_others_nothing(world: World) -> None:
    """When the reader says that records of one partition are gone, that one halts with what its log's bounds say; others are stored."""
    world.log.append(0, *[now_record()] * 5)
    world.log.append(1, *[now_record()] * 9)

    def gone() -> None:
        world.reader.low[0] = 4
        if 0 in world.reader.places and not world.reader.losses:
            world.reader.losses.append(DataLoss("offset out of range", 0))

    world.each_turn = gone
    both(world)

    assert [0] == list(world.ledger.halted)
    assert "offsets 0..3 (4) are gone" in world.ledger.halted[0]
    assert ([], list(range(9))) == (world.offsets(0), world.offsets(1))


def test_loss_that_keeps_coming_although_the_bounds_are_right_halts(world: World) -> None:
    """A reader that cannot read what the log says it holds halts its partition with the reader's own words."""
    world.log.append(0, *[now_record()] * 5)

    def again() -> None:
        if 0 in world.reader.places and not world.reader.losses:
            world.reader.losses.append(DataLoss("the log was truncated below offset 0", 0))

    world.each_turn = again
    world.run()

    assert "the log was truncated below offset 0" in world.ledger.halted[0]


def test_loss_without_a_name_is_looked_for_in_all_partitions(world: World) -> None:
    """When the reader does not say which partition, the bounds of all do; only the one outside them halts."""
    world.log.append(0, *[now_record()] * 5)
    world.log.append(1, *[now_record()] * 9)
    world.reader.losses.append(DataLoss("something is out of range", None))

    def gone() -> None:
        world.reader.low[1] = 4

    world.each_turn = gone
    world.ledger.next[1] = 0
    both(world)

    assert [1] == list(world.ledger.halted)
    assert list(range(5)) == world.offsets(0)


def test_too_many_dead_letters_halt_before_more_are_produced(world: World) -> None:
    """The batch that crosses the limit produces no dead letter and is not committed; those before it stay as they are."""
    world.log.append(0, *[now_record()] * 6, *[BROKEN] * 30)
    world.log.append(1, *[now_record()] * 3)
    both(world)

    # At record 12 (0..11) half are dead, at record 13 more than half; batches have three records.
    assert (12, 6, list(range(6))) == (world.ledger.next[0], world.store.dead, world.offsets(0))
    assert 6 == len(world.producer.dead)
    assert [0, 1, 2] == world.offsets(1)
    reason = world.ledger.halted[0]
    assert "7 of the last 13 records up to offset 12 are dead letters, more than 50%" in reason
    assert "not_framed 3" in reason
    assert "nothing from offset 12 on was stored" in reason


def test_few_dead_letters_halt_nothing(world: World) -> None:
    """Every second record dead is not more than half."""
    world.log.append(0, *[now_record(), BROKEN] * 20)
    world.run()

    assert ({}, 20) == (world.ledger.halted, world.store.dead)


def test_conflicts_and_replayed_letters_never_count_towards_too_many(world: World) -> None:
    """A conflict is two good readings, and a replayed letter that fails again was counted before."""
    world.log.append(0, *[BROKEN] * 12, *[now_record()] * 12)
    world.log.letter_ids |= {(0, offset): f"mqtt/{offset}" for offset in range(12)}

    def conflicts(batch: Batch) -> WriteAnswer | None:
        offsets = batch.table["offset"].to_pylist()
        return WriteAnswer(Outcome.REJECTED, batch.before, rejected=dict.fromkeys(offsets, "conflict")) if offsets else None

    world.store.mishaps.extend([conflicts] * 100)
    world.run()

    assert ({}, 24, 24) == (world.ledger.halted, world.store.dead, world.ledger.next[0])


def test_rows_that_write_refuses_count_towards_too_many(world: World) -> None:
    """Values that only the database refuses fill a table with nothing just as well: the partition halts at the limit."""
    world.log.append(0, *[now_record()] * 30)

    def refused(batch: Batch) -> WriteAnswer | None:
        offsets = batch.table["offset"].to_pylist()
        return WriteAnswer(Outcome.REJECTED, batch.before, rejected=dict.fromkeys(offsets, "refused:22003")) if offsets else None

    world.store.mishaps.extend([refused] * 100)
    world.run()

    assert "refused:22003" in world.ledger.halted[0]
    assert world.ledger.next[0] == world.store.dead < 10
    assert world.store.dead <= len(world.producer.dead) < 10


def test_batch_refused_though_no_row_fails_alone_halts_after_some_tries(world: World) -> None:
    """What the database refuses as a whole is tried again from the ledger, then halts its partition with range and count of tries."""
    world.log.append(0, *[now_record()] * 3)
    world.log.append(1, *[now_record()] * 3)

    def refused(batch: Batch) -> WriteAnswer | None:
        return WriteAnswer(Outcome.REJECTED, batch.before) if batch.claim.partition == 0 else None

    world.store.mishaps.extend([refused] * 100)
    both(world)

    reason = world.ledger.halted[0]
    assert "offsets 0..2 failed 5 times" in reason
    assert "none of its rows alone" in reason
    assert ([], [0, 1, 2]) == (world.offsets(0), world.offsets(1))
    assert 5 == sum(batch.claim.partition == 0 for batch in world.store.batches)


@pytest.mark.parametrize("kind", ["detect", "write"])
def test_error_that_is_no_servers_halts_after_some_tries(world: World, kind: str) -> None:
    """An actor that fails at one batch again and again, not for a server that is away, halts that partition and ends nothing."""
    world.log.append(0, *[now_record()] * 3)
    world.downstream.errors[kind].extend([BadRows("numeric field overflow", sqlstate="22003", constraint=None)] * 5)
    world.run()

    assert "BadRows (SQLSTATE 22003): numeric field overflow" in world.ledger.halted[0]
    assert {} == world.ledger.next


def test_error_that_goes_away_halts_nothing(world: World) -> None:
    """Failures are counted without a commit between them: four here and four there are no reason to halt."""
    world.log.append(0, *[now_record()] * 6)
    errors: list[Exception | None] = [ValueError("odd")] * 4 + [None] + [ValueError("odd")] * 4

    def odd(_batch: Batch) -> Exception | None:
        return errors.pop(0) if errors else None

    world.store.mishaps.extend([odd] * 9)
    world.run()

    assert ({}, list(range(6))) == (world.ledger.halted, world.offsets())


def test_decoder_that_fails_at_a_batch_halts_its_partition(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in decoding that no single record answers for is no dead letter; the partition halts and says what it was."""
    world.log.append(0, *[now_record()] * 3)

    def broken(*_arguments: object, **_options: object) -> None:
        raise ValueError("column is too long")

    monkeypatch.setattr(world.actor._decoder, "decode", broken)
    world.run()

    assert "offsets 0..2 failed 5 times with every server up, nothing of them was stored; last: ValueError" in world.ledger.halted[0]
    assert [] == world.producer.dead


def test_memory_that_runs_out_ends_the_actor(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without memory is no property of its batch: the actor ends and another one tries."""
    world.log.append(0, *[now_record()] * 3)

    def exhausted(*_arguments: object, **_options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(world.actor._decoder, "decode", exhausted)
    with pytest.raises(MemoryError):
        world.run()


def test_outages_never_halt(world: World) -> None:
    """Dependencies that are away a hundred times in a row, in any stage, are waited for."""
    world.log.append(0, *[now_record()] * 6)
    away: list[RayappError] = [DatabaseUnavailable("away")] * 50
    world.downstream.errors["write"].extend(away)
    world.downstream.errors["detect"].extend([KafkaUnavailable("away")] * 50)
    world.downstream.errors["restore"].extend(away)
    world.ledger.away = 100
    world.run()

    assert ({}, list(range(6))) == (world.ledger.halted, world.offsets())


def test_halt_is_written_once_the_database_is_back(world: World) -> None:
    """While the database is away the halt is kept and tried again; the other partition is not held up by it."""
    world.log.append(0, *[now_record()] * 3)
    world.log.append(1, *[now_record()] * 3)
    world.ledger.next[0] = 9
    turns: list[ActorState] = []

    def gone() -> None:
        if 0 in world.actor.halted:
            turns.append(world.actor.status().state)
            world.ledger.away = 1 if len(turns) < 20 else 0

    world.each_turn = gone
    both(world)

    assert [0] == list(world.ledger.halted)
    assert len(turns) >= 20
    assert [0, 1, 2] == world.offsets(1)


def test_halt_of_a_partition_claimed_away_ends_the_run(world: World) -> None:
    """Somebody else owns it by now: the new owner will see for itself, this actor stops."""
    world.log.append(0, *[now_record()] * 3)
    world.ledger.next[0] = 9
    world.each_turn = lambda: world.ledger.epochs.update({0: 2}) if world.actor.halted else None
    with pytest.raises(StaleClaim):
        world.run()
    assert {} == world.ledger.halted


def test_halted_partition_does_not_hold_up_the_drain(world: World) -> None:
    """A drain ends with the halted partition left alone, what it held dropped, and the actor not blocked for it."""
    world.log.append(0, *[now_record()] * 3)
    world.ledger.next[0] = 9
    states = []
    world.each_turn = lambda: states.append(world.actor.status().state) if world.actor.halted else None
    report = world.run()

    assert ("drained", 0) == (report.reason, world.actor.gauges["held_bytes"])
    assert {ActorState.RUNNING} <= set(states) <= {ActorState.RUNNING, ActorState.BLOCKED}


def test_answers_for_a_halted_partition_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that was under way when its partition halted comes back with an error: the actor is not blocked and ends nothing for it."""
    world = World(monkeypatch, dead_min_records=4, dead_window_records=4)
    world.log.append(0, *[now_record()] * 3, *[BROKEN] * 3)
    world.log.append(1, *[now_record()] * 3)
    world.downstream.hold = {"write"}
    answered: list[int] = []

    def let_go() -> None:
        if world.actor.halted and world.downstream.hold:
            answered.append(world.downstream.waiting("write"))
            world.downstream.errors["write"].append(DatabaseUnavailable("away"))
            world.downstream.hold = set()

    world.each_turn = let_go
    both(world)

    assert ([0], [2]) == (list(world.ledger.halted), answered)
    assert (ActorState.RUNNING, None) == (world.actor._state, world.actor._blocked_on)
    assert [0, 1, 2] == world.offsets(1)
