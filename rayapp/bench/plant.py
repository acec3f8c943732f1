"""Planted faults: proof, on real servers, that the judge can fail.

`rayapp bench --plant lost` takes one row out of the table before judging; the
command must then exit 1. Faults of the table are made as its owner; those of
the dead-letter topic in the copy that was read, because nobody can take a
record out of Kafka.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from actors.adapters.postgres import connect
from rayapp.bench.evidence import Evidence
from rayapp.bench.judge import DEAD_SCHEMA
from rayapp.bench.sent import Sent
from rayapp.config import Settings
from rayapp.errors import RayappError

_ONE = "(SELECT device_id, timestamp FROM sensor_readings ORDER BY timestamp DESC, device_id LIMIT 1)"
_SQL = {
    "lost": f"DELETE FROM sensor_readings WHERE (device_id, timestamp) IN {_ONE}",
    "value": f"UPDATE sensor_readings SET value = value + 0.005 WHERE (device_id, timestamp) IN {_ONE}",
    "anomaly": "UPDATE sensor_readings SET is_anomaly = false WHERE (device_id, timestamp) IN"
    " (SELECT device_id, timestamp FROM sensor_readings WHERE is_anomaly ORDER BY timestamp DESC LIMIT 1)",
    "foreign": "INSERT INTO sensor_readings (device_id, device_type, timestamp, value, unit)"
    " SELECT device_id, device_type, timestamp - interval '1 microsecond', value, unit FROM sensor_readings"
    " ORDER BY timestamp DESC, device_id LIMIT 1",
}
KINDS = (*_SQL, "dead", "misjudged")


class NothingPlanted(RayappError):
    """The fault did not hit, so a passing judge would prove nothing."""


def plant_in_table(kind: str, settings: Settings) -> None:
    """Plant a fault of the table; does nothing for the other kinds.

    Raises:
        NothingPlanted: no row was changed.
    """
    if kind not in _SQL:
        return
    connection = connect(settings.database, "owner", application="rayapp bench plant")
    try:
        changed = connection.count(_SQL[kind])
        connection.commit()
    finally:
        connection.close()
    if changed != 1:
        raise NothingPlanted(f"plant {kind}: {changed} rows changed instead of 1; run longer, or with a larger --fault-share")


def plant_in_letters(kind: str, sent: Sent, evidence: Evidence) -> Evidence:
    """Plant a fault of the dead letters; returns the evidence as it is for the other kinds.

    Raises:
        NothingPlanted: no dead letter to take away, or no good message to slander.
    """
    if kind == "dead":
        if not evidence.dead.num_rows:
            raise NothingPlanted("plant dead: there is no dead letter; use a larger --malformed-share")
        victim = evidence.dead["payload"][0]
        return replace(evidence, dead=evidence.dead.filter(pc.not_equal(evidence.dead["payload"], victim)))
    if kind == "misjudged":
        good = sent.messages.filter(sent.messages["good"]).slice(0, 1)
        if not good.num_rows:
            raise NothingPlanted("plant misjudged: there is no good message; use a smaller --malformed-share")
        mac, time_us = good["mac"][0].as_py(), good["timestamp_us"][0].as_py()
        payload = json.dumps({"device_id": mac}).encode()
        letter = {"payload": payload, "id": "planted", "reason": "planted", "stage": "ingest", "device": mac, "timestamp_us": time_us}
        return replace(evidence, dead=pa.concat_tables([evidence.dead, pa.Table.from_pylist([letter], schema=DEAD_SCHEMA)]))
    return evidence
