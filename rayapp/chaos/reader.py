"""A reader of the table while faults go on: what it saw once must stay, with its value.

A committed row that disappears, or changes, breaks the promise even when it is
there again at the end. The reader looks at the newest rows every half second
and asks again for some it saw earlier; it waits where the database is away.
"""

from __future__ import annotations

import random
import threading
from typing import Any

from actors.adapters.postgres import Connection, connect
from rayapp.config import Settings
from rayapp.errors import DatabaseUnavailable
from rayapp.log import Events

LOOK_EVERY_S = 0.5
NEWEST_ROWS = 60
ASKED_AGAIN_ROWS = 100
REMEMBERED_ROWS = 50_000

_events = Events(__name__)


class Reader:
    """Reads until stopped; use as a thread with start() and stop()."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self._settings = settings
        self._chance = random.Random(seed)  # noqa: S311 - reproducible, not secret
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos-reader", daemon=True)
        self._connection: Connection | None = None
        self._seen: dict[tuple[str, Any], Any] = {}
        self._keys: list[tuple[str, Any]] = []
        self.checks = 0
        self.vanished: list[str] = []

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and ask for everything that was seen once more.

        Raises:
            DatabaseUnavailable: the database does not answer at the end.
        """
        self._stop.set()
        self._thread.join(30)
        for at in range(0, len(self._keys), 5_000):
            self._ask_again(self._keys[at : at + 5_000])
        if self._connection is not None:
            self._connection.close()

    @property
    def rows(self) -> int:
        """Different rows seen."""
        return len(self._seen)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                self._look()
            except DatabaseUnavailable as error:
                _events.info("reader_waits", error=str(error))
                self._forget_connection()

    def _look(self) -> None:
        for device_id, timestamp, value in self._execute(
            "SELECT device_id, timestamp, value FROM sensor_readings WHERE device_type = 'temperature_sensor' ORDER BY timestamp DESC LIMIT %s",
            (NEWEST_ROWS,),
        ):
            key = (device_id, timestamp)
            if key not in self._seen and len(self._keys) < REMEMBERED_ROWS:
                self._seen[key] = value
                self._keys.append(key)
        if self._keys:
            self._ask_again(self._chance.sample(self._keys, min(ASKED_AGAIN_ROWS, len(self._keys))))

    def _ask_again(self, keys: list[tuple[str, Any]]) -> None:
        """Compare some rows with what was seen of them."""
        there = {
            (device_id, timestamp): value
            for device_id, timestamp, value in self._execute(
                "SELECT r.device_id, r.timestamp, r.value FROM unnest(%s::text[], %s::timestamptz[]) AS k(device_id, timestamp)"
                " JOIN sensor_readings r ON r.device_id = k.device_id AND r.timestamp = k.timestamp",
                ([device_id for device_id, _ in keys], [timestamp for _, timestamp in keys]),
            )
        }
        self.checks += len(keys)
        for key in keys:
            if key not in there:
                self.vanished.append(f"{key[0]} at {key[1]} was seen and is gone")
            elif there[key] != self._seen[key]:
                self.vanished.append(f"{key[0]} at {key[1]} was {self._seen[key]} and is {there[key]}")

    def _execute(self, sql: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._settings.database, "driver", application="rayapp chaos reader", autocommit=True)
        return self._connection.execute(sql, parameters)

    def _forget_connection(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()
