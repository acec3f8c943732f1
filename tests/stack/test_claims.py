"""Claims on a real PostgreSQL: one driver, one writer a partition, and old ones that cannot do harm."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from builders import batch, eventually, reading

from actors.adapters.kafka import TopicIdentity
from actors.adapters.postgres import Connection, connect
from actors.base import now_us
from actors.batch import Outcome, PartitionClaim
from actors.write.actor import Write
from actors.write.ledger import Ledger
from rayapp.claims import Claims
from rayapp.config import Settings
from rayapp.errors import DatabaseUnavailable, DataLoss, StaleClaim, StaleDriver

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]

ZOMBIE = f"zombie-{secrets.token_hex(6)}"
IDENTITY = TopicIdentity("cluster", "topic-id", 1000)


@pytest.fixture
def driver(settings: Settings, connections: list[Connection]) -> Callable[[str], Claims]:
    """A function that makes one more driver, which becomes the current one."""

    def made(name: str) -> Claims:
        connection = connect(settings.database, "driver", application=f"tests {name}")
        connections.append(connection)
        claims = Claims(connection, settings.pipeline, name)
        claims.become_driver()
        return claims

    return made


@pytest.fixture
def claims(driver: Callable[[str], Claims]) -> Claims:
    """The current driver."""
    return driver("one")


def claim(claims: Claims, settings: Settings, partition: int, owner: str, first: int = 0) -> PartitionClaim:
    found = claims.claim_partition(settings.kafka.topic, IDENTITY, partition, first, owner)
    return PartitionClaim(settings.kafka.topic, partition, found.epoch, owner, 0, 0)


def test_epoch_rises_with_every_claim(claims: Claims, settings: Settings) -> None:
    """Each claim is one epoch higher, also for the same owner, and keeps the position."""
    found = [claims.claim_partition(settings.kafka.topic, IDENTITY, 0, 17, f"consume/0#{n}") for n in range(3)]

    assert [1, 2, 3] == [each.epoch for each in found]
    assert [17, 17, 17] == [each.next_offset for each in found]


def test_first_offset_is_used_only_the_first_time(claims: Claims, settings: Settings) -> None:
    """A log whose start moved on does not move a partition that is known."""
    claim(claims, settings, 1, "a", first=5)

    assert 5 == claims.claim_partition(settings.kafka.topic, IDENTITY, 1, 100, "b").next_offset


def test_zombie_writer_stores_nothing(claims: Claims, settings: Settings, owner: Connection) -> None:
    """After a partition was claimed away, the old owner's next batch fails and the new owner's is stored."""
    writer = Write("write/0#1", settings)
    old = claim(claims, settings, 2, "consume/0#1")
    rows = [reading(offset, mac=ZOMBIE, timestamp=now_us()) for offset in range(1)]
    assert Outcome.STORED is writer.write(batch(rows, 0, 1, held=old)).outcome
    new = claim(claims, settings, 2, "consume/1#1")
    later = [{**rows[0], "offset": 1, "timestamp": rows[0]["timestamp"] + 1}]

    with pytest.raises((StaleClaim, DatabaseUnavailable)):  # its backend was ended
        writer.write(batch(later, 1, 2, held=old))
    with pytest.raises(StaleClaim):  # and with a new one it is told so
        writer.write(batch(later, 1, 2, held=old))
    assert Outcome.STORED is writer.write(batch(later, 1, 2, held=new)).outcome
    assert [(2,)] == owner.execute("SELECT count(*) FROM sensor_readings WHERE device_id LIKE %s", (f"{ZOMBIE}%",))


def test_writer_cannot_register_under_another_claim(claims: Claims, settings: Settings, connections: list[Connection]) -> None:
    """A writer that comes late is told before its first COPY."""
    held = claim(claims, settings, 3, "consume/0#1")
    connection = connect(settings.database, "writer", application="tests late")
    connections.append(connection)
    for wrong in (replace(held, epoch=held.epoch - 1), replace(held, owner="consume/0#0"), replace(held, partition=999)):
        with pytest.raises(StaleClaim):
            Ledger(connection, settings.pipeline).register(wrong)
        with pytest.raises(StaleClaim):
            Ledger(connection, settings.pipeline).next_offset(wrong)


class StoppedInCopy:
    """A writer that stopped in the middle of a COPY, as SIGSTOP or a lost machine leaves it: its backend waits for data."""

    def __init__(self, settings: Settings, held: PartitionClaim, *, lock_ledger: bool) -> None:
        database = settings.database
        assert database.writer_password_file
        self.raw = psycopg2.connect(
            host=database.host, port=database.port, dbname=database.name, user=database.writer_user,
            password=Path(database.writer_password_file).read_text(encoding="utf-8").strip(), application_name="tests stopped",
        )  # fmt: skip
        self.pid = self.raw.info.backend_pid
        Ledger(Connection(self.raw), settings.pipeline).register(held)
        if lock_ledger:
            with self.raw.cursor() as cursor:
                cursor.execute(
                    "UPDATE ingest_ledger SET updated_at = now() WHERE pipeline = %s AND partition = %s",
                    (settings.pipeline, held.partition),
                )
        self.go_on, self.error = threading.Event(), None
        self.thread = threading.Thread(target=self._copy, daemon=True)
        self.thread.start()

    def read(self, _size: int) -> str:
        """Be COPY's source: some rows, then nothing until the test lets go."""
        if self.go_on.is_set():
            return ""
        if not getattr(self, "begun", False):
            self.begun = True
            return "04:00:00:00:00:04_x\tx\t2026-01-01T00:00:00Z\tx\n" * 3
        self.go_on.wait(60)
        return ""

    def _copy(self) -> None:
        try:
            with self.raw.cursor() as cursor:
                cursor.copy_expert("COPY sensor_readings (device_id, device_type, timestamp, unit) FROM STDIN", self)
        except psycopg2.Error as error:
            self.error = error


@pytest.mark.parametrize("lock_ledger", [False, True])
def test_writer_stopped_inside_copy_is_ended(claims: Claims, settings: Settings, owner: Connection, lock_ledger: bool) -> None:
    """A claim ends the old writer's backend within seconds, even when that holds the ledger row, and its rows are gone."""
    partition = 10 + lock_ledger
    held = claim(claims, settings, partition, "consume/0#1")
    stopped = StoppedInCopy(settings, held, lock_ledger=lock_ledger)
    alive = ("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", (stopped.pid,))
    inside = (
        "SELECT 1 FROM pg_locks WHERE pid = %s AND relation = 'sensor_readings'::regclass AND mode = 'RowExclusiveLock'",
        (stopped.pid,),
    )
    assert eventually(lambda: bool(owner.execute(*inside)))
    started = time.monotonic()
    new = claim(claims, settings, partition, "consume/1#1")

    assert held.epoch + 1 == new.epoch
    assert 5.0 > time.monotonic() - started
    assert [(0,)] == owner.execute(*alive)
    stopped.go_on.set()
    stopped.thread.join(20)
    assert isinstance(stopped.error, psycopg2.Error)
    assert [(0,)] == owner.execute("SELECT count(*) FROM sensor_readings WHERE device_id LIKE %s", ("04:00:00:00:00:04%",))


def test_backend_that_did_not_end_is_ended_by_the_next_claim(
    claims: Claims, settings: Settings, owner: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When ending the old backend fails after the epoch was raised, the next try still knows whom to end."""
    writer = Write("write/0#1", settings)
    held = claim(claims, settings, 12, "consume/0#1")
    writer.write(batch([], 0, 1, held=held, dead=1))
    ((pid,),) = owner.execute("SELECT backend_pid FROM ingest_ledger WHERE pipeline = %s AND partition = 12", (settings.pipeline,))

    def fails(_backend: Any) -> None:
        raise DatabaseUnavailable("connection lost")

    with monkeypatch.context() as patched:
        patched.setattr(claims, "_end_backends", fails)
        with pytest.raises(DatabaseUnavailable):
            claim(claims, settings, 12, "consume/1#1")
    claim(claims, settings, 12, "consume/1#1")
    assert [(0,)] == owner.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s", (pid,))


def test_lock_of_a_stranger_is_the_database_away(claims: Claims, settings: Settings, connections: list[Connection]) -> None:
    """A ledger row that somebody unregistered holds makes the claim try again later; no other epoch is given."""
    held = claim(claims, settings, 13, "a")
    stranger = connect(settings.database, "owner", application="tests stranger")
    connections.append(stranger)
    stranger.execute("SELECT 1 FROM ingest_ledger WHERE pipeline = %s AND partition = 13 FOR UPDATE", (settings.pipeline,))
    with pytest.raises(DatabaseUnavailable, match="stays locked"):
        claim(claims, settings, 13, "b")
    stranger.rollback()
    assert held.epoch + 1 == claim(claims, settings, 13, "b").epoch


def test_older_driver_is_stale(driver: Callable[[str], Claims], settings: Settings) -> None:
    """The driver that came last drives; the one before fails at its next claim of anything and at its next beat."""
    old, new = driver("old"), driver("new")

    assert old.driver_epoch + 1 == new.driver_epoch
    with pytest.raises(StaleDriver):
        claim(old, settings, 20, "a")
    with pytest.raises(StaleDriver):
        old.claim_slot("ingest", 0, "a")
    with pytest.raises(StaleDriver):
        old.beat("{}")
    new.beat("{}")
    new.claim_slot("ingest", 0, "b")
    assert 1 == claim(new, settings, 20, "b").epoch


@pytest.mark.parametrize("identity", [TopicIdentity("cluster", "other", 1000), TopicIdentity("other", "topic-id", 1000)])
def test_topic_made_anew_is_data_loss(claims: Claims, settings: Settings, owner: Connection, identity: TopicIdentity) -> None:
    """Another topic id or cluster under the same name is refused loudly, and nothing about the partition changes."""
    claim(claims, settings, 21, "a", first=3)
    question = (
        "SELECT epoch, next_offset, owner, topic_id FROM ingest_ledger WHERE pipeline = %s AND partition = 21",
        (settings.pipeline,),
    )
    before = owner.execute(*question)
    with pytest.raises(DataLoss, match="made anew"):
        claims.claim_partition(settings.kafka.topic, identity, 21, 0, "b")
    assert before == owner.execute(*question)


def test_slots_are_rows_that_stay(claims: Claims, settings: Settings, owner: Connection) -> None:
    """A slot claimed again has its new owner; slots that exist are listed for whoever starts next."""
    for slot, name in ((4, "a"), (2, "b"), (4, "c")):
        claims.claim_slot("probe", slot, name)

    assert [2, 4] == claims.slots("probe")
    assert [(2, "b"), (4, "c")] == owner.execute(
        "SELECT slot, owner FROM slots WHERE pipeline = %s AND role = 'probe' ORDER BY slot", (settings.pipeline,)
    )


def test_writer_role_cannot_claim(settings: Settings, claims: Claims, connections: list[Connection]) -> None:
    """A writer has no right to raise an epoch or to take a slot."""
    claim(claims, settings, 22, "a")
    connection = connect(settings.database, "writer", application="tests rights", autocommit=True)
    connections.append(connection)
    for sql in (
        "UPDATE ingest_ledger SET epoch = epoch + 1",
        "UPDATE ingest_ledger SET owner = 'x'",
        "UPDATE slots SET owner = 'x'",
        "DELETE FROM sensor_readings",
    ):
        with pytest.raises(DatabaseUnavailable, match="42501"):
            connection.execute(sql)


def test_stale_driver_waiting_for_the_pipeline_row_does_not_end_the_new_drivers_writer(
    driver: Callable[[str], Claims], settings: Settings, connections: list[Connection]
) -> None:
    """A driver that was replaced and meets a locked pipeline row learns that it is stale, and no backend is ended."""
    old, new = driver("old"), driver("new")
    held = claim(new, settings, 9, "consume/0#new")
    writer, lock = (connect(settings.database, account, application=f"tests {account}") for account in ("writer", "driver"))
    connections.extend((writer, lock))
    Ledger(writer, settings.pipeline).register(held)
    lock.execute("SELECT 1 FROM pipelines WHERE pipeline = %s FOR UPDATE", (settings.pipeline,))

    with pytest.raises(StaleDriver):
        claim(old, settings, 9, "consume/0#old")

    assert [(1,)] == writer.execute("SELECT 1")
    assert 0 == Ledger(writer, settings.pipeline).next_offset(held)
