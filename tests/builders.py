"""Messages, Avro records and batches with sensible defaults; a test names only what it is about."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import fastavro
import pyarrow as pa

from actors.avro import Codec, frame_header
from actors.batch import READING_SCHEMA, Batch, DetectorSnapshot, PartitionClaim
from actors.readings import SENSOR_OF_SUFFIX
from rayapp.config import PlaceSettings
from rayapp.files import reading_schema

MAC = "c6:8d:c6:26:39:a6"
NOW_US = 1_790_000_000_000_000
"""A moment in 2026 for tests without a clock of their own."""
SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
SCHEMA_ID = 7
OLDEST_US, NEWEST_US = NOW_US - 400 * DAY_US, NOW_US + DAY_US
PLACE = PlaceSettings()
SCHEMA = reading_schema()
PARSED_SCHEMA = fastavro.parse_schema(json.loads(SCHEMA))


def codec() -> Codec:
    """Return a codec of the project's own schema."""
    return Codec(SCHEMA)


def eventually(question: Callable[[], bool], deadline_s: float = 20.0) -> bool:
    """Ask until the answer is yes or the deadline has passed."""
    end = time.monotonic() + deadline_s
    while not question():
        if time.monotonic() > end:
            return False
    return True


def message(**changes: Any) -> bytes:
    """Return a payload of `ruuvitag/data`; a change to ... removes the field."""
    fields: dict[str, Any] = {
        "device_id": MAC.upper(), "timestamp": "2026-09-21T14:13:20Z", "temperature": 21.5, "humidity": 45.0, "pressure": 101_325.0,
        "acceleration_x": 0.01, "acceleration_y": -0.02, "acceleration_z": 1.0, "battery_voltage": 2.9, "tx_power": 4, "movement_counter": 17,
    }  # fmt: skip
    fields |= changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


def record(**changes: Any) -> dict[str, Any]:
    """Return one reading as the Avro schema has it."""
    fields: dict[str, Any] = {
        "device_id": f"{MAC}_temperature", "device_type": "temperature_sensor", "timestamp": "2026-09-21T14:13:20.000000+00:00", "value": 21.5,
        "unit": "°C", "location": {"latitude": 60.1699, "longitude": 24.9384, "building": "building", "floor": 1, "zone": "main", "room": "room-101"},
        "battery_level": 90.0, "signal_strength": None, "is_anomaly": False, "firmware_version": "1.0.0",
        "device_metadata": {"parent_device": MAC, "sensor_type": "temperature"}, "status": "ACTIVE", "tags": ["ruuvitag", "ble", "temperature"],
        "maintenance_date": None, "measurement_sequence": None, "gateway_id": None, "received_at": None,
    }  # fmt: skip
    return fields | changes


def body(fields: dict[str, Any] | None = None, **changes: Any) -> bytes:
    """Return a record's Avro body, written by the reference library."""
    out = io.BytesIO()
    fastavro.schemaless_writer(out, PARSED_SCHEMA, record(**changes) if fields is None else fields)
    return out.getvalue()


def framed(fields: dict[str, Any] | None = None, *, schema_id: int = SCHEMA_ID, **changes: Any) -> bytes:
    """Return a record as it lies in Kafka."""
    return frame_header(schema_id) + body(fields, **changes)


def reading(offset: int, suffix: str = "temperature", *, mac: str = MAC, **changes: Any) -> dict[str, Any]:
    """Return one row of READING_SCHEMA that says just what its device says; times in microseconds."""
    sensor = SENSOR_OF_SUFFIX[suffix]
    fields: dict[str, Any] = {
        "offset": offset, "device_id": f"{mac}_{suffix}", "device_type": sensor.device_type, "timestamp": NOW_US + offset * SECOND_US,
        "value": 21.5, "unit": sensor.unit, "latitude": PLACE.latitude, "longitude": PLACE.longitude, "building": PLACE.building,
        "floor": PLACE.floor, "zone": PLACE.zone, "room": PLACE.room, "battery_level": 90.0, "signal_strength": None,
        "firmware_version": PLACE.firmware_version, "is_anomaly": False, "status": "ACTIVE", "maintenance_date": None,
        "device_metadata": list(sensor.metadata(mac).items()), "tags": list(sensor.tags), "gateway_id": "gw-1",
        "measurement_sequence": offset, "received_at": None,
    }  # fmt: skip
    return fields | changes


def table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Return rows as a batch's table."""
    listed = list(rows)
    return pa.table([pa.array([row[f.name] for row in listed], f.type) for f in READING_SCHEMA], schema=READING_SCHEMA)


def claim(partition: int = 0, epoch: int = 1, owner: str = "consume/0#1", topic: str = "iot-sensor-data") -> PartitionClaim:
    """Return a claim on one partition."""
    return PartitionClaim(topic, partition, epoch, owner, 0, 0)


def batch(
    rows: Iterable[dict[str, Any]], before: int, after: int, *, held: PartitionClaim | None = None, dead: int = 0,
    snapshot: DetectorSnapshot | None = None,
) -> Batch:  # fmt: skip
    """Return a batch of rows between two positions."""
    listed = list(rows)
    return Batch(held or claim(), table(listed), before, after, len(listed) + dead, {"bad_value:test": dead} if dead else {}, snapshot)
