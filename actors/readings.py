"""The nine sensors of a RuuviTag message and what a reading of each one is called.

Ingest explodes messages with this table, write recognises a device's constants
with it, the judge of the bench recomputes expected rows from it. Names are
those of the document and its public code.
"""

from __future__ import annotations

from dataclasses import dataclass

from rayapp.config import PlaceSettings

MAC_BYTES = 17
"""Length of a canonical MAC: lower case, colons."""


@dataclass(frozen=True)
class Sensor:
    """One field of a message that becomes a reading.

    Attributes:
        field: key in the JSON message; also the device_id's suffix after "_".
        device_type: the reading's type.
        unit: unit of the value, as stored.
        tag: the third tag after "ruuvitag" and "ble".
        axis: x, y or z for acceleration, else None.
    """

    field: str
    device_type: str
    unit: str
    tag: str
    axis: str | None = None

    @property
    def tags(self) -> tuple[str, ...]:
        """Tags of every reading of this sensor."""
        return ("ruuvitag", "ble", self.tag) + ((f"{self.axis}-axis",) if self.axis else ())

    def metadata(self, mac: str) -> dict[str, str]:
        """Return the metadata of every reading of this sensor on one tag."""
        if self.axis:
            return {"parent_device": mac, "sensor_type": "acceleration", "axis": self.axis}
        return {"parent_device": mac, "sensor_type": self.field}


SENSORS: tuple[Sensor, ...] = (
    Sensor("temperature", "temperature_sensor", "°C", "temperature"),
    Sensor("humidity", "humidity_sensor", "%", "humidity"),
    Sensor("pressure", "pressure_sensor", "Pa", "pressure"),
    Sensor("acceleration_x", "acceleration_sensor", "g", "acceleration", "x"),
    Sensor("acceleration_y", "acceleration_sensor", "g", "acceleration", "y"),
    Sensor("acceleration_z", "acceleration_sensor", "g", "acceleration", "z"),
    Sensor("battery_voltage", "battery_sensor", "V", "battery"),
    Sensor("tx_power", "transmit_power_sensor", "dBm", "tx_power"),
    Sensor("movement_counter", "movement_sensor", "count", "movement"),
)

SENSOR_OF_SUFFIX: dict[str, Sensor] = {sensor.field: sensor for sensor in SENSORS}


@dataclass(frozen=True)
class DeviceConstants:
    """What configuration says about one device (one sensor of one tag)."""

    device_id: str
    latitude: float
    longitude: float
    building: str | None
    floor: int | None
    zone: str | None
    room: str | None
    firmware_version: str | None
    metadata: dict[str, str]
    tags: tuple[str, ...]


def device_constants(device_id: str, place: PlaceSettings) -> DeviceConstants | None:
    """Return the constants of a device of ours, or None for an id that is not built from a MAC and a known sensor."""
    mac, _, suffix = device_id.partition("_")
    sensor = SENSOR_OF_SUFFIX.get(suffix)
    if sensor is None or len(mac) != MAC_BYTES:
        return None
    return DeviceConstants(
        device_id=device_id,
        latitude=place.latitude,
        longitude=place.longitude,
        building=place.building,
        floor=place.floor,
        zone=place.zone,
        room=place.room,
        firmware_version=place.firmware_version,
        metadata=sensor.metadata(mac),
        tags=sensor.tags,
    )
