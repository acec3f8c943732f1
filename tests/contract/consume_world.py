"""A consume actor with fakes of everything around it, for the tests of this folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from builders import SCHEMA, SCHEMA_ID, claim, framed
from fakes import Downstream, LedgerRows, Log, Producer, Reader, Store

from actors.base import Report
from actors.batch import PartitionClaim
from actors.consume import actor as module
from actors.consume import halts, recovery
from actors.consume.actor import Consume
from actors.detect.actor import Detect
from rayapp.config import Settings

BROKEN = b"not avro"


def now_text() -> str:
    """Return the time as records carry it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S.000000+00:00", time.gmtime())


def now_record(value: float | None = 21.5, **changes: Any) -> bytes:
    """Return a record of today, which the actor's clock accepts."""
    return framed(**{"timestamp": now_text(), "value": value, **changes})


class World:
    """An actor and everything around it; run() drains when the condition holds.

    Log, ledger, store and dead letters outlive the actors, which fresh() replaces as after a kill.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: dict[str, Any] | None = None, **batch: Any) -> None:
        self.settings = Settings(batch={"interval_s": 1e-9, "max_rows": 3, **batch}, steps=steps or {})  # type: ignore[arg-type]
        self.log, self.producer, self.ledger = Log(), Producer(), LedgerRows()
        self.store = Store(self.ledger)
        self.until: Callable[[], bool] = self.is_done
        self.each_turn: Callable[[], None] = lambda: None
        self.epoch = 0
        monkeypatch.setattr(module, "PartitionReader", lambda *_: self.reader)
        monkeypatch.setattr(module, "RecordProducer", lambda *_: self.producer)
        for where in (recovery, halts):
            monkeypatch.setattr(where, "connect", self.ledger.connect)
            monkeypatch.setattr(where, "Ledger", self.ledger.ledger)
        monkeypatch.setattr(module, "RETRY_S", 0.0)
        self.detector = Detect("detect/0#1", self.settings)
        self.fresh()

    def fresh(self, *, detector: bool = False) -> None:
        """Make a new consume actor, with the next epoch, and perhaps a new detector."""
        self.epoch += 1
        if detector:
            self.detector = Detect(f"detect/0#{self.epoch}", self.settings)
        self.reader = Reader(self.log, self._turn)
        self.downstream = Downstream(self.detector, self.store)
        self.actor = Consume(f"consume/0#{self.epoch}", self.settings, SCHEMA, SCHEMA_ID)

    def _turn(self) -> None:
        self.each_turn()
        if self.until():
            self.actor.drain()

    def is_done(self) -> bool:
        """True when the ledger stands at every log's end, or its partition is halted."""
        return all(partition in self.ledger.halted or self.ledger.next.get(partition, 0) == end for partition, end in self.log.ends.items())

    def run(self, *claims: PartitionClaim) -> Report:
        """Run the actor on these claims, on partition 0 by default, until the condition holds."""
        held = list(claims) or [claim(epoch=self.epoch)]
        self.ledger.epochs |= {each.partition: each.epoch for each in held}
        return self.actor.run(held, self.downstream)

    def offsets(self, partition: int = 0) -> list[int]:
        """Return the offsets whose records are rows."""
        return sorted(offset for each, offset in self.store.rows if each == partition)

    def flags(self, partition: int = 0) -> dict[int, bool]:
        """Return is_anomaly by offset."""
        return {offset: row["is_anomaly"] for (each, offset), row in sorted(self.store.rows.items()) if each == partition}
