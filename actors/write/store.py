"""One batch, one transaction: rows by COPY, then the ledger, then COMMIT.

The straight path copies into sensor_readings itself. When a natural key is
already there (a message redelivered after a kill), the transaction is rolled
back and done again through a temporary table that absorbs duplicates and finds
conflicts; the partition stays on that path for some batches, because
redelivered messages come in runs. Rows that the database refuses as data are
found by halving and answered to consume, which dead-letters them and submits
the rest again. Nothing here waits or retries: an unreachable database is an
exception, and consume reads the ledger again. What the database refuses though
no data is to blame is an exception too, which names offsets and SQLSTATE: when
it comes again and again, consume halts the partition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from actors.adapters.postgres import CHECK_VIOLATION, Connection, Duplicate, MissingDay
from actors.batch import Batch, Outcome, WriteAnswer
from actors.readings import DeviceConstants, device_constants
from actors.write import copy, halving, incoming
from actors.write.dimension import DeviceDimension
from actors.write.ledger import Counts, Ledger
from rayapp.config import PlaceSettings
from rayapp.errors import BadRows, LedgerBroken, StatementRefused

TABLE = incoming.READINGS
CAREFUL_BATCHES = 20
"""Batches a partition stays on the absorbing path after a duplicate."""
ROUNDS = 4
"""Tries of one batch: missing day, duplicate, and one to spare."""

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
            StatementRefused: nothing was stored, and no data is to blame; names offsets and SQLSTATE.
            LedgerBroken: rows and dead letters of the batch are not its records; nothing was stored.
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
                self._make_days(writer.connection, batch, rows.table)
            except BadRows as error:
                writer.connection.rollback()
                rejected = halving.bad_rows(writer.connection, rows)
                if not rejected:
                    raise _refused(batch, error, "its rows are refused together, but none alone") from error
                return WriteAnswer(Outcome.REJECTED, next_offset, rejected=rejected)
            except LedgerBroken as error:
                writer.connection.rollback()
                told = f"{batch.records} records were read, {len(rows)} rows and {batch.dead} dead letters came"
                raise LedgerBroken(f"{_name(batch)}: {told}; {error}", sqlstate=error.sqlstate, constraint=error.constraint) from error
            except StatementRefused as error:
                writer.connection.rollback()
                offset = halving.first_refused(writer.connection, rows)
                raise _refused(batch, error, f"offset {offset} fails alone" if offset is not None else "no row fails alone") from error
        raise StatementRefused(f"{_name(batch)}: not stored in {ROUNDS} rounds of missing days and duplicates", sqlstate=CHECK_VIOLATION)

    def _copy(self, writer: PartitionWriter, batch: Batch, rows: copy.Rows) -> WriteAnswer:
        """The straight path: every row is new."""
        if rows.table.num_rows:
            writer.connection.copy_binary(TABLE, copy.COLUMNS, copy.encode(rows.table))
        return self._finish(writer, batch, Counts(rows.table.num_rows, 0, 0))

    def _absorb(self, writer: PartitionWriter, batch: Batch, rows: copy.Rows) -> WriteAnswer:
        """The careful path: same key and content is a duplicate, same key and gateway with other content a conflict."""
        connection = writer.connection
        incoming.make(connection)
        incoming.fill(connection, rows)
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

    def _make_days(self, connection: Connection, batch: Batch, table: pa.Table) -> None:
        """Make the day partitions that a batch of late or early readings needs.

        Raises:
            StatementRefused: a day is beyond what the database makes, though within the window that consume lets
                through: their clocks are years apart, or somebody changed one of the two.
        """
        for day in pc.unique(pc.cast(table["timestamp"], pa.date32(), safe=False)).to_pylist():
            try:
                connection.execute("SELECT ensure_day(%s)", (day,))
            except StatementRefused as error:
                connection.rollback()
                raise _refused(batch, error, f"the partition of day {day} cannot be made") from error
            connection.commit()


def _name(batch: Batch) -> str:
    """Return which batch it is, as a person looks for it."""
    return f"{batch.claim.topic}[{batch.claim.partition}] offsets {batch.before}..{batch.after - 1}"


def _refused(batch: Batch, error: BadRows | StatementRefused, which: str) -> StatementRefused:
    """Return the error that tells consume which batch is refused, and what of it."""
    return StatementRefused(f"{_name(batch)}: {which}: {error}", sqlstate=error.sqlstate, constraint=error.constraint)


def _as_device(row: tuple[Any, ...], metadata_keys: list[str]) -> DeviceConstants:
    """Return a row of `devices`; jsonb forgets the order of keys, and a reading's map has the order of our table of sensors."""
    stored: dict[str, str] = row[8] or {}
    ordered = {key: stored[key] for key in metadata_keys if key in stored} | stored
    place = dict(zip(("latitude", "longitude", "building", "floor", "zone", "room", "firmware_version"), row[1:8], strict=True))
    return DeviceConstants(device_id=row[0], metadata=ordered, tags=tuple(row[9] or ()), **place)
