"""Which rows does the database refuse? Looked for beside the readings; nothing of the search is kept.

A refused COPY says why, not which row. Bad data is looked for in a temporary
table like the readings but without their constraints: what cannot even be read
as a row there is found by halving, and what breaks a constraint by asking for
the rows that do, so that a thousand bad rows take little longer than one.

What is refused without being bad data (an index entry that is too large, a
damaged page) shows only in the real table; there the first row that fails
alone is found, so that a person can be told its offset.
"""

from __future__ import annotations

from actors.adapters.postgres import ROW_CONSTRAINTS, Connection
from actors.write import copy, incoming
from rayapp.errors import BadRows, RayappError, StatementRefused


def bad_rows(connection: Connection, rows: copy.Rows) -> dict[int, str]:
    """Return offset -> reason of the rows that are refused as data, each alone.

    Raises:
        DatabaseUnavailable, StatementRefused: the search could not be made.
    """
    incoming.make(connection, incoming.SUSPECTS)
    connection.commit()  # the search rolls back once a step; the table need not be made anew each time
    found = _bad_rows(connection, rows)
    connection.rollback()
    return found


def _bad_rows(connection: Connection, rows: copy.Rows) -> dict[int, str]:
    try:
        incoming.fill(connection, rows, incoming.SUSPECTS)
    except BadRows as unreadable:
        connection.rollback()
        if len(rows) == 1:
            return {rows.offset(0): f"refused:{unreadable.sqlstate}"}
        first, second = rows.halves()
        return _bad_rows(connection, first) | _bad_rows(connection, second)
    found = _breaking_constraints(connection)
    connection.rollback()
    return found


def _breaking_constraints(connection: Connection) -> dict[int, str]:
    """Return offset -> reason of the suspects that break a constraint, the first by name, as the server would say."""
    found: dict[int, str] = {}
    for name, rule in connection.execute(
        "SELECT conname, pg_get_expr(conbin, conrelid) FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'c' ORDER BY conname",
        (incoming.READINGS,),
    ):
        if name in ROW_CONSTRAINTS:
            for (offset,) in connection.execute(f"SELECT kafka_offset FROM {incoming.SUSPECTS} WHERE NOT ({rule})"):
                found.setdefault(int(offset), f"refused:{name}")
    return found


def first_refused(connection: Connection, rows: copy.Rows) -> int | None:
    """Return the offset of the first row that the table refuses alone and not as data, None when no row is to blame.

    Raises:
        DatabaseUnavailable: the search could not be made.
    """
    while len(rows) > 1:
        for half in rows.halves():
            if _is_refused(connection, half):
                rows = half
                break
        else:
            return None
    return rows.offset(0) if len(rows) and _is_refused(connection, rows) else None


def _is_refused(connection: Connection, rows: copy.Rows) -> bool:
    try:
        connection.copy_binary(incoming.READINGS, copy.COLUMNS, copy.encode(rows.table))
    except StatementRefused:
        return True
    except RayappError:
        if connection.closed:
            raise
        return False  # a duplicate or a missing day: it would have been mended before this came up
    finally:
        connection.rollback()
    return False
