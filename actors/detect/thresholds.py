"""The document's limits as columns: a reading outside them is an anomaly.

Ingest sets is_anomaly with this, detect applies the same to every record
(foreign producers do not) and may only raise the flag. Stateless, so the
result cannot depend on where a batch was cut.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rayapp.config import ThresholdSettings


class Thresholds:
    """Limits by device_type, ready for vectorised look-up."""

    def __init__(self, settings: ThresholdSettings) -> None:
        # Battery: at or below 0 V is a tag without measurement, not a flat battery.
        rules: list[tuple[str, float | None, float | None, float | None]] = [
            ("temperature_sensor", settings.temperature_low, settings.temperature_high, None),
            ("humidity_sensor", settings.humidity_low, settings.humidity_high, None),
            ("pressure_sensor", settings.pressure_low, settings.pressure_high, None),
            ("battery_sensor", settings.battery_low, None, 0.0),
        ]
        self._types = pa.array([rule[0] for rule in rules], pa.string())
        self._low = pa.array([rule[1] for rule in rules], pa.float64())
        self._high = pa.array([rule[2] for rule in rules], pa.float64())
        self._floor = pa.array([rule[3] for rule in rules], pa.float64())

    def anomalies(self, device_type: Any, value: Any) -> Any:
        """Return one boolean a row: the value lies outside its type's limits.

        Args:
            device_type: string column.
            value: float64 column of the same length; null is never an anomaly.
        """
        rule = pc.index_in(device_type, value_set=self._types)
        too_low = pc.and_(
            pc.fill_null(pc.less(value, pc.take(self._low, rule)), fill_value=False),
            pc.fill_null(pc.greater(value, pc.take(self._floor, rule)), fill_value=True),
        )
        too_high = pc.fill_null(pc.greater(value, pc.take(self._high, rule)), fill_value=False)
        return pc.or_(too_low, too_high)
