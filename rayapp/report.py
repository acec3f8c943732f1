"""What the driver writes into the pipeline row: the whole fleet as one JSON object, for `rayapp status` and everybody else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actors.base import Status
from rayapp.books import Ledger
from rayapp.model import Slot, SlotState


def fleet_status(
    slots: Mapping[str, Slot],
    statuses: Mapping[str, Status],
    halted: Mapping[int, str],
    ledger: Ledger | None,
    *,
    now_s: float,
    stopping: bool,
) -> dict[str, Any]:
    """Return the status.

    Args:
        slots: by the full name of their incarnation.
        halted: partition -> why it stands still.
        ledger: the latest look, None before the first.
    """
    up = all(slot.state is SlotState.RUNNING for slot in slots.values())
    return {
        "state": "stopping" if stopping else "running" if up and not halted else "degraded",
        "halted": {str(partition): why for partition, why in sorted(halted.items())},
        "books": None
        if ledger is None
        else {
            "age_s": round(now_s - ledger.read_at_s, 1),
            **ledger.summary(),
            "problems": [f"partition {row.partition}: {words}" for row in ledger.partitions.values() for words in row.problems],
        },
        "slots": {str(slot.key): _slot(name, slot, statuses.get(name)) for name, slot in slots.items()},
    }


def _slot(name: str, slot: Slot, status: Status | None) -> dict[str, Any]:
    return {
        "state": "retiring" if slot.retire and slot.state is SlotState.RUNNING else slot.state,
        "name": name,
        "pid": status.pid if status is not None else None,
        "incarnation": slot.incarnation,
        "blocked_on": slot.blocked_on,
        "last_end": slot.last_end,
        "counters": status.counters if status is not None else {},
        "dead_letters": status.reasons if status is not None else {},
    }
