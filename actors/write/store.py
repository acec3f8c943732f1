"""One batch, one transaction: rows by COPY, then the ledger, then COMMIT.

The straight path copies into sensor_readings itself. When a natural key is
already there (a message redelivered after a kill), the transaction is rolled
back and done again through a temporary table that absorbs duplicates and finds
conflicts; the partition stays on that path for some batches, because
redelivered messages come in runs. Rows that the database refuses as data are
found by halving and answered to consume, which dead-letters them and submits
the rest again. Nothing here waits or retries: an unreachable database is an
exception, and consume reads the ledger again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.adapters.postgres import Connection, Duplicate, MissingDay
from actors.batch import Batch, Outcome, WriteAnswer
from actors.readings import DeviceConstants, device_constants
from actors.write import copy
from actors.write.dimension import DeviceDimension
from actors.write.ledger import Counts, Ledger
from rayapp.config import PlaceSettings
from rayapp.errors import BadRows, DatabaseUnavailable

TABLE = "sensor_readings"
CAREFUL_BATCHES = 20
"""Batches a partition stays on the absorbing path after a duplicate."""
ROUNDS = 4
"""Tries of one batch: missing day, duplicate, and one to spare."""

_MAKE_INCOMING = (
    f"CREATE TEMP TABLE IF NOT EXISTS incoming (LIKE {TABLE} INCLUDING CONSTRAINTS, kafka_offset bigint NOT NULL) ON COMMIT DELETE ROWS",
    "ALTER TABLE incoming DROP COLUMN IF EXISTS id",
)
_NAMES = ", ".join(copy.COLUMNS)


@dataclass
class PartitionWriter:
    """One partition under one epoch: its connection and whether duplicates are about."""

    connection: Connection
    ledger: Ledger
    careful_batches: int = 0


class BatchStore:
    """Store batches of any partition; knows the devices, owns no connection."""

    def __init__(self, place: PlaceSettings) -> None:
        self._place = place
        self._devices = DeviceDimension()

    def write(self, writer: PartitionWriter, batch: Batch, created_us: int) -> WriteAnswer:
        """Store one batch and move the ledger, or say why not.

        Raises:
            StaleClaim: the partition is somebody else's.
            DatabaseUnavailable: rolled back or unknown; read the ledger again.
        """
        next_offset = writer.ledger.next_offset(batch.claim)
        if next_offset >= batch.after:
            writer.connection.rollback()
            return WriteAnswer(Outcome.ALREADY_DONE, next_offset)
        if next_offset != batch.before:
            writer.connection.rollback()
            return WriteAnswer(Outcome.REWIND, next_offset)
        self._learn_devices(writer.connection, batch.table)
        rows = copy.prepare(batch.table, self._devices.differs(batch.table), created_us)
        careful = writer.careful_batches > 0
        if careful:
            writer.careful_batches -= 1
        # One batch may run into a missing day, a duplicate and a refused row one after the other; each round mends one.
        for _ in range(ROUNDS):
            try:
                return self._absorb(writer, batch, rows) if careful else self._copy(writer, batch, rows)
            except Duplicate:
                writer.connection.rollback()
                writer.careful_batches = CAREFUL_BATCHES
                careful = True
            except MissingDay:
                writer.connection.rollback()
                self._make_days(writer.connection, rows.table)
            except BadRows as error:
                writer.connection.rollback()
                return WriteAnswer(Outcome.REJECTED, next_offset, rejected=self._find_bad(writer.connection, rows, error))
        raise DatabaseUnavailable(f"{batch.claim.topic}[{batch.claim.partition}]: batch at {batch.before} not stored in {ROUNDS} rounds")

    def _copy(self, writer: PartitionWriter, batch: Batch, rows: copy.Rows) -> WriteAnswer:
        """The straight path: every row is new."""
        if rows.table.num_rows:
            writer.connection.copy_binary(TABLE, copy.COLUMNS, copy.encode(rows.table))
        return self._finish(writer, batch, Counts(rows.table.num_rows, 0, 0))

    def _absorb(self, writer: PartitionWriter, batch: Batch, rows: copy.Rows) -> WriteAnswer:
        """The careful path: same key and content is a duplicate, same key and gateway with other content a conflict."""
        connection = writer.connection
        for statement in _MAKE_INCOMING:
            connection.execute(statement)
        with_offsets = rows.table.append_column("kafka_offset", rows.offsets)
        connection.copy_binary("incoming", (*copy.COLUMNS, "kafka_offset"), copy.encode(with_offsets))
        # Of a key that is twice in the batch, the lowest offset goes in first and stays.
        stored = connection.count(
            f"INSERT INTO {TABLE} ({_NAMES}) SELECT {_NAMES} FROM incoming ORDER BY device_id, timestamp, kafka_offset"
            " ON CONFLICT (device_id, timestamp) DO NOTHING"
        )
        other_gateway, conflicts = 0, {}
        if stored < rows.table.num_rows:
            # Rows stored just now join to themselves and differ in nothing, so they do not show up here.
            for offset, same_gateway in connection.execute(
                f"SELECT i.kafka_offset, i.gateway_id IS NOT DISTINCT FROM r.gateway_id FROM incoming i JOIN {TABLE} r"
                " ON r.device_id = i.device_id AND r.timestamp = i.timestamp"
                " WHERE i.gateway_id IS DISTINCT FROM r.gateway_id OR i.value IS DISTINCT FROM r.value OR i.unit <> r.unit"
            ):
                if same_gateway:
                    conflicts[int(offset)] = "conflict"
                else:
                    other_gateway += 1
        if conflicts:
            connection.rollback()
            return WriteAnswer(Outcome.REJECTED, batch.before, rejected=conflicts)
        duplicate = rows.table.num_rows - stored
        return self._finish(writer, batch, Counts(stored, duplicate, other_gateway))

    def _finish(self, writer: PartitionWriter, batch: Batch, counts: Counts) -> WriteAnswer:
        """Move the ledger and commit."""
        if batch.snapshot is not None:
            writer.ledger.save_snapshot(batch.claim, batch.snapshot)
        writer.ledger.advance(batch, counts)
        writer.connection.commit()
        return WriteAnswer(Outcome.STORED, batch.after, counts.stored, counts.duplicate, counts.other_gateway)

    def _learn_devices(self, connection: Connection, table: pa.Table) -> None:
        """Make rows in `devices` for ids seen first, from configuration and never from the reading; commits by itself."""
        made = [d for d in (device_constants(name, self._place) for name in sorted(self._devices.unknown(table["device_id"]))) if d]
        if not made:
            return
        connection.execute(
            "INSERT INTO devices (device_id, latitude, longitude, building, floor, zone, room, firmware_version, device_metadata, tags)"
            " SELECT d.id, %(latitude)s, %(longitude)s, %(building)s, %(floor)s, %(zone)s, %(room)s, %(firmware)s, d.metadata::jsonb,"
            " string_to_array(d.tags, ',') FROM unnest(%(ids)s, %(metadata)s, %(tags)s) AS d(id, metadata, tags)"
            " ORDER BY d.id ON CONFLICT DO NOTHING",
            {
                "latitude": self._place.latitude,
                "longitude": self._place.longitude,
                "building": self._place.building,
                "floor": self._place.floor,
                "zone": self._place.zone,
                "room": self._place.room,
                "firmware": self._place.firmware_version,
                "ids": [d.device_id for d in made],
                "metadata": [copy.json_text(d.metadata) for d in made],
                "tags": [",".join(d.tags) for d in made],
            },
        )
        latest = connection.execute(
            "SELECT DISTINCT ON (device_id) device_id, latitude, longitude, building, floor, zone, room, firmware_version, device_metadata,"
            " tags, CASE WHEN isfinite(valid_from) THEN (extract(epoch FROM valid_from) * 1000000)::bigint END"
            " FROM devices WHERE device_id = ANY(%s) ORDER BY device_id, valid_from DESC",
            ([d.device_id for d in made],),
        )
        connection.commit()
        keys = {d.device_id: list(d.metadata) for d in made}
        devices = [_as_device(row, keys[row[0]]) for row in latest]
        self._devices.add(devices, [row[10] for row in latest])

    def _make_days(self, connection: Connection, table: pa.Table) -> None:
        """Make the day partitions that a batch of late or early readings needs."""
        for day in pc.unique(pc.cast(table["timestamp"], pa.date32(), safe=False)).to_pylist():
            connection.execute("SELECT ensure_day(%s)", (day,))
            connection.commit()

    def _find_bad(self, connection: Connection, rows: copy.Rows, error: BadRows) -> dict[int, str]:
        """Return offset -> reason of the rows that fail alone, by halving; nothing of this is kept."""
        try:
            for statement in _MAKE_INCOMING:
                connection.execute(statement)
            connection.copy_binary(
                "incoming", (*copy.COLUMNS, "kafka_offset"), copy.encode(rows.table.append_column("kafka_offset", rows.offsets))
            )
        except BadRows as refused:
            error = refused
        else:
            connection.rollback()
            return {}
        connection.rollback()
        count = rows.table.num_rows
        if count == 1:
            return {int(rows.offsets[0].as_py()): f"refused:{error.constraint or error.sqlstate}"}
        half = count // 2
        found = self._find_bad(connection, rows.take(pa.array(np.arange(half))), error)
        return found | self._find_bad(connection, rows.take(pa.array(np.arange(half, count))), error)


def _as_device(row: tuple[Any, ...], metadata_keys: list[str]) -> DeviceConstants:
    """Return a row of `devices`; jsonb forgets the order of keys, and a reading's map has the order of our table of sensors."""
    stored: dict[str, str] = row[8] or {}
    ordered = {key: stored[key] for key in metadata_keys if key in stored} | stored
    place = dict(zip(("latitude", "longitude", "building", "floor", "zone", "room", "firmware_version"), row[1:8], strict=True))
    return DeviceConstants(device_id=row[0], metadata=ordered, tags=tuple(row[9] or ()), **place)
