"""Decoder: columns out of a partition's records, each dead letter named, whatever lies beside it."""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro
import pytest
from builders import MAC, NEWEST_US, OLDEST_US, PARSED_SCHEMA, SCHEMA, SCHEMA_ID, codec, framed, record
from hypothesis import example, given
from hypothesis import strategies as st

from actors.avro import frame_header
from actors.consume.decode import Decoded, Decoder
from actors.ingest.parse import parse_time_us
from rayapp.errors import DependencyUnavailable

CODEC = codec()
THEIR_ID = 99


def decode(values: list[bytes | None], schemas: dict[int, str] | None = None, first: int = 0) -> Decoded:
    known = schemas or {}
    decoder = Decoder(CODEC, SCHEMA_ID, known.get)
    return decoder.decode(list(range(first, first + len(values))), values, oldest_us=OLDEST_US, newest_us=NEWEST_US)


def theirs(schema: dict[str, Any], fields: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), fields)
    return frame_header(THEIR_ID) + out.getvalue()


def test_rows_keep_their_offsets_in_order() -> None:
    """Rows come in offset order, whichever path decoded them."""
    foreign = json.loads(SCHEMA)
    found = decode([framed(value=0.0), theirs(foreign, record(value=1.0)), framed(value=2.0)], {THEIR_ID: SCHEMA}, first=40)

    assert (found.table["offset"].to_pylist(), found.table["value"].to_pylist()) == ([40, 41, 42], [0.0, 1.0, 2.0])
    assert found.dead == {}


def test_nothing_decodes_to_nothing() -> None:
    """No records are no rows and no dead letters."""
    found = decode([])

    assert (found.table.num_rows, found.dead) == (0, {})


@given(st.sets(st.integers(0, 29), max_size=8))
def test_bad_records_cost_only_themselves(bad: set[int]) -> None:
    """However many records of a batch are damaged, exactly those are dead letters."""
    values: list[bytes | None] = [framed(value=float(i)) if i not in bad else framed()[:20] for i in range(30)]
    found = decode(values)

    assert bad == set(found.dead)
    assert [float(i) for i in range(30) if i not in bad] == found.table["value"].to_pylist()


def test_document_schema_is_read() -> None:
    """A record of the document's own producer, with unions the other way round and fewer fields, becomes the same row."""
    schema = json.loads(SCHEMA)
    schema["fields"] = [field for field in schema["fields"] if field["name"] not in ("measurement_sequence", "gateway_id", "received_at")]
    for field in schema["fields"]:
        if isinstance(field["type"], list) and field["type"][0] == "null":
            field["type"] = field["type"][::-1]
            del field["default"]
    fields = {name: value for name, value in record().items() if name in {field["name"] for field in schema["fields"]}}
    found = decode([theirs(schema, fields), framed()], {THEIR_ID: json.dumps(schema)})
    foreign, own = found.table.to_pylist()

    assert {**own, "offset": 0} == foreign


def test_int_of_value_is_the_same_number() -> None:
    """The union's int, double and null end in one nullable column."""
    found = decode([framed(value=("int", 3)), framed(value=3.0), framed(value=None)])

    assert found.table["value"].to_pylist() == [3.0, 3.0, None]


@pytest.mark.parametrize(
    ("value", "schemas", "reason"),
    [
        (None, {}, "not_framed"),
        (b"", {}, "not_framed"),
        (b"\x00\x00\x00", {}, "not_framed"),
        (b'{"device_id": 1}', {}, "not_framed"),
        (frame_header(SCHEMA_ID), {}, "undecodable"),
        (framed(schema_id=THEIR_ID), {}, "unknown_schema"),
        (framed(schema_id=THEIR_ID)[:-1], {THEIR_ID: SCHEMA}, "undecodable_foreign"),
        (framed(schema_id=THEIR_ID) + b"\x00", {THEIR_ID: SCHEMA}, "trailing_bytes"),
        (framed(schema_id=THEIR_ID), {THEIR_ID: '"string"'}, "undecodable_foreign"),
        (framed(schema_id=THEIR_ID), {THEIR_ID: "no schema"}, "undecodable_foreign"),
        (framed(timestamp="yesterday"), {}, "bad_time:timestamp"),
        (framed(timestamp="12345"), {}, "missing:timestamp"),
        (framed(timestamp="1999-01-01T00:00:00Z"), {}, "time_out_of_range:timestamp"),
        (framed(timestamp="2999-01-01T00:00:00Z"), {}, "time_out_of_range:timestamp"),
        (framed(value=float("nan")), {}, "not_finite:value"),
        (framed(value=float("-inf")), {}, "not_finite:value"),
        (framed(device_id=""), {}, "bad_value:device_id"),
        (framed(device_id="x" * 256), {}, "bad_value:device_id"),
        (framed(device_id="\U0001f321" * 64), {}, "bad_value:device_id"),
        (framed(device_type=""), {}, "bad_value:device_type"),
        (framed(battery_level=100.1), {}, "bad_value:battery_level"),
        (framed(battery_level=float("nan")), {}, "bad_value:battery_level"),
        (framed(location={"latitude": 90.1, "longitude": 0.0}), {}, "bad_value:location"),
        (framed(location={"latitude": 0.0, "longitude": float("nan")}), {}, "bad_value:location"),
        (framed(unit="a\x00b"), {}, "nul_character:unit"),
        (framed(gateway_id="\x00"), {}, "nul_character:gateway_id"),
        (framed(tags=["fine", "a\x00"]), {}, "nul_character:tags"),
        (framed(device_metadata={"k": "a\x00"}), {}, "nul_character:device_metadata"),
        (framed(device_metadata={"k\x00": "a"}), {}, "nul_character:device_metadata"),
        (framed(tags=["x" * 256]), {}, "bad_value:tags"),
        (framed()[:-1] + b"\x02" + b"\xff" * 9 + b"\x01", {}, "bad_value:received_at"),
        (framed()[:-1] + b"\x02\xfe" + b"\xff" * 8 + b"\x01", {}, "bad_value:received_at"),
    ],
)
def test_what_the_table_cannot_hold_is_named(value: bytes | None, schemas: dict[int, str], reason: str) -> None:
    """Each kind of bad record is a dead letter under its own word; a good one beside it stays."""
    found = decode([value, framed(value=2.0)], schemas)

    assert {0: reason} == found.dead
    assert found.table["offset"].to_pylist() == [1]


@pytest.mark.parametrize("fields", [{"tags": ["\\x00"]}, {"device_metadata": {"k": "\\x00", "\\0": ""}}, {"tags": ["x" * 255]}])
def test_text_that_only_looks_bad_is_a_row_beside_a_bad_one(fields: dict[str, Any]) -> None:
    """Backslash texts are no NUL, even when a record of the same batch holds a real one."""
    found = decode([framed(**fields), framed(tags=["\x00"]), framed(device_metadata={"\x00": ""})])

    assert found.table["offset"].to_pylist() == [0]


times = st.one_of(
    st.from_regex(
        r"\A20[0-9]{2}-[01][0-9]-[0-3][0-9][T ][0-2][0-9]:[0-5][0-9](:[0-6][0-9](\.[0-9]{1,9})?)?(Z|[+-][0-2][0-9]:?[0-6][0-9])?\Z"
    ),
    st.datetimes().map(lambda moment: moment.isoformat() + "+00:00"),
    st.sampled_from(["2026-09-21 14:13:20Z", "2026-09-21", "1790000000", "12", "", "2026-09-21T14:13:20.5", "2026-09-21T14Z"]),
)


@given(st.lists(times, min_size=1, max_size=4), st.booleans())
@example(["2026-09-21 14:13:20Z"], False)
@example(["2026-09-21 14:13:20Z"], True)
def test_times_are_the_parsers_whatever_lies_beside_them(texts: list[str], with_doubtful: bool) -> None:
    """A time means the same in columns as alone, so a replay with other batch cuts stores the same rows."""
    found = decode([framed(timestamp=text) for text in texts + ["nonsense"] * with_doubtful])
    expected = {i: parse_time_us(text) for i, text in enumerate(texts)}
    stored = dict(zip(found.table["offset"].to_pylist(), found.table["timestamp"].cast("int64").to_pylist(), strict=True))

    assert {i: us for i, us in expected.items() if isinstance(us, int) and OLDEST_US <= us <= NEWEST_US} == stored
    assert len(texts) + with_doubtful == len(stored) + len(found.dead)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2026-01-02", "2026-01-02T00:00:00+00:00"), ("2026-01-02T03:04:05+01:00", "2026-01-02T02:04:05+00:00"), ("soon", None), ("", None)],
)
def test_bad_maintenance_date_never_costs_the_reading(text: str, expected: str | None) -> None:
    """A maintenance date that is no date is null."""
    (found,) = decode([framed(maintenance_date=text)]).table["maintenance_date"].to_pylist()

    assert expected == (found.isoformat() if found else None)


def test_registry_away_decides_nothing() -> None:
    """When a foreign schema cannot be looked up, the whole batch is tried again later; nothing is dead-lettered."""

    def away(_schema_id: int) -> str | None:
        raise DependencyUnavailable("registry")

    decoder = Decoder(CODEC, SCHEMA_ID, away)
    with pytest.raises(DependencyUnavailable):
        decoder.decode([0, 1], [framed(), framed(schema_id=THEIR_ID)], oldest_us=OLDEST_US, newest_us=NEWEST_US)


def test_foreign_schema_is_looked_up_once() -> None:
    """The registry is asked once per id, not once per record."""
    asked: list[int] = []

    def lookup(schema_id: int) -> str | None:
        asked.append(schema_id)
        return SCHEMA

    decoder = Decoder(CODEC, SCHEMA_ID, lookup)
    found = decoder.decode(list(range(5)), [framed(schema_id=THEIR_ID)] * 5, oldest_us=OLDEST_US, newest_us=NEWEST_US)

    assert (asked, found.table.num_rows) == ([THEIR_ID], 5)


def test_own_schema_is_valid_for_the_reference() -> None:
    """The schema file parses under the reference library and names the document's record."""
    assert PARSED_SCHEMA["name"] == "com.iotdatapipeline.avro.IoTSensorReading"
    assert MAC in framed().decode("utf-8", "replace")
