"""What the driver last wrote about the fleet, read from the pipeline row by anyone with database access."""

from __future__ import annotations

from typing import Any

from actors.adapters.postgres import connect
from rayapp.config import Settings

SILENT_AFTER_S = 10.0


def read_status(settings: Settings) -> dict[str, Any]:
    """Return the driver's status; state is `silent` when its heartbeat is old, `never started` when there is none.

    Raises:
        DatabaseUnavailable: the database does not answer.
    """
    connection = connect(settings.database, "driver", application="rayapp status", autocommit=True)
    try:
        rows = connection.execute(
            "SELECT status, driver_epoch, driver_id, extract(epoch FROM now() - heartbeat_at)::float8 FROM pipelines WHERE pipeline = %s",
            (settings.pipeline,),
        )
        ledger = connection.execute(
            "SELECT coalesce(sum(records), 0)::bigint, coalesce(sum(stored), 0)::bigint, coalesce(sum(duplicate), 0)::bigint,"
            " coalesce(sum(dead), 0)::bigint, coalesce(sum(next_offset), 0)::bigint FROM ingest_ledger WHERE pipeline = %s",
            (settings.pipeline,),
        )[0]
    finally:
        connection.close()
    if not rows:
        return {"state": "never started", "slots": {}}
    status, epoch, driver, age_s = rows[0]
    state = status.get("state", "starting")
    return {
        **status,
        "state": "silent" if age_s > SILENT_AFTER_S and state != "stopping" else state,
        "slots": status.get("slots", {}),
        "driver": driver,
        "driver_epoch": epoch,
        "heartbeat_age_s": round(age_s, 1),
        "ledger": dict(zip(("records", "stored", "duplicate", "dead", "next_offsets"), ledger, strict=True)),
    }


def render(status: dict[str, Any]) -> str:
    """Return the status as text for a terminal."""
    lines = [f"pipeline: {status['state']}"]
    if "driver" in status:
        lines.append(f"driver:   {status['driver']} (epoch {status['driver_epoch']}, heartbeat {status['heartbeat_age_s']} s ago)")
        lines.append("ledger:   " + ", ".join(f"{name} {value}" for name, value in status["ledger"].items()))
    for partition, why in status.get("halted", {}).items():
        lines.append(f"HALTED    partition {partition}: {why}")
    lines.extend(f"ALARM     the ledger does not add up: {problem}" for problem in (status.get("books") or {}).get("problems", []))
    for name, slot in sorted(status["slots"].items()):
        blocked = f" on {slot['blocked_on']}" if slot.get("blocked_on") else ""
        lines.append(f"{name:<12} {slot['state']}{blocked:<20} incarnation {slot['incarnation']}  last end: {slot['last_end']}")
    return "\n".join(lines)
