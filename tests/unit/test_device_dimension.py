"""DeviceDimension.differs against the question asked one reading at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from builders import MAC, NOW_US, PLACE, reading, table
from hypothesis import given
from hypothesis import strategies as st

from actors.readings import DeviceConstants, device_constants
from actors.write.dimension import DeviceDimension

OWN = ("latitude", "longitude", "building", "floor", "zone", "room", "firmware_version")
OTHER_MAC = "00:00:00:00:00:01"


def constants(device_id: str = f"{MAC}_temperature") -> DeviceConstants:
    made = device_constants(device_id, PLACE)
    assert made is not None
    return made


def reference(row: dict[str, Any], devices: dict[str, tuple[DeviceConstants, int | None]]) -> bool:
    """Return whether one reading must keep its own columns."""
    if row["device_id"] not in devices:
        return True
    device, valid_from = devices[row["device_id"]]
    return not (
        all(row[name] == getattr(device, name) for name in OWN)
        and row["tags"] is not None
        and tuple(row["tags"]) == device.tags
        and row["device_metadata"] is not None
        and list(row["device_metadata"]) == list(device.metadata.items())
        and (valid_from is None or row["timestamp"] >= valid_from)
    )


changes = st.fixed_dictionaries({}, optional={
    "latitude": st.sampled_from([None, 0.0, PLACE.latitude]), "building": st.sampled_from([None, "", "building"]), "floor": st.sampled_from([None, 1, 2]),
    "zone": st.sampled_from([None, "main", "Main"]), "firmware_version": st.none(), "tags": st.sampled_from([None, [], ["ruuvitag"], ["ruuvitag", "ble", "temperature"], ["ble", "ruuvitag", "temperature"]]),
    "device_metadata": st.sampled_from([None, [], [("sensor_type", "temperature"), ("parent_device", MAC)], [("parent_device", MAC), ("sensor_type", "temperature"), ("x", "y")]]),
    "timestamp": st.integers(NOW_US - 1, NOW_US + 1),
})  # fmt: skip
batches = st.lists(
    st.builds(
        lambda mac, suffix, change: reading(0, suffix, mac=mac, timestamp=NOW_US) | change,
        st.sampled_from([MAC, OTHER_MAC, "unknown"]),
        st.sampled_from(["temperature", "acceleration_x"]),
        changes,
    ),
    max_size=8,
)


@given(batches, st.lists(st.sampled_from([None, NOW_US]), min_size=4, max_size=4), st.integers(0, 8))
def test_columns_equal_the_reference(rows: list[dict[str, Any]], valid: list[int | None], cut: int) -> None:
    """Every row's answer is the one it would get alone, whatever chunks the table is in."""
    names = [f"{mac}_{suffix}" for mac in (MAC, OTHER_MAC) for suffix in ("temperature", "acceleration_x")]
    devices = {name: (constants(name), valid_from) for name, valid_from in zip(names, valid, strict=True)}
    dimension = DeviceDimension()
    for name in names:
        dimension.add([devices[name][0]], [devices[name][1]])
    chunked = pa.concat_tables([table(rows[:cut]), table(rows[cut:])])

    assert [reference(row, devices) for row in rows] == dimension.differs(table(rows)).tolist()
    assert [reference(row, devices) for row in rows] == dimension.differs(chunked).tolist()
    assert [reference(row, devices) for row in rows[cut:]] == dimension.differs(table(rows).slice(cut)).tolist()


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ({}, False), ({"tags": []}, True), ({"tags": None}, True), ({"device_metadata": []}, True), ({"device_metadata": None}, True),
        ({"floor": None}, True), ({"room": ""}, True), ({"value": None, "battery_level": 1.0, "gateway_id": None, "is_anomaly": True}, False),
        ({"device_metadata": [("sensor_type", "temperature"), ("parent_device", MAC)]}, True),
    ],
)  # fmt: skip
def test_what_counts_as_another_place(change: dict[str, Any], differs: bool) -> None:
    """Null is not empty, and what a reading measures is not part of its device."""
    dimension = DeviceDimension()
    dimension.add([constants()], [None])

    assert [differs] == dimension.differs(table([reading(0) | change])).tolist()


def test_null_is_not_empty() -> None:
    """On a device without tags and metadata an empty list is the same and a null is not."""
    dimension = DeviceDimension()
    dimension.add([replace(constants(), tags=(), metadata={})], [None])
    rows = [reading(0, tags=tags, device_metadata=metadata) for tags in ([], None) for metadata in ([], None)]

    assert [False, True, True, True] == dimension.differs(table(rows)).tolist()


def test_unknown_devices_keep_their_own() -> None:
    """Before anything was learnt every reading keeps its columns, and its id is asked for once."""
    dimension = DeviceDimension()
    rows = table([reading(0), reading(1), reading(2, "humidity")])

    assert dimension.differs(rows).tolist() == [True, True, True]
    assert [f"{MAC}_humidity", f"{MAC}_temperature"] == sorted(dimension.unknown(rows["device_id"]))
    dimension.add([constants()], [None])
    assert [f"{MAC}_humidity"] == dimension.unknown(rows["device_id"])
    assert dimension.differs(rows).tolist() == [False, False, True]


def test_no_rows_are_no_answers() -> None:
    """A batch of dead letters alone has nothing to compare."""
    assert DeviceDimension().differs(table([])).tolist() == []


@pytest.mark.parametrize("name", ["x_temperature", MAC, f"{MAC}_", f"{MAC}_noise", "", f"{MAC}_temperature_x", f"{MAC}x_temperature"])
def test_foreign_ids_have_no_constants(name: str) -> None:
    """Only a MAC with one of our sensors is a device of ours."""
    assert None is device_constants(name, PLACE)
