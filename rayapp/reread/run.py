"""Carry a job out: read its ranges, decode, absorb into the table, until every partition is at its end.

Always the absorbing path, which inserts in key order and leaves what is there
alone; each batch is one transaction with the job's position. Conflicts are
dropped, counted and named: the stored reading stays. What is no reading is
counted and passed over: its dead letter exists since it first came. A
connection that breaks is opened again and the job goes on where the database
says it is.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.adapters.kafka import TopicIdentity
from actors.adapters.kafka_read import RangeReader, Record
from actors.adapters.postgres import Connection, connect
from actors.base import now_us
from actors.batch import Batch, Outcome, PartitionClaim
from actors.consume.decode import Decoder, time_window
from actors.detect.thresholds import Thresholds
from actors.write.store import BatchStore, PartitionWriter
from rayapp.config import Settings
from rayapp.errors import DatabaseUnavailable, StaleClaim
from rayapp.log import Events
from rayapp.reread import jobs

CHUNK_RECORDS = 5_000
ALWAYS_CAREFUL = 1_000_000
TRIES = 6
"""Connections in a row that broke without one batch stored between them."""

_events = Events(__name__)

Conflicts = Callable[[int, Sequence[int]], None]
"""Called with a partition and the offsets whose readings differ from the stored ones."""


class Rereader:
    """One run of a job.

    Args:
        stop: asked between chunks; True ends the run, the job can go on later.
        progress: called with the records of each stored batch.
        rate: records a second at most, None = as fast as it goes.
    """

    def __init__(
        self, settings: Settings, job_id: str, identity: TopicIdentity, decoder: Decoder, *,
        rate: float | None, stop: Callable[[], bool], progress: Callable[[int], None], conflicts: Conflicts,
    ) -> None:  # fmt: skip
        self._settings, self._job_id, self._identity, self._decoder = settings, job_id, identity, decoder
        self._rate, self._stop, self._progress, self._conflicts = rate, stop, progress, conflicts
        self._thresholds = Thresholds(settings.thresholds)
        self._store = BatchStore(settings.place)
        self._started_s, self._records, self._tries = time.monotonic(), 0, 0

    def run(self, connection: Connection) -> bool:
        """Go on until the job is done (True) or stop was asked for (False).

        Args:
            connection: of the writer's account, which holds the job's lock; closed when it breaks.

        Raises:
            DatabaseUnavailable: the database stays away; the job can be started again.
            DataLoss: the log no longer holds what is left of the job.
            StaleClaim: the job's rows were changed by somebody else.
        """
        while True:
            try:
                return self._through(connection)
            except DatabaseUnavailable as error:
                connection.close()
                self._tries += 1
                if self._tries >= TRIES:
                    raise
                _events.warning("replay_reconnects", job=self._job_id, tries=self._tries, error=str(error))
                connection = self._reconnected()

    def _reconnected(self) -> Connection:
        time.sleep(min(5.0, 0.25 * 2**self._tries))
        try:
            connection = connect(self._settings.database, "writer", application=f"rayapp replay {self._job_id}")
            jobs.lock(connection, self._settings, self._job_id)
        except DatabaseUnavailable:
            self._tries += 1
            if self._tries >= TRIES:
                raise
            return self._reconnected()
        return connection

    def _through(self, connection: Connection) -> bool:
        """Read from the positions that the database has to the ends."""
        found = jobs.parts(connection, self._settings, self._job_id, self._identity)
        positions = {part.partition: part.next_offset for part in found}
        ranges = {part.partition: (part.next_offset, part.end_offset) for part in found if part.next_offset < part.end_offset}
        writer = PartitionWriter(connection, jobs.JobLedger(connection, self._settings.pipeline, self._job_id))
        most = CHUNK_RECORDS if self._rate is None else max(1, min(CHUNK_RECORDS, int(self._rate / 2)))
        with RangeReader(self._settings.kafka, self._settings.kafka.topic) as reader:
            for chunk in reader.read(ranges, max_records=most):
                by_partition: dict[int, list[Record]] = {}
                for record in chunk.records:
                    by_partition.setdefault(record.partition, []).append(record)
                for partition, after in sorted(chunk.positions.items()):
                    if after > positions[partition]:
                        self._write(writer, partition, by_partition.get(partition, []), positions[partition], after)
                        positions[partition] = after
                self._keep_rate()
                if self._stop():
                    connection.close()
                    return False
        connection.close()
        return True

    def _write(self, writer: PartitionWriter, partition: int, records: list[Record], before: int, after: int) -> None:
        """Decode and store records of one partition between two positions."""
        # The window of the day on which the records came: what was in time then must not be refused for its age today.
        times_us = [record.time_us for record in records if record.time_us is not None] or [now_us()]
        oldest_us = time_window(self._settings.ingest, min(times_us))[0]
        newest_us = time_window(self._settings.ingest, max(times_us))[1]
        decoded = self._decoder.decode(
            [record.offset for record in records], [record.value for record in records], oldest_us=oldest_us, newest_us=newest_us
        )
        claim = PartitionClaim(self._settings.kafka.topic, partition, 0, f"replay {self._job_id}", 0, 0)
        batch = Batch(claim, self._flagged(decoded.table), before, after, len(records), dict(Counter(decoded.dead.values())))
        while True:
            writer.careful_batches = ALWAYS_CAREFUL
            answer = self._store.write(writer, batch, now_us())
            if answer.outcome is Outcome.STORED:
                break
            if answer.outcome is not Outcome.REJECTED or not answer.rejected:
                raise StaleClaim(
                    f"replay {self._job_id}: partition {partition} is at {answer.next_offset}, not at {before}: moved by others"
                )
            conflicts = sorted(offset for offset, reason in answer.rejected.items() if reason == jobs.CONFLICT)
            if conflicts:
                self._conflicts(partition, conflicts)
            batch = without(batch, answer.rejected)
        self._records += len(records)
        self._tries = 0
        self._progress(after - before)

    def _flagged(self, table: pa.Table) -> pa.Table:
        """Raise is_anomaly where the thresholds say so; what a detector with state found once is in the rows that are there still."""
        flags = pc.or_(table["is_anomaly"], self._thresholds.anomalies(table["device_type"], table["value"]))
        return table.set_column(table.schema.get_field_index("is_anomaly"), table.schema.field("is_anomaly"), flags)

    def _keep_rate(self) -> None:
        while self._rate is not None and not self._stop():
            wait_s = self._records / self._rate - (time.monotonic() - self._started_s)
            if wait_s <= 0:
                return
            time.sleep(min(wait_s, 0.2))


def without(batch: Batch, rejected: dict[int, str]) -> Batch:
    """Return a batch without the rows of some offsets, which are counted under their reasons."""
    keep = ~np.isin(batch.table["offset"].to_numpy(), list(rejected))
    reasons = Counter(batch.dead_reasons) + Counter(rejected.values())
    return replace(batch, table=batch.table.filter(pa.array(keep)), dead_reasons=dict(reasons))
