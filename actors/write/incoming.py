"""Temporary tables beside the readings: one batch with its Kafka offsets, seen by its own session, empty again after COMMIT.

`incoming` has the readings' constraints and none of their indexes; batches that
may hold duplicates pass through it. `suspects` has no constraints either; rows
that the database refuses are looked for in it.
"""

from __future__ import annotations

from typing import Literal

from actors.adapters.postgres import Connection
from actors.write import copy

READINGS = "sensor_readings"
INCOMING: Literal["incoming"] = "incoming"
SUSPECTS: Literal["suspects"] = "suspects"

Beside = Literal["incoming", "suspects"]


def make(connection: Connection, table: Beside = INCOMING) -> None:
    """Make a table of this session where it is missing."""
    like = f"LIKE {READINGS} INCLUDING CONSTRAINTS" if table == INCOMING else f"LIKE {READINGS}"
    connection.execute(f"CREATE TEMP TABLE IF NOT EXISTS {table} ({like}, kafka_offset bigint NOT NULL) ON COMMIT DELETE ROWS")
    connection.execute(f"ALTER TABLE {table} DROP COLUMN IF EXISTS id")


def fill(connection: Connection, rows: copy.Rows, table: Beside = INCOMING) -> None:
    """COPY rows and their offsets into a table.

    Raises:
        BadRows: a row cannot be read, or breaks a constraint of the table.
    """
    with_offsets = rows.table.append_column("kafka_offset", rows.offsets)
    connection.copy_binary(table, (*copy.COLUMNS, "kafka_offset"), copy.encode(with_offsets))
