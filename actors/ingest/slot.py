"""The slot in the database: who may use the MQTT session of that number.

Asked before every connect. Two clients under one client id evict each other for
ever, and the broker cannot say which of them is the right one; the row can.
"""

from __future__ import annotations

from actors.adapters.postgres import connect
from rayapp.config import Settings
from rayapp.errors import StaleClaim

OWNER_OF_SLOT = "SELECT owner FROM slots WHERE pipeline = %s AND role = 'ingest' AND slot = %s"


def confirm_slot(settings: Settings, slot: int, owner: str) -> None:
    """Ask the database whether this incarnation owns the slot.

    Raises:
        StaleClaim: another incarnation owns it, or the slot is gone.
        DatabaseUnavailable: nobody can say.
    """
    connection = connect(settings.database, "writer", application=owner)
    try:
        rows = connection.execute(OWNER_OF_SLOT, (settings.pipeline, slot))
    finally:
        connection.close()
    if not rows or rows[0][0] != owner:
        raise StaleClaim(f"{owner}: slot {slot} belongs to {rows[0][0] if rows else 'nobody'}; this actor ends")
