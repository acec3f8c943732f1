"""What the chaos reader remembers, and what it calls gone."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from rayapp.chaos.memory import Memory
from rayapp.chaos.reader import Key, gone_or_changed

NOW = datetime(2026, 9, 21, tzinfo=UTC)


def key(number: int) -> Key:
    return f"aa_{number}", NOW + timedelta(seconds=number)


def looked(limit: int, looks: int, rows: int = 10) -> Memory[Key]:
    """Return a memory after so many looks at the newest rows, each half new."""
    memory: Memory[Key] = Memory(limit, random.Random(5))
    for look in range(looks):
        memory.look((key(number), number) for number in range(look * rows // 2, look * rows // 2 + rows))
    return memory


def test_a_row_seen_in_two_looks_is_counted_once() -> None:
    """Looks overlap; rows are counted by what is new in them."""
    assert looked(1_000, 20).seen == 10 + 19 * 5


def test_memory_keeps_to_its_limit_and_knows_the_value_of_what_it_keeps() -> None:
    """However long it looks."""
    memory = looked(50, 400)
    keys = memory.all()
    assert len(keys) == len(set(keys)) == 50
    assert all(memory.value(each) == int(each[0].removeprefix("aa_")) for each in keys)
    assert memory.seen == pytest.approx(10 + 399 * 5, abs=50)
    assert len(memory) == 50


def test_rows_of_the_last_minute_are_remembered_as_well_as_those_of_the_first() -> None:
    """A full memory does not stop taking in: each quarter of the run has its share."""
    memory = looked(400, 800)
    newest = 800 * 5
    shares = [sum(newest * q / 4 <= int(each[0].removeprefix("aa_")) < newest * (q + 1) / 4 for each in memory.all()) for q in range(4)]
    assert all(70 <= share <= 130 for share in shares), shares


def test_some_keys_are_no_more_than_there_are() -> None:
    """The first looks have few rows."""
    memory = looked(100, 1, rows=4)
    assert len(memory.some(100)) == 4


def test_a_row_that_is_gone_and_one_that_changed_are_found_and_the_others_are_not() -> None:
    """Rows that nobody asked for do not matter."""
    memory = looked(100, 1, rows=4)
    keys = [key(number) for number in range(4)]
    rows = [(key(0), 0), (key(1), 99), (key(3), 3), (key(77), 1)]
    found = gone_or_changed(memory, keys, rows)
    assert len(found) == 2
    assert "aa_1" in found[0]
    assert "was 1 and is 99" in found[0]
    assert "aa_2" in found[1]
    assert "is gone" in found[1]
    assert gone_or_changed(memory, keys, [(each, memory.value(each)) for each in keys]) == []
