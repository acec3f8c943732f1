"""What a batch is after it travelled between processes."""

from __future__ import annotations

import pickle

import pytest
from builders import batch, reading

from actors.batch import DETECT_COLUMNS, READING_SCHEMA, Batch, DetectorSnapshot


@pytest.mark.parametrize("rows", [0, 1, 500])
def test_batch_travels_whole(rows: int) -> None:
    """Claim, positions, counters, snapshot and every column arrive as they were sent, maps and lists included."""
    sent = batch(
        [reading(n, tags=None if n % 2 else ["\U0001f321"]) for n in range(rows)],
        5,
        5 + rows,
        dead=2,
        snapshot=DetectorSnapshot(1, 5, "v", b"\0"),
    )
    arrived: Batch = pickle.loads(pickle.dumps(sent, protocol=5))  # noqa: S301 - our own bytes

    assert sent.table.equals(arrived.table)
    assert READING_SCHEMA.equals(arrived.table.schema)
    assert (sent.claim, 5, 5 + rows, 2, sent.snapshot) == (arrived.claim, arrived.before, arrived.after, arrived.dead, arrived.snapshot)


def test_part_of_a_table_does_not_carry_the_whole() -> None:
    """A slice of a large table, or the few columns for detection, are as small on the wire as they look."""
    whole = batch([reading(n) for n in range(1_000)], 0, 1_000)
    part = Batch(whole.claim, whole.table.slice(0, 10), 0, 10, 10)
    columns = Batch(whole.claim, whole.table.select(DETECT_COLUMNS), 0, 1_000, 1_000)

    assert len(pickle.dumps(part)) < len(pickle.dumps(whole)) / 20
    assert len(pickle.dumps(columns)) < len(pickle.dumps(whole)) / 2
