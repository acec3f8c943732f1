"""What a replay's flags mean in offsets: never beyond the ledger, never silently less than was asked for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from builders import batch, reading

from rayapp.errors import ConfigurationError
from rayapp.reread.plan import Bound, Known, parse_bound, resolve
from rayapp.reread.run import without

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
TIME = Bound(time_us=1)
NEXT, START = Bound(word="next"), Bound(word="start")
LOG = Known(first=100, end=900, next_offset=800)


def test_bounds_as_people_write_them() -> None:
    """Digits are an offset, words are words of their own flag, everything else is a time."""
    assert Bound(offset=7) == parse_bound("--from", "7", NOW)
    assert (START, NEXT) == (parse_bound("--from", "start", NOW), parse_bound("--to", "next", NOW))
    assert Bound(time_us=(int(NOW.timestamp()) - 7_200) * 1_000_000) == parse_bound("--to", "2h", NOW)
    for flag, wrong in (("--to", "start"), ("--from", "next"), ("--from", "soon"), ("--to", "-1")):
        with pytest.raises(ConfigurationError, match=f"{flag} = {wrong}: must be"):
            parse_bound(flag, wrong, NOW)


@pytest.mark.parametrize(
    ("low", "high", "low_at", "high_at", "expected"),
    [
        (START, NEXT, {}, {}, {0: (100, 800)}),
        (Bound(offset=100), Bound(offset=800), {}, {}, {0: (100, 800)}),
        (Bound(offset=200), Bound(offset=200), {}, {}, {}),
        (TIME, TIME, {0: 300}, {0: 400}, {0: (300, 400)}),
        (TIME, TIME, {0: 300}, {0: 850}, {0: (300, 800)}),
        (TIME, TIME, {0: 300}, {0: None}, {0: (300, 800)}),
        (TIME, NEXT, {0: None}, {}, {}),
        (TIME, NEXT, {0: 850}, {}, {}),
    ],
)
def test_ranges_end_at_the_ledger(low: Bound, high: Bound, low_at: Any, high_at: Any, expected: Any) -> None:
    """The end is what was asked for or the ledger's position, whichever comes first; an empty range is none."""
    assert expected == resolve("t", low, high, {0: LOG}, low_at, high_at)


@pytest.mark.parametrize(
    ("low", "high", "known", "low_at", "words"),
    [
        (Bound(offset=40), NEXT, {0: LOG}, {}, "offsets 40..99 of t.0. are gone, the log begins at 100"),
        (Bound(offset=40), Bound(offset=60), {0: LOG}, {}, "offsets 40..59 of t.0. are gone"),
        (TIME, NEXT, {0: LOG}, {0: 100}, "what came before is gone"),
        (START, Bound(offset=801), {0: LOG}, {}, "is stored up to offset 800"),
        (START, NEXT, {0: Known(0, 700, 800)}, {}, "the ledger is at 800, the log ends at 700"),
        (Bound(offset=200), NEXT, {0: LOG, 1: LOG}, {}, "add --partition"),
        (START, Bound(offset=200), {0: LOG, 1: LOG}, {}, "add --partition"),
    ],
)
def test_what_cannot_be_read_is_named(low: Bound, high: Bound, known: Any, low_at: Any, words: str) -> None:
    """A range that the log does not hold, or that is not stored yet, is refused; nothing smaller is read instead."""
    with pytest.raises(ConfigurationError, match=words):
        resolve("t", low, high, known, low_at, {})


def test_a_log_that_never_lost_anything_may_begin_later() -> None:
    """A time before the very first record is no loss when the log begins at offset 0."""
    assert {0: (0, 5)} == resolve("t", TIME, NEXT, {0: Known(0, 5, 5)}, {0: 0}, {})


def test_conflicts_leave_the_batch_and_are_counted() -> None:
    """Rejected rows are taken out and stand under their reasons; rows and reasons still are all records."""
    left = without(batch([reading(offset) for offset in range(4)], 0, 5, dead=1), {1: "conflict", 3: "conflict"})

    assert [0, 2] == left.table["offset"].to_pylist()
    assert {"bad_value:test": 1, "conflict": 2} == left.dead_reasons
    assert left.records == left.table.num_rows + left.dead
