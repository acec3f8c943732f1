"""What travels between consume, detect and write, and what they answer.

A batch is a pyarrow.Table (never a RecordBatch slice, which drags its parent
through serialisation) with the Kafka positions before and after it. Positions
are offsets of the next record: `before` of a batch is `after` of the previous
one, also across gaps that transaction markers leave, so batches of a partition
tile its log without holes.

Between processes a table travels as one Arrow IPC buffer: array by array, as
pickle would send it, costs more than decoding it did.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

READING_SCHEMA = pa.schema(
    [
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("device_id", pa.string(), nullable=False),
        pa.field("device_type", pa.string(), nullable=False),
        pa.field("timestamp", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("unit", pa.string(), nullable=False),
        pa.field("latitude", pa.float64()),
        pa.field("longitude", pa.float64()),
        pa.field("building", pa.string()),
        pa.field("floor", pa.int32()),
        pa.field("zone", pa.string()),
        pa.field("room", pa.string()),
        pa.field("battery_level", pa.float64()),
        pa.field("signal_strength", pa.float64()),
        pa.field("firmware_version", pa.string()),
        pa.field("is_anomaly", pa.bool_(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("maintenance_date", pa.timestamp("us", "UTC")),
        pa.field("device_metadata", pa.map_(pa.string(), pa.string())),
        pa.field("tags", pa.list_(pa.string())),
        pa.field("gateway_id", pa.string()),
        pa.field("measurement_sequence", pa.int64()),
        pa.field("received_at", pa.timestamp("us", "UTC")),
    ]
)
"""Columns of a batch's table; `offset` is the record's Kafka offset."""

DETECT_COLUMNS = ("device_id", "device_type", "timestamp", "value")
"""The columns that detection needs; the rest does not travel there."""


@dataclass(frozen=True)
class PartitionClaim:
    """The right to move one partition's offset: given by the driver, checked by the database.

    Attributes:
        epoch: raised by every claim; a batch of an older epoch is refused.
        owner: incarnation name of the consume actor that holds the claim.
        detect_slot: the detector this partition sticks to.
        write_slot: the writer this partition sticks to.
    """

    topic: str
    partition: int
    epoch: int
    owner: str
    detect_slot: int
    write_slot: int


@dataclass(frozen=True)
class Batch:
    """Rows of one partition between two positions.

    Attributes:
        table: columns READING_SCHEMA (or DETECT_COLUMNS on the way to detect).
        before: next offset before the batch.
        after: next offset once the batch is stored.
        records: Kafka records between the positions, counted as they were read: rows and dead letters must add up to it.
        dead_reasons: reason -> records between the positions that went to the dead letters.
        snapshot: detector state of exactly `after`, stored in the same transaction.
        leader_epoch: of the last record, as far as known; tells a truncated log from a longer one.
    """

    claim: PartitionClaim
    table: pa.Table
    before: int
    after: int
    records: int
    dead_reasons: Mapping[str, int] = field(default_factory=dict)
    snapshot: DetectorSnapshot | None = None
    leader_epoch: int | None = None

    @property
    def dead(self) -> int:
        """All records that went to the dead letters."""
        return sum(self.dead_reasons.values())

    def __reduce__(self) -> tuple[Any, ...]:
        rest = (self.before, self.after, self.records, self.dead_reasons, self.snapshot, self.leader_epoch)
        return _unpack, (self.claim, pack_table(self.table), rest)


def pack_table(table: pa.Table) -> pa.Buffer:
    """Return a table as one Arrow IPC stream; pickle 5 carries it without a copy."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()


def unpack_table(buffer: pa.Buffer) -> pa.Table:
    """Return the table of an Arrow IPC stream; its columns are views of the buffer."""
    return pa.ipc.open_stream(buffer).read_all()


def _unpack(claim: PartitionClaim, buffer: pa.Buffer, rest: tuple[Any, ...]) -> Batch:
    return Batch(claim, unpack_table(buffer), *rest)


@dataclass(frozen=True)
class DetectorSnapshot:
    """Immutable detector state of one partition at one position."""

    epoch: int
    position: int
    configuration_version: str
    state: bytes


@dataclass(frozen=True)
class Flags:
    """Detection's answer: one boolean a row (True = anomaly), and a snapshot when one is due."""

    anomalies: npt.NDArray[np.bool_]
    snapshot: DetectorSnapshot | None = None


class Outcome(StrEnum):
    """What write did with a batch."""

    STORED = "stored"
    ALREADY_DONE = "already_done"
    REWIND = "rewind"
    REJECTED = "rejected"


@dataclass(frozen=True)
class WriteAnswer:
    """Write's answer to one batch.

    Attributes:
        outcome: STORED and ALREADY_DONE release credit; REWIND = read again from the ledger;
            REJECTED = nothing was stored, dead-letter `rejected` and submit the rest again.
        next_offset: the ledger's position as write saw it.
        rejected: offset -> reason of rows that can never be stored.
    """

    outcome: Outcome
    next_offset: int
    stored: int = 0
    duplicate: int = 0
    other_gateway: int = 0
    rejected: dict[int, str] | None = None
