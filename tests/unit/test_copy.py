"""copy: what is prepared and encoded for COPY, against a row-by-row reference and a reader of the binary format."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from builders import MAC, NOW_US, reading, table
from hypothesis import given
from hypothesis import strategies as st

from actors.write import copy

PG_EPOCH_US = 946_684_800_000_000
texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=8)
rows_strategy = st.lists(
    st.builds(
        lambda offset, device, at, **changes: reading(offset, mac=device, timestamp=at, **changes),
        st.integers(0, 50), st.sampled_from([MAC, "00:00:00:00:00:01", "ff:00:00:00:00:01", "ä"]), st.integers(NOW_US, NOW_US + 3),
        value=st.none() | st.floats(allow_nan=False), building=st.none() | texts, floor=st.none() | st.integers(-(2**31), 2**31 - 1),
        device_metadata=st.none() | st.dictionaries(texts, texts, max_size=3).map(lambda d: list(d.items())), tags=st.lists(texts, max_size=3),
        gateway_id=st.none() | texts, is_anomaly=st.booleans(), maintenance_date=st.none() | st.integers(0, NOW_US),
    ), max_size=8, unique_by=lambda row: row["offset"],
)  # fmt: skip


def reference(rows: list[dict[str, Any]], differs: list[bool], created_us: int) -> list[dict[str, Any]]:
    """Return the rows in insert order as the table should get them, times in microseconds."""
    made = []
    for row, own in sorted(
        zip(rows, differs, strict=True), key=lambda pair: (pair[0]["device_id"].encode(), pair[0]["timestamp"], pair[0]["offset"])
    ):
        wanted = {name: row.get(name) for name in copy.COLUMNS}
        metadata = row["device_metadata"]
        wanted["device_metadata"] = None if metadata is None else json.dumps(dict(metadata), ensure_ascii=False)
        if not own:
            wanted |= dict.fromkeys(copy.OWN_COLUMNS)
        made.append(wanted | {"overrides_device": own, "created_at": created_us, "offset": row["offset"]})
    return made


def as_rows(prepared: copy.Rows) -> list[dict[str, Any]]:
    shown = prepared.table
    for name in ("timestamp", "maintenance_date", "received_at", "created_at"):
        index = shown.schema.get_field_index(name)
        shown = shown.set_column(index, name, shown[name].cast("int64"))
    return [row | {"offset": offset} for row, offset in zip(shown.to_pylist(), prepared.offsets.to_pylist(), strict=True)]


@given(rows_strategy, st.data())
def test_prepared_rows_equal_the_reference(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    """Rows come in key order, each with its own offset; own columns stay only where the row differs from its device."""
    differs = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    prepared = copy.prepare(table(rows), np.array(differs, bool), 123)

    assert reference(rows, differs, 123) == as_rows(prepared)


def fields_of(stream: bytes, columns: int) -> list[list[bytes | None]]:
    """Read PostgreSQL's binary COPY format."""
    assert stream.startswith(b"PGCOPY\n\xff\r\n\x00" + bytes(8))
    at, rows = 19, []
    while (count := struct.unpack_from(">h", stream, at)[0]) != -1:
        assert columns == count
        at, row = at + 2, []
        for _ in range(count):
            size = struct.unpack_from(">i", stream, at)[0]
            row.append(None if size < 0 else stream[at + 4 : at + 4 + size])
            at += 4 + max(size, 0)
        rows.append(row)
    assert len(stream) == at + 2
    return rows


@given(rows_strategy)
def test_encoded_stream_holds_every_field(rows: list[dict[str, Any]]) -> None:
    """Read back by the format's own rules, every text, number, time, boolean, null and JSON is what was prepared."""
    prepared = copy.prepare(table(rows), np.ones(len(rows), bool), NOW_US)
    found = fields_of(copy.encode(prepared.table), len(copy.COLUMNS))

    def shown(name: str, value: Any) -> bytes | None:
        if value is None:
            return None
        if name in ("timestamp", "maintenance_date", "received_at", "created_at"):
            return struct.pack(">q", value - PG_EPOCH_US)
        if isinstance(value, bool):
            return struct.pack(">?", value)
        if name == "floor":
            return struct.pack(">i", value)
        if isinstance(value, int):
            return struct.pack(">q", value)
        if isinstance(value, float):
            return struct.pack(">d", value)
        return (b"\x01" if name == "device_metadata" else b"") + value.encode()

    for wanted, row in zip(as_rows(prepared), found, strict=True):
        for name, field in zip(copy.COLUMNS, row, strict=True):
            if name != "tags":
                assert shown(name, wanted[name]) == field, name


@given(rows_strategy, st.data())
def test_halves_are_encoded_as_their_rows_alone(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    """A part of a batch, cut again and again, is encoded as if it had come alone, and knows its offsets."""
    prepared = copy.prepare(table(rows), np.ones(len(rows), bool), NOW_US)
    places = np.arange(len(rows))
    part = prepared
    while len(part) > 1:
        second = data.draw(st.booleans())
        part, places = part.halves()[second], np.array_split(places, [len(places) // 2])[second]
        alone = prepared.table.take(places)

        assert copy.encode(alone) == copy.encode(part.table)
        assert prepared.offsets.take(places).to_pylist() == [part.offset(row) for row in range(len(part))]
