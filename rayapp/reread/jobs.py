"""A replay's rows in the database: one a partition, moved in the transaction that stores the readings.

The same account and the same connection hold the job's lock, so a process
whose connection is lost has lost its job, too, and a killed one frees it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actors.adapters.kafka import TopicIdentity
from actors.adapters.postgres import Connection
from actors.batch import Batch, PartitionClaim
from actors.write.ledger import Counts, Ledger
from rayapp.config import Settings
from rayapp.errors import ConfigurationError, StaleClaim

LOCK_S = 10.0
"""A predecessor that was killed keeps its lock until the server sees its connection gone."""
CONFLICT = "conflict"


@dataclass(frozen=True)
class Part:
    """One partition of a job, and what became of its records up to next_offset."""

    partition: int
    from_offset: int
    next_offset: int
    end_offset: int
    stored: int = 0
    duplicate: int = 0
    other_gateway: int = 0
    conflicts: int = 0
    dead: int = 0


_COUNTED = ("stored", "duplicate", "other_gateway", "conflicts", "dead")
_LISTED = (
    "job_id", "topic", "partition", "from_offset", "next_offset", "end_offset", *_COUNTED, "state", "started_at", "updated_at",
)  # fmt: skip


class JobLedger(Ledger):
    """What BatchStore asks of a ledger, answered from a job's rows; next_offset and advance are all it calls for batches without a snapshot."""

    def __init__(self, connection: Connection, pipeline: str, job_id: str) -> None:
        super().__init__(connection, pipeline)
        self._job_id = job_id

    def next_offset(self, claim: PartitionClaim) -> int:
        """Return the job's position in a partition.

        Raises:
            StaleClaim: the job has no such partition.
        """
        rows = self._connection.execute(
            "SELECT next_offset FROM replay_jobs WHERE pipeline = %s AND job_id = %s AND partition = %s",
            (self._pipeline, self._job_id, claim.partition),
        )
        if not rows:
            raise StaleClaim(f"replay {self._job_id}: the job has no partition {claim.partition}; its rows were deleted")
        return int(rows[0][0])

    def advance(self, batch: Batch, counts: Counts) -> None:
        """Move the job from `before` to `after`, in the batch's transaction.

        Raises:
            StaleClaim: somebody else moved it.
        """
        conflicts = batch.dead_reasons.get(CONFLICT, 0)
        changed = self._connection.count(
            "UPDATE replay_jobs SET next_offset = %s, stored = stored + %s, duplicate = duplicate + %s, other_gateway = other_gateway + %s,"
            " conflicts = conflicts + %s, dead = dead + %s, state = CASE WHEN end_offset = %s THEN 'done' ELSE 'running' END,"
            " updated_at = clock_timestamp() WHERE pipeline = %s AND job_id = %s AND partition = %s AND next_offset = %s",
            (
                batch.after, counts.stored, counts.duplicate, counts.other_gateway, conflicts, batch.dead - conflicts, batch.after,
                self._pipeline, self._job_id, batch.claim.partition, batch.before,
            ),
        )  # fmt: skip
        if changed != 1:
            raise StaleClaim(
                f"replay {self._job_id}: somebody else moved partition {batch.claim.partition} from {batch.before}; rolled back"
            )


def lock(connection: Connection, settings: Settings, job_id: str, wait_s: float = LOCK_S) -> None:
    """Take a job for this connection; it is free again when the connection ends.

    Raises:
        ConfigurationError: another process works on it.
    """
    deadline_s = time.monotonic() + wait_s
    question = "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))"
    while not connection.execute(question, (f"rayapp replay {settings.pipeline} {job_id}",))[0][0]:
        if time.monotonic() > deadline_s:
            connection.rollback()
            raise ConfigurationError(f"--job = {job_id}: another process works on this job; wait for it, or end it first")
        connection.execute("SELECT pg_sleep(0.2)")
    connection.commit()


def parts(connection: Connection, settings: Settings, job_id: str, identity: TopicIdentity) -> list[Part]:
    """Return a job's partitions, [] when there is no such job.

    Raises:
        ConfigurationError: the job is of another topic, or of one that was made anew since.
    """
    rows = connection.execute(
        f"SELECT topic, cluster_id, topic_id, partition, from_offset, next_offset, end_offset, {', '.join(_COUNTED)} FROM replay_jobs"
        " WHERE pipeline = %s AND job_id = %s ORDER BY partition",
        (settings.pipeline, job_id),
    )
    connection.rollback()
    for topic, cluster_id, topic_id, *_ in rows:
        if (topic, cluster_id, topic_id) != (settings.kafka.topic, identity.cluster_id, identity.topic_id):
            raise ConfigurationError(
                f"--job = {job_id}: it reads topic {topic} with id {topic_id}, Kafka's {settings.kafka.topic} has {identity.topic_id}: "
                "offsets of the one mean nothing in the other; begin a new job"
            )
    return [Part(*map(int, row[3:])) for row in rows]


def create(connection: Connection, settings: Settings, job_id: str, identity: TopicIdentity, ranges: Mapping[int, tuple[int, int]]) -> None:
    """Write a new job down, whole or not at all."""
    for partition, (low, high) in sorted(ranges.items()):
        connection.count(
            "INSERT INTO replay_jobs (job_id, pipeline, topic, partition, from_offset, next_offset, end_offset, cluster_id, topic_id)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
            (job_id, settings.pipeline, settings.kafka.topic, partition, low, low, high, identity.cluster_id, identity.topic_id),
        )
    connection.commit()


def ledger_positions(connection: Connection, settings: Settings, identity: TopicIdentity) -> dict[int, int]:
    """Return partition -> the ledger's next_offset.

    Raises:
        ConfigurationError: the ledger counts another topic than Kafka has.
    """
    rows = connection.execute(
        "SELECT partition, next_offset, cluster_id, topic_id FROM ingest_ledger WHERE pipeline = %s AND topic = %s",
        (settings.pipeline, settings.kafka.topic),
    )
    connection.rollback()
    for partition, _, cluster_id, topic_id in rows:
        if (cluster_id, topic_id) != (identity.cluster_id, identity.topic_id):
            raise ConfigurationError(
                f"{settings.kafka.topic}[{partition}]: the ledger counts topic {topic_id}, Kafka has {identity.topic_id}: it was made anew; "
                "`rayapp partition resume` comes first"
            )
    return {int(partition): int(next_offset) for partition, next_offset, *_ in rows}


def listed(connection: Connection, settings: Settings) -> list[dict[str, Any]]:
    """Return every job's partitions, the newest job first."""
    rows = connection.execute(
        f"SELECT {', '.join(_LISTED)} FROM replay_jobs WHERE pipeline = %s ORDER BY started_at DESC, job_id, partition",
        (settings.pipeline,),
    )
    connection.rollback()
    return [dict(zip(_LISTED, row, strict=True)) for row in rows]
