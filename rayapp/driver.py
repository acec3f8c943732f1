"""`python -m rayapp run`: check the world, become the driver, supervise until SIGTERM.

Started by `ray job submit` (or `rayapp submit`, which also gives it the time to
drain). Order: registry accepts our schema, topics exist, the database has our
tables, then the pipeline's driver_epoch is raised, then Ray is joined, and only
then are signals ours. Anything refused before that stops the start with one
clear message and starts nothing.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import uuid
from datetime import UTC, datetime, timedelta

from actors.adapters.kafka import Topics
from actors.adapters.postgres import Connection, connect
from actors.adapters.registry import Registry
from rayapp import runtime as ray_runtime
from rayapp.claims import Claims
from rayapp.config import Settings
from rayapp.errors import ConfigurationError, DatabaseUnavailable, StaleDriver, StatementRefused
from rayapp.files import reading_schema
from rayapp.ledger_watch import LedgerWatch
from rayapp.log import Events
from rayapp.runtime import Runtime
from rayapp.starts import Wire
from rayapp.supervisor import Supervisor
from rayapp.worker_setup import plant_if_named

EXIT_DRAINED = 0
EXIT_TAKEN_OVER = 4
DAYS_AHEAD = 2
DAYS_BACK = 1

_events = Events(__name__)


def run(settings: Settings) -> int:
    """Run the pipeline until it is stopped; returns the exit code.

    Raises:
        ConfigurationError, IncompatibleSchema: nothing was started.
        DependencyUnavailable: a server is away at the start.
    """
    plant_if_named()
    schema = reading_schema()
    with Registry(settings.registry) as registry:
        schema_id = registry.register(f"{settings.kafka.topic}-value", schema)
    topics = Topics(settings.kafka)
    identity = topics.ensure()
    driver_id = f"{socket.gethostname()}/{os.getpid()}"
    connection = _DriverConnection(settings, driver_id)
    make_days(settings)
    epoch = connection.claims().become_driver()
    _events.info("driver_started", pipeline=settings.pipeline, driver=driver_id, driver_epoch=epoch, schema_id=schema_id)

    ray_runtime.connect(namespace=settings.pipeline)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    watch = LedgerWatch(settings, topics, identity)
    watch.start()
    runtime = Runtime(settings.fleet.cpus_per_actor, settings.fleet.spare_processes)
    supervisor = Supervisor(settings, runtime, connection.claims, topics, Wire(schema, schema_id), watch, uuid.uuid4().hex[:6])
    upkeep = threading.Thread(target=_make_days_hourly, args=(settings, stop), name="day-partitions", daemon=True)
    upkeep.start()
    try:
        supervisor.run(stop)
    except StaleDriver as error:
        _events.error("driver_stale", error=str(error))
        return EXIT_TAKEN_OVER
    finally:
        watch.stop()
    return EXIT_DRAINED


class _DriverConnection:
    """The driver's database connection, opened again after it broke, with the same driver_epoch."""

    def __init__(self, settings: Settings, driver_id: str) -> None:
        self._settings = settings
        self._driver_id = driver_id
        self._connection: Connection | None = None
        self._claims: Claims | None = None

    def claims(self) -> Claims:
        """Return claims over a live connection.

        Raises:
            DatabaseUnavailable: the database does not answer.
        """
        if self._connection is None or self._connection.closed or self._claims is None:
            database = self._settings.database
            self._connection = connect(
                database, "driver", application=f"{self._settings.pipeline} driver", answer_timeout_s=database.answer_timeout_s
            )
            epoch = self._claims.driver_epoch if self._claims is not None else 0
            self._claims = Claims(self._connection, self._settings.pipeline, self._driver_id)
            self._claims.driver_epoch = epoch
        # A statement that failed leaves its transaction open; every use begins anew.
        self._connection.rollback()
        return self._claims


def make_days(settings: Settings) -> None:
    """Make the day partitions around today.

    Raises:
        ConfigurationError: the database lacks our tables.
        DatabaseUnavailable: it does not answer.
    """
    connection = connect(settings.database, "driver", application=f"{settings.pipeline} days")
    try:
        if not connection.execute("SELECT to_regclass('ingest_ledger') IS NOT NULL")[0][0]:
            raise ConfigurationError(f"database {settings.database.name} has no tables of ours: run `rayapp db migrate` first")
        today = datetime.now(UTC).date()
        for ahead in range(-DAYS_BACK, DAYS_AHEAD + 1):
            connection.execute("SELECT ensure_day(%s)", (today + timedelta(days=ahead),))
            connection.commit()
    finally:
        connection.close()


def _make_days_hourly(settings: Settings, stop: threading.Event) -> None:
    """Keep day partitions ahead of the clock; a failure is tried again in a minute (the writer makes missing days, too)."""
    wait_s = 3600.0
    while not stop.wait(wait_s):
        try:
            make_days(settings)
            wait_s = 3600.0
        except (DatabaseUnavailable, StatementRefused) as error:
            _events.warning("day_partitions_wait", error=str(error))
            wait_s = 60.0
