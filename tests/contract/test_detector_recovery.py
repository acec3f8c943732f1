"""Flags are a function of the log: whatever is killed at whatever moment, each row carries the flag of a run without a kill.

One fixed log goes through actors that are killed and replaced; what outlives
them is what outlives them in the field: the log, the rows, the ledger and the
snapshots in the ledger's transactions.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from consume_world import BROKEN, World, now_record
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors.batch import Batch, DetectorSnapshot
from actors.consume.recovery import Place, plan_start
from actors.detect import actor as detect_module
from rayapp.errors import DatabaseUnavailable, DataLoss, DownstreamLost

STEPS = {"limits": {"temperature_sensor": 5.0}, "max_gap_s": 60}


class Killed(BaseException):
    """An actor's process is gone: nothing of it runs any further, not even its handlers."""


START = datetime.now(UTC) - timedelta(hours=1)


def record(device: int, second: int, value: float | None) -> bytes:
    """Return a reading of a device at a second of the fixed log's hour."""
    return now_record(
        value, device_id=f"c6:8d:c6:26:39:{device:02x}_temperature", timestamp=(START + timedelta(seconds=second)).isoformat()
    )


# Few devices and seconds, so that readings come late, twice, and with other values at the same time.
readings = st.builds(record, st.integers(0, 2), st.integers(0, 90), st.sampled_from([10.0, 14.0, 20.0, 21.0, 60.0, None]))
logs = st.lists(readings | readings | readings | st.just(BROKEN), min_size=1, max_size=40)
kills = st.lists(st.tuples(st.sampled_from(["consume", "detect", "write", "write committed", "database"]), st.integers(1, 12)), max_size=6)


def flags_of(
    monkeypatch: pytest.MonkeyPatch, log: list[bytes], *, rows: list[int], every: int, deaths: list[tuple[str, int]], **steps: Any
) -> tuple[dict[int, bool], World]:
    """Run a log through, with batches of these sizes in turn, a snapshot every so many answers, and kills; return the flags.

    Args:
        rows: max_rows of each incarnation.
        deaths: who dies, and at which turn of its incarnation's consume actor.
    """
    world = World(monkeypatch, {**STEPS, **steps}, max_rows=rows[0], dead_share_max=1.0)
    for value in log:
        world.log.append(0, value)
    clock = iter(range(10**9))
    # The detector asks the time once an answer and once a restore.
    monkeypatch.setattr(detect_module, "SNAPSHOT_EVERY_S", float(every))
    monkeypatch.setattr(detect_module.time, "monotonic", lambda: float(next(clock)))
    for incarnation, (who, turn) in enumerate(deaths, 1):
        die_at(world, who, turn)
        try:
            world.run()
            break
        except (Killed, DownstreamLost):
            batch = world.settings.batch.model_copy(update={"max_rows": rows[incarnation % len(rows)]})
            world.settings = world.settings.model_copy(update={"batch": batch})
            world.fresh(detector=who == "detect")
    world.each_turn = lambda: None
    world.store.mishaps.clear()
    if not world.is_done():
        world.run()
    return world.flags(), world


def die_at(world: World, who: str, turn: int) -> None:
    """Arrange the death of one actor, or a broken connection, so many turns or batches from now."""
    world.store.mishaps.clear()
    world.each_turn = lambda: None
    if who == "consume":

        def kill() -> None:
            if world.reader.turns >= turn:
                raise Killed

        world.each_turn = kill
    elif who == "detect":

        def lose() -> None:
            if world.reader.turns == turn:
                world.downstream.errors["detect"].append(DownstreamLost("detect is gone"))

        world.each_turn = lose
    else:
        lost = DatabaseUnavailable("connection lost at COMMIT") if who == "database" else DownstreamLost("write is gone")

        def break_at_commit(batch: Batch) -> Exception:
            if who == "write committed":
                world.store.commit(batch)
            return lost

        world.store.mishaps.extend([lambda _batch: None] * (turn % 4))  # type: ignore[list-item]
        world.store.mishaps.append(break_at_commit)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(
    log=logs,
    rows=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    every=st.sampled_from([0, 2, 5, 10**6]),
    deaths=kills,
)
def test_flags_do_not_depend_on_kills(log: list[bytes], rows: list[int], every: int, deaths: list[tuple[str, int]]) -> None:
    """Kills of consume, detect and write, commits that were made and answers that were lost, cuts anywhere, snapshots often or never:
    every row's flag is that of one batch without any of it. Without a snapshot the window covers the log here."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        expected, whole = flags_of(monkeypatch, log, rows=[1000], every=10**6, deaths=[])
    with pytest.MonkeyPatch.context() as monkeypatch:
        found, world = flags_of(monkeypatch, log, rows=rows, every=every, deaths=deaths)

    assert expected == found
    assert whole.store.dead == world.store.dead
    assert {headers["id"] for _, headers in whole.producer.dead} == {headers["id"] for _, headers in world.producer.dead}


LOG = [record(0, 0, 20.0), record(1, 0, 20.0), BROKEN, record(0, 1, 20.5), record(1, 1, 20.5), record(0, 2, 30.0), record(1, 2, 21.0)]


FLAGS = {0: False, 1: False, 3: False, 4: False, 5: True, 6: False}


def stored(monkeypatch: pytest.MonkeyPatch, snapshot_at: int, next_offset: int, steps: dict[str, Any] = STEPS) -> World:
    """Return a world whose log is stored up to an offset, the newest snapshot being of an earlier one; everything is to be started anew."""
    world = World(monkeypatch, steps, max_rows=100, dead_share_max=1.0)
    for value in LOG[:snapshot_at]:
        world.log.append(0, value)
    world.until = lambda: bool(world.reader.started)
    world.run()  # drains with its first batch: a snapshot
    for value in LOG[snapshot_at:next_offset]:
        world.log.append(0, value)
    world.until = world.is_done
    world.fresh()
    world.run()  # drains when all is stored: none
    for value in LOG[next_offset:]:
        world.log.append(0, value)
    assert (snapshot_at, next_offset) == (world.ledger.snapshots[0].position, world.ledger.next[0])
    world.producer.dead.clear()
    world.store.batches.clear()
    world.store.dead = 0
    world.fresh(detector=True)
    return world


def restored(world: World) -> list[tuple[int, bool]]:
    """Note at which positions detectors are restored from now on, and whether from a snapshot."""
    found: list[tuple[int, bool]] = []
    restore = world.downstream.restore

    def noted(held: Any, position: int, snapshot: DetectorSnapshot | None) -> int:
        found.append((position, snapshot is not None))
        return restore(held, position, snapshot)

    world.downstream.restore = noted  # type: ignore[method-assign]
    return found


def test_recovery_begins_at_the_snapshot_and_stores_from_the_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies between snapshot and ledger goes to detect only: not written, its dead letters not sent again, nothing counted twice."""
    world = stored(monkeypatch, 2, 5)
    starts = restored(world)
    world.run()

    assert FLAGS == world.flags()
    assert [(2, True)] == starts
    assert [(0, 2), (0, 5)] == world.reader.started  # and once more where storing begins, for the check of the leader epoch
    assert [(5, 7, 2, 0)] == [(b.before, b.after, b.records, b.dead) for b in world.store.batches]
    assert ([], 3, 2) == (
        world.producer.dead,
        world.actor.counters["detector_warm_up_records_total"],
        world.actor.counters["kafka_consumer_messages_consumed_total"],
    )
    assert 0 == world.actor.counters["iot_messages_failed_total"]


def test_first_batch_behind_warm_ones_brings_a_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Actors that die every few seconds do not read more again each time: the first commit after a recovery moves the snapshot up."""
    world = stored(monkeypatch, 2, 5)
    world.run()

    assert 7 == world.ledger.snapshots[0].position


def test_snapshot_of_other_rules_is_replaced_by_a_fixed_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a change of limits the state is built from so many records before the ledger, however often that is tried."""
    for window, flag in ((100, True), (2, True), (1, False), (0, False)):
        world = stored(monkeypatch, 2, 5)
        world.ledger.snapshots[0] = DetectorSnapshot(1, 2, "other rules", b"nonsense")
        world.settings = world.settings.model_copy(update={"steps": world.settings.steps.model_copy(update={"warm_up_records": window})})
        world.fresh(detector=True)
        starts = restored(world)
        world.run()

        assert [(max(0, 5 - window), False)] == starts
        assert flag == world.flags()[5]


def test_unreadable_snapshot_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot under the right rules whose bytes are no state costs one try; then the window is read."""
    world = stored(monkeypatch, 2, 5)
    world.ledger.snapshots[0] = DetectorSnapshot(1, 2, world.ledger.snapshots[0].configuration_version, b"damaged")
    starts = restored(world)
    world.run()

    assert [(2, True), (0, False)] == starts
    assert FLAGS == world.flags()


def test_rewind_while_warming_begins_again_at_the_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector that is away in the middle of the warm records is restored from the snapshot, not from the ledger."""
    world = stored(monkeypatch, 2, 5)
    world.downstream.errors["detect"].append(DatabaseUnavailable("away"))
    starts = restored(world)
    world.run()

    assert [(2, True)] * 2 == starts
    assert FLAGS == world.flags()


def test_rules_without_state_read_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the step rule off a recovery begins at the ledger, whatever snapshot there is."""
    world = stored(monkeypatch, 2, 5, steps={})
    starts = restored(world)
    world.run()

    assert ([(5, False)], [(0, 5)]) == (starts, world.reader.started)
    assert {**FLAGS, 5: False} == world.flags()


def snapshot(position: int, version: str = "v") -> DetectorSnapshot:
    return DetectorSnapshot(1, position, version, b"")


@pytest.mark.parametrize(
    ("place", "log", "position", "state", "expected"),
    [
        (Place(50, snapshot(40)), (0, 90), 40, "snapshot", True),
        (Place(50, snapshot(50)), (0, 90), 50, "snapshot", True),
        (Place(50, snapshot(40)), (40, 90), 40, "snapshot", True),
        (Place(50, None), (0, 90), 30, "no_snapshot", True),
        (Place(50, None), (45, 90), 45, "no_snapshot", True),
        (Place(5, None), (0, 90), 0, "no_snapshot", True),
        (Place(50, snapshot(40, "w")), (0, 90), 30, "snapshot_of_other_rules", True),
        (Place(50, snapshot(51)), (0, 90), 30, "snapshot_beyond_ledger", False),
        (Place(50, snapshot(40)), (41, 90), 41, "snapshot_before_log", False),
        (Place(50, snapshot(33)), (0, 90), 30, "snapshot_unreadable", False),
    ],
)
def test_where_a_partition_goes_on(place: Place, log: tuple[int, int], position: int, state: str, expected: bool) -> None:
    """From the snapshot when it is of these rules, at or before the ledger, and in the log; otherwise from a window cut at the log's start."""
    start = plan_start(place, log, version="v", warm_up_records=20, distrusted=33)

    assert (position, place.next_offset, state, expected) == (start.position, start.next_offset, start.state, start.expected)
    assert (place.snapshot if state == "snapshot" else None) == start.snapshot


@pytest.mark.parametrize(
    ("next_offset", "words"), [(9, "offsets 9..9 (1) are gone"), (21, "1 offsets that were stored are not in the log")]
)
def test_ledger_outside_the_log_is_data_loss(next_offset: int, words: str) -> None:
    """A ledger before the log's start or behind its end is named with what is missing; exactly at either is fine."""
    with pytest.raises(DataLoss) as error:
        plan_start(Place(next_offset, None), (10, 20), version=None, warm_up_records=0)
    assert words in str(error.value)
    for edge in (10, 20):
        assert edge == plan_start(Place(edge, None), (10, 20), version=None, warm_up_records=0).position
