"""One partition's way through the stages, as a value: what is buffered, what is under way, what credit is left.

    buffer -> dead letters -> detect -> write -> (committed: credit returns)

One batch at a time is before write and one in write, so a batch that write
rejects or rolls back never has later ones behind it. Bytes count against the
partition's credit from the moment they are fetched until write has committed;
the raw records are kept as long, because a rejected row must be dead-lettered
as it was received. Pure: the shell moves batches and tells the flow.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from enum import Enum, auto

import pyarrow as pa

from actors.adapters.kafka import Fetched
from actors.batch import Batch, DetectorSnapshot, PartitionClaim


class Stage(Enum):
    """Where a batch is."""

    DEAD_LETTERS = auto()
    DETECT = auto()
    READY = auto()
    WRITE = auto()


@dataclass(eq=False)
class UnderWay:
    """One batch between fetch and commit; two are the same only when they are one object.

    Attributes:
        raw: offset -> the record's bytes.
        dead_outstanding: dead letters whose delivery is not known yet.
    """

    claim: PartitionClaim
    before: int
    after: int
    table: pa.Table
    raw: dict[int, bytes | None]
    size_bytes: int
    stage: Stage = Stage.DEAD_LETTERS
    dead_reasons: Counter[str] = field(default_factory=Counter)
    dead_outstanding: int = 0
    snapshot: DetectorSnapshot | None = None
    leader_epoch: int | None = None

    def batch(self) -> Batch:
        """Return what travels to write."""
        return Batch(
            self.claim, self.table, self.before, self.after, len(self.raw), dict(self.dead_reasons), self.snapshot, self.leader_epoch
        )


@dataclass
class PartitionFlow:
    """Buffer, batches under way and credit of one partition.

    Attributes:
        position: next offset to be fetched.
        cut_position: next offset to be put into a batch; `before` of the next batch.
        recovering: something failed; nothing new is cut until the ledger was read again.
        outstanding: calls to other actors without an answer yet.
    """

    claim: PartitionClaim
    position: int
    cut_position: int
    credit_bytes: int
    offsets: list[int] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)
    buffered_bytes: int = 0
    oldest_s: float = 0.0
    first: UnderWay | None = None
    writing: UnderWay | None = None
    paused: bool = False
    recovering: bool = True
    outstanding: int = 0

    def add(self, fetched: Fetched, now_s: float) -> None:
        """Buffer fetched records; an end beyond the last record (transaction markers) moves the position alone."""
        if self.recovering:
            return
        known = bisect_left(fetched.offsets, self.position)
        offsets, values = fetched.offsets[known:], fetched.values[known:]
        if offsets:
            if not self.offsets:
                self.oldest_s = now_s
            self.offsets.extend(offsets)
            self.values.extend(values)
            self.buffered_bytes += sum(len(value) for value in values if value is not None)
            self.position = offsets[-1] + 1
        if fetched.end is not None and fetched.end > self.position:
            if not self.offsets:
                self.oldest_s = now_s
            self.position = fetched.end

    def due(self, now_s: float, *, interval_s: float, max_rows: int, draining: bool) -> bool:
        """True when a batch should be cut now."""
        if self.recovering or self.first is not None or self.position == self.cut_position:
            return False
        return draining or len(self.offsets) >= max_rows or now_s - self.oldest_s >= interval_s

    def cut(self, now_s: float, max_rows: int) -> UnderWay:
        """Take the oldest records as the next batch."""
        offsets, values = self.offsets[:max_rows], self.values[:max_rows]
        self.offsets, self.values = self.offsets[max_rows:], self.values[max_rows:]
        after = offsets[-1] + 1 if self.offsets else self.position
        size = sum(len(value) for value in values if value is not None)
        self.buffered_bytes -= size
        self.oldest_s = now_s
        self.first = UnderWay(self.claim, self.cut_position, after, pa.table({}), dict(zip(offsets, values, strict=True)), size)
        self.cut_position = after
        return self.first

    def advance_to_write(self) -> UnderWay | None:
        """Move the batch that waits for write into write when the one before it has committed."""
        if self.recovering or self.writing is not None or self.first is None or self.first.stage is not Stage.READY:
            return None
        self.writing, self.first = self.first, None
        self.writing.stage = Stage.WRITE
        return self.writing

    def committed(self) -> None:
        """The batch in write is stored: its credit returns."""
        self.writing = None

    def fail(self) -> None:
        """Forget everything not committed; the shell reads the ledger once no call is outstanding."""
        self.recovering = True
        self.offsets, self.values, self.buffered_bytes = [], [], 0
        self.first = self.writing = None

    def restart(self, next_offset: int) -> None:
        """Go on from the ledger's position."""
        self.position = self.cut_position = next_offset
        self.paused = False
        self.recovering = False

    @property
    def held_bytes(self) -> int:
        """Bytes fetched and not committed."""
        return self.buffered_bytes + sum(u.size_bytes for u in (self.first, self.writing) if u is not None)

    @property
    def over_credit(self) -> bool:
        """True when fetching should stop; at half the credit it goes on, so that it does not flap."""
        return self.held_bytes > (self.credit_bytes // 2 if self.paused else self.credit_bytes)

    @property
    def idle(self) -> bool:
        """True when nothing is buffered or under way."""
        return self.first is None and self.writing is None and self.position == self.cut_position and self.outstanding == 0
