"""The only module that imports psycopg2: connections, COPY, and errors in our own words.

Callers write SQL against a Connection and see four outcomes: it worked; the
database is away (a COMMIT's outcome is unknown); the rows are refused as data;
the statement is refused although the database is up. What is not proven to be
a data error is never called one: a missing day partition, for one, is SQLSTATE
23514 without a constraint's name, and a constraint that is not the readings'
own is our bug.

Every wait ends: connecting after connect_timeout_s, a writer's statement after
answer_timeout_s, also when the network swallows bytes or the server is stopped.
There is no statement_timeout: a COPY on a slow disk is no error, and a server
that is stopped keeps no time.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import psycopg2
import psycopg2.extensions

from actors.adapters.answer_watch import AnswerWatch, WatchedSocket
from rayapp.config import DatabaseSettings, read_secret
from rayapp.errors import BadRows, DatabaseUnavailable, LedgerBroken, RayappError, StatementRefused

UNIQUE_VIOLATION = "23505"
CHECK_VIOLATION = "23514"
LOCK_NOT_AVAILABLE = "55P03"

ROW_CONSTRAINTS = frozenset({"battery_level_percent", "coordinates_paired", "coordinates_in_range"})
"""Of sensor_readings: a row that breaks one is bad data. A constraint that is not here was broken by us."""
READINGS = ("sensor_readings", "_hyper_")
"""How the tables of readings and their days are called, the latter by TimescaleDB."""
LEDGER_CONSERVES = "ledger_conserves"
DATA_CLASS = "22"
NO_DATA_ERRORS = frozenset({"22P03", "22P04", "2200H"})
"""Of class 22, but about the COPY stream that we encode, and a sequence's end: no row is to blame."""
AWAY_CLASSES = frozenset({"08", "25", "28", "3D", "40", "53", "55", "57", "58"})
"""Connection, transaction state (read-only after a failover), authorisation, no such database, rollback (deadlock,
serialisation), resources (disk, memory, connections), locks, operator's intervention, the system below: the
server's troubles, which pass or are mended there."""
AWAY_STATES = frozenset({"42501", "42P01"})
"""No right, no such table: the database is not migrated yet."""

Account = Literal["owner", "driver", "writer"]

_watch = AnswerWatch()


class Duplicate(RayappError):
    """A row's natural key is in the table already (or twice in the batch)."""


class MissingDay(RayappError):
    """No day partition for a row; ensure_day() makes it."""


class LockTimeout(DatabaseUnavailable):
    """A lock was not free within lock_timeout."""


class Connection:
    """One database connection; every statement's errors come out in our own classes."""

    def __init__(self, raw: psycopg2.extensions.connection, answer_timeout_s: float | None = None) -> None:
        self._raw = raw
        self._socket = WatchedSocket(_watch, raw.fileno(), answer_timeout_s) if answer_timeout_s is not None else None

    def execute(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> list[tuple[Any, ...]]:
        """Run one statement in the open transaction and return its rows, [] when it has none."""
        with self._translated(), self._raw.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    def count(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = ()) -> int:
        """Run one statement and return how many rows it changed."""
        with self._translated(), self._raw.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return int(cursor.rowcount)

    def copy_binary(self, table: str, columns: Sequence[str], data: bytes) -> None:
        """COPY rows in PostgreSQL's binary format into `table`."""
        names = ", ".join(columns)
        with self._translated(), self._raw.cursor() as cursor:
            cursor.copy_expert(f"COPY {table} ({names}) FROM STDIN WITH (FORMAT binary)", io.BytesIO(data), size=1 << 20)

    def copy_out(self, sql: str) -> bytes:
        """Run `COPY (...) TO STDOUT` and return everything it sends; for whole tables, where a row at a time would take minutes.

        On a connection without an answer timeout: this is one answer, however long.
        """
        out = io.BytesIO()
        with self._translated(), self._raw.cursor() as cursor:
            cursor.copy_expert(sql, out, size=1 << 20)
        return out.getvalue()

    def commit(self) -> None:
        """Commit; DatabaseUnavailable here means the outcome is unknown."""
        with self._translated():
            self._raw.commit()

    def rollback(self) -> None:
        """Roll back; a broken connection has rolled back by itself."""
        try:
            with self._translated():
                self._raw.rollback()
        except RayappError:
            self.close()

    def close(self) -> None:
        """Close without asking the server."""
        self._raw.close()
        if self._socket is not None:
            self._socket.close()

    @property
    def closed(self) -> bool:
        """True when the connection cannot be used any more."""
        return bool(self._raw.closed)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        watched = self._socket
        try:
            if watched is None:
                yield
            else:
                with watched.waiting():
                    yield
        except psycopg2.Error as error:
            raise translate(error) from error
        except TimeoutError as error:
            raise DatabaseUnavailable(f"database: {error}; the connection was cut, will try again") from error


def translate(error: psycopg2.Error) -> RayappError:
    """Return our error for a psycopg2 error."""
    state = error.pgcode or ""
    constraint = error.diag.constraint_name if error.diag else None
    table = error.diag.table_name if error.diag else None
    # Without a state the connection broke, unless the client library found a mistake of ours.
    ours = isinstance(error, psycopg2.ProgrammingError | psycopg2.DataError | psycopg2.NotSupportedError)
    kind = StatementRefused if ours and not state else meaning(state, constraint, table)
    # Not the detail, which holds whole rows.
    words = (error.diag.message_primary if error.diag else None) or str(error).strip() or type(error).__name__
    message = f"database: {words} (SQLSTATE {state or 'none'})"
    if issubclass(kind, BadRows | StatementRefused):
        return kind(message, sqlstate=state, constraint=constraint)
    return kind(f"{message}; will try again" if issubclass(kind, DatabaseUnavailable) else message)


def meaning(sqlstate: str, constraint: str | None = None, table: str | None = None) -> type[RayappError]:
    """Return what an error of the server means for a caller.

    Args:
        sqlstate: five characters, "" when the connection broke.
        constraint: name of the violated constraint, if any.
        table: whose.
    """
    if sqlstate == CHECK_VIOLATION:
        if constraint is None:
            return MissingDay
        return BadRows if constraint in ROW_CONSTRAINTS else LedgerBroken if constraint == LEDGER_CONSERVES else StatementRefused
    if sqlstate == UNIQUE_VIOLATION:
        return Duplicate if (table or "").startswith(READINGS) else StatementRefused
    if sqlstate.startswith(DATA_CLASS):
        return StatementRefused if sqlstate in NO_DATA_ERRORS else BadRows
    if sqlstate == LOCK_NOT_AVAILABLE:
        return LockTimeout
    away = not sqlstate or sqlstate[:2] in AWAY_CLASSES or sqlstate in AWAY_STATES
    return DatabaseUnavailable if away else StatementRefused


def connect(
    settings: DatabaseSettings, account: Account, *, application: str, autocommit: bool = False, answer_timeout_s: float | None = None
) -> Connection:
    """Open a connection as one of the pipeline's accounts.

    Args:
        account: owner (migrations), driver (claims) or writer (rows).
        answer_timeout_s: longest wait for a statement's answer; None: the configured one for a writer, none for the
            others, whose statements may take minutes.
        application: shown in pg_stat_activity, so that a person sees who holds what.

    Raises:
        DatabaseUnavailable: no connection.
        ConfigurationError: the password file cannot be read.
    """
    users = {
        "owner": (settings.owner_user, settings.owner_password_file),
        "driver": (settings.driver_user, settings.driver_password_file),
        "writer": (settings.writer_user, settings.writer_password_file),
    }
    user, password_file = users[account]
    if account == "writer" and answer_timeout_s is None:
        answer_timeout_s = settings.answer_timeout_s
    options = {"timezone": "UTC", "client_min_messages": "warning"}
    if account == "writer":
        options |= {
            "lock_timeout": f"{settings.lock_timeout_s * 1000:.0f}ms",
            "idle_in_transaction_session_timeout": f"{settings.idle_in_transaction_timeout_s * 1000:.0f}ms",
        }
    try:
        raw = psycopg2.connect(
            host=settings.host,
            port=settings.port,
            dbname=settings.name,
            user=user,
            password=read_secret(password_file, f"database.{account}_password_file"),
            connect_timeout=settings.connect_timeout_s,
            application_name=application[:63],
            options=" ".join(f"-c {name}={value}" for name, value in options.items()),
            # A peer that is gone altogether: found also while no statement waits.
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=int((answer_timeout_s or 0) * 1000),
        )
    except psycopg2.Error as error:
        raise DatabaseUnavailable(f"database {settings.host}:{settings.port}/{settings.name} as {user}: {str(error).strip()}") from error
    raw.autocommit = autocommit
    return Connection(raw, answer_timeout_s)
