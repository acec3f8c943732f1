"""The writer's half of the ledger protocol: look before the COPY, prove after it.

Claims are the driver's (rayapp.claims). A writer never raises an epoch; it
registers its database backend, reads the position before a batch, and in the
same transaction as the rows moves next_offset only where epoch, owner and
position are still what it read. Zero updated rows therefore means "not mine
any more" and nothing else, and the transaction is rolled back.

That nothing else can move a position under the same epoch rests on one live
backend a partition. A connection that broke leaves one behind, perhaps with a
COMMIT still on its way to it: it is ended before the next one registers, and
only then is what the ledger says the COMMIT's outcome.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from actors.adapters.postgres import Connection
from actors.batch import Batch, DetectorSnapshot, PartitionClaim
from rayapp.errors import DatabaseUnavailable, StaleClaim

BACKEND_GONE_S = 5.0


@dataclass(frozen=True)
class Counts:
    """What became of a batch's rows."""

    stored: int
    duplicate: int
    other_gateway: int


@dataclass(frozen=True)
class Position:
    """Where a partition stands.

    Attributes:
        next_offset: the first record that is not stored yet.
        leader_epoch: of the last record stored, None when unknown.
    """

    next_offset: int
    leader_epoch: int | None


class Ledger:
    """The rows of ingest_ledger as one writer's connection sees them."""

    def __init__(self, connection: Connection, pipeline: str) -> None:
        self._connection = connection
        self._pipeline = pipeline

    def register(self, claim: PartitionClaim) -> None:
        """Write down this connection's backend, so that the next claim can end it, and end the one before.

        A writer stopped inside COPY keeps its locks; only pg_terminate_backend
        frees them, and for that the claimer must know whom to end.

        Raises:
            StaleClaim: the partition has another epoch or owner.
            DatabaseUnavailable: the backend before did not end in time.
        """
        mine = (self._pipeline, claim.topic, claim.partition, claim.epoch, claim.owner)
        # Whose epoch is over may end nobody: the backend could be the new owner's.
        former = self._connection.execute(
            "SELECT backend_pid, backend_start FROM ingest_ledger WHERE pipeline = %s AND topic = %s AND partition = %s AND epoch = %s"
            " AND owner = %s AND backend_pid IS NOT NULL AND backend_pid <> pg_backend_pid()",
            mine,
        )
        for pid, start in former:
            self._end_backend(int(pid), start)
        changed = self._connection.count(
            "UPDATE ingest_ledger SET backend_pid = pg_backend_pid(), backend_start ="
            " (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid())"
            " WHERE pipeline = %s AND topic = %s AND partition = %s AND epoch = %s AND owner = %s",
            mine,
        )
        if changed != 1:
            self._connection.rollback()
            raise StaleClaim(f"{claim.topic}[{claim.partition}]: epoch {claim.epoch} of {claim.owner} is not the ledger's; batch refused")
        self._connection.commit()

    def _end_backend(self, pid: int, start: datetime) -> None:
        """End a backend of this account and wait until it is gone; its start guards against a pid used again."""
        question = "SELECT {} FROM pg_stat_activity WHERE pid = %s AND backend_start = %s"
        alive = self._connection.execute(question.format("pg_terminate_backend(pid)"), (pid, start))
        deadline_s = time.monotonic() + BACKEND_GONE_S
        while alive:
            self._connection.rollback()  # the server shows its activity as of the transaction's first look
            if time.monotonic() > deadline_s:
                raise DatabaseUnavailable(f"database: backend {pid} of the broken connection did not end within {BACKEND_GONE_S:g} s")
            self._connection.execute("SELECT pg_sleep(0.005)")
            alive = self._connection.execute(question.format("pid"), (pid, start))

    def positions(self, claims: Collection[PartitionClaim]) -> dict[PartitionClaim, Position]:
        """Return where partitions stand, in one question for all of them.

        Raises:
            StaleClaim: a partition has another epoch or owner.
        """
        rows = self._connection.execute(
            "SELECT topic, partition, epoch, owner, next_offset, leader_epoch FROM ingest_ledger"
            " WHERE pipeline = %s AND (topic, partition) IN (SELECT * FROM unnest(%s::text[], %s::integer[]))",
            (self._pipeline, [claim.topic for claim in claims], [claim.partition for claim in claims]),
        )
        known = {(topic, int(partition)): row for topic, partition, *row in rows}
        found = {}
        for claim in claims:
            epoch, owner, next_offset, leader_epoch = known.get((claim.topic, claim.partition), (None, None, 0, None))
            if (epoch, owner) != (claim.epoch, claim.owner):
                raise self._stale(claim, epoch, owner)
            found[claim] = Position(int(next_offset), leader_epoch)
        return found

    def next_offset(self, claim: PartitionClaim) -> int:
        """Return the partition's next offset.

        Raises:
            StaleClaim: the partition has another epoch or owner.
        """
        rows = self._connection.execute(
            "SELECT epoch, owner, next_offset FROM ingest_ledger WHERE pipeline = %s AND topic = %s AND partition = %s",
            (self._pipeline, claim.topic, claim.partition),
        )
        if not rows or (rows[0][0], rows[0][1]) != (claim.epoch, claim.owner):
            raise self._stale(claim, *(rows[0][:2] if rows else (None, None)))
        return int(rows[0][2])

    @staticmethod
    def _stale(claim: PartitionClaim, epoch: int | None, owner: str | None) -> StaleClaim:
        holder = "the ledger does not know it" if epoch is None else f"the ledger says epoch {epoch} of {owner or 'nobody'}"
        return StaleClaim(f"{claim.topic}[{claim.partition}]: {holder}, not epoch {claim.epoch} of {claim.owner}; stopping")

    def advance(self, batch: Batch, counts: Counts) -> None:
        """Move next_offset from `before` to `after`; the last statement before COMMIT, so the row is locked for one round trip.

        Raises:
            StaleClaim: epoch, owner or position changed since it was read.
        """
        claim = batch.claim
        changed = self._connection.count(
            "UPDATE ingest_ledger SET next_offset = %s, records = records + %s, stored = stored + %s, duplicate = duplicate + %s,"
            " other_gateway = other_gateway + %s, dead = dead + %s, leader_epoch = coalesce(%s, leader_epoch), updated_at = clock_timestamp()"
            " WHERE pipeline = %s AND topic = %s AND partition = %s AND epoch = %s AND owner = %s AND next_offset = %s",
            (
                batch.after, batch.records, counts.stored, counts.duplicate, counts.other_gateway, batch.dead, batch.leader_epoch,
                self._pipeline, claim.topic, claim.partition, claim.epoch, claim.owner, batch.before,
            ),
        )  # fmt: skip
        if changed != 1:
            raise StaleClaim(f"{claim.topic}[{claim.partition}]: claimed away at {batch.before}; rolled back")
        for reason, dead in sorted(batch.dead_reasons.items()):
            self._connection.count(
                "INSERT INTO ledger_dead_reasons (pipeline, topic, partition, reason, dead) VALUES (%s, %s, %s, %s, %s)"
                " ON CONFLICT (pipeline, topic, partition, reason) DO UPDATE SET dead = ledger_dead_reasons.dead + EXCLUDED.dead",
                (self._pipeline, claim.topic, claim.partition, reason, dead),
            )

    def halt(self, claim: PartitionClaim, reason: str) -> None:
        """Stop the partition until an operator resumes it; the driver gives a halted partition to nobody.

        Raises:
            StaleClaim: the partition has another epoch or owner; the new owner will see for itself.
        """
        changed = self._connection.count(
            "UPDATE ingest_ledger SET halted = %s, halted_at = clock_timestamp()"
            " WHERE pipeline = %s AND topic = %s AND partition = %s AND epoch = %s AND owner = %s",
            (reason, self._pipeline, claim.topic, claim.partition, claim.epoch, claim.owner),
        )
        if changed != 1:
            self._connection.rollback()
            raise StaleClaim(f"{claim.topic}[{claim.partition}]: claimed away before it could be halted ({reason})")
        self._connection.commit()

    def save_snapshot(self, claim: PartitionClaim, snapshot: DetectorSnapshot) -> None:
        """Store the detector's state of exactly the batch's position after, in the batch's transaction."""
        self._connection.count(
            "INSERT INTO detector_snapshots (pipeline, topic, partition, epoch, position, configuration_version, state)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (pipeline, topic, partition) DO UPDATE SET epoch = EXCLUDED.epoch,"
            " position = EXCLUDED.position, configuration_version = EXCLUDED.configuration_version, state = EXCLUDED.state, taken_at = now()",
            (self._pipeline, claim.topic, claim.partition, claim.epoch, snapshot.position, snapshot.configuration_version, snapshot.state),
        )

    def load_snapshot(self, claim: PartitionClaim) -> DetectorSnapshot | None:
        """Return the last stored snapshot of a partition, None when there is none."""
        rows = self._connection.execute(
            "SELECT epoch, position, configuration_version, state FROM detector_snapshots"
            " WHERE pipeline = %s AND topic = %s AND partition = %s",
            (self._pipeline, claim.topic, claim.partition),
        )
        if not rows:
            return None
        epoch, position, version, state = rows[0]
        return DetectorSnapshot(int(epoch), int(position), str(version), bytes(state))
