"""A reader of the table while faults go on: what it saw once must stay, with its value.

A committed row that disappears, or changes, breaks the promise even when it is
there again at the end. The reader looks at the newest rows every half second
and asks again for some it saw earlier; it waits where the database is away, and
says so when it had to give up, because a reader that stopped proves nothing.
"""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from actors.adapters.postgres import Connection, connect
from rayapp.chaos.memory import Memory
from rayapp.config import Settings
from rayapp.errors import DatabaseUnavailable
from rayapp.log import Events

LOOK_EVERY_S = 0.5
NEWEST_ROWS = 60
ASKED_AGAIN_ROWS = 100
REMEMBERED_ROWS = 50_000
AT_ONCE_ROWS = 5_000
JOIN_S = 30.0

Key = tuple[str, datetime]

_events = Events(__name__)


class Reader:
    """Reads until stopped; use as a thread with start() and stop().

    Attributes:
        checks: how often a remembered row was asked for again.
        vanished: rows that were gone or changed then, in words.
        failure: why it could not read to the end; empty when it could.
    """

    def __init__(self, settings: Settings, seed: int) -> None:
        self._connect: Callable[[], Connection] = lambda: connect(
            settings.database, "driver", application="rayapp chaos reader", autocommit=True
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos-reader", daemon=True)
        self._connection: Connection | None = None
        self._memory: Memory[Key] = Memory(REMEMBERED_ROWS, random.Random(seed))  # noqa: S311 - reproducible, not secret
        self.checks = 0
        self.vanished: list[str] = []
        self.failure = ""

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and ask for everything that is remembered once more."""
        self._stop.set()
        self._thread.join(JOIN_S)
        if self._thread.is_alive():
            self.failure = self.failure or f"it did not stop within {JOIN_S:g} s"
            return
        keys = self._memory.all()
        try:
            for at in range(0, len(keys), AT_ONCE_ROWS):
                self._ask_again(keys[at : at + AT_ONCE_ROWS])
        except DatabaseUnavailable as error:
            self.failure = f"it could not ask again at the end: {error}"
        self._forget_connection()

    @property
    def rows(self) -> int:
        """Different rows seen."""
        return self._memory.seen

    def _run(self) -> None:
        try:
            while not self._stop.wait(LOOK_EVERY_S):
                try:
                    self._look()
                except DatabaseUnavailable as error:
                    _events.info("reader_waits", error=str(error))
                    self._forget_connection()
        except Exception as error:  # a thread must not die unheard: the run is invalid without its reader
            _events.error("reader_ended", exc_info=True)
            self.failure = f"it ended: {type(error).__name__}: {error}"

    def _look(self) -> None:
        rows = self._execute(
            "SELECT device_id, timestamp, value FROM sensor_readings WHERE device_type = 'temperature_sensor' ORDER BY timestamp DESC LIMIT %s",
            (NEWEST_ROWS,),
        )
        self._memory.look(((device_id, timestamp), value) for device_id, timestamp, value in rows)
        if some := self._memory.some(ASKED_AGAIN_ROWS):
            self._ask_again(some)

    def _ask_again(self, keys: list[Key]) -> None:
        """Compare some rows with what was seen of them."""
        rows = self._execute(
            "SELECT r.device_id, r.timestamp, r.value FROM unnest(%s::text[], %s::timestamptz[]) AS k(device_id, timestamp)"
            " JOIN sensor_readings r ON r.device_id = k.device_id AND r.timestamp = k.timestamp",
            ([device_id for device_id, _ in keys], [timestamp for _, timestamp in keys]),
        )
        self.checks += len(keys)
        self.vanished += gone_or_changed(self._memory, keys, (((device_id, timestamp), value) for device_id, timestamp, value in rows))

    def _execute(self, sql: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
        return self._connection.execute(sql, parameters)

    def _forget_connection(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            with contextlib.suppress(DatabaseUnavailable):
                connection.close()


def gone_or_changed(memory: Memory[Key], keys: Iterable[Key], rows: Iterable[tuple[Key, object]]) -> list[str]:
    """Return in words which of these keys are missing from the rows, or there with another value than remembered."""
    there = dict(rows)
    found = []
    for key in keys:
        if key not in there:
            found.append(f"{key[0]} at {key[1]} was seen and is gone")
        elif there[key] != memory.value(key):
            found.append(f"{key[0]} at {key[1]} was {memory.value(key)} and is {there[key]}")
    return found
