"""One partition's way through the stages, as a value: what is buffered, what is under way, what credit is left.

    buffer -> dead letters -> detect -> write -> (committed: credit returns)

One batch at a time is before write and one in write, so a batch that write
rejects or rolls back never has later ones behind it. Bytes count against the
partition's credit from the moment they are fetched until write has committed;
the raw records are kept as long, because a rejected row must be dead-lettered
as it was received. Pure: the shell moves batches and tells the flow.

After a recovery the flow may begin below the ledger's position: records up to
there are stored already and only warm the detector. No batch straddles that
position; warm ones go to detect and no further.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np
import pyarrow as pa

from actors.adapters.kafka import Fetched
from actors.batch import Batch, DetectorSnapshot, PartitionClaim
from actors.consume.dead_share import NONE, DeadShare, Exceeded, Numbers


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
        warm: stored already; detected only.
        snapshot_wanted: the first batch behind warm ones brings a snapshot, so that the next recovery does not read them again.
        letter_ids: offset -> id of the dead letter that a replayed record was.
        dead_numbers: which records, counted from 0, are dead letters that speak against the partition.
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
    dead_numbers: Numbers = field(default_factory=lambda: NONE)
    dead_outstanding: int = 0
    snapshot: DetectorSnapshot | None = None
    leader_epoch: int | None = None
    warm: bool = False
    snapshot_wanted: bool = False
    letter_ids: dict[int, str] = field(default_factory=dict)

    def count_dead(self, offsets: Iterable[int]) -> None:
        """Count records as dead letters that speak against the partition (see DeadShare)."""
        known = np.fromiter(self.raw, np.int64, len(self.raw))
        found = np.searchsorted(known, np.fromiter(offsets, np.int64))
        self.dead_numbers = np.union1d(self.dead_numbers, found)

    def batch(self) -> Batch:
        """Return what travels to write."""
        return Batch(
            self.claim, self.table, self.before, self.after, len(self.raw), dict(self.dead_reasons), self.snapshot, self.leader_epoch
        )


@dataclass
class PartitionFlow:
    """Buffer, batches under way and credit of one partition.

    Attributes:
        share: dead letters among the committed records.
        position: next offset to be fetched.
        cut_position: next offset to be put into a batch; `before` of the next batch.
        warm_until: the ledger's position when the flow was recovered; records below only warm the detector.
        letter_ids: of buffered records, offset -> id of the dead letter a replayed record was.
        leader_epoch: of the last record before `warm_until`, None when unknown.
        leader_epochs: (last offset, leader epoch) of what is buffered, rising.
        recovering: something failed; nothing new is cut until the ledger was read again.
        halted: goes no further under this claim.
        waits_for: the dependency that is away, while recovering.
        outstanding: calls to other actors without an answer yet.
        started_at: where it was restarted last.
        stumbles: failures in a row, none of them a dependency's, without a commit between them.
        distrusted: the position whose snapshot the detector could not read.
    """

    claim: PartitionClaim
    credit_bytes: int
    share: DeadShare
    position: int = 0
    cut_position: int = 0
    warm_until: int = 0
    leader_epoch: int | None = None
    offsets: list[int] = field(default_factory=list)
    values: list[bytes | None] = field(default_factory=list)
    letter_ids: dict[int, str] = field(default_factory=dict)
    leader_epochs: list[tuple[int, int]] = field(default_factory=list)
    buffered_bytes: int = 0
    oldest_s: float = 0.0
    first: UnderWay | None = None
    writing: UnderWay | None = None
    paused: bool = False
    recovering: bool = True
    halted: bool = False
    snapshot_wanted: bool = False
    waits_for: str | None = None
    outstanding: int = 0
    started_at: int = 0
    stumbles: int = 0
    distrusted: int | None = None

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
            self.letter_ids |= fetched.letter_ids
            if fetched.leader_epoch is not None:
                self.leader_epochs.append((offsets[-1], fetched.leader_epoch))
            self.buffered_bytes += sum(len(value) for value in values if value is not None)
            self.position = offsets[-1] + 1
        if fetched.end is not None and fetched.end > self.position:
            if not self.offsets:
                self.oldest_s = now_s
            self.position = fetched.end

    @property
    def warming(self) -> bool:
        """True while the next batch is one that is stored already."""
        return self.cut_position < self.warm_until

    def due(self, now_s: float, *, interval_s: float, max_rows: int, draining: bool) -> bool:
        """True when a batch should be cut now; warm ones never wait, the recovery does."""
        if self.recovering or self.first is not None or self.position == self.cut_position:
            return False
        return draining or self.warming or len(self.offsets) >= max_rows or now_s - self.oldest_s >= interval_s

    def cut(self, now_s: float, max_rows: int) -> UnderWay:
        """Take the oldest records as the next batch."""
        warm = self.warming
        count = min(max_rows, bisect_left(self.offsets, self.warm_until)) if warm else max_rows
        offsets, values = self.offsets[:count], self.values[:count]
        self.offsets, self.values = self.offsets[count:], self.values[count:]
        after = offsets[-1] + 1 if self.offsets and offsets else self.position
        if warm and (after > self.warm_until or (self.offsets and self.offsets[0] >= self.warm_until)):
            after = self.warm_until
        size = sum(len(value) for value in values if value is not None)
        self.buffered_bytes -= size
        self.oldest_s = now_s
        self.first = UnderWay(
            self.claim, self.cut_position, after, pa.table({}), dict(zip(offsets, values, strict=True)), size,
            leader_epoch=self._leader_epoch(offsets), warm=warm, snapshot_wanted=self.snapshot_wanted and not warm,
            letter_ids={offset: self.letter_ids.pop(offset) for offset in list(self.letter_ids) if offset < after},
        )  # fmt: skip
        self.snapshot_wanted = self.snapshot_wanted and warm
        self.cut_position = after
        return self.first

    def _leader_epoch(self, offsets: list[int]) -> int | None:
        """Return the leader epoch of a batch's last record, or the next one known.

        A newer epoch than the record's own says nothing wrong: it only sees less. An older one would make the log look truncated.
        """
        if not offsets:
            return None
        self.leader_epochs = self.leader_epochs[bisect_left(self.leader_epochs, (offsets[-1],)) :]
        return self.leader_epochs[0][1] if self.leader_epochs else None

    def too_many_dead(self) -> tuple[UnderWay, Exceeded] | None:
        """Return the batch under way in which too many of the last records are dead, and where, None when there is none."""
        share = self.share
        for under_way in (self.writing, self.first):
            if under_way is None or under_way.warm:
                continue
            exceeded = share.exceeded(len(under_way.raw), under_way.dead_numbers)
            if exceeded is not None:
                return under_way, exceeded
            share = share.after(len(under_way.raw), under_way.dead_numbers)
        return None

    def warmed(self) -> bool:
        """The warm batch was detected and goes no further; True when the next one is to be stored."""
        self.first = None
        return not self.warming

    def drop_buffer(self) -> None:
        """Forget what was fetched and not cut; it is fetched again."""
        self.position = self.cut_position
        self.offsets, self.values, self.buffered_bytes = [], [], 0
        self.letter_ids, self.leader_epochs = {}, []

    def advance_to_write(self) -> UnderWay | None:
        """Move the batch that waits for write into write when the one before it has committed."""
        if self.recovering or self.writing is not None or self.first is None or self.first.stage is not Stage.READY:
            return None
        self.writing, self.first = self.first, None
        self.writing.stage = Stage.WRITE
        return self.writing

    def committed(self) -> None:
        """The batch in write is stored: its credit returns."""
        if self.writing is not None:
            self.share = self.share.after(len(self.writing.raw), self.writing.dead_numbers)
        self.writing = None
        self.stumbles = 0

    def fail(self, waits_for: str | None = None) -> None:
        """Forget everything not committed; the shell reads the ledger once no call is outstanding."""
        self.recovering, self.waits_for = True, waits_for
        self.drop_buffer()
        self.first = self.writing = None

    def halt(self) -> None:
        """Go no further under this claim."""
        self.fail()
        self.halted = True

    def restart(self, position: int, next_offset: int, leader_epoch: int | None = None) -> None:
        """Go on: fetch and detect from `position`, store from the ledger's `next_offset`."""
        self.position = self.cut_position = self.started_at = position
        self.warm_until, self.leader_epoch = next_offset, leader_epoch
        self.snapshot_wanted = position < next_offset
        self.share = DeadShare(self.share.share_max, self.share.window, self.share.minimum)
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
