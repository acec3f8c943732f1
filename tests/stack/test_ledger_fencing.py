"""The ledger's rules, each with the sequence that breaks a pipeline without it, on a real PostgreSQL."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from builders import eventually
from gate import Gate
from partition import IDENTITY, Partition, counts

from actors.adapters.postgres import Connection, connect
from actors.batch import Batch, Outcome, PartitionClaim, WriteAnswer
from actors.write.actor import Write
from actors.write.ledger import Ledger, Position
from rayapp.claims import Claims
from rayapp.config import Settings
from rayapp.errors import DatabaseUnavailable, LedgerBroken, StaleClaim

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]


def backend(one: Partition) -> int | None:
    """Return the backend that the ledger knows for a partition."""
    ((pid,),) = one.owner.execute(
        "SELECT backend_pid FROM ingest_ledger WHERE pipeline = %s AND partition = %s", (one.settings.pipeline, one.number)
    )
    return pid  # type: ignore[no-any-return]


def is_alive(one: Partition, pid: int | None) -> bool:
    return bool(one.owner.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s", (pid,)))


def claimed_away(one: Partition, owner: str = "consume/1#1") -> PartitionClaim:
    """Give the partition to another owner and return its claim; the test goes on with the old one as `one.claim`."""
    found = one.claims.claim_partition(one.settings.kafka.topic, IDENTITY, one.number, 0, owner)
    return replace(one.claim, epoch=found.epoch, owner=owner)


class Submitted(threading.Thread):
    """A batch that somebody submits and waits for, in a thread."""

    def __init__(self, write: Write, batch: Batch) -> None:
        super().__init__(daemon=True)
        self.answer: WriteAnswer | None = None
        self.error: Exception | None = None
        self._call = lambda: write.write(batch)
        self.start()

    def run(self) -> None:
        try:
            self.answer = self._call()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test looks at it
            self.error = error


# Zero updated rows.


@pytest.mark.parametrize(
    "change", ["epoch = epoch + 1", "owner = 'consume/0#2'", "next_offset = next_offset + 1", "topic = topic || '-old'"]
)
def test_whatever_changed_since_the_look_rolls_the_batch_back(one: Partition, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """Epoch, owner and position are tested again in the UPDATE; where one of them changed, rows and counters are not there."""
    advance = one.writer.ledger.advance

    def changed_before(*arguments: Any) -> None:
        one.owner.execute(f"UPDATE ingest_ledger SET {change} WHERE pipeline = %s AND partition = %s", (one.settings.pipeline, one.number))
        advance(*arguments)

    monkeypatch.setattr(one.writer.ledger, "advance", changed_before)
    with pytest.raises(StaleClaim):
        one.write([one.row(0), one.row(1)], 0, 2)
    one.writer.connection.rollback()
    assert [] == one.stored("id")
    assert 0 == one.ledger()["records"]


def test_halted_by_its_owner_stays_at_its_position(one: Partition) -> None:
    """A halt is refused for another claim and leaves position and counters alone."""
    one.write([one.row(0)], 0, 1)
    with pytest.raises(StaleClaim):
        one.writer.ledger.halt(replace(one.claim, epoch=one.claim.epoch - 1), "old news")
    one.writer.ledger.halt(one.claim, "five times")

    assert counts(next_offset=1, records=1, stored=1) == one.ledger()
    assert [("five times",)] == one.owner.execute(
        "SELECT halted FROM ingest_ledger WHERE pipeline = %s AND partition = %s", (one.settings.pipeline, one.number)
    )


# Batch boundaries changed by a rewind.


@pytest.mark.parametrize("seed", range(6))
def test_any_boundaries_after_any_rewind_store_each_record_once(make: Callable[[], Partition], seed: int) -> None:
    """Batches cut anew from wherever the sender believes to be: done already, read again, or stored; never twice, never a gap."""
    rng, one = random.Random(seed), make()
    rows = [one.row(offset) for offset in range(60)]
    at, seen = 0, set()
    while at < 60:
        believed = max(0, at + rng.choice([0, 0, 0, -3, -7, 4]))
        after = min(60, believed + rng.randint(1, 12))
        answer = one.write(rows[believed:after], believed, after)
        seen.add(answer.outcome)
        if at >= after:
            assert WriteAnswer(Outcome.ALREADY_DONE, at) == answer
        elif believed != at:
            assert WriteAnswer(Outcome.REWIND, at) == answer
        else:
            assert WriteAnswer(Outcome.STORED, after, after - believed) == answer
            at = after
        assert at == one.ledger()["next_offset"]

    assert {Outcome.STORED, Outcome.REWIND, Outcome.ALREADY_DONE} >= seen
    assert 60 == len(one.stored("id"))
    assert counts(next_offset=60, records=60, stored=60) == one.ledger()


# Several partitions of one writer.


def test_claim_of_one_partition_leaves_the_writers_others_alone(make: Callable[[], Partition], write: Callable[..., Write]) -> None:
    """Each partition has a connection of its own: ending one neither breaks nor rolls back another's."""
    parts, writer = [make() for _ in range(3)], write()
    for one in parts:
        writer.write(one.batch([one.row(0)], 0, 1))
    pids = [backend(one) for one in parts]
    assert 3 == len(set(pids))
    new = claimed_away(parts[1])

    assert [True, False, True] == [is_alive(one, pid) for one, pid in zip(parts, pids, strict=True)]
    for one in parts[::2]:
        assert Outcome.STORED is writer.write(one.batch([one.row(1)], 1, 2)).outcome
    assert pids[::2] == [backend(one) for one in parts[::2]]
    with pytest.raises((StaleClaim, DatabaseUnavailable)):
        writer.write(parts[1].batch([parts[1].row(1)], 1, 2))
    assert Outcome.STORED is writer.write(replace(parts[1].batch([parts[1].row(1)], 1, 2), claim=new)).outcome
    assert [2, 2, 2] == [len(one.stored("id")) for one in parts]


def test_positions_of_several_partitions_in_one_look(make: Callable[[], Partition], owner: Connection) -> None:
    """A recovery learns position and leader epoch of all it holds, and of none when one is somebody else's."""
    first, second = make(), make()
    first.write([first.row(0)], 0, 1)
    second.store.write(second.writer, replace(second.batch([], 0, 7, dead=3), leader_epoch=4), 0)
    ledger = Ledger(owner, first.settings.pipeline)

    assert {first.claim: Position(1, None), second.claim: Position(7, 4)} == ledger.positions([first.claim, second.claim])
    assert {} == ledger.positions([])
    for stale in (replace(second.claim, epoch=99), replace(second.claim, owner="x"), replace(second.claim, partition=999)):
        with pytest.raises(StaleClaim):
            ledger.positions([first.claim, stale])


# Zombies.


def test_zombie_that_reconnects_after_the_claim_is_refused_and_ends_nobody(one: Partition, write: Callable[..., Write]) -> None:
    """An old writer with a fresh connection learns that its epoch is over, and the new writer's backend lives on."""
    zombie, healthy = write(), write()
    zombie.write(one.batch([one.row(0)], 0, 1))
    new = claimed_away(one)
    assert Outcome.STORED is healthy.write(replace(one.batch([one.row(1)], 1, 2), claim=new)).outcome
    pid = backend(one)
    for _ in range(3):
        with pytest.raises((StaleClaim, DatabaseUnavailable)):
            zombie.write(one.batch([one.row(1)], 1, 2))

    assert (pid, True) == (backend(one), is_alive(one, pid))
    assert Outcome.STORED is healthy.write(replace(one.batch([one.row(2)], 2, 3), claim=new)).outcome
    assert 3 == len(one.stored("id"))


def test_zombie_that_registers_while_the_claim_is_under_way_is_refused(
    one: Partition, write: Callable[..., Write], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the raised epoch and the end of the old backend nobody of the old epoch gets in."""
    zombie, refused = write(), []
    end = Claims._end_backends

    def meanwhile(claims: Claims, backends: Any) -> None:
        with pytest.raises(StaleClaim) as error:
            zombie.write(one.batch([one.row(0)], 0, 1))
        refused.append(str(error.value))
        end(claims, backends)

    monkeypatch.setattr(Claims, "_end_backends", meanwhile)
    new = claimed_away(one)

    assert 1 == len(refused)
    assert Outcome.STORED is write().write(replace(one.batch([one.row(0)], 0, 1), claim=new)).outcome


def test_zombie_that_registered_before_the_claim_is_ended(one: Partition, write: Callable[..., Write]) -> None:
    """A writer that came back just in time is the backend that the claim ends."""
    zombie = write()
    zombie.write(one.batch([], 0, 1, dead=1))
    pid = backend(one)
    claimed_away(one)

    assert not is_alive(one, pid)
    with pytest.raises(DatabaseUnavailable):
        zombie.write(one.batch([one.row(1)], 1, 2))
    with pytest.raises(StaleClaim):
        zombie.write(one.batch([one.row(1)], 1, 2))
    assert [] == one.stored("id")


@pytest.mark.parametrize("locks_ledger", [False, True])
def test_writer_stopped_inside_copy_holds_a_partition_for_less_than_two_seconds(
    one: Partition, write: Callable[..., Write], gate: Gate, monkeypatch: pytest.MonkeyPatch, locks_ledger: bool
) -> None:
    """The claim is there at once, the new writer stores the same rows once, and the old one's end up nowhere when it goes on."""
    batch = one.batch([one.row(offset) for offset in range(1, 4_000)], 1, 4_000)
    zombie = write(port=gate.port)
    zombie.write(one.batch([one.row(0)], 0, 1))
    pid = backend(one)
    if locks_ledger:
        zombie._writers[(one.claim.topic, one.number)][1].connection.execute(
            "UPDATE ingest_ledger SET updated_at = now() WHERE pipeline = %s AND partition = %s", (one.settings.pipeline, one.number)
        )
    connection = zombie._writers[(one.claim.topic, one.number)][1].connection
    copy_binary = connection.copy_binary

    def stops_within(table: str, columns: Any, data: bytes) -> None:
        gate.requests.hold(after_bytes=len(data) // 2)
        copy_binary(table, columns, data)

    monkeypatch.setattr(connection, "copy_binary", stops_within)
    stopped = Submitted(zombie, batch)
    inside = "SELECT 1 FROM pg_locks WHERE pid = %s AND relation = 'sensor_readings'::regclass AND mode = 'RowExclusiveLock'"
    assert eventually(lambda: gate.requests.holds and bool(one.owner.execute(inside, (pid,))))
    locked = inside.replace("sensor_readings", "ingest_ledger")
    assert locks_ledger == bool(one.owner.execute(locked, (pid,)))
    started_s = time.monotonic()
    new = claimed_away(one)

    assert 2.0 > time.monotonic() - started_s
    assert Outcome.STORED is write().write(replace(batch, claim=new)).outcome
    gate.requests.let_go()
    stopped.join(30)
    assert isinstance(stopped.error, DatabaseUnavailable)
    assert 4_000 == len(one.stored("id"))
    assert counts(next_offset=4_000, records=4_000, stored=4_000) == one.ledger()


# A COMMIT whose connection broke.


def test_backend_killed_between_update_and_commit_stored_nothing(
    one: Partition, write: Callable[..., Write], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outcome is unknown to the writer; the ledger says that nothing happened, and the same batch is stored."""
    writer = write()
    writer.write(one.batch([one.row(0)], 0, 1))
    batch = one.batch([one.row(1)], 1, 2)
    ledger = writer._writers[(one.claim.topic, one.number)][1].ledger
    advance = ledger.advance

    def killed_after(*arguments: Any) -> None:
        advance(*arguments)
        one.owner.execute("SELECT pg_terminate_backend(%s)", (backend(one),))

    monkeypatch.setattr(ledger, "advance", killed_after)
    with pytest.raises(DatabaseUnavailable):
        writer.write(batch)
    assert counts(next_offset=1, records=1, stored=1) == one.ledger()
    assert WriteAnswer(Outcome.STORED, 2, 1) == writer.write(batch)
    assert 2 == len(one.stored("id"))


@pytest.mark.parametrize("late", ["cut", "silence"])
def test_commit_whose_answer_was_lost_is_found_done(
    one: Partition, write: Callable[..., Write], gate: Gate, monkeypatch: pytest.MonkeyPatch, late: str
) -> None:
    """The database committed and the answer never came: read again, the ledger says so, and nothing is stored twice."""
    writer = write(port=gate.port, answer_timeout_s=1.0)
    writer.write(one.batch([one.row(0)], 0, 1))
    batch = one.batch([one.row(1), one.row(2)], 1, 3)
    connection = writer._writers[(one.claim.topic, one.number)][1].connection
    commit = connection.commit

    def answer_is_lost() -> None:
        gate.answers.swallow()
        if late == "cut":
            threading.Thread(target=lambda: eventually(lambda: one.ledger()["next_offset"] == 3) and gate.cut()).start()
        commit()

    monkeypatch.setattr(connection, "commit", answer_is_lost)
    with pytest.raises(DatabaseUnavailable):
        writer.write(batch)
    gate.cut()
    gate.answers.let_go()
    assert counts(next_offset=3, records=3, stored=3) == one.ledger()
    assert WriteAnswer(Outcome.ALREADY_DONE, 3) == writer.write(batch)
    assert WriteAnswer(Outcome.REWIND, 3) == writer.write(one.batch([one.row(2), one.row(3)], 2, 4))
    assert 3 == len(one.stored("id"))


@pytest.mark.parametrize("again", [(1, 3), (1, 4)])
def test_commit_still_on_its_way_cannot_overtake_the_batch_sent_again(
    one: Partition, write: Callable[..., Write], gate: Gate, monkeypatch: pytest.MonkeyPatch, again: tuple[int, int]
) -> None:
    """The client gave up while its COMMIT was in the network, and the backend waits for it with rows and ledger locked.

    Without an end to that backend the batch sent again waits for its locks, and when the COMMIT arrives after all,
    the position moves under the same epoch: the owner would believe that its claim is gone.
    """
    writer = write(port=gate.port)
    writer.write(one.batch([one.row(0)], 0, 1))
    pid = backend(one)
    connection = writer._writers[(one.claim.topic, one.number)][1].connection
    commit = connection.commit

    def never_arrives() -> None:
        gate.requests.hold()
        threading.Thread(target=lambda: eventually(lambda: is_alive(one, pid)) and gate.abandon()).start()
        commit()

    monkeypatch.setattr(connection, "commit", never_arrives)
    with pytest.raises(DatabaseUnavailable):
        writer.write(one.batch([one.row(1), one.row(2)], 1, 3))
    assert is_alive(one, pid)
    before, after = again
    started_s = time.monotonic()

    answer = write().write(one.batch([one.row(offset) for offset in range(before, after)], before, after))
    assert WriteAnswer(Outcome.STORED, after, after - before) == answer
    assert 2.0 > time.monotonic() - started_s
    assert not is_alive(one, pid)
    gate.requests.let_go()
    assert counts(next_offset=after, records=after, stored=after) == one.ledger()
    assert after == len(one.stored("id"))


def test_error_nobody_expected_leaves_nothing_for_the_next_commit(
    one: Partition, write: Callable[..., Write], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug between COPY and COMMIT leaves a transaction with rows open; the next batch's COMMIT must not carry them in."""
    writer = write()
    writer.write(one.batch([one.row(0)], 0, 1))
    ledger = writer._writers[(one.claim.topic, one.number)][1].ledger

    def breaks(*_: Any) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr(ledger, "advance", breaks)
        with pytest.raises(ZeroDivisionError):
            writer.write(one.batch([one.row(1)], 1, 2))
    assert 1 == writer.counters["batches_failed_total"]
    assert Outcome.STORED is writer.write(one.batch([], 1, 2, dead=1)).outcome
    assert 1 == len(one.stored("id"))


def test_registering_again_does_not_end_oneself(one: Partition) -> None:
    """The same connection under the same claim goes on."""
    one.writer.ledger.register(one.claim)
    one.writer.ledger.register(one.claim)

    assert Outcome.STORED is one.write([one.row(0)], 0, 1).outcome


def test_dead_backends_number_used_again_is_not_ended(one: Partition, settings: Settings, connections: list[Connection]) -> None:
    """A backend is known by number and start: a stranger with the number of a dead one lives on."""
    stranger = connect(settings.database, "writer", application="tests stranger")
    connections.append(stranger)
    ((pid,),) = stranger.execute("SELECT pg_backend_pid()")
    stranger.commit()
    one.owner.execute(
        "UPDATE ingest_ledger SET backend_pid = %s WHERE pipeline = %s AND partition = %s", (pid, settings.pipeline, one.number)
    )
    one.writer.ledger.register(one.claim)

    assert [(1,)] == stranger.execute("SELECT 1")
    assert pid != backend(one)


# Conservation.


@pytest.mark.parametrize(("more", "careful"), [(1, 0), (-1, 0), (1, 1)])
def test_batch_that_does_not_add_up_is_loud(one: Partition, write: Callable[..., Write], more: int, careful: int) -> None:
    """Rows and dead letters that are not the records read are a bug of ours: nothing is stored, no row is blamed, numbers are named."""
    writer = write()
    writer.write(one.batch([], 0, 0))
    writer._writers[(one.claim.topic, one.number)][1].careful_batches = careful
    batch = one.batch([one.row(0), one.row(1)], 0, 3, dead=1)
    with pytest.raises(LedgerBroken, match=rf"offsets 0\.\.2: {3 + more} records were read, 2 rows and 1 dead letters came") as raised:
        writer.write(replace(batch, records=3 + more))

    assert ("23514", "ledger_conserves") == (raised.value.sqlstate, raised.value.constraint)
    assert [] == one.stored("id")
    assert counts() == one.ledger()
    assert 1 == writer.counters["batches_failed_total"]
    assert Outcome.STORED is writer.write(batch).outcome
    assert counts(next_offset=3, records=3, stored=2, dead=1) == one.ledger()


def test_dead_reasons_are_counted_with_their_batch(one: Partition) -> None:
    """Counts by reason are stored by the batch's transaction, and add up over batches."""
    question = "SELECT reason, dead FROM ledger_dead_reasons WHERE pipeline = %s AND partition = %s ORDER BY reason"
    place = (one.settings.pipeline, one.number)
    first = replace(one.batch([one.row(0)], 0, 4), records=4, dead_reasons={"avro": 1, "conflict": 2})
    one.store.write(one.writer, first, 0)
    with pytest.raises(LedgerBroken):
        one.store.write(one.writer, replace(one.batch([], 4, 5), records=2, dead_reasons={"avro": 1}), 0)
    one.store.write(one.writer, replace(one.batch([], 4, 6), records=2, dead_reasons={"avro": 2}), 0)

    assert [("avro", 3), ("conflict", 2)] == one.owner.execute(question, place)
    assert 5 == one.ledger()["dead"]
