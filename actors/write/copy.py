"""A batch becomes the bytes of COPY ... (FORMAT binary).

Rows are sorted by (device_id, timestamp), which makes the index cheaper to
extend and keeps two writers from waiting for each other in opposite order.
pgpq encodes whole columns; what it cannot take (a map) becomes JSON text here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pgpq
import pyarrow as pa
import pyarrow.compute as pc
from pgpq import schema as pg
from pgpq.encoders import StringEncoderBuilder

OWN_COLUMNS = ("latitude", "longitude", "building", "floor", "zone", "room", "firmware_version", "device_metadata", "tags")
"""Columns that a reading keeps only when it differs from its device."""

COLUMNS = (
    "device_id", "device_type", "timestamp", "value", "unit", *OWN_COLUMNS, "battery_level", "signal_strength", "is_anomaly",
    "status", "maintenance_date", "gateway_id", "measurement_sequence", "received_at", "overrides_device", "created_at",
)  # fmt: skip
"""Columns of sensor_readings that the writer fills, in COPY order."""


@dataclass(frozen=True)
class Rows:
    """Rows ready for COPY, in insert order.

    Attributes:
        table: columns COLUMNS.
        offsets: Kafka offset of each row.
    """

    table: pa.Table
    offsets: pa.ChunkedArray

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def offset(self, row: int) -> int:
        """Return one row's Kafka offset."""
        return int(self.offsets[row].as_py())

    def halves(self) -> tuple[Rows, Rows]:
        """Return the first and the second half of the rows."""
        middle = len(self) // 2
        return Rows(self.table.slice(0, middle), self.offsets.slice(0, middle)), Rows(self.table.slice(middle), self.offsets.slice(middle))


def prepare(batch: pa.Table, differs: np.ndarray, created_us: int) -> Rows:
    """Sort a batch, blank what its devices say anyway, and add the writer's own columns.

    Args:
        batch: columns READING_SCHEMA.
        differs: one boolean a row: keep the reading's own constant columns.
        created_us: the writer's clock just before the COPY. A constant, because a
            volatile default would make COPY insert row by row.
    """
    order = pc.sort_indices(batch, sort_keys=[("device_id", "ascending"), ("timestamp", "ascending"), ("offset", "ascending")])
    sorted_batch = batch.take(order)
    keep = pa.array(differs[order.to_numpy()])
    rows = batch.num_rows
    columns: dict[str, pa.Array | pa.ChunkedArray] = {name: sorted_batch[name] for name in sorted_batch.column_names}
    some_differ = bool(differs.any())
    for name in OWN_COLUMNS:
        kind = pa.string() if name == "device_metadata" else sorted_batch.schema.field(name).type
        if not some_differ:
            columns[name] = pa.nulls(rows, kind)
        elif name == "device_metadata":
            columns[name] = _json_texts(sorted_batch[name], keep)
        else:
            columns[name] = pc.if_else(keep, sorted_batch[name], pa.scalar(None, kind))
    columns["overrides_device"] = keep
    columns["created_at"] = pa.repeat(pa.scalar(created_us, pa.timestamp("us", "UTC")), rows)
    return Rows(pa.table({name: columns[name] for name in COLUMNS}), sorted_batch["offset"])


def encode(table: pa.Table) -> bytes:
    """Return the binary COPY stream of a table in its column order."""
    encoders = {name: pgpq.ArrowToPostgresBinaryEncoder.infer_encoder(table.schema.field(name)) for name in table.column_names}
    # jsonb must be said; as text the server would refuse the version byte
    encoders["device_metadata"] = StringEncoderBuilder.new_with_output(table.schema.field("device_metadata"), pg.Jsonb())
    encoder = pgpq.ArrowToPostgresBinaryEncoder.new_with_encoders(table.schema, encoders)
    parts = [encoder.write_header()]
    parts += [encoder.write_batch(batch) for batch in table.combine_chunks().to_batches()]
    parts.append(encoder.finish())
    return b"".join(parts)


def _json_texts(metadata: pa.ChunkedArray, keep: pa.Array) -> pa.Array:
    """Render the maps of the rows that keep their own; a loop, but over foreign or moved devices only."""
    texts: list[str | None] = [None] * len(metadata)
    for row in np.flatnonzero(keep.to_numpy(zero_copy_only=False)):
        entries = metadata[int(row)].as_py()
        texts[int(row)] = None if entries is None else json_text(dict(entries))
    return pa.array(texts, pa.string())


def json_text(metadata: dict[str, str]) -> str:
    """Return metadata as the JSON text that jsonb takes."""
    return json.dumps(metadata, ensure_ascii=False)
