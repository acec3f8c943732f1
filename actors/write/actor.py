"""The write actor: takes batches from consume actors, stores each in one transaction, answers.

write() runs on the one `work` thread, so batches of this slot are stored one
after another; each partition has its own connection under its own epoch, which
is registered in the ledger before its first COPY so that a later claim can end
it. Whatever goes wrong, the connection is closed and the error goes back to
consume, which reads the ledger to learn what became of the COMMIT: the next
connection first ends the backend that a broken one left behind.
"""

from __future__ import annotations

import time
from pathlib import Path

import pyarrow.compute as pc

from actors.adapters.postgres import connect
from actors.base import Actor, Report, now_us
from actors.batch import Batch, Outcome, PartitionClaim, WriteAnswer
from actors.write.ledger import Ledger
from actors.write.store import BatchStore, PartitionWriter
from rayapp.config import Settings
from rayapp.errors import DatabaseUnavailable, OwnershipLost, RayappError
from rayapp.log import Events

_events = Events(__name__)


class Write(Actor):
    """One writer slot."""

    role = "write"

    def __init__(self, name: str, settings: Settings) -> None:
        super().__init__(name)
        self._settings = settings
        self._store = BatchStore(settings.place)
        self._writers: dict[tuple[str, int], tuple[int, PartitionWriter]] = {}
        self._latency = _LatencyFile(settings.latency_dir, name)

    def run(self) -> Report:
        """Watch over the slot until drain(); the work comes by calls."""
        report = self.wait_for_drain()
        for _, writer in self._writers.values():
            writer.connection.close()
        return report

    def write(self, batch: Batch) -> WriteAnswer:
        """Store one batch.

        Raises:
            StaleClaim: another epoch or owner holds the partition; the caller must stop.
            DatabaseUnavailable: the outcome is unknown; the caller reads the ledger again.
            StatementRefused: the database is up and refuses the batch, and no data is to blame.
        """
        started = time.monotonic()
        self.tick()
        try:
            writer = self._writer(batch.claim)
            answer = self._store.write(writer, batch, now_us())
        except Exception as error:  # of any kind: the connection's transaction is in no state to go on with
            self.counters["batches_failed_total"] += 1
            expected = isinstance(error, DatabaseUnavailable | OwnershipLost)
            say = _events.warning if expected else _events.error
            say("batch_not_stored", partition=batch.claim.partition, before=batch.before, after=batch.after, error=str(error))
            self._forget(batch.claim)
            raise
        if answer.outcome is Outcome.STORED:
            self._latency.add(batch, answer)
            self.counters["timescaledb_sink_records_inserted_total"] += answer.stored
            self.counters["duplicates_absorbed_total"] += answer.duplicate
            self.counters["batches_total"] += 1
            self.gauges["timescaledb_sink_batch_insert_size"] = answer.stored
            self.gauges["timescaledb_sink_insert_duration_seconds"] = time.monotonic() - started
        return answer

    def _writer(self, claim: PartitionClaim) -> PartitionWriter:
        """Return the partition's connection under this epoch, opening and registering it first if needed."""
        key = (claim.topic, claim.partition)
        held = self._writers.get(key)
        if held is not None and held[0] == claim.epoch and not held[1].connection.closed:
            return held[1]
        if held is not None:
            held[1].connection.close()
        connection = connect(self._settings.database, "writer", application=f"{self.name} p{claim.partition} e{claim.epoch}")
        ledger = Ledger(connection, self._settings.pipeline)
        try:
            ledger.register(claim)
        except RayappError:
            connection.close()
            raise
        writer = PartitionWriter(connection, ledger)
        self._writers[key] = (claim.epoch, writer)
        self.gauges["timescaledb_sink_database_connections"] = len(self._writers)
        return writer

    def _forget(self, claim: PartitionClaim) -> None:
        """Close a connection whose state is unknown."""
        held = self._writers.pop((claim.topic, claim.partition), None)
        if held is not None:
            held[1].connection.close()


class _LatencyFile:
    """Each stored row's milliseconds from its own time to the commit, as float32, for exact percentiles in bench and demo."""

    def __init__(self, directory: Path | None, name: str) -> None:
        self._file = (directory / f"{name.replace('/', '-')}.f32").open("ab") if directory is not None else None

    def add(self, batch: Batch, answer: WriteAnswer) -> None:
        """Append a committed batch; batches with absorbed duplicates are left out, their first copy was recorded."""
        if self._file is None or answer.duplicate or batch.table.num_rows == 0:
            return
        times = batch.table["timestamp"].cast("int64")
        latency_ms = pc.multiply(pc.subtract(now_us(), times), 0.001)
        self._file.write(latency_ms.to_numpy().astype("float32").tobytes())
        self._file.flush()
