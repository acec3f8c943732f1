"""The database breaks in every way that one machine can show, on a PostgreSQL of the module's own.

What is checked each time: the writer's call ends in bounded time, the error says
whether to wait, no row is blamed for what is not data, and once the fault is
gone every record is stored once.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import string
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg2
import pytest
from builders import DAY_US, eventually
from gate import Gate
from partition import TODAY_US, Partition, counts

from actors.adapters.postgres import Connection, connect
from actors.base import now_us
from actors.batch import Outcome, WriteAnswer
from actors.consume.decode import time_window
from actors.write.actor import Write
from actors.write.ledger import Ledger
from rayapp.config import IngestSettings, Settings
from rayapp.errors import BadRows, DatabaseUnavailable, StatementRefused
from rayapp.files import project_file
from rayapp.migrate import migrate
from rayapp.stack import PostgresState, StackOptions, StackState, kill_component, load_state, process_ids, start_component, start_stack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(180)]

ROOT = os.geteuid() == 0
DISK_MB = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server's stack lies."""
    return tmp_path_factory.mktemp("database") / "stack"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[StackState]:
    """A PostgreSQL that may be broken, on a disk that may be filled where we may mount one."""
    options = StackOptions(folder=folder, components=("postgres",), leash=True, postgres_disk_mb=DISK_MB if ROOT else 0)
    with start_stack(options) as running:
        yield running.state


@pytest.fixture(scope="module")
def settings(server: StackState) -> Settings:
    """Settings of a pipeline on it, its tables made."""
    there = server.postgres
    accounts = {f"{a}_{what}": getattr(there, f"{a}_{what}") for a in ("owner", "driver", "writer") for what in ("user", "password_file")}
    made = Settings(
        pipeline=f"test-{secrets.token_hex(4)}", database={"host": there.host, "port": there.port, "name": there.database, **accounts}
    )
    connection = connect(made.database, "owner", application="tests migrate")
    migrate(connection, project_file("sql/migrations"))
    connection.execute("SELECT ensure_day(current_date)")
    connection.commit()
    connection.close()
    return made


@pytest.fixture
def admin(server: StackState) -> Iterator[Callable[[str], None]]:
    """A function that runs a statement as the database's superuser."""
    there: PostgresState = server.postgres
    raw = psycopg2.connect(
        host=there.host, port=there.port, dbname=there.database, user=there.superuser,
        password=Path(there.superuser_password_file).read_text(encoding="utf-8").strip(),
    )  # fmt: skip
    raw.autocommit = True

    def run(statement: str) -> None:
        with raw.cursor() as cursor:
            cursor.execute(statement)

    yield run
    raw.close()


class Mover(threading.Thread):
    """What consume does with a partition: submit the next batch, and after a failure read the ledger and go on from there."""

    def __init__(self, one: Partition, write: Write, step: int, records: int | None = None) -> None:
        super().__init__(daemon=True)
        self._one, self._write, self._step = one, write, step
        self.records = records
        self.at = 0
        self.failures: list[str] = []
        self.last_commit_s = self.longest_gap_s = 0.0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.last_commit_s = time.monotonic()
            while self.records is None or self.at < self.records:
                self._move()
        except Exception as error:  # noqa: BLE001 - the test raises it
            self.error = error

    def _move(self) -> None:
        try:
            if self.failures and self.failures[-1] != "":
                connection = connect(self._one.settings.database, "writer", application="tests recovery")
                try:
                    self.at = Ledger(connection, self._one.settings.pipeline).positions([self._one.claim])[self._one.claim].next_offset
                finally:
                    connection.close()
                self.failures.append("")
            after = min(self.at + self._step, self.records or sys.maxsize)
            rows = [self._one.row(offset, timestamp=TODAY_US + offset) for offset in range(self.at, after)]
            answer = self._write.write(self._one.batch(rows, self.at, after))
        except DatabaseUnavailable as error:
            self.failures.append(str(error))
            return
        assert answer.outcome in (Outcome.STORED, Outcome.ALREADY_DONE), answer
        self.at = answer.next_offset
        now_s = time.monotonic()
        self.longest_gap_s = max(self.longest_gap_s, now_s - self.last_commit_s)
        self.last_commit_s = now_s

    def finished(self, deadline_s: float = 60.0) -> Mover:
        """Wait for the last of `records`; from here on, two batches more when there is no last one."""
        if self.records is None:
            self.records = self.at + 2 * self._step
        self.join(deadline_s)
        if self.error is not None:
            raise self.error
        assert not self.is_alive(), (self.at, self.failures)
        return self


def stored_once(settings: Settings, one: Partition, records: int) -> None:
    """Compare table and ledger with what was sent, over a connection of its own."""
    connection = connect(settings.database, "owner", application="tests check", autocommit=True)
    try:
        one.owner = connection
        assert records == len({row for row in one.stored("device_id, timestamp")}) == len(one.stored("id"))
        found = one.ledger()
        assert (records, records) == (found["next_offset"], found["records"])
        assert records == found["stored"] + found["duplicate"]
    finally:
        connection.close()


def runs(pid: int) -> bool:
    """Say whether a process is alive; its parent may not have noticed its end yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def fill(path: Path) -> None:
    """Write until there is no room."""
    with path.open("wb", buffering=0) as out:
        while True:
            out.write(bytes(1 << 16))


# The server goes away.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL], ids=["fast", "immediate", "kill -9"])
def test_restart_under_load_stores_every_record_once(
    server: StackState, settings: Settings, make: Callable[[], Partition], write: Callable[..., Write], number: signal.Signals
) -> None:
    """Two writers are at it when the server ends; they wait, read the ledger, and go on where it says, within seconds."""
    movers = [Mover(make(), write(), 500) for _ in range(2)]
    for mover in movers:
        mover.start()
    assert eventually(lambda: all(mover.at >= 2_000 for mover in movers))
    pids = kill_component(server, "postgres", number)
    assert eventually(lambda: all(mover.failures for mover in movers) and not any(map(runs, pids)))
    start_component(server, "postgres")
    moved = [mover.at for mover in movers]
    assert eventually(lambda: all(mover.at > at for mover, at in zip(movers, moved, strict=True)))

    for mover in movers:
        mover.finished()
        assert 10.0 > mover.longest_gap_s
        stored_once(settings, mover._one, mover.at)


def test_server_that_is_away_is_waited_for(one: Partition, write: Callable[..., Write]) -> None:
    """No connection is DatabaseUnavailable, at once where the port is closed."""
    with pytest.raises(DatabaseUnavailable, match="127.0.0.1:1/"):
        write(port=1).write(one.batch([one.row(0)], 0, 1))


# The connection breaks.


@pytest.mark.parametrize("end", ["pg_terminate_backend", "pg_cancel_backend"])
def test_end_in_the_middle_of_copy(
    one: Partition, write: Callable[..., Write], gate: Gate, monkeypatch: pytest.MonkeyPatch, end: str, admin: Callable[[str], None]
) -> None:
    """Half a COPY is nothing: the call fails as the database away (57P01, 57014), and the same batch is stored once afterwards."""
    writer = write(port=gate.port)
    writer.write(one.batch([one.row(0)], 0, 1))
    connection = writer._writers[(one.claim.topic, one.number)][1].connection
    ((pid,),) = connection.execute("SELECT pg_backend_pid()")
    connection.rollback()
    copy_binary = connection.copy_binary

    def ended_within(table: str, columns: Any, data: bytes) -> None:
        gate.requests.hold(after_bytes=len(data) // 2)
        threading.Thread(target=end_it).start()
        copy_binary(table, columns, data)

    def end_it() -> None:
        inside = f"SELECT 1 FROM pg_locks WHERE pid = {pid} AND relation = 'sensor_readings'::regclass AND mode = 'RowExclusiveLock'"
        assert eventually(lambda: gate.requests.holds and bool(one.owner.execute(inside)))
        admin(f"SELECT {end}({pid})")
        gate.requests.let_go()

    monkeypatch.setattr(connection, "copy_binary", ended_within)
    batch = one.batch([one.row(offset) for offset in range(1, 3_000)], 1, 3_000)
    with pytest.raises(DatabaseUnavailable, match="57P01|57014|connection"):
        writer.write(batch)
    assert counts(next_offset=1, records=1, stored=1) == one.ledger()
    assert Outcome.STORED is writer.write(batch).outcome
    assert 3_000 == len(one.stored("id"))


@pytest.mark.parametrize("rows", [1, 20_000])
@pytest.mark.parametrize("ways", [("requests", "answers"), ("answers",)])
def test_network_that_swallows_everything_is_noticed_in_time(
    one: Partition, write: Callable[..., Write], gate: Gate, rows: int, ways: tuple[str, ...]
) -> None:
    """A peer that acknowledges bytes and says nothing looks alive to the kernel; the call ends all the same, small and large."""
    writer = write(port=gate.port, answer_timeout_s=2.0)
    writer.write(one.batch([one.row(0)], 0, 1))
    batch = one.batch([one.row(offset) for offset in range(1, 1 + rows)], 1, 1 + rows)
    for way in ways:
        getattr(gate, way).hold()
    started_s = time.monotonic()
    with pytest.raises(DatabaseUnavailable, match="no answer within 2 s"):
        writer.write(batch)
    assert 4.0 > time.monotonic() - started_s
    started_s = time.monotonic()
    with pytest.raises(DatabaseUnavailable):  # nor does a new connection wait for ever
        writer.write(batch)
    assert 10.0 > time.monotonic() - started_s
    gate.cut()
    for way in ways:
        getattr(gate, way).let_go()
    assert eventually(lambda: writer.write(batch).outcome in (Outcome.STORED, Outcome.ALREADY_DONE))
    assert 1 + rows == len(one.stored("id"))


@pytest.mark.skipif(not ROOT, reason="only root may stop the database's processes")
def test_backend_that_is_stopped_is_noticed_in_time(one: Partition, write: Callable[..., Write]) -> None:
    """A stopped server keeps no time of its own; the writer's call ends, and once it goes on the same batch is stored once."""
    writer = write(answer_timeout_s=2.0)
    writer.write(one.batch([one.row(0)], 0, 1))
    ((pid,),) = writer._writers[(one.claim.topic, one.number)][1].connection.execute("SELECT pg_backend_pid()")
    batch = one.batch([one.row(1)], 1, 2)
    os.kill(pid, signal.SIGSTOP)
    try:
        started_s = time.monotonic()
        with pytest.raises(DatabaseUnavailable, match="no answer within 2 s"):
            writer.write(batch)
        assert 4.0 > time.monotonic() - started_s
    finally:
        os.kill(pid, signal.SIGCONT)
    assert Outcome.STORED is writer.write(batch).outcome
    assert 2 == len(one.stored("id"))


# Locks.


def test_lock_that_stays_is_waited_for_in_turns(one: Partition, write: Callable[..., Write], connections: list[Connection]) -> None:
    """A table locked by somebody else ends the call after lock_timeout, is no data error and no bug; later the batch is stored."""
    writer = write(lock_timeout_s=0.3)
    writer.write(one.batch([one.row(0)], 0, 1))
    batch = one.batch([one.row(1)], 1, 2)
    locker = connect(one.settings.database, "owner", application="tests locker")
    connections.append(locker)
    locker.execute("LOCK TABLE sensor_readings IN ACCESS EXCLUSIVE MODE")
    started_s = time.monotonic()
    with pytest.raises(DatabaseUnavailable, match="55P03"):
        writer.write(batch)
    assert 2.0 > time.monotonic() - started_s
    locker.rollback()
    assert Outcome.STORED is writer.write(batch).outcome


def test_deadlock_is_tried_again(
    one: Partition,
    write: Callable[..., Write],
    connections: list[Connection],
    monkeypatch: pytest.MonkeyPatch,
    admin: Callable[[str], None],
) -> None:
    """The victim of a deadlock (40P01) waits for the database like any other, and its batch is stored afterwards."""
    admin("ALTER ROLE ruuvi_owner SET deadlock_timeout = '60s'")  # the other one does not look, so the writer is the victim
    writer = write(lock_timeout_s=20.0)
    writer.write(one.batch([one.row(0)], 0, 1))
    batch = one.batch([one.row(1)], 1, 2)
    other = connect(one.settings.database, "owner", application="tests other")
    connections.append(other)
    admin("ALTER ROLE ruuvi_owner RESET deadlock_timeout")
    other.execute("SELECT 1 FROM ingest_ledger WHERE pipeline = %s AND partition = %s FOR UPDATE", (one.settings.pipeline, one.number))
    ledger = writer._writers[(one.claim.topic, one.number)][1].ledger
    advance = ledger.advance
    waits = threading.Thread(
        target=lambda: other.execute(
            "INSERT INTO sensor_readings (device_id, device_type, timestamp, unit) VALUES (%s, 'x', to_timestamp(%s / 1e6), 'x')",
            (f"{one.mac}_temperature", TODAY_US + 1_000_000),
        )
    )

    def crossing(*arguments: Any) -> None:
        waits.start()
        advance(*arguments)

    monkeypatch.setattr(ledger, "advance", crossing)
    with pytest.raises(DatabaseUnavailable, match="40P01"):
        writer.write(batch)
    waits.join(20)
    other.rollback()
    assert Outcome.STORED is writer.write(batch).outcome
    assert 2 == len(one.stored("id"))


def test_writers_with_the_same_rows_at_the_same_time_store_them_once(
    settings: Settings, make: Callable[[], Partition], write: Callable[..., Write]
) -> None:
    """Two partitions that carry the same readings wait for each other's keys and absorb; there is no deadlock and no double."""
    first, second = make(), make()
    second.mac = first.mac
    movers = [Mover(one, write(), step, records=4_000) for one, step in ((first, 190), (second, 210))]
    for mover in movers:
        mover.start()
    for mover in movers:
        mover.finished()

    assert [[], []] == [mover.failures for mover in movers]
    made = [one.ledger() for one in (first, second)]
    assert 4_000 == len(first.stored("id")) == sum(each["stored"] for each in made)
    assert 4_000 == sum(each["duplicate"] for each in made)


# Resources, rights, failover.


@contextmanager
def set_and_reset(admin: Callable[[str], None], on: str, off: str) -> Iterator[None]:
    admin(on)
    try:
        yield
    finally:
        admin(off)


@pytest.mark.parametrize(
    ("on", "off", "words"),
    [
        ("ALTER ROLE ruuvi_writer CONNECTION LIMIT 0", "ALTER ROLE ruuvi_writer CONNECTION LIMIT -1", "too many connections"),
        (
            "ALTER ROLE ruuvi_writer SET default_transaction_read_only = on", "ALTER ROLE ruuvi_writer RESET default_transaction_read_only",
            "25006",
        ),
        ("REVOKE INSERT ON sensor_readings FROM ruuvi_writer", "GRANT INSERT ON sensor_readings TO ruuvi_writer", "42501"),
        ("ALTER TABLE ingest_ledger RENAME TO away", "ALTER TABLE away RENAME TO ingest_ledger", "42P01"),
        ("ALTER ROLE ruuvi_writer NOLOGIN", "ALTER ROLE ruuvi_writer LOGIN", "not permitted to log in"),
    ],
    ids=["too many connections", "read-only", "no right", "no table", "no login"],
)  # fmt: skip
def test_what_an_operator_mends_is_waited_for(
    one: Partition, write: Callable[..., Write], admin: Callable[[str], None], on: str, off: str, words: str
) -> None:
    """While it lasts every try is DatabaseUnavailable and names the reason; afterwards the batch is stored."""
    batch, writer = one.batch([one.row(0)], 0, 1), write()
    with set_and_reset(admin, on, off):
        for _ in range(3):
            with pytest.raises(DatabaseUnavailable, match=words):
                writer.write(batch)
    assert Outcome.STORED is writer.write(batch).outcome
    assert counts(next_offset=1, records=1, stored=1) == one.ledger()


@pytest.mark.skipif(not ROOT, reason="only root may mount a small disk")
def test_full_disk_is_waited_for(one: Partition, write: Callable[..., Write], folder: Path) -> None:
    """No room for rows (53100) blames no row and moves nothing; when there is room again the batch is stored whole."""
    pid = process_ids(load_state(folder))["postgres"][0]
    data = Path(f"/proc/{pid}/root{psutil.Process(pid).cmdline()[-1]}")
    writer, filler = write(), data.parent / "filler"
    writer.write(one.batch([one.row(0)], 0, 1))
    rows = [one.row(offset) for offset in range(1, 20_001)]
    batch = one.batch(rows, 1, 20_001)
    try:
        with pytest.raises(OSError, match="No space left"):
            fill(filler)
        for _ in range(3):
            with pytest.raises(DatabaseUnavailable, match="53100"):
                writer.write(batch)
        assert counts(next_offset=1, records=1, stored=1) == one.ledger()
    finally:
        filler.unlink()
    assert WriteAnswer(Outcome.STORED, 20_001, 20_000) == writer.write(batch)
    assert 20_001 == len(one.stored("id"))


# Rows.


def incompressible(length: int) -> str:
    return "".join(random.choice(string.ascii_letters + string.digits) for _ in range(length))


@pytest.mark.parametrize("careful", [0, 1])
@pytest.mark.parametrize("place", [0, 57, 99])
def test_row_that_is_refused_and_is_no_data_error_is_named(one: Partition, write: Callable[..., Write], place: int, careful: int) -> None:
    """An index entry beyond the limit (54000) costs no reading its place: the batch fails, and the error names offset and SQLSTATE."""
    writer = write()
    writer.write(one.batch([one.row(0)], 0, 1))
    rows = [one.row(offset) for offset in range(1, 101)]
    rows[place] |= {"device_id": f"{one.mac}{incompressible(5_000)}"}
    batch = one.batch(rows, 1, 101)
    for _ in range(2):
        if careful:
            writer._writer(one.claim).careful_batches = careful
        with pytest.raises(StatementRefused, match=rf"offsets 1\.\.100: offset {place + 1} fails alone.*54000") as raised:
            writer.write(batch)
        assert "54000" == raised.value.sqlstate
    assert counts(next_offset=1, records=1, stored=1) == one.ledger()
    assert [] == one.owner.execute("SELECT 1 FROM sensor_readings WHERE length(device_id) > 4000")
    kept = [row for row in rows if row["offset"] != place + 1]
    assert Outcome.STORED is writer.write(one.batch(kept, 1, 101, dead=1)).outcome


def test_refusal_without_a_row_to_blame_says_so(one: Partition, write: Callable[..., Write], admin: Callable[[str], None]) -> None:
    """A column that the writer fills and the table lacks is said as such."""
    batch, writer = one.batch([one.row(0), one.row(1)], 0, 2), write()
    with (
        set_and_reset(
            admin,
            "ALTER TABLE ingest_ledger RENAME other_gateway TO other",
            "ALTER TABLE ingest_ledger RENAME other TO other_gateway",
        ),
        pytest.raises(StatementRefused, match=r"offsets 0\.\.1: no row fails alone.*42703"),
    ):
        writer.write(batch)
    assert Outcome.STORED is writer.write(batch).outcome


def test_rows_refused_only_together_are_not_answered_as_bad(one: Partition, monkeypatch: pytest.MonkeyPatch) -> None:
    """When no row is bad alone, nothing is dead-lettered; the batch fails, with its state."""

    def refuses(*_: Any) -> None:
        raise BadRows("database: numeric value out of range (SQLSTATE 22003)", sqlstate="22003")

    monkeypatch.setattr(one.writer.ledger, "advance", refuses)
    with pytest.raises(StatementRefused, match="together, but none alone.*22003"):
        one.write([one.row(0), one.row(1)], 0, 2)
    assert [] == one.stored("id")


def test_every_time_that_settings_let_through_has_its_day(one: Partition, write: Callable[..., Write]) -> None:
    """The widest window that can be configured lies within what the database makes partitions for."""
    widest = IngestSettings(max_age_days=3_650, max_future_s=30 * 86_400)
    oldest_us, newest_us = time_window(widest, now_us())
    rows = [one.row(0, timestamp=oldest_us), one.row(1, timestamp=newest_us), one.row(2)]

    assert WriteAnswer(Outcome.STORED, 3, 3) == write().write(one.batch(rows, 0, 3))


@pytest.mark.parametrize("days", [-4_100, 500])
def test_day_that_the_database_does_not_make_is_loud_and_no_endless_loop(one: Partition, write: Callable[..., Write], days: int) -> None:
    """A time that got through although no partition may be made for it fails the batch, naming the day; it is not waited for."""
    writer, at_us = write(), TODAY_US + days * DAY_US
    day = time.strftime("%Y-%m-%d", time.gmtime(at_us / 1e6))
    rows = [one.row(0), one.row(1, timestamp=at_us)]
    for _ in range(2):
        with pytest.raises(StatementRefused, match=rf"offsets 0\.\.1: the partition of day {day} cannot be made.*P0001"):
            writer.write(one.batch(rows, 0, 2))
    assert counts() == one.ledger()
    assert Outcome.STORED is writer.write(one.batch(rows[:1], 0, 2, dead=1)).outcome


def test_day_that_is_still_missing_after_it_was_made_is_no_endless_loop(one: Partition, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that runs into the same trouble in every round fails with a state, and is not taken for a database away."""
    monkeypatch.setattr(one.store, "_make_days", lambda *_: None)
    with pytest.raises(StatementRefused, match="not stored in 4 rounds") as raised:
        one.write([one.row(0, timestamp=TODAY_US - 200 * DAY_US)], 0, 1)
    assert "23514" == raised.value.sqlstate


def test_many_bad_rows_are_found_in_bounded_time(one: Partition, write: Callable[..., Write]) -> None:
    """Every other row of a batch is bad: each is named, within seconds, and the rest is stored."""
    rows = [one.row(offset, **({"battery_level": 500.0, "latitude": None} if offset % 2 else {})) for offset in range(2_000)]
    writer = write()
    started_s = time.monotonic()
    answer = writer.write(one.batch(rows, 0, 2_000))

    assert Outcome.REJECTED is answer.outcome
    assert dict.fromkeys(range(1, 2_000, 2), "refused:battery_level_percent") == answer.rejected
    assert 5.0 > time.monotonic() - started_s
    assert WriteAnswer(Outcome.STORED, 2_000, 1_000) == writer.write(one.batch(rows[::2], 0, 2_000, dead=1_000))
