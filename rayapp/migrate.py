"""Bring a database to the current schema: numbered SQL files, checksummed, under an advisory lock.

Our own seventy lines instead of a migration framework: the files are plain SQL
in two variants (with and without TimescaleDB), there is no model layer to
generate them from, and the well-kept runners with checksums need a JVM. A file
that was applied may not change: its checksum is compared at every run. Run by
the owner account only; drivers and writers have no DDL rights.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from actors.adapters.postgres import Connection
from rayapp.errors import ConfigurationError
from rayapp.log import Events

LOCK_KEY = 0x72757576  # "ruuv"

_events = Events(__name__)


@dataclass(frozen=True)
class Migration:
    """One file: `NNNN_name.sql`, or one file a mode: `NNNN_name.plain.sql`, `NNNN_name.timescaledb.sql`."""

    version: str
    mode: str | None
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the file's text."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def read_migrations(directory: Path) -> list[Migration]:
    """Return the migrations of a directory in order of their numbers.

    Raises:
        ConfigurationError: no files, or a name that does not follow the pattern.
    """
    found: list[Migration] = []
    for path in sorted(directory.glob("*.sql")):
        version, *mode = path.name.removesuffix(".sql").split(".")
        if len(mode) > 1 or (mode and mode[0] not in ("plain", "timescaledb")):
            raise ConfigurationError(f"migration {path.name}: name it NNNN_name.sql, .plain.sql or .timescaledb.sql")
        found.append(Migration(version, mode[0] if mode else None, path.read_text(encoding="utf-8")))
    if not found:
        raise ConfigurationError(f"no migrations in {directory}: the installation is incomplete")
    return found


def migrate(connection: Connection, directory: Path) -> list[str]:
    """Apply what is missing and return the versions applied now.

    Each file runs in its own transaction with its row in schema_migrations.

    Raises:
        ConfigurationError: an applied file has changed.
        DatabaseUnavailable: the server is away or refuses a statement; what was applied before stays.
    """
    connection.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
    try:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations (version text PRIMARY KEY, mode text NOT NULL, checksum text NOT NULL,"
            " applied_at timestamptz NOT NULL DEFAULT now())"
        )
        connection.commit()
        applied = {str(row[0]): str(row[1]) for row in connection.execute("SELECT version, checksum FROM schema_migrations")}
        mode = database_mode(connection)
        done: list[str] = []
        for migration in read_migrations(directory):
            if migration.mode not in (None, mode):
                continue
            if migration.version in applied:
                if applied[migration.version] != migration.checksum:
                    raise ConfigurationError(
                        f"migration {migration.version} was changed after it was applied: restore the file and put the change into a new one"
                    )
                continue
            connection.execute(migration.sql)
            connection.execute(
                "INSERT INTO schema_migrations (version, mode, checksum) VALUES (%s, %s, %s)", (migration.version, mode, migration.checksum)
            )
            connection.commit()
            done.append(migration.version)
            _events.info("migration_applied", version=migration.version, mode=mode)
        return done
    finally:
        connection.rollback()
        if not connection.closed:
            connection.execute("SELECT pg_advisory_unlock(%s)", (LOCK_KEY,))
            connection.commit()


def database_mode(connection: Connection) -> str:
    """Return `timescaledb` when the extension is in this database, else `plain`."""
    rows = connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'")
    return "timescaledb" if rows else "plain"
