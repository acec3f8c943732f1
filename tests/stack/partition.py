"""One partition as a writer and a test see it: a claim, a registered connection, a tag of its own."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

from builders import DAY_US, SECOND_US, batch, reading

from actors.adapters.kafka import TopicIdentity
from actors.adapters.postgres import Connection, connect
from actors.base import now_us
from actors.batch import Batch, WriteAnswer
from actors.write.ledger import Ledger
from actors.write.store import BatchStore, PartitionWriter
from rayapp.claims import Claims
from rayapp.config import Settings

IDENTITY = TopicIdentity("cluster", "topic-id", 1000)
TODAY_US = now_us() // DAY_US * DAY_US
_numbers = itertools.count()


class Partition:
    """A fresh partition of the ledger; partitions of a test share the table and nothing else."""

    def __init__(self, settings: Settings, claims: Claims, owner: Connection, opened: list[Connection]) -> None:
        self.number = next(_numbers)
        self.mac = ":".join(f"{byte:02x}" for byte in random.randbytes(6))
        self.settings, self.claims, self.owner, self._opened = settings, claims, owner, opened
        self.store = BatchStore(settings.place)
        self.writer = self.claimed()

    def claimed(self, owner: str = "consume/0#1") -> PartitionWriter:
        """Claim the partition and register a writer under the new epoch."""
        topic = self.settings.kafka.topic
        found = self.claims.claim_partition(topic, IDENTITY, self.number, 0, owner)
        self.claim = replace(batch([], 0, 0).claim, topic=topic, partition=self.number, epoch=found.epoch, owner=owner)
        connection = connect(self.settings.database, "writer", application="tests writer")
        self._opened.append(connection)
        ledger = Ledger(connection, self.settings.pipeline)
        ledger.register(self.claim)
        self.writer = PartitionWriter(connection, ledger)
        return self.writer

    def row(self, offset: int, suffix: str = "temperature", **changes: Any) -> dict[str, Any]:
        """Return a reading of this partition's tag, one a second."""
        return reading(offset, suffix, mac=self.mac, **{"timestamp": TODAY_US + offset * SECOND_US, **changes})

    def batch(self, rows: list[dict[str, Any]], before: int, after: int, **changes: Any) -> Batch:
        return batch(rows, before, after, held=self.claim, **changes)

    def write(self, rows: list[dict[str, Any]], before: int, after: int, **changes: Any) -> WriteAnswer:
        return self.store.write(self.writer, self.batch(rows, before, after, **changes), now_us())

    def stored(self, columns: str, table: str = "sensor_readings") -> list[tuple[Any, ...]]:
        """Return columns of this tag's rows in key order."""
        return self.owner.execute(
            f"SELECT {columns} FROM {table} WHERE device_id LIKE %s ORDER BY device_id, timestamp", (f"%{self.mac}%",)
        )

    def ledger(self) -> dict[str, int]:
        """Return the ledger's position and counters."""
        names = ("next_offset", "records", "stored", "duplicate", "other_gateway", "dead")
        (row,) = self.owner.execute(
            f"SELECT {', '.join(names)} FROM ingest_ledger WHERE pipeline = %s AND partition = %s", (self.settings.pipeline, self.number)
        )
        return dict(zip(names, row, strict=True))


def counts(**changes: int) -> dict[str, int]:
    return {"next_offset": 0, "records": 0, "stored": 0, "duplicate": 0, "other_gateway": 0, "dead": 0} | changes
