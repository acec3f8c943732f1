"""Avro codec: what the reference library writes comes back exactly, and damage is never a wrong row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from builders import NEWEST_US, OLDEST_US, PARSED_SCHEMA, SCHEMA_ID, body, codec, framed, record, table
from hypothesis import example, given
from hypothesis import strategies as st

from actors.avro import HEADER_BYTES, UndecodableRecord, frame_header, schema_id_of
from actors.consume.decode import Decoder
from actors.write import copy

CODEC = codec()
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

texts = st.one_of(st.text(max_size=30), st.sampled_from(["", "🌡️ +21 °C", "\x00", "'\"\\", "ä" * 5_000, "\N{ZERO WIDTH JOINER}"]))
numbers = st.floats(allow_nan=False, width=64)
values = st.one_of(numbers, st.integers(-(2**31), 2**31 - 1).map(lambda n: ("int", n)), st.none())
moments = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999).map(lambda us: EPOCH + timedelta(microseconds=us))


def records(*, sane: bool = False) -> st.SearchStrategy[dict[str, Any]]:
    """Any record that the schema allows; sane ones carry a time and numbers that the table takes."""
    where = st.fixed_dictionaries({
        "latitude": st.floats(-90, 90) if sane else numbers, "longitude": st.floats(-180, 180) if sane else numbers,
        "building": st.none() | texts, "floor": st.none() | st.integers(-(2**31), 2**31 - 1), "zone": st.none() | texts, "room": st.none() | texts,
    })  # fmt: skip
    changes: dict[str, Any] = {
        "value": values, "unit": texts, "location": where, "battery_level": st.none() | (st.floats(0, 100) if sane else numbers),
        "signal_strength": st.none() | numbers, "is_anomaly": st.booleans(), "firmware_version": st.none() | texts,
        "device_metadata": st.none() | st.dictionaries(texts, texts, max_size=4), "status": st.sampled_from(["ACTIVE", "IDLE", "UNKNOWN"]),
        "tags": st.lists(texts, max_size=4), "measurement_sequence": st.none() | st.integers(-(2**63), 2**63 - 1),
        "gateway_id": st.none() | texts, "received_at": st.none() | moments,
    }  # fmt: skip
    if not sane:
        changes |= {"device_id": texts, "device_type": texts, "timestamp": texts, "maintenance_date": st.none() | texts}
    return st.fixed_dictionaries(changes).map(lambda made: record(**made))


def plain(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a record as Arrow's to_pylist shows it."""
    value = fields["value"]
    seen = dict(fields, value=value[1] if isinstance(value, tuple) else value)
    if seen["device_metadata"] is not None:
        seen["device_metadata"] = list(seen["device_metadata"].items())
    if seen["received_at"] is not None:
        seen["received_at"] = seen["received_at"].replace(tzinfo=None)
    return seen


def decoder(schema_text: str | None = None) -> Decoder:
    return Decoder(CODEC, SCHEMA_ID, lambda _id: schema_text)


@given(st.lists(records(), min_size=1, max_size=5))
@example([record(value=("int", 3)), record(value=None), record(value=-0.0, tags=[], device_metadata={}), record(device_metadata=None)])
def test_fast_path_returns_what_the_reference_wrote(written: list[dict[str, Any]]) -> None:
    """Any record of the schema, written by fastavro, is taken by the fast path and comes back with the same fields."""
    found = CODEC.decode([body(fields) for fields in written])

    assert found is not None
    assert [plain(fields) for fields in written] == found.to_pylist()


@given(st.lists(records(), min_size=1, max_size=5))
def test_encode_gives_the_reference_bytes(written: list[dict[str, Any]]) -> None:
    """Columns encoded by the fast path are byte for byte what fastavro writes, behind the 5 header bytes."""
    columns = CODEC.decode([body(fields) for fields in written])

    assert columns is not None
    assert [framed(fields) for fields in written] == CODEC.encode(columns, SCHEMA_ID)


@given(records())
def test_slow_path_gives_the_same_columns(written: dict[str, Any]) -> None:
    """The reference path yields the same columns as the fast path; an int of `value` may come as the equal double."""
    slow, fast = CODEC.decode_one(body(written)), CODEC.decode([body(written)])

    assert fast is not None
    assert fast.schema.names == slow.schema.names
    assert plain(written) == slow.to_pylist()[0]


@given(records(sane=True), st.data())
def test_truncated_record_is_a_dead_letter_and_its_neighbours_are_rows(written: dict[str, Any], data: st.DataObject) -> None:
    """A record cut anywhere is a dead letter alone; the records beside it are decoded as if it were not there."""
    whole = framed(written)
    cut = data.draw(st.integers(0, len(whole) - 1))
    found = decoder().decode([10, 11, 12], [framed(value=1.0), whole[:cut], framed(value=2.0)], oldest_us=OLDEST_US, newest_us=NEWEST_US)

    assert list(found.dead) == [11]
    assert list(zip(found.table["offset"].to_pylist(), found.table["value"].to_pylist(), strict=True)) == [(10, 1.0), (12, 2.0)]


@given(records(sane=True), st.binary(min_size=1, max_size=40))
@example(record(), b"\x00")
@example(record(), framed())
def test_record_with_bytes_behind_it_is_a_dead_letter(written: dict[str, Any], appended: bytes) -> None:
    """Bytes after a record's end are never ignored, although the fast library would."""
    found = decoder().decode([10, 11], [framed(written) + appended, framed(value=2.0)], oldest_us=OLDEST_US, newest_us=NEWEST_US)

    assert found.dead == {10: "trailing_bytes"}
    assert found.table["offset"].to_pylist() == [11]


@given(st.lists(records(sane=True), min_size=1, max_size=3), st.data())
def test_any_damage_gives_rows_or_dead_letters(written: list[dict[str, Any]], data: st.DataObject) -> None:
    """Whatever bytes arrive, decoding ends with each offset either a row that COPY can encode or a dead letter."""
    values = [bytearray(framed(fields)) for fields in written]
    for value in values:
        for _ in range(data.draw(st.integers(0, 3))):
            value[data.draw(st.integers(HEADER_BYTES, len(value) - 1))] = data.draw(st.integers(0, 255))
    offsets = list(range(100, 100 + len(values)))
    found = decoder().decode(offsets, [bytes(value) for value in values], oldest_us=OLDEST_US, newest_us=NEWEST_US)

    assert offsets == sorted([*found.table["offset"].to_pylist(), *found.dead])
    found.table.validate(full=True)
    rows = copy.prepare(found.table, pa.array([True] * found.table.num_rows, pa.bool_()).to_numpy(zero_copy_only=False), 0)
    assert copy.encode(rows.table)


@given(st.lists(st.none() | st.binary(max_size=40), max_size=5))
def test_arbitrary_bytes_are_dead_letters(values: list[bytes | None]) -> None:
    """Bytes that nobody framed are dead letters, tombstones included."""
    found = decoder().decode(list(range(len(values))), values, oldest_us=OLDEST_US, newest_us=NEWEST_US)

    assert list(range(len(values))) == sorted(found.dead)
    assert found.table.num_rows == 0


def test_invalid_utf8_is_a_dead_letter() -> None:
    """Text that is not UTF-8 never becomes a row: the fast library would pass its bytes on unchecked."""
    bad = framed(unit="AAAA").replace(b"AAAA", b"\xff\xfeAA")
    found = decoder().decode([1, 2], [bad, framed()], oldest_us=OLDEST_US, newest_us=NEWEST_US)

    assert found.dead == {1: "undecodable"}
    assert found.table["offset"].to_pylist() == [2]


@pytest.mark.parametrize("length", [2**62, 2**40, 2**31, -1, -(2**63)])
def test_absurd_lengths_are_dead_letters(length: int) -> None:
    """A length field of any size asks for no memory and ends no process."""
    zigzag = (length << 1 ^ length >> 63) & (2**64 - 1)
    varint = bytearray()
    while zigzag & ~0x7F:
        varint.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    varint.append(zigzag)
    found = decoder().decode([1], [frame_header(SCHEMA_ID) + bytes(varint) + b"x" * 20], oldest_us=OLDEST_US, newest_us=NEWEST_US)

    assert found.dead == {1: "undecodable"}


def test_header_names_the_schema() -> None:
    """The five bytes before a body carry zero and the schema id, and nothing shorter counts as framed."""
    assert frame_header(258) == b"\x00\x00\x00\x01\x02"
    assert schema_id_of(b"\x00\x00\x00\x01\x02body") == 258
    assert None is schema_id_of(b"\x00\x00\x00\x01")
    assert None is schema_id_of(b"\x01\x00\x00\x01\x02body")
    assert None is schema_id_of(None)


def test_no_rows_encode_to_no_records() -> None:
    """A batch without rows is no record, not an error."""
    columns = CODEC.decode([body()])

    assert columns is not None
    assert CODEC.encode(columns.slice(0, 0), SCHEMA_ID) == []


def test_record_that_lacks_a_field_does_not_fit() -> None:
    """A foreign record without one of our required fields is undecodable, with its reason as a word."""
    fields = record()
    del fields["unit"]
    with pytest.raises(UndecodableRecord, match="does_not_fit_schema"):
        CODEC.from_records([fields])


def test_builders_agree_with_the_schema() -> None:
    """The tests' own default record and row have exactly the fields of the wire and of the batch."""
    assert [field["name"] for field in PARSED_SCHEMA["fields"]] == list(record())
    assert table([]).num_rows == 0
