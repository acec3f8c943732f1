"""Kafka records become the columns of a batch; what cannot is named with its reason.

The usual case is one call over all records. When one is bad, halving finds it:
the rest stays on the fast path. Records of another schema id are decoded one by
one under the schema the registry holds for them. After decoding, columns are
checked for what the table could not hold, so that a COPY does not fail for it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.avro import HEADER_BYTES, Codec, UndecodableRecord, frame_header, schema_id_of
from actors.batch import READING_SCHEMA
from actors.ingest.flush import DAY_US
from actors.ingest.parse import Rejected, parse_time_us
from rayapp.config import IngestSettings

SchemaText = Callable[[int], str | None]
"""Schema id -> schema text, None when the registry knows no such id."""

MAX_KEY_BYTES = 255
_TIME = pa.timestamp("us", "UTC")
_TEXTS = ("device_id", "device_type", "unit", "building", "zone", "room", "firmware_version", "gateway_id")


@dataclass(frozen=True)
class Decoded:
    """Rows in READING_SCHEMA, and offset -> reason of the records that are dead letters."""

    table: pa.Table
    dead: dict[int, str]


class Decoder:
    """Decode the records of one topic.

    Args:
        codec: our schema.
        schema_id: its id in the registry.
        schema_text: looks up foreign ids; may raise DependencyUnavailable.
    """

    def __init__(self, codec: Codec, schema_id: int, schema_text: SchemaText) -> None:
        self._codec = codec
        self._schema_id = schema_id
        self._header = frame_header(schema_id)
        self._schema_text = schema_text
        self._foreign: dict[int, str | None] = {}

    def decode(self, offsets: list[int], values: list[bytes | None], *, oldest_us: int, newest_us: int) -> Decoded:
        """Return the rows and dead letters of some records of one partition, in offset order.

        Raises:
            DependencyUnavailable: a foreign schema is needed and the registry does not answer; nothing was decided.
        """
        header = self._header
        ours = [value is not None and value[:HEADER_BYTES] == header for value in values]
        dead: dict[int, str] = {}
        parts: list[tuple[list[int], pa.RecordBatch]] = []
        if all(ours):
            self._decode_span(offsets, [value[HEADER_BYTES:] for value in cast("list[bytes]", values)], parts, dead)
        else:
            mine = [i for i, is_ours in enumerate(ours) if is_ours]
            self._decode_span([offsets[i] for i in mine], [cast("bytes", values[i])[HEADER_BYTES:] for i in mine], parts, dead)
            for i, is_ours in enumerate(ours):
                if not is_ours:
                    self._decode_foreign(offsets[i], values[i], parts, dead)
        tables = [_normalise(part_offsets, batch, dead) for part_offsets, batch in parts if batch.num_rows]
        table = pa.concat_tables(tables) if tables else READING_SCHEMA.empty_table()
        if len(tables) > 1:
            table = table.take(pc.sort_indices(table["offset"]))
        return Decoded(_checked(table, dead, oldest_us, newest_us), dead)

    def _decode_span(self, offsets: list[int], bodies: list[bytes], parts: list[Any], dead: dict[int, str]) -> None:
        """Decode at once, or by halves until the doubtful record stands alone."""
        if not bodies:
            return
        batch = self._codec.decode(bodies)
        if batch is not None:
            parts.append((offsets, batch))
        elif len(bodies) == 1:
            try:
                parts.append((offsets, self._codec.decode_one(bodies[0])))
            except UndecodableRecord as error:
                dead[offsets[0]] = str(error)
        else:
            half = len(bodies) // 2
            self._decode_span(offsets[:half], bodies[:half], parts, dead)
            self._decode_span(offsets[half:], bodies[half:], parts, dead)

    def _decode_foreign(self, offset: int, value: bytes | None, parts: list[Any], dead: dict[int, str]) -> None:
        """Decode one record that does not carry our schema id."""
        schema_id = schema_id_of(value)
        if schema_id is None:
            dead[offset] = "not_framed"
            return
        if schema_id not in self._foreign:
            self._foreign[schema_id] = self._schema_text(schema_id)
        text = self._foreign[schema_id]
        if text is None:
            dead[offset] = "unknown_schema"
            return
        try:
            parts.append(([offset], self._codec.decode_foreign(cast("bytes", value)[HEADER_BYTES:], text)))
        except UndecodableRecord as error:
            dead[offset] = str(error)


def time_window(settings: IngestSettings, now_us: int) -> tuple[int, int]:
    """Return the oldest and the newest time a reading may carry; outside it would make day partitions without end."""
    return now_us - settings.max_age_days * DAY_US, now_us + settings.max_future_s * 1_000_000


def _normalise(offsets: list[int], batch: pa.RecordBatch, dead: dict[int, str]) -> pa.Table:
    """Bring decoded columns into READING_SCHEMA; rows with an unusable time are named dead and dropped."""
    column = {name: batch.column(i) for i, name in enumerate(batch.schema.names)}
    location = column["location"]
    times = _times(column["timestamp"], offsets, dead)
    value = column["value"]
    codes = np.asarray(value.type_codes)
    number = pc.if_else(pa.array(codes == 0), value.field(0), pa.scalar(None, pa.float64()))
    if (codes == 1).any():
        number = pc.if_else(pa.array(codes == 1), value.field(1).cast(pa.float64()), number)
    made: dict[str, Any] = {
        "offset": pa.array(offsets, pa.int64()),
        "timestamp": times,
        "value": number,
        "maintenance_date": _maintenance_dates(column["maintenance_date"]),
        "received_at": column["received_at"].cast(_TIME),
    }
    for name in ("latitude", "longitude", "building", "floor", "zone", "room"):
        made[name] = location.field(name)
    arrays = []
    for field in READING_SCHEMA:
        array: Any = made[field.name] if field.name in made else column[field.name]
        arrays.append(array if array.type == field.type else array.cast(field.type))
    usable = times.is_valid()
    if times.null_count:
        keep = pa.array(np.flatnonzero(usable.to_numpy(zero_copy_only=False)))
        arrays = [pc.take(array, keep) for array in arrays]
    return pa.table(arrays, schema=READING_SCHEMA)


def _times(texts: pa.Array, offsets: list[int], dead: dict[int, str]) -> pa.Array:
    """Return event times; the reference parser decides what Arrow's cast does not take, or takes without a `T`."""
    if pc.all(pc.match_substring(texts, "T")).as_py():
        with suppress(pa.ArrowInvalid):
            return texts.cast(_TIME)
    times: list[int | None] = []
    for offset, text in zip(offsets, texts.to_pylist(), strict=True):
        time_us = parse_time_us(text)
        if isinstance(time_us, int):
            times.append(time_us)
        else:
            dead[offset] = time_us.reason if isinstance(time_us, Rejected) else "missing:timestamp"
            times.append(None)
    return pa.array(times, _TIME)


def _maintenance_dates(texts: pa.Array) -> pa.Array:
    """Return maintenance dates; a date that is no ISO date becomes null, it never costs the reading."""
    if texts.null_count == len(texts):
        return pa.nulls(len(texts), _TIME)
    dates: list[datetime | None] = []
    for text in texts.to_pylist():
        try:
            date = datetime.fromisoformat(text) if text else None
        except ValueError:
            date = None
        dates.append(date.replace(tzinfo=UTC) if date is not None and date.tzinfo is None else date)
    return pa.array(dates, _TIME)


def _checked(table: pa.Table, dead: dict[int, str], oldest_us: int, newest_us: int) -> pa.Table:
    """Drop rows that the table cannot hold and name them in `dead`; the first reason counts."""
    if table.num_rows == 0:
        return table
    times = table["timestamp"].cast(pa.int64())
    rules: list[tuple[str, Any]] = [
        ("not_finite:value", pc.invert(pc.is_finite(table["value"]))),
        ("time_out_of_range:timestamp", pc.or_(pc.less(times, oldest_us), pc.greater(times, newest_us))),
        ("bad_value:device_id", _size_outside(table["device_id"], 1, MAX_KEY_BYTES)),
        ("bad_value:device_type", _size_outside(table["device_type"], 1, MAX_KEY_BYTES)),
        ("bad_value:battery_level", _outside(table["battery_level"], 0.0, 100.0)),
        ("bad_value:location", pc.or_(_outside(table["latitude"], -90.0, 90.0), _outside(table["longitude"], -180.0, 180.0))),
        ("bad_value:tags", _longer_text(table["tags"], MAX_KEY_BYTES)),  # an index entry holds no more than 8191 bytes
        ("bad_value:received_at", _not_a_date(table["received_at"].cast(pa.int64()))),
        *((f"nul_character:{name}", pc.match_substring(table[name], "\0")) for name in _TEXTS if _zero_byte(table[name])),
        *((f"nul_character:{name}", _nul_inside(table[name])) for name in ("tags", "device_metadata")),
    ]
    bad = np.zeros(table.num_rows, bool)
    for reason, condition in rules:
        failed = pc.fill_null(condition, fill_value=False)
        if not pc.any(failed).as_py():
            continue
        mask = np.asarray(failed.to_numpy() if isinstance(failed, pa.ChunkedArray) else failed.to_numpy(zero_copy_only=False))
        for offset in pc.filter(table["offset"], pa.array(mask & ~bad)).to_pylist():
            dead[offset] = reason
        bad |= mask
    return table.filter(pa.array(~bad)) if bad.any() else table


def _outside(column: pa.ChunkedArray, low: float, high: float) -> Any:
    """True where a number is below, above or not a number."""
    return pc.or_(pc.is_nan(column), pc.or_(pc.less(column, low), pc.greater(column, high)))


def _size_outside(column: pa.ChunkedArray, low: int, high: int) -> Any:
    """True where a text's UTF-8 length is outside the limits."""
    size = pc.binary_length(column)
    return pc.or_(pc.less(size, low), pc.greater(size, high))


def _longer_text(column: pa.ChunkedArray, high: int) -> Any:
    """True where a list holds a text of more UTF-8 bytes than `high`."""
    array = column.combine_chunks()
    long = pc.greater(pc.binary_length(array.flatten()), high)
    if not pc.any(long).as_py():
        return pa.array(np.zeros(len(array), bool))
    rows = pc.filter(pc.list_parent_indices(array), long)
    return pc.is_in(pa.array(np.arange(len(array))), value_set=rows)


def _not_a_date(time_us: pa.ChunkedArray) -> Any:
    """True where a time is outside the years 1 to 9999, which the reference library refuses to decode, too."""
    return pc.or_(pc.less(time_us, -62_135_596_800_000_000), pc.greater(time_us, 253_402_300_799_999_999))


def _zero_byte(texts: pa.ChunkedArray) -> bool:
    """Look for a zero byte in the texts' buffers: many times quicker than asking row by row, and almost always enough."""
    buffers = [chunk.buffers()[2] for chunk in texts.chunks]
    return any(buffer is not None and b"\0" in buffer.to_pybytes() for buffer in buffers)


def _nul_inside(column: pa.ChunkedArray) -> Any:
    """True where a list's or map's texts hold a NUL character; almost always one look at the flat texts is enough."""
    array = column.combine_chunks()
    flat = [array.keys, array.items] if pa.types.is_map(array.type) else [array.flatten()]
    if not any(_zero_byte(pa.chunked_array([texts])) for texts in flat):
        return pa.array(np.zeros(len(array), bool))
    rows = [[text for entry in row or () for text in ((entry,) if isinstance(entry, str) else entry)] for row in array.to_pylist()]
    return pa.array([any("\0" in text for text in texts if text) for texts in rows])
