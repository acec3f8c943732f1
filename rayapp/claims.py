"""The driver's half of the ledger protocol: who drives, who owns a slot, who owns a partition.

Only the driver claims, and only while its driver_epoch is the pipeline's. A
claim is one short transaction that raises the partition's epoch; a writer of
the old epoch fails its next UPDATE. A writer that is stopped inside COPY holds
locks that no timeout frees, so a claim also ends the registered backend and
waits until it is gone before anything is assigned.
"""

from __future__ import annotations

from dataclasses import dataclass

from actors.adapters.kafka import TopicIdentity
from actors.adapters.postgres import Connection, LockTimeout
from rayapp.errors import DatabaseUnavailable, DataLoss, StaleDriver
from rayapp.log import Events

LOCK_TIMEOUT_MS = 500
LOCK_TRIES = 5
BACKEND_GONE_MS = 5_000

_events = Events(__name__)


@dataclass(frozen=True)
class Claimed:
    """A partition's new epoch and where it stands."""

    epoch: int
    next_offset: int


class Claims:
    """SQL of the driver over one connection (account `driver`, which is a member of `writer`)."""

    def __init__(self, connection: Connection, pipeline: str, driver_id: str) -> None:
        self._connection = connection
        self._pipeline = pipeline
        self._driver_id = driver_id
        self.driver_epoch = 0

    def become_driver(self) -> int:
        """Raise the pipeline's driver_epoch and return it; the driver before us finds out at its next claim or beat."""
        rows = self._connection.execute(
            "INSERT INTO pipelines (pipeline, driver_epoch, driver_id) VALUES (%s, 1, %s) ON CONFLICT (pipeline) DO UPDATE"
            " SET driver_epoch = pipelines.driver_epoch + 1, driver_id = EXCLUDED.driver_id, started_at = now(), heartbeat_at = now(), status = '{}'"
            " RETURNING driver_epoch",
            (self._pipeline, self._driver_id),
        )
        self._connection.commit()
        self.driver_epoch = int(rows[0][0])
        return self.driver_epoch

    def beat(self, status: str) -> None:
        """Write the driver's heartbeat and what it sees (JSON text).

        Raises:
            StaleDriver: another driver took over.
        """
        changed = self._connection.count(
            "UPDATE pipelines SET heartbeat_at = now(), status = %s WHERE pipeline = %s AND driver_epoch = %s",
            (status, self._pipeline, self.driver_epoch),
        )
        self._connection.commit()
        if changed != 1:
            raise StaleDriver(
                f"pipeline {self._pipeline}: another driver took over from epoch {self.driver_epoch}; this one stops its actors"
            )

    def slots(self, role: str) -> list[int]:
        """Return the numbers of the slots of a role that exist in the database, served or not."""
        rows = self._connection.execute("SELECT slot FROM slots WHERE pipeline = %s AND role = %s ORDER BY slot", (self._pipeline, role))
        self._connection.commit()
        return [int(row[0]) for row in rows]

    def claim_slot(self, role: str, slot: int, owner: str) -> None:
        """Give a slot to an incarnation.

        Raises:
            StaleDriver: another driver took over.
        """
        self._require_driver()
        self._connection.count(
            "INSERT INTO slots (pipeline, role, slot, owner, driver_epoch) VALUES (%s, %s, %s, %s, %s)"
            " ON CONFLICT (pipeline, role, slot) DO UPDATE SET owner = EXCLUDED.owner, driver_epoch = EXCLUDED.driver_epoch, updated_at = now()",
            (self._pipeline, role, slot, owner, self.driver_epoch),
        )
        self._connection.commit()

    def claim_partition(self, topic: str, identity: TopicIdentity, partition: int, first_offset: int, owner: str) -> Claimed:
        """Raise a partition's epoch for a new owner and end the old writer's backend.

        Args:
            first_offset: start of the partition's log; where a partition seen for the first time begins.

        Raises:
            StaleDriver: another driver took over.
            DataLoss: the topic is not the one the ledger knows.
            DatabaseUnavailable: the old backend did not end or the lock was not to be had; try again.
        """
        for _ in range(LOCK_TRIES):
            try:
                claimed, backend = self._raise_epoch(topic, identity, partition, first_offset, owner)
                break
            except LockTimeout:
                self._connection.rollback()
                # The lock may be a newer driver's, and the backend its healthy writer's: only the driver ends backends.
                self._require_driver(for_update=False)
                self._end_backend(self._registered_backend(topic, partition))
        else:
            raise DatabaseUnavailable(f"{topic}[{partition}]: the ledger row stays locked; will claim again")
        self._end_backend(backend)
        _events.info("partition_claimed", partition=partition, epoch=claimed.epoch, owner=owner, next_offset=claimed.next_offset)
        return claimed

    def _raise_epoch(
        self, topic: str, identity: TopicIdentity, partition: int, first_offset: int, owner: str
    ) -> tuple[Claimed, tuple[int, object] | None]:
        connection = self._connection
        connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
        self._require_driver()
        connection.count(
            "INSERT INTO ingest_ledger (pipeline, topic, partition, cluster_id, topic_id, next_offset) VALUES (%s, %s, %s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            (self._pipeline, topic, partition, identity.cluster_id, identity.topic_id, first_offset),
        )
        rows = connection.execute(
            "SELECT cluster_id, topic_id, backend_pid, backend_start FROM ingest_ledger"
            " WHERE pipeline = %s AND topic = %s AND partition = %s FOR UPDATE",
            (self._pipeline, topic, partition),
        )
        cluster_id, topic_id, pid, start = rows[0]
        if (cluster_id, topic_id) != (identity.cluster_id, identity.topic_id):
            connection.rollback()
            raise DataLoss(
                f"{topic}[{partition}]: the ledger counts topic {topic_id} of cluster {cluster_id}, Kafka has {identity.topic_id} of "
                f"{identity.cluster_id}: the topic was made anew. Nothing was read; an operator must decide what the old offsets mean."
            )
        epoch, next_offset = connection.execute(
            # The backend stays written down: if ending it fails now, the next try must still know whom to end.
            "UPDATE ingest_ledger SET epoch = epoch + 1, owner = %s"
            " WHERE pipeline = %s AND topic = %s AND partition = %s RETURNING epoch, next_offset",
            (owner, self._pipeline, topic, partition),
        )[0]
        connection.commit()
        return Claimed(int(epoch), int(next_offset)), (int(pid), start) if pid is not None else None

    def _require_driver(self, *, for_update: bool = True) -> None:
        """Lock the pipeline row (or only read it) and compare the driver_epoch."""
        lock = " FOR UPDATE" if for_update else ""
        rows = self._connection.execute(f"SELECT driver_epoch FROM pipelines WHERE pipeline = %s{lock}", (self._pipeline,))
        if not rows or int(rows[0][0]) != self.driver_epoch:
            self._connection.rollback()
            raise StaleDriver(f"pipeline {self._pipeline}: driver epoch {self.driver_epoch} is over; this driver stops its actors")

    def _registered_backend(self, topic: str, partition: int) -> tuple[int, object] | None:
        rows = self._connection.execute(
            "SELECT backend_pid, backend_start FROM ingest_ledger WHERE pipeline = %s AND topic = %s AND partition = %s",
            (self._pipeline, topic, partition),
        )
        self._connection.commit()
        return (int(rows[0][0]), rows[0][1]) if rows and rows[0][0] is not None else None

    def _end_backend(self, backend: tuple[int, object] | None) -> None:
        """End a writer's backend and wait until it is gone; its start time guards against a reused pid."""
        if backend is None:
            return
        gone = self._connection.execute(
            "SELECT pg_terminate_backend(pid, %s) FROM pg_stat_activity WHERE pid = %s AND backend_start = %s", (BACKEND_GONE_MS, *backend)
        )
        self._connection.commit()
        if gone and not gone[0][0]:
            raise DatabaseUnavailable(
                f"database: backend {backend[0]} of the old writer did not end within {BACKEND_GONE_MS} ms; will claim again"
            )
