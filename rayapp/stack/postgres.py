"""PostgreSQL with passwords, durability on, and the four roles the pipeline's contracts name.

The owner migrates, the driver claims (and, as a member of the writer's role, may end a writer's
backend), the writer copies, the reader looks. fsync and synchronous_commit stay on: what the promise
"exactly once" rests on is not switched off to look fast. `initdb` refuses root, so root drops to the
`postgres` user and the data lies in the short folder. TimescaleDB is used when its library is
installed; otherwise the pipeline falls back to plain partitions, and the state file says which.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from rayapp.stack import programs
from rayapp.stack.component import Workbench
from rayapp.stack.errors import StackError
from rayapp.stack.layout import service_user, write_private
from rayapp.stack.memory_disk import mount_memory_disk
from rayapp.stack.passwords import password_of
from rayapp.stack.ports import LOOPBACK, free_ports
from rayapp.stack.processes import ServerProcess, base_environment
from rayapp.stack.state import PostgresState

DATABASE = "ruuvi"
SUPERUSER = "stack_admin"
OWNER, WRITER, DRIVER, READER = "ruuvi_owner", "ruuvi_writer", "ruuvi_driver", "ruuvi_reader"
INITDB_DEADLINE_S = 60.0
QUERY_TIMEOUT_S = 20.0


def render_settings(port: int, shared_buffers: str, *, timescaledb: bool) -> str:
    """Return the lines that end postgresql.conf."""
    lines = {
        "listen_addresses": f"'{LOOPBACK}'",
        "port": port,
        "unix_socket_directories": "''",
        "shared_buffers": shared_buffers,
        "max_wal_size": "2GB",
        "checkpoint_timeout": "10min",
        "max_connections": 60,
        "track_commit_timestamp": "on",
        "wal_compression": "off",
        "jit": "off",
        "fsync": "on",
        "synchronous_commit": "on",
        "password_encryption": "'scram-sha-256'",
        "log_line_prefix": "'%m [%p] %u '",
        "timezone": "'UTC'",
        "log_timezone": "'UTC'",
    }
    if timescaledb:
        lines["shared_preload_libraries"] = "'timescaledb'"
        lines["timescaledb.telemetry_level"] = "off"
    return "\n# --- local stack ---\n" + "".join(f"{key} = {value}\n" for key, value in lines.items())


def render_roles(passwords: dict[str, str]) -> str:
    """Return SQL that makes the roles, or sets their passwords again; meant for psql's standard input."""
    statements = []
    for role in (OWNER, WRITER, DRIVER, READER):
        statements.append(f"SELECT 'CREATE ROLE {role}' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{role}') \\gexec")
        statements.append(f"ALTER ROLE {role} LOGIN PASSWORD '{passwords[role]}';")
    statements.append(f"GRANT {WRITER} TO {DRIVER};")
    statements.append(
        f"SELECT 'CREATE DATABASE {DATABASE} OWNER {OWNER}' WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{DATABASE}') \\gexec"
    )
    statements.append(f"REVOKE ALL ON DATABASE {DATABASE} FROM PUBLIC;")
    statements.append(f"GRANT CONNECT, TEMPORARY ON DATABASE {DATABASE} TO {WRITER}, {DRIVER}, {READER};")
    return "\n".join(statements) + "\n"


class Postgres:
    """The database server of one stack."""

    name = "postgres"

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._layout = bench.layout
        self._user = service_user("postgres")
        (self._port,) = free_ports(1)
        self._bin = programs.postgres_bin()
        self._passfile = self._layout.root / "secrets" / "pgpass"
        self._version = ""
        self._timescaledb = timescaledb_installed(self._bin)

    def prepare(self) -> None:
        """Make the cluster when there is none, and write this start's settings."""
        parent = self._layout.private("postgres", self._user)
        data = parent / "data"
        if self._bench.options.postgres_disk_mb:
            mount_memory_disk(parent, self._bench.options.postgres_disk_mb, self._user)
        superuser_password = password_of(self._layout, "postgres-superuser")
        line = f"{LOOPBACK}:{self._port}:*:{SUPERUSER}:{superuser_password}\n"
        write_private(self._passfile, line)
        if not (data / "PG_VERSION").exists():
            self._initialise(parent, data, superuser_password)
        write_private(
            data / "stack.conf",
            render_settings(
                self._port,
                self._bench.options.postgres_shared_buffers,
                timescaledb=self._timescaledb,
            ),
            self._user,
        )
        main = data / "postgresql.conf"
        text = main.read_text(encoding="utf-8")
        if "include = 'stack.conf'" not in text:
            write_private(main, text + "\ninclude = 'stack.conf'\n", self._user)

    def processes(self) -> Sequence[ServerProcess]:
        """The postmaster itself, not pg_ctl: it must be our child."""
        data = self._layout.private("postgres", self._user) / "data"
        return [
            ServerProcess(
                "postgres",
                [str(self._bin / "postgres"), "-D", str(data)],
                self._layout.log("postgres"),
                data.parent,
                user=self._user,
                stop_signal=signal.SIGINT,  # fast: sessions are ended, a checkpoint is written
                death_signal=signal.SIGQUIT,  # immediate: its children end with it, recovery at next start
            )
        ]

    def ask(self) -> str:
        """It serves when it answers a query over TCP with a password."""
        try:
            self._psql("postgres", "SELECT 1")
        except StackError as error:
            return str(error)
        return ""

    def settle(self) -> None:
        """Make roles and database, with the extension where its library is installed."""
        accounts = {role: password_of(self._layout, f"postgres-{role}") for role in (OWNER, WRITER, DRIVER, READER)}
        self._psql("postgres", render_roles(accounts))
        if self._timescaledb:
            self._psql(DATABASE, "CREATE EXTENSION IF NOT EXISTS timescaledb")
        self._version = self._psql(DATABASE, "SHOW server_version").split()[0]

    def state(self) -> PostgresState:
        """Return address and accounts."""
        return PostgresState(
            host=LOOPBACK,
            port=self._port,
            database=DATABASE,
            superuser=SUPERUSER,
            superuser_password_file=str(self._layout.password_file("postgres-superuser")),
            owner_user=OWNER,
            owner_password_file=str(self._layout.password_file(f"postgres-{OWNER}")),
            driver_user=DRIVER,
            driver_password_file=str(self._layout.password_file(f"postgres-{DRIVER}")),
            writer_user=WRITER,
            writer_password_file=str(self._layout.password_file(f"postgres-{WRITER}")),
            reader_user=READER,
            reader_password_file=str(self._layout.password_file(f"postgres-{READER}")),
            timescaledb=self._timescaledb,
            server_version=self._version,
            log=str(self._layout.log("postgres")),
        )

    def _initialise(self, parent: Path, data: Path, superuser_password: str) -> None:
        password_file = write_private(parent / "initdb.password", superuser_password + "\n", self._user)
        try:
            self._bench.run(
                ServerProcess(
                    "postgres-initdb",
                    [
                        str(self._bin / "initdb"),
                        "-D",
                        str(data),
                        "-U",
                        SUPERUSER,
                        "--auth=scram-sha-256",
                        f"--pwfile={password_file}",
                        "--no-sync",
                        "-E",
                        "UTF8",
                        "--locale=C.UTF-8",
                    ],
                    self._layout.log("postgres-initdb"),
                    parent,
                    user=self._user,
                ),
                INITDB_DEADLINE_S,
            )
        finally:
            password_file.unlink(missing_ok=True)

    def _psql(self, database: str, sql: str) -> str:
        """Run SQL as superuser; it goes through standard input, so no password meets a command line."""
        argv = [
            str(self._bin / "psql"),
            "-X",
            "-q",
            "-A",
            "-t",
            "-w",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            LOOPBACK,
            "-p",
            str(self._port),
            "-U",
            SUPERUSER,
            "-d",
            database,
            "-f",
            "-",
        ]
        environment = {**base_environment(), "PGPASSFILE": str(self._passfile), "PGCONNECT_TIMEOUT": "5"}
        try:
            answer = subprocess.run(
                argv,
                input=sql,
                env=environment,
                capture_output=True,
                text=True,
                timeout=QUERY_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise StackError(f"postgres: no answer within {QUERY_TIMEOUT_S:.0f} s") from None
        if answer.returncode != 0:
            raise StackError(f"postgres: {answer.stderr.strip()}")
        return answer.stdout


def timescaledb_installed(postgres_bin: Path) -> bool:
    """Say whether this PostgreSQL has TimescaleDB's library."""
    libraries = (postgres_bin.parent / "lib").glob("**/timescaledb.so")
    return any(libraries)
