"""explode(): columns against a plain reading-by-reading reference of the documented rules.

The reference below repeats the rules as the document states them, one reading
at a time, and shares no table with the code under test.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from builders import MAC, NEWEST_US, NOW_US, OLDEST_US, codec, message
from hypothesis import example, given
from hypothesis import strategies as st

from actors.detect.thresholds import Thresholds
from actors.ingest.explode import Exploder, battery_percent
from actors.ingest.parse import Parsed, parse
from rayapp.config import PlaceSettings, ThresholdSettings

DOCUMENTED = {  # field: type, unit, further tags
    "temperature": ("temperature_sensor", "°C", ["temperature"]),
    "humidity": ("humidity_sensor", "%", ["humidity"]),
    "pressure": ("pressure_sensor", "Pa", ["pressure"]),
    "acceleration_x": ("acceleration_sensor", "g", ["acceleration", "x-axis"]),
    "acceleration_y": ("acceleration_sensor", "g", ["acceleration", "y-axis"]),
    "acceleration_z": ("acceleration_sensor", "g", ["acceleration", "z-axis"]),
    "battery_voltage": ("battery_sensor", "V", ["battery"]),
    "tx_power": ("transmit_power_sensor", "dBm", ["tx_power"]),
    "movement_counter": ("movement_sensor", "count", ["movement"]),
}
RECEIVED_US = NOW_US + 5
CODEC = codec()
EXPLODER = Exploder(PlaceSettings(), Thresholds(ThresholdSettings()))

numbers = st.floats(allow_nan=False, allow_infinity=False)
optional = st.none() | st.just(...) | numbers


def reference(message_: Parsed) -> list[dict[str, Any]]:
    """Return the readings of one message, by the document's rules."""
    fields: dict[str, Any] = dict(message_.fields)
    mac, volts = fields["device_id"], fields.get("battery_voltage")
    readings = []
    for field, (device_type, unit, tags) in DOCUMENTED.items():
        value = fields.get(field)
        if value is None:
            continue
        anomaly = {
            "temperature": value < -50 or value > 50,
            "humidity": value < 15 or value > 100,
            "pressure": value < 87_000 or value > 108_500,
            "battery_voltage": 0 < value < 2.0,
        }.get(field, False)
        metadata = {"parent_device": mac, "sensor_type": field}
        if field.startswith("acceleration"):
            metadata = {"parent_device": mac, "sensor_type": "acceleration", "axis": field[-1]}
        readings.append({
            "device_id": f"{mac}_{field}", "device_type": device_type,
            "timestamp": datetime.strftime(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=message_.time_us), "%Y-%m-%dT%H:%M:%S.%f+00:00"),
            "value": float(value), "unit": unit,
            "location": {"latitude": 60.1699, "longitude": 24.9384, "building": "building", "floor": 1, "zone": "main", "room": "room-101"},
            "battery_level": None if volts is None else pytest.approx(min(max((volts - 2.0) / (3.0 - 2.0), 0.0), 1.0) * 100, abs=0.005001),
            "signal_strength": fields.get("rssi"), "is_anomaly": anomaly, "firmware_version": "1.0.0", "device_metadata": list(metadata.items()),
            "status": "ACTIVE", "tags": ["ruuvitag", "ble", *tags], "maintenance_date": None,
            "measurement_sequence": fields.get("measurement_sequence"), "gateway_id": fields.get("gateway_id"),
            "received_at": datetime(1970, 1, 1) + timedelta(microseconds=RECEIVED_US),
        })  # fmt: skip
    return readings


def parsed(payload: bytes) -> Parsed:
    outcome = parse(payload, NOW_US, oldest_us=OLDEST_US, newest_us=NEWEST_US)
    assert isinstance(outcome, Parsed), outcome
    return outcome


def exploded(messages: list[Parsed]) -> list[dict[str, Any]]:
    """Return what a consumer reads: exploded, encoded and decoded again."""
    records = CODEC.encode(EXPLODER.explode(messages, RECEIVED_US), 1)
    if not records:
        return []
    columns = CODEC.decode([record[5:] for record in records])
    assert columns is not None
    rows: list[dict[str, Any]] = columns.to_pylist()
    return rows


payloads = st.fixed_dictionaries({
    **dict.fromkeys(DOCUMENTED, optional), "rssi": optional, "device_id": st.sampled_from([MAC, MAC.upper(), "00-11-22-33-44-FF"]),
    "measurement_sequence": st.none() | st.just(...) | st.integers(0, 2**53), "gateway_id": st.none() | st.text(max_size=5).filter(lambda t: "\0" not in t),
    "timestamp": st.sampled_from([None, "2026-09-21T14:13:20.000001Z", 1_790_000_000]),
}).map(lambda fields: message(**fields))  # fmt: skip


@given(st.lists(payloads, max_size=4))
@example([])
@example([message(**dict.fromkeys(DOCUMENTED, None))])
@example([message()])
@example(
    [
        message(temperature=-50, humidity=15, pressure=87_000, battery_voltage=2.0),
        message(temperature=50, humidity=100, pressure=108_500, battery_voltage=0),
    ]
)
@example(
    [
        message(temperature=-50.01, humidity=14.99, pressure=86_999, battery_voltage=1.99),
        message(temperature=50.01, humidity=100.01, pressure=108_501, battery_voltage=-1),
    ]
)
def test_columns_equal_the_reference(bodies: list[bytes]) -> None:
    """Every message gives the readings that the document's rules give, one by one, and no other."""
    messages = [parsed(each) for each in bodies]
    expected = [reading for each in messages for reading in reference(each)]
    found = exploded(messages)

    def key(reading: dict[str, Any]) -> tuple[Any, ...]:
        return list(DOCUMENTED).index(reading["device_id"][18:]), 0

    assert sorted(expected, key=key) == sorted(found, key=key)


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=20))
def test_readings_of_a_device_keep_the_order_of_messages(sequences: list[int]) -> None:
    """Within a device_id readings come in the order of the messages."""
    found = exploded([parsed(message(measurement_sequence=n)) for n in sequences])

    for field in DOCUMENTED:
        assert sequences == [r["measurement_sequence"] for r in found if r["device_id"] == f"{MAC}_{field}"]


@pytest.mark.parametrize(
    ("volts", "percent"),
    [
        (None, None),
        (0.0, 0.0),
        (1.5, 0.0),
        (2.0, 0.0),
        (2.5, 50.0),
        (2.98766, 98.77),
        (3.0, 100.0),
        (3.6, 100.0),
        (-1.0, 0.0),
        (2.0001, 0.01),
    ],
)
def test_battery_percent(volts: float | None, percent: float | None) -> None:
    """Two volts are empty, three are full, two decimals; no measurement is no level."""
    assert [percent] == battery_percent(pa.array([volts], pa.float64())).to_pylist()


@given(st.floats(1.9, 3.1))
def test_battery_percent_is_always_storable(volts: float) -> None:
    """The level never leaves the table's limits of 0 and 100."""
    (level,) = battery_percent(pa.array([volts])).to_pylist()

    assert 0.0 <= level <= 100.0
    assert level == pytest.approx(min(max(volts - 2.0, 0.0), 1.0) * 100, abs=0.005001)


@pytest.mark.parametrize("nothing", ["building", "floor", "zone", "room", "firmware_version"])
def test_place_may_be_unknown(nothing: str) -> None:
    """A place setting that is null is null in every reading."""
    exploder = Exploder(PlaceSettings(**{nothing: None}), Thresholds(ThresholdSettings()))
    rows = exploder.explode([parsed(message())], RECEIVED_US).to_pylist()

    assert [row[nothing] if nothing == "firmware_version" else row["location"][nothing] for row in rows] == [None] * 9
