"""The only module that imports psycopg2: connections, COPY, and errors in our own words.

Callers write SQL against a Connection and see three outcomes: it worked, the
database is away (outcome of a COMMIT unknown), or the rows are refused as
data. What is not proven to be a data error is never called one: a missing day
partition, for one, is SQLSTATE 23514 without a constraint's name.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import psycopg2
import psycopg2.extensions

from rayapp.config import DatabaseSettings, read_secret
from rayapp.errors import BadRows, DatabaseUnavailable, RayappError

UNIQUE_VIOLATION = "23505"
CHECK_VIOLATION = "23514"
LOCK_NOT_AVAILABLE = "55P03"

Account = Literal["owner", "driver", "writer"]


class Duplicate(RayappError):
    """A row's natural key is in the table already (or twice in the batch)."""


class MissingDay(RayappError):
    """No day partition for a row; ensure_day() makes it."""


class LockTimeout(RayappError):
    """A row lock was not free within lock_timeout."""


class Connection:
    """One database connection; every statement's errors come out in our own classes."""

    def __init__(self, raw: psycopg2.extensions.connection) -> None:
        self._raw = raw

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
        """Run `COPY (...) TO STDOUT` and return everything it sends; for whole tables, where a row at a time would take minutes."""
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
            self._raw.rollback()
        except psycopg2.Error:
            self._raw.close()

    def close(self) -> None:
        """Close without asking the server."""
        self._raw.close()

    @property
    def closed(self) -> bool:
        """True when the connection cannot be used any more."""
        return bool(self._raw.closed)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except psycopg2.Error as error:
            raise translate(error) from error


def translate(error: psycopg2.Error) -> RayappError:
    """Return our class for a psycopg2 error; anything unproven is DatabaseUnavailable, which is retried."""
    state = error.pgcode or ""
    constraint = error.diag.constraint_name if error.diag else None
    message = str(error).strip()
    if state == UNIQUE_VIOLATION:
        return Duplicate(message)
    if state == LOCK_NOT_AVAILABLE:
        return LockTimeout(message)
    if state == CHECK_VIOLATION and constraint is None:
        return MissingDay(message)
    if state.startswith("22") or (state.startswith("23") and constraint):
        return BadRows(message, sqlstate=state, constraint=constraint)
    return DatabaseUnavailable(f"database: {message or type(error).__name__} (SQLSTATE {state or 'none'}); will try again")


def connect(settings: DatabaseSettings, account: Account, *, application: str, autocommit: bool = False) -> Connection:
    """Open a connection as one of the pipeline's accounts.

    Args:
        account: owner (migrations), driver (claims) or writer (rows).
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
    try:
        raw = psycopg2.connect(
            host=settings.host,
            port=settings.port,
            dbname=settings.name,
            user=user,
            password=read_secret(password_file, f"database.{account}_password_file"),
            connect_timeout=settings.connect_timeout_s,
            application_name=application[:63],
            options="-c timezone=UTC -c client_min_messages=warning",
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        )
    except psycopg2.Error as error:
        raise DatabaseUnavailable(f"database {settings.host}:{settings.port}/{settings.name} as {user}: {str(error).strip()}") from error
    raw.autocommit = autocommit
    return Connection(raw)
