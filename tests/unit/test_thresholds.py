"""Thresholds in columns against the document's limits reading by reading."""

from __future__ import annotations

import math

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.detect.thresholds import Thresholds
from rayapp.config import ThresholdSettings

RULES = Thresholds(ThresholdSettings())
LIMITS = {"temperature_sensor": (-50.0, 50.0), "humidity_sensor": (15.0, 100.0), "pressure_sensor": (87_000.0, 108_500.0)}
TYPES = [*LIMITS, "battery_sensor", "movement_sensor", "", "temperature_sensor ", "co2_sensor"]
edges = st.sampled_from([-50.0, 50.0, 15.0, 100.0, 87_000.0, 108_500.0, 2.0, 0.0, -0.0])
near = st.builds(lambda edge, away: math.nextafter(edge, away), edges, st.sampled_from([-math.inf, math.inf]))
values = st.none() | edges | near | st.floats()


def reference(device_type: str, value: float | None) -> bool:
    """Return the document's verdict on one reading."""
    if value is None or math.isnan(value):
        return False
    if device_type == "battery_sensor":
        return 0.0 < value < 2.0
    low, high = LIMITS.get(device_type, (-math.inf, math.inf))
    return value < low or value > high


@given(st.lists(st.tuples(st.sampled_from(TYPES), values), max_size=20))
def test_columns_equal_the_reference(rows: list[tuple[str, float | None]]) -> None:
    """Each row's flag is the document's verdict on that reading alone, at the limits, beyond them and for null."""
    found = RULES.anomalies(pa.array([row[0] for row in rows], pa.string()), pa.array([row[1] for row in rows], pa.float64()))

    assert [reference(*row) for row in rows] == found.to_pylist()


@given(st.lists(st.tuples(st.sampled_from(TYPES), values), min_size=1, max_size=20), st.integers(0, 20))
def test_flags_do_not_depend_on_where_a_batch_is_cut(rows: list[tuple[str, float | None]], cut: int) -> None:
    """A batch cut in two gets the same flags as the whole, chunked columns included."""
    types, numbers = pa.array([row[0] for row in rows], pa.string()), pa.array([row[1] for row in rows], pa.float64())
    whole = RULES.anomalies(types, numbers).to_pylist()
    chunked = RULES.anomalies(pa.chunked_array([types[:cut], types[cut:]]), pa.chunked_array([numbers[:cut], numbers[cut:]]))

    assert whole == RULES.anomalies(types[:cut], numbers[:cut]).to_pylist() + RULES.anomalies(types[cut:], numbers[cut:]).to_pylist()
    assert whole == chunked.to_pylist()


@pytest.mark.parametrize(("value", "flag"), [(2.5, True), (2.9, False), (0.0, False)])
def test_limits_come_from_the_settings(value: float, flag: bool) -> None:
    """A configured limit replaces the document's."""
    rules = Thresholds(ThresholdSettings(battery_low=2.6))

    assert [flag] == rules.anomalies(pa.array(["battery_sensor"]), pa.array([value])).to_pylist()
