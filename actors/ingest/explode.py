"""Messages become readings, in columns: one row per present sensor field.

The result is shaped like the Avro record, ready for the encoder. Rows come
sensor by sensor; within a device_id they keep the order of the messages, which
is all that a key's order in Kafka promises.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from actors.detect.thresholds import Thresholds
from actors.ingest.parse import Parsed
from actors.readings import SENSORS
from rayapp.config import PlaceSettings

BATTERY_EMPTY_V, BATTERY_FULL_V = 2.0, 3.0

_TYPES = pa.array([sensor.device_type for sensor in SENSORS])
_UNITS = pa.array([sensor.unit for sensor in SENSORS])
_TAGS = pa.array([list(sensor.tags) for sensor in SENSORS], pa.list_(pa.field("item", pa.string(), nullable=False)))
_VALUE_TYPE = pa.sparse_union([pa.field("double", pa.float64()), pa.field("int", pa.int32()), pa.field("null", pa.null())])
_METADATA_TYPE = pa.map_(pa.string(), pa.field("value", pa.string(), nullable=False))


class Exploder:
    """Turn parsed messages into one RecordBatch of readings.

    Args:
        place: location and firmware version of every tag (until a registry says more).
        thresholds: sets is_anomaly, as the documented adapter does.
    """

    def __init__(self, place: PlaceSettings, thresholds: Thresholds) -> None:
        self._place = place
        self._thresholds = thresholds

    def explode(self, messages: Sequence[Parsed], received_us: int) -> pa.RecordBatch:
        """Return the readings of `messages`, columns in the order of the Avro schema.

        A message without any sensor field gives no row. `received_us` is the
        flush's arrival time, stored as received_at.
        """
        fields = [message.fields for message in messages]
        mac = pa.array([f["device_id"] for f in fields], pa.string())
        time = pa.array([message.time_us for message in messages], pa.timestamp("us", "UTC"))
        columns = [pa.array([f.get(sensor.field) for f in fields], pa.float64()) for sensor in SENSORS]

        present = [np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False)) for column in columns]
        message_index = pa.array(np.concatenate(present) if messages else np.array([], np.int64))
        sensor_index = pa.array(np.repeat(np.arange(len(SENSORS)), [len(rows) for rows in present]))
        value = pa.concat_arrays([pc.take(c, pa.array(rows)) for c, rows in zip(columns, present, strict=True)])

        rows = len(value)
        voltage = columns[[sensor.field for sensor in SENSORS].index("battery_voltage")]
        device_type = pc.take(_TYPES, sensor_index)
        row_mac = pc.take(mac, message_index)
        texts = pc.binary_join_element_wise(pc.strftime(time, "%Y-%m-%dT%H:%M:%S"), "+00:00", "")
        place = self._place
        nothing = pa.nulls(rows, pa.string())
        arrays = {
            "device_id": pc.binary_join_element_wise(row_mac, pc.take(_SUFFIXES, sensor_index), "_"),
            "device_type": device_type,
            "timestamp": pc.take(texts, message_index),
            "value": _value_union(value),
            "unit": pc.take(_UNITS, sensor_index),
            "location": pa.StructArray.from_arrays(
                [
                    _constant(place.latitude, rows, pa.float64()),
                    _constant(place.longitude, rows, pa.float64()),
                    _constant(place.building, rows, pa.string()),
                    _constant(place.floor, rows, pa.int32()),
                    _constant(place.zone, rows, pa.string()),
                    _constant(place.room, rows, pa.string()),
                ],
                ["latitude", "longitude", "building", "floor", "zone", "room"],
            ),
            "battery_level": pc.take(battery_percent(voltage), message_index),
            "signal_strength": pc.take(pa.array([f.get("rssi") for f in fields], pa.float64()), message_index),
            "is_anomaly": self._thresholds.anomalies(device_type, value),
            "firmware_version": _constant(place.firmware_version, rows, pa.string()),
            "device_metadata": _metadata(row_mac, sensor_index),
            "status": _constant("ACTIVE", rows, pa.string()),
            "tags": pc.take(_TAGS, sensor_index),
            "maintenance_date": nothing,
            "measurement_sequence": pc.take(pa.array([f.get("measurement_sequence") for f in fields], pa.int64()), message_index),
            "gateway_id": pc.take(pa.array([f.get("gateway_id") for f in fields], pa.string()), message_index),
            "received_at": _constant(received_us, rows, pa.int64()).cast(pa.timestamp("us")),
        }
        return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))


_SUFFIXES = pa.array([sensor.field for sensor in SENSORS])


def battery_percent(voltage: pa.Array) -> pa.Array:
    """Return 0..100 from volts, two decimals: clamp((V - 2.0) / (3.0 - 2.0)) as the documented adapter; null stays null."""
    share = pc.divide(pc.subtract(voltage, BATTERY_EMPTY_V), BATTERY_FULL_V - BATTERY_EMPTY_V)
    clamped = pc.min_element_wise(pc.max_element_wise(share, 0.0, skip_nulls=False), 1.0, skip_nulls=False)
    return pc.round(pc.multiply(clamped, 100.0), ndigits=2)


def _constant(value: object, rows: int, kind: pa.DataType) -> pa.Array:
    """Return `rows` copies of one value or null."""
    return pa.nulls(rows, kind) if value is None else pa.repeat(pa.scalar(value, kind), rows)


def _value_union(value: pa.Array) -> pa.Array:
    """Wrap doubles into the schema's union [double, int, null]."""
    rows = len(value)
    codes = pa.array(np.zeros(rows, np.int8))
    return pa.UnionArray.from_sparse(codes, [value, pa.nulls(rows, pa.int32()), pa.nulls(rows)], ["double", "int", "null"])


def _metadata(mac: pa.Array, sensor_index: pa.Array) -> pa.Array:
    """Build the map column: parent_device, sensor_type and, for acceleration, axis."""
    index = sensor_index.to_numpy()
    sizes = _METADATA_SIZES[index]
    offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int32)
    total = int(offsets[-1])
    # Every row's entries are its sensor's template; the first value is the tag's own MAC.
    entry = np.arange(total) - np.repeat(offsets[:-1], sizes) + np.repeat(_METADATA_STARTS[index], sizes)
    keys = pc.take(_METADATA_KEYS, pa.array(entry))
    # values: constants first, then the MACs, picked by one take
    pick = entry.copy()
    pick[offsets[:-1]] = len(_METADATA_VALUES) + np.arange(len(index))
    values = pc.take(pa.concat_arrays([_METADATA_VALUES, mac]), pa.array(pick))
    return pa.MapArray.from_arrays(pa.array(offsets), keys, values, type=_METADATA_TYPE)


_TEMPLATES = [list(sensor.metadata("").items()) for sensor in SENSORS]
_METADATA_SIZES = np.array([len(template) for template in _TEMPLATES])
_METADATA_STARTS = np.concatenate(([0], np.cumsum(_METADATA_SIZES)[:-1]))
_METADATA_KEYS = pa.array([key for template in _TEMPLATES for key, _ in template], pa.string())
_METADATA_VALUES = pa.array([value for template in _TEMPLATES for _, value in template], pa.string())
