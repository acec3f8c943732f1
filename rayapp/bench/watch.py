"""Looks at a running pipeline, cheaply enough to do it every second while measuring.

One database connection stays open (a new one a second would show up in the
database's bill), and is opened again when the database was away. Ledger, Kafka's
offsets and the driver's status together say how far the pipeline is.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import psutil

from actors.adapters.kafka import Topics
from actors.adapters.postgres import Connection, connect
from rayapp.config import Settings
from rayapp.errors import DatabaseUnavailable
from rayapp.status import SILENT_AFTER_S


@dataclass(frozen=True)
class View:
    """How far the pipeline is.

    Attributes:
        state: the driver's word; `silent` when its heartbeat is old, `never started` without one.
        slots: the driver's status of each slot.
        driver_pid: of the driver, or None.
        next_offsets, ends: the ledger's and Kafka's, by partition.
        dead_letters: records in the dead-letter topic.
    """

    state: str
    slots: dict[str, dict[str, Any]]
    driver_pid: int | None
    records: int
    stored: int
    duplicate: int
    next_offsets: dict[int, int]
    ends: dict[int, int] = field(default_factory=dict)
    dead_letters: int = 0

    @property
    def lag(self) -> int:
        """Records in Kafka that the ledger has not passed."""
        return sum(end - self.next_offsets.get(partition, 0) for partition, end in self.ends.items())

    @property
    def caught_up(self) -> bool:
        """True when the ledger stands at Kafka's end on every partition."""
        return bool(self.ends) and all(self.next_offsets.get(partition) == end for partition, end in self.ends.items())

    def pids(self) -> dict[str, int]:
        """Return the process of each slot that has one."""
        return {name: int(slot["pid"]) for name, slot in self.slots.items() if slot.get("pid") and slot["state"] != "pending"}

    def counter(self, name: str) -> int:
        """Return the sum of one counter over all slots; counters begin anew with each incarnation."""
        return sum(int(slot.get("counters", {}).get(name, 0)) for slot in self.slots.values())


class Watch:
    """Takes views of one pipeline."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topics = Topics(settings.kafka)
        self._connection: Connection | None = None

    def look(self) -> View:
        """Return a view.

        Raises:
            DependencyUnavailable: database or Kafka is away; ask again.
        """
        pipeline, kafka = self._settings.pipeline, self._settings.kafka
        rows = self._execute(
            "SELECT status, driver_id, extract(epoch FROM now() - heartbeat_at)::float8 FROM pipelines WHERE pipeline = %s", pipeline
        )
        if not rows:
            return View("never started", {}, None, 0, 0, 0, {})
        # Ends first: a ledger that is read later and has passed them is certain to have caught up with them.
        ends = {p: end for p, (_, end) in self._topics.offsets(kafka.topic, kafka.partitions).items()}
        dead_letters = sum(end - start for start, end in self._topics.offsets(kafka.dead_letter_topic, 1).values())
        ledger = self._execute(
            "SELECT partition, next_offset, records, stored, duplicate FROM ingest_ledger WHERE pipeline = %s AND topic = %s",
            pipeline,
            kafka.topic,
        )
        status, driver, age_s = rows[0]
        state = status.get("state", "starting")
        records, stored, duplicate = (sum(int(row[at]) for row in ledger) for at in (2, 3, 4))
        return View(
            state="silent" if age_s > SILENT_AFTER_S and state != "stopping" else state,
            slots=status.get("slots", {}),
            driver_pid=int(driver.rpartition("/")[2]) if driver.rpartition("/")[2].isdigit() else None,
            records=records,
            stored=stored,
            duplicate=duplicate,
            next_offsets={int(row[0]): int(row[1]) for row in ledger},
            ends=ends,
            dead_letters=dead_letters,
        )

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _execute(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._settings.database, "driver", application="rayapp bench watch", autocommit=True)
        try:
            return self._connection.execute(sql, parameters)
        except DatabaseUnavailable:
            with contextlib.suppress(DatabaseUnavailable):
                self.close()
            raise


def is_actor(pid: int) -> bool:
    """Say whether a process is a living actor of Ray's, and not a pid used again."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.cmdline()[:1] != [] and process.cmdline()[0].startswith("ray::")
    except psutil.NoSuchProcess:
        return False


def is_alive(view: View) -> bool:
    """Say whether the driver and an actor in every slot live on this machine."""
    pids = view.pids()
    return (
        view.driver_pid is not None
        and psutil.pid_exists(view.driver_pid)
        and set(pids) == set(view.slots)
        and all(map(is_actor, pids.values()))
    )
