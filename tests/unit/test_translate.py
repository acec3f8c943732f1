"""What an SQLSTATE means for a writer: data, the database away, or a refusal that nobody may mistake for either."""

from __future__ import annotations

import pickle
from typing import Any

import psycopg2
import pytest

from actors.adapters.postgres import Duplicate, LockTimeout, MissingDay, meaning, translate
from rayapp.errors import BadRows, DatabaseUnavailable, DependencyUnavailable, LedgerBroken, RayappError, StatementRefused

DATA = {
    "22001": "a text too long", "22003": "a number out of range", "22007": "no date", "22008": "a date out of range",
    "22021": "no UTF-8, or a NUL byte", "22P02": "no value of the type, no JSON", "22P05": "a character that cannot be converted",
}  # fmt: skip
AWAY = {
    "": "connection broken", "08006": "connection failed", "08P01": "protocol violated by a broken link", "25006": "read-only after a failover",
    "25P02": "transaction aborted", "25P03": "idle in transaction too long", "28P01": "password refused", "28000": "no such account",
    "3D000": "no such database", "40001": "serialisation", "40P01": "deadlock", "42501": "no right", "42P01": "no such table",
    "53100": "disk full", "53200": "out of memory", "53300": "too many connections", "53400": "configured limit", "55006": "in use",
    "55P03": "lock timeout", "57014": "cancelled", "57P01": "admin shutdown", "57P02": "crash shutdown", "57P03": "starting up",
    "57P05": "idle session timeout", "58030": "input/output error", "58P01": "a file is missing",
}  # fmt: skip
REFUSED = {
    "0A000": "not supported", "22P03": "a field that we encoded wrongly", "22P04": "a COPY stream that we made wrongly", "2200H": "sequence at its end",
    "23502": "null in a column of ours", "23503": "foreign key", "42601": "syntax", "42703": "no such column", "42804": "type mismatch",
    "54000": "an index entry too large", "P0001": "raised by ensure_day", "XX000": "internal error", "XX001": "data damaged", "XX002": "index damaged",
}  # fmt: skip


@pytest.mark.parametrize("state", DATA)
def test_data_error_is_dead_lettered(state: str) -> None:
    """Only these may cost a reading its place in the table."""
    assert meaning(state) is BadRows


@pytest.mark.parametrize("state", AWAY)
def test_trouble_of_the_server_is_waited_for(state: str) -> None:
    """It is retried for ever, and no row is blamed."""
    assert issubclass(meaning(state), DatabaseUnavailable)


@pytest.mark.parametrize("state", REFUSED)
def test_refusal_is_neither_data_nor_an_outage(state: str) -> None:
    """It is retried some times and then halts a partition; it is not waited for without end, and no row is blamed."""
    assert meaning(state) is StatementRefused
    assert not issubclass(StatementRefused, DependencyUnavailable | BadRows)


@pytest.mark.parametrize(
    ("state", "constraint", "table", "expected"),
    [
        ("23514", "battery_level_percent", "sensor_readings_20260101", BadRows),
        ("23514", "coordinates_paired", "sensor_readings", BadRows),
        ("23514", "coordinates_in_range", "_hyper_1_1_chunk", BadRows),
        ("23514", None, "sensor_readings", MissingDay),
        ("23514", "ledger_conserves", "ingest_ledger", LedgerBroken),
        ("23514", "ingest_ledger_next_offset_check", "ingest_ledger", StatementRefused),
        ("23505", "sensor_readings_20260101_device_id_timestamp_idx", "sensor_readings_20260101", Duplicate),
        ("23505", "1_1_sensor_readings_natural_key", "_hyper_1_1_chunk", Duplicate),
        ("23505", "ledger_dead_reasons_pkey", "ledger_dead_reasons", StatementRefused),
        ("23505", "pg_type_typname_nsp_index", "pg_type", StatementRefused),
        ("23505", None, None, StatementRefused),
        ("55P03", None, None, LockTimeout),
    ],
)
def test_constraint_decides(state: str, constraint: str | None, table: str | None, expected: type[RayappError]) -> None:
    """The readings' own constraints are about data, the ledger's about us, and a missing day has no constraint's name."""
    assert meaning(state, constraint, table) is expected


class Error(psycopg2.Error):
    """An error as the client library gives it."""

    pgcode: Any = None
    diag: Any = None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (psycopg2.OperationalError("server closed the connection unexpectedly"), DatabaseUnavailable),
        (psycopg2.InterfaceError("connection already closed"), DatabaseUnavailable),
        (psycopg2.DatabaseError("error with status PGRES_TUPLES_OK and no message from the libpq"), DatabaseUnavailable),
        (psycopg2.ProgrammingError("can't adapt type 'Table'"), StatementRefused),
        (psycopg2.DataError("bad argument"), StatementRefused),
    ],
)
def test_error_without_a_state_is_a_broken_connection_or_ours(error: psycopg2.Error, expected: type[RayappError]) -> None:
    """The server said nothing: the connection broke, or the client library found a mistake before it sent anything."""
    assert expected is type(translate(error))


def test_message_names_the_state() -> None:
    """A person can look the state up."""

    class Full(Error):
        pgcode = "53100"

    assert "database: no space left (SQLSTATE 53100); will try again" == str(translate(Full("no space left")))


@pytest.mark.parametrize("kind", [BadRows, StatementRefused, LedgerBroken])
def test_state_travels_between_processes(kind: type[BadRows | StatementRefused]) -> None:
    """What a writer raises reaches consume with its state and constraint."""
    error = kind("words", sqlstate="23514", constraint="c")
    there = pickle.loads(pickle.dumps(error))

    assert (kind, "words", "23514", "c") == (type(there), str(there), there.sqlstate, there.constraint)
