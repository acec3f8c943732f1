"""Migrations on a real PostgreSQL, each test in a database of its own."""

from __future__ import annotations

import secrets
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from actors.adapters.postgres import Connection, connect
from rayapp.config import DatabaseSettings
from rayapp.errors import ConfigurationError, StatementRefused
from rayapp.files import project_file
from rayapp.local import write_settings
from rayapp.migrate import database_mode, migrate
from rayapp.stack import StackState, read_password

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]

ALL = ["0001_pipeline", "0002_readings", "0003_keys_and_views", "0004_halts_and_reasons", "0005_operator_tools"]


@pytest.fixture
def database(stack: StackState, tmp_path: Path) -> Iterator[DatabaseSettings]:
    """An empty database that the owner's account owns."""
    postgres, name = stack.postgres, f"test_{secrets.token_hex(4)}"
    admin = psycopg2.connect(
        host=postgres.host,
        port=postgres.port,
        dbname="postgres",
        user=postgres.superuser,
        password=read_password(Path(postgres.superuser_password_file)),
    )
    admin.autocommit = True
    with admin.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} OWNER {postgres.owner_user}")
    yield write_settings(stack, tmp_path / "rayapp.yaml", {"database": {"name": name}}).database
    with admin.cursor() as cursor:
        cursor.execute(f"DROP DATABASE {name} WITH (FORCE)")
    admin.close()


@pytest.fixture
def connection(database: DatabaseSettings) -> Iterator[Connection]:
    """The owner's connection to it."""
    made = connect(database, "owner", application="tests")
    yield made
    made.close()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A copy of the migrations that a test may change."""
    return Path(shutil.copytree(project_file("sql/migrations"), tmp_path / "migrations"))


def test_second_run_does_nothing(connection: Connection, files: Path) -> None:
    """Everything is applied once, in order; a second run applies nothing."""
    assert ALL == migrate(connection, files)
    assert [] == migrate(connection, files)


def test_new_file_alone_is_applied(connection: Connection, files: Path) -> None:
    """A file added later is the only one that runs."""
    migrate(connection, files)
    (files / "0099_more.sql").write_text("CREATE TABLE more (x int);", encoding="utf-8")

    assert ["0099_more"] == migrate(connection, files)


def test_changed_file_is_refused(connection: Connection, files: Path) -> None:
    """A file that was applied and then changed stops the run before anything else is applied, and frees the lock."""
    migrate(connection, files)
    changed = files / "0001_pipeline.sql"
    changed.write_text(changed.read_text(encoding="utf-8") + "-- more\n", encoding="utf-8")
    (files / "0099_more.sql").write_text("CREATE TABLE more (x int);", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="0001_pipeline was changed after it was applied"):
        migrate(connection, files)
    assert [(None,)] == connection.execute("SELECT to_regclass('more')")
    assert [] == connection.execute(
        "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )


def test_failing_file_leaves_nothing_of_itself(connection: Connection, files: Path) -> None:
    """A file that fails half way is rolled back whole; those before it stay, and a mended file runs."""
    bad = files / "0099_bad.sql"
    bad.write_text("CREATE TABLE half (x int); SELECT no_such_column;", encoding="utf-8")
    with pytest.raises(StatementRefused, match="no_such_column"):
        migrate(connection, files)
    assert [(None,)] == connection.execute("SELECT to_regclass('half')")
    connection.rollback()
    bad.write_text("CREATE TABLE half (x int);", encoding="utf-8")
    assert ["0099_bad"] == migrate(connection, files)


def test_two_runs_at_once_apply_everything_once(database: DatabaseSettings, files: Path) -> None:
    """Of two runs at the same time one applies, the other waits and finds nothing to do."""
    results: list[list[str]] = []
    barrier = threading.Barrier(2)

    def run() -> None:
        connection = connect(database, "owner", application="tests")
        barrier.wait(20)
        results.append(migrate(connection, files))
        connection.close()

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [[], ALL] == sorted(results)


def test_mode_follows_the_server(connection: Connection, stack: StackState) -> None:
    """Without the extension in the database the plain variant is chosen."""
    migrate(connection, project_file("sql/migrations"))
    kind = connection.execute("SELECT relkind FROM pg_class WHERE relname = 'sensor_readings'")

    assert "plain" == database_mode(connection)
    assert [("p",)] == kind


def test_day_partitions_are_made_once_and_within_limits(connection: Connection) -> None:
    """ensure_day makes a UTC day, says when it was there, and refuses days out of reason."""
    migrate(connection, project_file("sql/migrations"))

    assert [(True,), (False,)] == [connection.execute("SELECT ensure_day(current_date)")[0] for _ in range(2)]
    connection.commit()
    with pytest.raises(StatementRefused, match="outside"):
        connection.execute("SELECT ensure_day(current_date + 500)")
    connection.rollback()
