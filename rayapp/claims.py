"""The driver's half of the ledger protocol: who drives, who owns a slot, who owns which partitions.

Only the driver claims, and only while its driver_epoch is the pipeline's. A
claim is one short transaction that raises the epochs of all partitions of one
owner; a writer of an old epoch fails its next UPDATE. A writer that is stopped
inside COPY holds locks that no timeout frees, so a claim also ends the
registered backends and waits until they are gone before anything is assigned.

A halted partition is given to nobody until an operator resumes it
(rayapp.partitions); nor is one whose topic is not the one the ledger counts.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.adapters.kafka import TopicIdentity
from actors.adapters.postgres import Connection, LockTimeout
from rayapp.errors import DatabaseUnavailable, DataLoss, StaleDriver
from rayapp.log import Events

LOCK_TIMEOUT_MS = 500
LOCK_TRIES = 5
BACKEND_GONE_MS = 5_000

_events = Events(__name__)

Backend = tuple[int, Any]
"""A backend's pid and start time: the time guards against a pid used again."""


@dataclass(frozen=True)
class Claimed:
    """A partition's new epoch and where it stands."""

    partition: int
    epoch: int
    next_offset: int


@dataclass(frozen=True)
class ClaimedSet:
    """What one owner got.

    Attributes:
        held: the partitions it may move.
        halted: partition -> why nobody may.
    """

    held: tuple[Claimed, ...] = ()
    halted: Mapping[int, str] = field(default_factory=dict)


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

    def delete_slot(self, role: str, slot: int, owner: str) -> None:
        """Forget a slot whose session its last owner has ended.

        Raises:
            StaleDriver: another driver took over.
        """
        self._require_driver()
        self._connection.count(
            "DELETE FROM slots WHERE pipeline = %s AND role = %s AND slot = %s AND owner = %s", (self._pipeline, role, slot, owner)
        )
        self._connection.commit()

    def claim_partitions(self, topic: str, identity: TopicIdentity, first_offsets: Mapping[int, int], owner: str) -> ClaimedSet:
        """Raise the epochs of one owner's partitions and end the old writers' backends.

        Args:
            first_offsets: partition -> start of its log; where a partition seen for the first time begins.

        Raises:
            StaleDriver: another driver took over.
            DatabaseUnavailable: an old backend did not end or a lock was not to be had; try again.
        """
        for _ in range(LOCK_TRIES):
            try:
                claimed, backends = self._raise_epochs(topic, identity, first_offsets, owner)
                break
            except LockTimeout:
                self._connection.rollback()
                # The lock may be a newer driver's, and the backend its healthy writer's: only the driver ends backends.
                self._require_driver(for_update=False)
                self._end_backends(self._registered_backends(topic, list(first_offsets)))
        else:
            raise DatabaseUnavailable(f"{topic}{sorted(first_offsets)}: a ledger row stays locked; will claim again")
        self._end_backends(backends)
        for each in claimed.held:
            _events.info("partition_claimed", partition=each.partition, epoch=each.epoch, owner=owner, next_offset=each.next_offset)
        for partition, reason in claimed.halted.items():
            _events.error("partition_halted", partition=partition, reason=reason)
        return claimed

    def claim_partition(self, topic: str, identity: TopicIdentity, partition: int, first_offset: int, owner: str) -> Claimed:
        """Claim one partition; as claim_partitions.

        Raises:
            DataLoss: the partition is halted; the message says why.
        """
        claimed = self.claim_partitions(topic, identity, {partition: first_offset}, owner)
        if partition in claimed.halted:
            raise DataLoss(claimed.halted[partition])
        return claimed.held[0]

    def _raise_epochs(
        self, topic: str, identity: TopicIdentity, first_offsets: Mapping[int, int], owner: str
    ) -> tuple[ClaimedSet, list[Backend]]:
        connection = self._connection
        connection.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
        self._require_driver()
        wanted = sorted(first_offsets)
        connection.count(
            "INSERT INTO ingest_ledger (pipeline, topic, partition, cluster_id, topic_id, next_offset, counted_from)"
            " SELECT %s, %s, p, %s, %s, o, o FROM unnest(%s::integer[], %s::bigint[]) AS seen(p, o) ON CONFLICT DO NOTHING",
            (self._pipeline, topic, identity.cluster_id, identity.topic_id, wanted, [first_offsets[p] for p in wanted]),
        )
        rows = connection.execute(
            "SELECT partition, cluster_id, topic_id, backend_pid, backend_start, halted FROM ingest_ledger"
            " WHERE pipeline = %s AND topic = %s AND partition = ANY(%s) ORDER BY partition FOR UPDATE",
            (self._pipeline, topic, wanted),
        )
        halted: dict[int, str] = {}
        backends: list[Backend] = []
        for partition, cluster_id, topic_id, pid, start, reason in rows:
            if reason is not None:
                halted[int(partition)] = str(reason)
            elif (cluster_id, topic_id) != (identity.cluster_id, identity.topic_id):
                # Not written down as a halt: with the right configuration everything goes on.
                halted[int(partition)] = made_anew(topic, int(partition), (cluster_id, topic_id), identity)
            elif pid is not None:
                backends.append((int(pid), start))
        raised = connection.execute(
            # The backend stays written down: if ending it fails now, the next try must still know whom to end.
            "UPDATE ingest_ledger SET epoch = epoch + 1, owner = %s"
            " WHERE pipeline = %s AND topic = %s AND partition = ANY(%s) RETURNING partition, epoch, next_offset",
            (owner, self._pipeline, topic, [p for p in wanted if p not in halted]),
        )
        connection.commit()
        return ClaimedSet(tuple(Claimed(int(p), int(epoch), int(position)) for p, epoch, position in sorted(raised)), halted), backends

    def _require_driver(self, *, for_update: bool = True) -> None:
        """Lock the pipeline row (or only read it) and compare the driver_epoch."""
        lock = " FOR UPDATE" if for_update else ""
        rows = self._connection.execute(f"SELECT driver_epoch FROM pipelines WHERE pipeline = %s{lock}", (self._pipeline,))
        if not rows or int(rows[0][0]) != self.driver_epoch:
            self._connection.rollback()
            raise StaleDriver(f"pipeline {self._pipeline}: driver epoch {self.driver_epoch} is over; this driver stops its actors")

    def _registered_backends(self, topic: str, partitions: Sequence[int]) -> list[Backend]:
        rows = self._connection.execute(
            "SELECT backend_pid, backend_start FROM ingest_ledger"
            " WHERE pipeline = %s AND topic = %s AND partition = ANY(%s) AND backend_pid IS NOT NULL",
            (self._pipeline, topic, list(partitions)),
        )
        self._connection.commit()
        return [(int(pid), start) for pid, start in rows]

    def _end_backends(self, backends: Sequence[Backend]) -> None:
        """End writers' backends, all at once, and wait until they are gone."""
        if not backends:
            return
        pids, starts = [pid for pid, _ in backends], [start for _, start in backends]
        them = (
            " FROM pg_stat_activity a JOIN unnest(%s::integer[], %s::timestamptz[]) AS b(pid, start)"
            " ON a.pid = b.pid AND a.backend_start = b.start"
        )
        self._connection.execute(f"SELECT pg_terminate_backend(a.pid){them}", (pids, starts))
        deadline_s = time.monotonic() + BACKEND_GONE_MS / 1000
        while True:
            self._connection.commit()  # the server shows its activity as of the transaction's first look
            staying = self._connection.execute(f"SELECT a.pid{them}", (pids, starts))
            if not staying:
                break
            if time.monotonic() > deadline_s:
                self._connection.commit()
                raise DatabaseUnavailable(
                    f"database: backend {staying[0][0]} of the old writer did not end within {BACKEND_GONE_MS} ms; will claim again"
                )
            self._connection.execute("SELECT pg_sleep(0.01)")
        self._connection.commit()


def made_anew(topic: str, partition: int, known: tuple[str, str], identity: TopicIdentity) -> str:
    """Return why a partition of a recreated topic is halted, with the way out."""
    return (
        f"{topic}[{partition}]: the ledger counts topic {known[1]} of cluster {known[0]}, Kafka has {identity.topic_id} of "
        f"{identity.cluster_id}: the topic was made anew. Nothing was read. What the old topic held and the table lacks is gone; "
        f"to go on with the new one: rayapp partition resume {topic} {partition} --accept-topic --at start --why '...'"
    )
