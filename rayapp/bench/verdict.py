"""What the judge found, and the ledger's own equations.

`problems` is the whole truth: a verdict is good only when that list is empty.
Every entry says how many, what, and names examples to look for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

FOREIGN = -1
"""In run_of_row: a row that nobody sent."""


@dataclass(frozen=True)
class Books:
    """The ledger's sums over all partitions beside Kafka's own numbers.

    Attributes:
        next_offsets: the ledger's, by partition.
        log: (first, next) offset of each partition in Kafka.
        table_rows: rows in the table, or None where other pipelines write to it too.
        absorbed: duplicates counted during the runs that are judged.
    """

    records: int
    stored: int
    duplicate: int
    dead: int
    next_offsets: Mapping[int, int]
    log: Mapping[int, tuple[int, int]]
    table_rows: int | None
    absorbed: int

    def problems(self) -> list[str]:
        """Return the equations that do not hold; records are counted, and no transaction marker takes an offset."""
        found = []
        if self.records != self.stored + self.duplicate + self.dead:
            found.append(f"conservation: {self.records} records != {self.stored} stored + {self.duplicate} duplicate + {self.dead} dead")
        in_kafka = sum(end - start for start, end in self.log.values())
        if self.records != in_kafka:
            found.append(f"conservation: the ledger counted {self.records} records, Kafka holds {in_kafka}")
        behind = {p: (self.next_offsets.get(p, 0), end) for p, (_, end) in self.log.items() if self.next_offsets.get(p, 0) != end}
        if behind:
            found.append(f"conservation: next_offset is not the log's end on partitions {behind}")
        if self.table_rows is not None and self.table_rows != self.stored:
            found.append(f"conservation: the ledger counted {self.stored} stored, the table has {self.table_rows} rows")
        return found


@dataclass(frozen=True)
class Verdict:
    """What the judge found; `ok` only when nothing is wrong.

    Attributes:
        acked, unknown: messages, of all kinds.
        readings_stored: readings of ours in the table, each counted once.
        lost: promised readings of acknowledged messages that are nowhere.
        lost_messages: messages with at least one lost reading.
        duplicates: rows beyond the first of a promised reading.
        foreign: rows that nobody sent.
        mismatched: rows with another value or gateway than sent.
        absorbed: copies that the writer recognised and did not store.
        dead_lettered: different broken messages found in the dead-letter topic.
        dead_missing: acknowledged broken messages that are not there.
        dead_wrong: good messages or readings that are there.
        dead_foreign: dead letters that nobody sent.
        dead_copies: further dead letters under an id seen before (allowed).
        run_of_row: simulator run of each stored row, FOREIGN for none.
    """

    sent: int
    acked: int
    unknown: int
    readings_promised: int
    readings_stored: int
    lost: int
    lost_messages: int
    duplicates: int
    foreign: int
    mismatched: int
    absorbed: int
    anomalies_expected: int
    anomalies: int
    anomalies_wrong: int
    dead_expected: int
    dead_lettered: int
    dead_missing: int
    dead_wrong: int
    dead_foreign: int
    dead_copies: int
    dead_by_reason: dict[str, int]
    books: Books
    examples: dict[str, list[str]] = field(default_factory=dict)
    run_of_row: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32), repr=False, compare=False)

    @property
    def problems(self) -> list[str]:
        """Return every broken promise as a sentence; [] when all were kept."""
        words = {
            "lost": (self.lost, f"readings of {self.lost_messages} acknowledged messages are lost"),
            "duplicates": (self.duplicates, "rows are duplicates"),
            "foreign": (self.foreign, "rows were never sent"),
            "mismatched": (self.mismatched, "rows differ from what was sent"),
            "anomalies": (self.anomalies_wrong, "rows have the wrong anomaly flag"),
            "dead_missing": (self.dead_missing, "broken messages are not in the dead-letter topic"),
            "dead_wrong": (self.dead_wrong, "good messages or readings are in the dead-letter topic"),
            "dead_foreign": (self.dead_foreign, "dead letters were never sent"),
        }
        found = []
        for name, (count, sentence) in words.items():
            if count:
                examples = ", ".join(self.examples.get(name, []))
                found.append(f"{name}: {count} {sentence}" + (f", e.g. {examples}" if examples else ""))
        return found + self.books.problems()

    @property
    def conserved(self) -> bool:
        """True when every equation of the ledger holds."""
        return not self.books.problems()

    @property
    def ok(self) -> bool:
        """True when every promise was kept."""
        return not self.problems
