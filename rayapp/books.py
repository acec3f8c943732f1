"""The ledger's equation per partition, as values: what Kafka has given must be somewhere.

    Kafka's records = stored + duplicate + dead + in flight

Left of the ledger's next_offset every record was counted when it was read, and
stored, absorbed and dead ones when the batch was committed, in one row of the
database: so the equation holds across kills, and a row that a batch lost on its
way breaks it (the database refuses such a commit). Right of next_offset records
are in flight. Offsets without a record are a transaction's markers, which only
foreign producers make; more records than offsets can never be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PartitionBooks:
    """One partition's row of the ledger beside Kafka's end of it.

    Attributes:
        counted_from: next_offset minus records when nothing is missing; moved by an operator together with next_offset.
        end: Kafka's next offset, None while Kafka does not answer.
        halted: why it goes no further, None when it does.
    """

    partition: int
    epoch: int
    owner: str
    next_offset: int
    counted_from: int
    records: int
    stored: int
    duplicate: int
    other_gateway: int
    dead: int
    end: int | None
    halted: str | None

    @property
    def in_flight(self) -> int:
        """Records that Kafka has and the ledger has not passed (offsets, so markers count)."""
        return max(0, self.end - self.next_offset) if self.end is not None else 0

    @property
    def offsets_without_record(self) -> int:
        """Offsets that the ledger passed without a record."""
        return self.next_offset - self.counted_from - self.records

    @property
    def problems(self) -> list[str]:
        """Return what is wrong, in words; [] when the equation holds."""
        found = []
        if self.records != self.stored + self.duplicate + self.dead:
            found.append(f"{self.records} records != {self.stored} stored + {self.duplicate} duplicate + {self.dead} dead")
        if self.offsets_without_record < 0:
            found.append(f"{self.records} records counted on {self.next_offset - self.counted_from} offsets: some were counted twice")
        if self.end is not None and self.next_offset > self.end:
            found.append(f"next_offset {self.next_offset} lies beyond the log's end {self.end}")
        return found


@dataclass(frozen=True)
class Ledger:
    """All partitions at one look.

    Attributes:
        read_at_s: monotonic time before the look began; what was decided before is in it.
    """

    read_at_s: float
    partitions: Mapping[int, PartitionBooks]

    def resumed(self, standing: Mapping[int, float]) -> list[int]:
        """Return the partitions that stood still (partition -> since when) and that an operator has let go on."""
        return sorted(
            partition
            for partition, since_s in standing.items()
            if self.read_at_s > since_s and partition in self.partitions and self.partitions[partition].halted is None
        )

    def summary(self) -> dict[str, int]:
        """Return the sums over all partitions, for people."""
        rows = self.partitions.values()
        return {
            "records": sum(row.records for row in rows),
            "stored": sum(row.stored for row in rows),
            "duplicate": sum(row.duplicate for row in rows),
            "other_gateway": sum(row.other_gateway for row in rows),
            "dead": sum(row.dead for row in rows),
            "in_flight": sum(row.in_flight for row in rows),
            "offsets_without_record": sum(row.offsets_without_record for row in rows),
        }


def news(before: Ledger | None, now: Ledger) -> list[tuple[str, int, str]]:
    """Return what is worth an alarm and was not there at the look before, as (event, partition, words)."""
    found: list[tuple[str, int, str]] = []
    earlier = before.partitions if before is not None else {}
    for partition, row in sorted(now.partitions.items()):
        old = earlier.get(partition)
        if row.problems and (old is None or old.problems != row.problems):
            found.append(("ledger_does_not_add_up", partition, "; ".join(row.problems)))
        grown = row.offsets_without_record - (old.offsets_without_record if old is not None else 0)
        if grown > 0 and old is not None:
            found.append(("offsets_without_record", partition, f"{grown} more: transaction markers of a foreign producer, or records lost"))
        if row.halted is not None and (old is None or old.halted is None):
            found.append(("partition_halted", partition, row.halted))
        if row.halted is None and old is not None and old.halted is not None:
            found.append(("partition_resumed", partition, f"goes on at {row.next_offset}"))
    return found
